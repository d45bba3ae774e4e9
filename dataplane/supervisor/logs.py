"""Access logs as the supervisor sees them: a pipe for each generation, and the process that reads.

The supervisor makes the pipes and keeps both ends, so that neither a worker's death nor the
writer's loses a line that is in one. It reads no line itself. The writer is started with the first
pipe, and anew whenever it ends.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import fcntl
import os
import signal
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import dataplane
from dataplane.control.log_words import (
    DATAGRAM_LIMIT,
    WRITING,
    PipeEnd,
    PipeOrder,
    Report,
    decode_told,
    encode_order,
)
from dataplane.model import lifecycle
from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.model.spec import AccessLogSpec
from dataplane.supervisor.events import Events
from dataplane.system.clock import Clock
from dataplane.system.fds import close_fds, send_with_fds
from dataplane.system.process import NULL, Child, bare_python, spawn
from dataplane.system.sockets import packet_pair

# What a writer that is being replaced, or a disk that hangs for a moment, may be behind.
PIPE_BYTES: Final = 1 << 20
END_SECONDS: Final = 2.0

ENVIRONMENT: Final = {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}


def writer_command(folder: Path, channel_fd: int) -> Sequence[str]:
    """The program that becomes the log writer: the host's interpreter and this package, alone."""
    installed = Path(dataplane.__file__).parents[1]
    words = (str(folder), str(channel_fd))
    return bare_python(installed, "dataplane.supervisor.log_writer", *words)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class LogPipe:
    """Mutable. A generation's pipe. write_fd: -1 once the generation has ended."""

    number: int
    app: AppName
    spec: AccessLogSpec
    read_fd: int
    write_fd: int


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Writer:
    """Mutable. One writer process, and the orders that its queue had no room for yet."""

    child: Child
    channel: socket.socket
    started_at: float
    orders: collections.deque[LogPipe] = dataclasses.field(default_factory=collections.deque)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)  # by app, as it told last


