"""One log writer at a time: a lock on a file beside the logs, which ends with who holds it.

A writer outlives its supervisor. The next supervisor's own would rotate the same files beside it:
so, once it is ready to take over, it asks the former to go, and touches nothing before that has
gone. Lines wait in their pipes meanwhile.

The kernel names the lock's holder, so no number of a process that is long gone is believed. It
loads next to nothing, since the writer does.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct

NAME = "writer.lock"
# struct flock of fcntl(2), as on every 64-bit Linux: type, whence, start, len, pid.
_FLOCK = struct.Struct("hhqqi4x")
# To a writer without a supervisor: go, once what you read is written.
GO = signal.SIGUSR2


def take_turn(folder: str, channel: socket.socket) -> bool:
    """Waits until no other process writes these logs. On a disk that takes no file, at once.

    False: another has the turn, and nobody is left at `channel` who wants this one to.
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(f"{folder}/{NAME}", flags, 0o600)
        while not _taken(lock):
            if _is_cut(channel):
                os.close(lock)
                return False
            _see_off(lock)
    except OSError:
        pass
    return True


def _is_cut(channel: socket.socket) -> bool:
    """Whether nobody is at its other end, whatever was said before."""
    poll = select.poll()
    poll.register(channel, 0)  # a hang-up is told unasked
    return bool(poll.poll(0))


def _taken(lock: int) -> bool:
    """It is held until the process ends."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # fcntl(2): either is said of a lock that is held
        return False
    return True


def _see_off(lock: int) -> None:
    """Asks whoever holds the lock to go, and waits until it has gone."""
    pid = _holder(lock)
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _holder(lock) == pid:  # else it has gone, and the number may be a stranger's
            signal.pidfd_send_signal(pidfd, GO)
            gone = select.poll()
            gone.register(pidfd, select.POLLIN)
            gone.poll()
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def _holder(lock: int) -> int | None:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK or pid <= 0 else pid
