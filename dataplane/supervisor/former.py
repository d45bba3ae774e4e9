"""Workers of a former supervisor, found by their control sockets: who they are, and ending them.

They serve on by themselves. Until they can be adopted they are only told of, and ended by `down`.
Blocking, for who has no loop; every wait has an end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dataplane.control.messages import (
    MESSAGE_LIMIT,
    Ask,
    Drain,
    End,
    Identity,
    Message,
    decode_message,
    encode_message,
)
from dataplane.model.errors import DataplaneError
from dataplane.system.fds import close_fds, receive_with_fds, send_with_fds
from dataplane.system.process import signal_pidfd
from dataplane.system.sockets import connect_packet_socket, peer_credentials

ANSWER_SECONDS: Final = 2.0
DRAIN_SECONDS: Final = 30.0  # the default of `drain.deadline`: the image's own is not known here
END_SECONDS: Final = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """A living worker that has no supervisor. identity: None if it does not answer."""

    path: Path
    pid: int
    app: str
    generation: int
    identity: Identity | None


def find_former(workers_dir: Path) -> tuple[Former, ...]:
    """Every living worker; socket files that nobody listens on are removed."""
    found = []
    for path in sorted(workers_dir.glob("*.sock")):
        former = _ask(path)
        if former is None:
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            found.append(former)
    return tuple(found)


def end_former(workers: Iterable[Former], drain_seconds: float = DRAIN_SECONDS) -> None:
    """Drains them all, cuts what is left at the deadline, and kills who does not go by itself."""
    living: dict[int, Former] = {}  # by pidfd
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            living[os.pidfd_open(worker.pid)] = worker
    steps: tuple[tuple[Message | None, float], ...] = (
        (Drain(deadline_ms=int(drain_seconds * 1000)), drain_seconds + END_SECONDS),
        (End(), END_SECONDS),
        (None, END_SECONDS),
    )
    with contextlib.ExitStack() as connections:
        for message, seconds in steps:
            for pidfd, worker in living.items():
                if message is None:
                    signal_pidfd(pidfd, signal.SIGKILL)
                else:
                    _tell(worker, message, connections)
            _wait(living, seconds)
    for pidfd in living:
        os.close(pidfd)


def _ask(path: Path) -> Former | None:
    """None where nobody listens any more."""
    app, _, numbers = path.name.partition(".")
    generation = numbers.partition(".")[0]
    try:
        sock = connect_packet_socket(path)
    except DataplaneError:
        return None
    with sock:
        identity = None
        pid = peer_credentials(sock)[0]
        with contextlib.suppress(OSError, DataplaneError):
            send_with_fds(sock, encode_message(Ask()), ())
            if select.select([sock], [], [], ANSWER_SECONDS)[0]:
                packet = receive_with_fds(sock, MESSAGE_LIMIT)
                if packet is not None:
                    close_fds(packet.fds)
                    answer = decode_message(packet.data)
                    identity = answer if isinstance(answer, Identity) else None
        number = int(generation) if generation.isdigit() else 0
        return Former(path=path, pid=pid, app=app, generation=number, identity=identity)


def _tell(worker: Former, message: Message, connections: contextlib.ExitStack) -> None:
    """The connection stays open, or the worker would take us for another that died."""
    with contextlib.suppress(OSError, DataplaneError):
        sock = connections.enter_context(connect_packet_socket(worker.path))
        send_with_fds(sock, encode_message(Ask()), ())
        send_with_fds(sock, encode_message(message), ())


def _wait(living: dict[int, Former], seconds: float) -> None:
    """Until all have ended, or the time is over. Who has ended is taken out, its file removed."""
    deadline = time.monotonic() + seconds
    while living:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        ended, _, _ = select.select(list(living), [], [], left)
        for pidfd in ended:
            worker = living.pop(pidfd)
            os.close(pidfd)
            with contextlib.suppress(OSError):
                worker.path.unlink()