class Logs:
    """Mutable: the pipes, the writer, and how many lines were dropped by it and those before."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        events: Events,
        tasks: asyncio.TaskGroup,
        command: Callable[[Path, int], Sequence[str]] = writer_command,
    ) -> None:
        self._folder, self._clock, self._events, self._tasks = folder, clock, events, tasks
        self._command = command
        self._pipes: dict[int, LogPipe] = {}
        self._numbers = 0
        self._writer: _Writer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._deaths = 0  # as `lifecycle.count_death` counts
        self._ending = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._dropped: dict[str, int] = {}
        self._failing: set[str] = set()

    def open(self, app: AppName, spec: AccessLogSpec) -> LogPipe | None:
        """A pipe for a generation, or None where it logs nothing. Raises `LaunchError`."""
        if spec.format == "none":
            return None
        try:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise LaunchError(f"cannot make a pipe: {error.strerror}") from error
        with contextlib.suppress(OSError):  # beyond the user's share of pipe memory: a small one
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        pipe = self._keep(app, spec, read_fd, write_fd)
        if self._writer is None:
            self._start()
        else:
            self._writer.orders.append(pipe)
            self._send_orders(self._writer)
        return pipe

    def adopt(self, app: AppName, spec: AccessLogSpec, write_fd: int) -> LogPipe:
        """The pipe of a generation that a former supervisor made, which is ours then.

        Its other end is had by its name: so it has a reader again, and what is in it is written
        once `take_over` was called. Raises `LaunchError`.
        """
        try:
            if not stat.S_ISFIFO(os.fstat(write_fd).st_mode):
                raise LaunchError("the access log's descriptor is no pipe")
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            read_fd = os.open(f"/proc/self/fd/{write_fd}", flags)
        except OSError as error:
            raise LaunchError(f"cannot read the access log's pipe: {error.strerror}") from error
        return self._keep(app, spec, read_fd, write_fd)

    def take_over(self) -> None:
        """Starts a writer for what was adopted, in the place of a former supervisor's. To be called
        once all pipes are: each has its next reader then, so that no worker finds one without."""
        if self._pipes and self._writer is None:
            self._start()

    def _keep(self, app: AppName, spec: AccessLogSpec, read_fd: int, write_fd: int) -> LogPipe:
        self._numbers += 1
        pipe = LogPipe(number=self._numbers, app=app, spec=spec, read_fd=read_fd, write_fd=write_fd)
        self._pipes[pipe.number] = pipe
        self._empty.clear()
        return pipe

    def release(self, pipe: LogPipe) -> None:
        """The generation has ended. What is in its pipe still goes to its file."""
        os.close(pipe.write_fd)
        pipe.write_fd = -1

    def reopen(self) -> None:
        """Has all files opened anew, by their names."""
        if self._writer is not None:
            self._writer.child.signal(signal.SIGUSR1)
        self._events.tell("log.reopened")

    def go_on(self, app: AppName, dropped: int) -> None:
        """So many lines were dropped under former supervisors."""
        self._dropped[app] = self._dropped.get(app, 0) + dropped

    def dropped(self, app: AppName) -> int:
        """How many lines of the app were read and not written, since its counters began."""
        now = self._writer.dropped.get(app, 0) if self._writer is not None else 0
        return self._dropped.get(app, 0) + now

    async def close(self) -> None:
        """Waits, a little, until all lines of released pipes are written; then ends the writer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._empty.wait()
        self._ending = True
        if self._writer is not None:
            await self._end(self._writer)
        for pipe in self._pipes.values():
            close_fds(fd for fd in (pipe.read_fd, pipe.write_fd) if fd >= 0)
        self._pipes.clear()

    async def _end(self, writer: _Writer) -> None:
        """By closing its channel. If the disk holds it up, it goes on by itself."""
        assert self._watching is not None
        self._hang_up(writer)
        _, late = await asyncio.wait({self._watching}, timeout=END_SECONDS)
        for watching in late:
            self._events.tell("log.unfinished", pid=writer.child.pid)
            watching.cancel()

    # --- the writer ---------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            ours, theirs = packet_pair()
        except LaunchError as error:
            self._events.tell("log.no_writer", error=str(error))
            self._start_later()
            return
        try:
            child = spawn(
                self._command(self._folder, theirs.fileno()),
                environment=ENVIRONMENT,
                fds=(theirs.fileno(),),
                stdout=NULL,
            )
        except LaunchError as error:
            ours.close()
            self._events.tell("log.no_writer", error=str(error))
            self._start_later()
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        writer = _Writer(child=child, channel=ours, started_at=self._clock.monotonic())
        self._writer = writer
        self._events.tell("log.writer_started", pid=child.pid)
        writer.orders.extend(self._pipes.values())
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear, writer)
        self._send_orders(writer)
        self._watching = self._tasks.create_task(self._watch_writer(writer))

    def _send_orders(self, writer: _Writer) -> None:
        loop = asyncio.get_running_loop()
        while writer.orders:
            pipe = writer.orders[0]
            order = PipeOrder(pipe.number, pipe.app, pipe.spec.rotate_bytes, pipe.spec.keep)
            try:
                send_with_fds(writer.channel, encode_order(order), (pipe.read_fd,))
            except BlockingIOError:
                loop.add_writer(writer.channel.fileno(), self._send_orders, writer)
                return
            except OSError:
                break  # it has ended: the next one gets all of them
            writer.orders.popleft()
        loop.remove_writer(writer.channel.fileno())

    async def _watch_writer(self, writer: _Writer) -> None:
        status = await writer.child.wait()
        self._hang_up(writer)
        writer.child.close()
        for app, dropped in writer.dropped.items():
            self._dropped[app] = self._dropped.get(app, 0) + dropped
        self._writer = None
        if self._ending:
            return
        self._events.tell("log.writer_ended", pid=writer.child.pid, status=status)
        lived = self._clock.monotonic() - writer.started_at
        self._deaths = lifecycle.count_death(self._deaths, lived)
        self._start_later()

    def _start_later(self) -> None:
        seconds = lifecycle.pause_before_restart(max(1, self._deaths))
        asyncio.get_running_loop().call_later(seconds, self._start_again)

    def _start_again(self) -> None:
        if not self._ending and self._writer is None and self._pipes:
            self._start()

    def _hang_up(self, writer: _Writer) -> None:
        if writer.channel.fileno() >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(writer.channel.fileno())
            loop.remove_writer(writer.channel.fileno())
            writer.channel.close()

    # --- what it tells ------------------------------------------------------------------------

    def _hear(self, writer: _Writer) -> None:
        while writer.channel.fileno() >= 0:
            try:
                datagram = writer.channel.recv(DATAGRAM_LIMIT)
                told = decode_told(datagram) if datagram else None
            except BlockingIOError:
                return
            except (OSError, ValueError):
                told = None
            if told is None:  # its end, which its pidfd tells, or nothing that can be understood
                self._hang_up(writer)
                writer.child.signal(signal.SIGKILL)
                return
            if isinstance(told, PipeEnd):
                self._ended(told.number)
            else:
                self._note(writer, told)

    def _ended(self, number: int) -> None:
        pipe = self._pipes.pop(number, None)
        if pipe is not None:
            close_fds(fd for fd in (pipe.read_fd, pipe.write_fd) if fd >= 0)
        if not self._pipes:
            self._empty.set()

    def _note(self, writer: _Writer, report: Report) -> None:
        writer.dropped[report.app] = report.dropped
        dropped = self.dropped(AppName(report.app))
        if report.state != WRITING and report.app not in self._failing:
            self._failing.add(report.app)
            self._events.tell("log.failing", app=report.app, error=report.state, dropped=dropped)
        elif report.state == WRITING and report.app in self._failing:
            self._failing.discard(report.app)
            self._events.tell("log.resumed", app=report.app, dropped=dropped)
