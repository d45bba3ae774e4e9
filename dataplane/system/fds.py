"""Descriptors: closing all but the named ones, and sending them beside a datagram (SCM_RIGHTS).

Every descriptor that arrives here is close-on-exec, and one that was cut off by the kernel
(MSG_CTRUNC) is always told: a caller must never believe to have what it has not.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from dataplane.system.libc import syscall

# unix(7): SCM_MAX_FD. A message with more is refused by the kernel (EINVAL).
FDS_LIMIT: Final = 253

_CLOSE_RANGE: Final = 436
_MACHINES: Final = ("x86_64", "aarch64")
_INT_BYTES: Final = array("i").itemsize
_LAST: Final = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One datagram and the descriptors that came with it, which are the receiver's now."""

    data: bytes
    fds: tuple[int, ...]
    truncated: bool  # data or descriptors were cut: what is here must not be used

    def close_fds(self) -> None:
        """Closes the descriptors of a packet that is not taken."""
        close_fds(self.fds)


def close_fds(fds: Iterable[int]) -> None:
    """Closes each; one that is closed already is an error in the caller and raises."""
    for fd in fds:
        os.close(fd)


def close_all_but(keep: Iterable[int]) -> None:
    """Closes every descriptor of this process that is not in `keep`."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            _close_range(first, fd - 1)
        first = fd + 1
    _close_range(first, _LAST)


def send_with_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Sends one datagram whole. Raises `BlockingIOError` where it would have to wait."""
    if not fds:
        sock.send(data, socket.MSG_NOSIGNAL)
        return
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))
    sock.sendmsg([data], [rights], socket.MSG_NOSIGNAL)


def receive_with_fds(sock: socket.socket, limit: int) -> Packet | None:
    """The next datagram, or None at end-of-file. Raises `BlockingIOError` if there is none yet."""
    data, ancillary, flags, _ = sock.recvmsg(
        limit, socket.CMSG_SPACE(FDS_LIMIT * _INT_BYTES), socket.MSG_CMSG_CLOEXEC
    )
    fds = array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _INT_BYTES])
    if not data and not fds and not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        return None
    truncated = bool(flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC))
    return Packet(data=data, fds=tuple(fds), truncated=truncated)


def _close_range(first: int, last: int) -> None:
    if _kernel_close_range(first, last):
        return
    # An old kernel (before 5.9): one by one, as the process's own list tells.
    for name in os.listdir("/proc/self/fd"):
        if first <= int(name) <= last:
            try:
                os.close(int(name))
            except OSError:
                pass  # the list's own descriptor


def _kernel_close_range(first: int, last: int) -> bool:
    if os.uname().machine not in _MACHINES:
        return False
    try:
        syscall(_CLOSE_RANGE, first, last, 0)
    except OSError:
        return False
    return True
