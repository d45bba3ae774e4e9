"""Bytes that lie in a socket's buffer, and nowhere else: for whoever holds its end, and no other.

For what must reach one process and leave no file, no memory file and no argument behind. Nobody
reads them, so that whoever is passed the socket later finds them as well.
"""

from __future__ import annotations

import select
import socket
from typing import Final

from dataplane.model.errors import ControlError, LaunchError

# The kernel counts its own bookkeeping as well: this holds the 128 KB that inputs may have.
_BUFFER_BYTES: Final = 1024 * 1024


def one_shot(data: bytes) -> int:
    """The descriptor of a stream that holds `data` and then ends. Raises `LaunchError`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        ours.setblocking(False)
        try:
            sent = ours.send(data)
        except OSError as error:
            raise LaunchError(f"cannot hand over inputs: {error.strerror}") from error
        if sent != len(data):
            raise LaunchError(f"cannot hand over {len(data)} bytes at once, only {sent}")
        return theirs.detach()


def look_into(sock: socket.socket, limit: int) -> bytes:
    """All of it, which stays there. Raises `ControlError` where it is longer than `limit`."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    if not poll.poll(0):  # all of it is there already: nobody is waited for
        raise ControlError("what was handed over cannot be read: it has no end")
    try:
        data = sock.recv(limit + 1, socket.MSG_PEEK)
    except OSError as error:
        raise ControlError(f"what was handed over cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ControlError(f"more than {limit} bytes were handed over")
    return data
