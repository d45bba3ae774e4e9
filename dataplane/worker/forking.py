"""The zygote at work: everything is imported, and it only forks workers.

It owns no event loop and no thread, opens no connection and draws no secret, because all of that
would be shared by every worker. It is its workers' parent, so it reaps them and tells their exit
status; when its channel ends it ends too, and they live on.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - asked for by name at a first connect, when no file can be read
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Final, NoReturn

import dataplane
from dataplane.control import messages
from dataplane.control.channel import BlockingChannel, Envelope
from dataplane.engine.common import CommonMemory
from dataplane.engine.engine import ABI
from dataplane.model.errors import ControlError
from dataplane.system.fds import close_all_but, close_fds
from dataplane.system.mapped import MappedFiles
from dataplane.system.process import set_name
from dataplane.system.sandbox import Layer, Sandbox
from dataplane.worker import main as worker
from dataplane.worker.birth import Birth, birth
from dataplane.worker.rehearsal import rehearse

STANDARD_FDS: Final = (0, 1, 2)
# What a terminal, a service manager or a person may send to a whole group. Supervisors end workers
# over their channels; a worker takes no signal that changes it, and inherits this.
IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STALE_NAMED: Final = 8  # files: the message is to stay short
CRASHED: Final = 70  # a worker whose own code failed where nothing was left to report it


def main(tree: str, channel_fd: int) -> NoReturn:
    """The rest of the process, from its channel to the supervisor on."""
    set_name("dp:zygote")
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    close_all_but((*STANDARD_FDS, channel_fd))
    channel = BlockingChannel(socket.socket(fileno=channel_fd))
    sandbox = Sandbox()
    # Here, for all workers: their event loops would open a ring, which evades every later filter.
    layers = (sandbox.hide_io_uring(),)
    rehearse()
    try:
        zygote = _Zygote(channel, sandbox, layers)
        zygote.share_memory()
        zygote.run(tree)
    except ControlError as error:
        print(f"zygote.failed error={error!s}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


class _Zygote:
    """Its channel and its living workers. Mutable: the latter."""

    def __init__(
        self, channel: BlockingChannel, sandbox: Sandbox, layers: tuple[Layer, ...]
    ) -> None:
        self._channel = channel
        self._sandbox = sandbox
        self._layers = layers
        self._mapped = MappedFiles()
        self._poll = select.poll()
        self._workers: dict[int, int] = {}  # pidfd: pid
        self._common: CommonMemory | None = None

    def share_memory(self) -> None:
        """All of it, with what every worker is born from. Without it workers are only larger."""
        try:
            self._common = CommonMemory()
        except OSError as error:
            print(f"zygote.memory_not_shared error={error!s}", file=sys.stderr, flush=True)

    def run(self, tree: str) -> None:
        """Forks and reaps until the channel ends. Raises `ControlError` where it breaks."""
        self._channel.send(
            messages.ZygoteHello(pid=os.getpid(), code=dataplane.__version__, tree=tree, abi=ABI)
        )
        self._poll.register(self._channel.fileno(), select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._channel.fileno():
                    self._reap(fd)
                    continue
                envelope = self._channel.receive()
                if envelope is None:
                    return
                self._take(envelope)

    def _take(self, envelope: Envelope) -> None:
        order = envelope.message
        try:
            if not isinstance(order, messages.Fork):
                raise ControlError(f"{type(order).__name__} is nothing for a zygote")
            changed = self._mapped.changed()
            if changed:
                told = changed[:STALE_NAMED]
                self._channel.send(messages.Stale(request=order.request, files=told))
                return
            try:
                self._fork(birth(order, envelope.fds, time.monotonic()))
            except (ControlError, OSError) as error:
                self._channel.send(messages.ForkFailed(request=order.request, error=str(error)))
        finally:
            envelope.close_fds()

    def _fork(self, born: Birth) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()  # noqa: TID251 - this is the zygote: no loop, no thread
        if pid == 0:
            _live(born, self._sandbox, self._layers, self._common)
        pidfd = os.pidfd_open(pid)  # not reaped before we do it: this is our child for sure
        self._workers[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._channel.send(messages.Forked(request=born.fork.request, pid=pid), (pidfd,))

    def _reap(self, pidfd: int) -> None:
        pid = self._workers.pop(pidfd)
        self._poll.unregister(pidfd)
        close_fds((pidfd,))
        _, status = os.waitpid(pid, 0)
        self._channel.send(messages.Exited(pid=pid, status=status))


def _live(
    born: Birth, sandbox: Sandbox, layers: tuple[Layer, ...], common: CommonMemory | None
) -> NoReturn:
    """In the child: never returns into the zygote's code, whatever happens."""
    status = CRASHED
    try:
        close_all_but((*STANDARD_FDS, *born.fds))
        status = worker.live(born, sandbox, layers, common)
    except BaseException:  # noqa: BLE001 - a process's top: what is left is to say it and to end
        traceback.print_exc()
    finally:
        os._exit(status)
