"""The log writer: one small process that moves access log lines from pipes to files.

It reads the pipes of all apps' generations, appends to `FOLDER/APP/access.log`, and outlives the
supervisor: without one it goes on until no worker holds a pipe any more, or until the next
supervisor's writer is to take its place (`log_turn.py`: by SIGUSR2, which counts once its own
supervisor is gone). It is told what to read over its channel (`control/log_words.py`); SIGUSR1 has
it open its files anew, and no other signal ends it but SIGKILL. What it holds can be lost then, so
it holds nothing: each read takes all that is in a pipe, which is whole lines, and goes to the file
at once.

It loads next to nothing, since it is there for as long as anything is logged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time

from dataplane.control.log_words import (
    DATAGRAM_LIMIT,
    WRITING,
    PipeEnd,
    PipeOrder,
    Report,
    decode_order,
    encode_told,
)
from dataplane.supervisor.log_file import LogFile
from dataplane.supervisor.log_turn import GO, take_turn

# After the first line the pipes fill for a moment: so a busy worker's write wakes nobody.
GATHER_MS = 10
REPORT_SECONDS = 1.0
PIPE_BYTES_LEAST = 1 << 16
NAME = b"dp:log"


class _Pipe:
    """A generation's pipe and the file of its app."""

    __slots__ = ("app", "fd", "file", "number")

    def __init__(self, number: int, app: str, fd: int, file: LogFile) -> None:
        self.number = number
        self.app = app
        self.fd = fd
        self.file = file


class LogWriter:
    """Mutable: pipes by descriptor, files by app, and what was reported last."""

    def __init__(self, folder: str, channel: socket.socket, bell: int) -> None:
        """`bell`: a descriptor that is readable once the files are to be opened anew."""
        self._folder = folder
        self._channel: socket.socket | None = channel
        self._bell = bell
        self._pipes: dict[int, _Pipe] = {}
        self._files: dict[str, LogFile] = {}
        self._reported: dict[str, tuple[int, str, float]] = {}  # dropped, state, when
        self._buffer = bytearray(PIPE_BYTES_LEAST)
        self._let_go = False  # another writer waits to take these pipes over
        self._all = select.poll()
        self._orders = select.poll()  # what need not wait for lines to gather
        for fd in (channel.fileno(), bell):
            self._all.register(fd, select.POLLIN)
            self._orders.register(fd, select.POLLIN)

    def run(self) -> None:
        """Until there is no supervisor and no pipe, or another writer takes over."""
        while self._channel is not None or (self._pipes and not self._let_go):
            ready = [fd for fd, _ in self._all.poll()]
            if any(fd in self._pipes for fd in ready):
                ready += [fd for fd, _ in self._orders.poll(GATHER_MS) if fd not in ready]
            for fd in ready:
                if fd == self._bell:
                    self._heed()
                elif fd in self._pipes:
                    self._drain(self._pipes[fd])
                elif self._channel is not None and fd == self._channel.fileno():
                    self._take(self._channel)

    def _heed(self) -> None:
        """The bell has the numbers of the signals that came (signal.set_wakeup_fd)."""
        came = os.read(self._bell, 4096)
        if GO in came:
            self._let_go = True
        if signal.SIGUSR1 in came:
            for file in self._files.values():
                file.reopen()

    # --- orders -------------------------------------------------------------------------------

    def _take(self, channel: socket.socket) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(
                channel, DATAGRAM_LIMIT, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, fds, flags = b"", [], 0
        if not data:
            self._all.unregister(channel)
            self._orders.unregister(channel)
            channel.close()
            self._channel = None
            return
        try:
            if len(fds) != 1 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("not an order of this protocol")
            self._open(decode_order(data), fds[0])
        except ValueError:
            for fd in fds:
                os.close(fd)

    def _open(self, order: PipeOrder, fd: int) -> None:
        file = self._files.get(order.app)
        if file is None:
            file = LogFile(f"{self._folder}/{order.app}", order.rotate_bytes, order.keep)
            self._files[order.app] = file
        file.rotate_bytes, file.keep = order.rotate_bytes, order.keep
        capacity = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
        if capacity > len(self._buffer):  # pages that no read reaches are never touched
            self._buffer = bytearray(capacity)
        self._pipes[fd] = _Pipe(order.number, order.app, fd, file)
        self._all.register(fd, select.POLLIN)

    # --- lines --------------------------------------------------------------------------------

    def _drain(self, pipe: _Pipe) -> None:
        """All that is in the pipe now: whole lines, as workers write nothing else."""
        try:
            length = os.readv(pipe.fd, [self._buffer])
        except BlockingIOError:
            return
        if length == 0:
            self._close(pipe)
            return
        end = self._buffer.rfind(b"\n", 0, length) + 1
        pipe.file.append(self._buffer, end)
        if end < length:  # no line of ours
            pipe.file.dropped += 1
        self._report(pipe.app, pipe.file)

    def _close(self, pipe: _Pipe) -> None:
        self._all.unregister(pipe.fd)
        os.close(pipe.fd)
        del self._pipes[pipe.fd]
        if not any(other.app == pipe.app for other in self._pipes.values()):
            pipe.file.reopen()
        self._report(pipe.app, pipe.file, now=True)
        self._tell(encode_told(PipeEnd(pipe.number)))

    def _report(self, app: str, file: LogFile, *, now: bool = False) -> None:
        """At once if the state changed, else now and then while lines are dropped."""
        state = file.error or WRITING
        dropped, before, at = self._reported.get(app, (0, WRITING, 0.0))
        due = time.monotonic() - at >= REPORT_SECONDS
        if state != before or (file.dropped != dropped and (due or now)):
            self._reported[app] = (file.dropped, state, time.monotonic())
            self._tell(encode_told(Report(app, file.written, file.dropped, state)))

    def _tell(self, told: bytes) -> None:
        """A supervisor that does not listen is not waited for."""
        if self._channel is None:
            return
        try:
            self._channel.send(told, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPIPE, errno.ECONNRESET):
                raise


def main() -> None:
    """The whole process: `... main() FOLDER CHANNEL_FD`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    bell, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    for number in (signal.SIGUSR1, GO):
        signal.signal(number, lambda *_: None)
    with open("/proc/self/comm", "wb") as comm:
        comm.write(NAME)
    channel = socket.socket(fileno=int(sys.argv[2]))
    channel.setblocking(False)
    if take_turn(sys.argv[1], channel):
        LogWriter(sys.argv[1], channel, bell).run()
