"""Bytes that can be read once: they lie in a socket's buffer, and nowhere after that.

For what must reach one process and leave no file, no memory file and no argument behind.
"""

from __future__ import annotations

import socket
from typing import Final

from dataplane.model.errors import ControlError, LaunchError

_CHUNK: Final = 64 * 1024
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


def read_one_shot(sock: socket.socket, limit: int) -> bytes:
    """All of it, up to its end. Raises `ControlError` where it is longer than `limit`."""
    sock.settimeout(0)  # all of it is there already: nobody is waited for
    data = b""
    try:
        while chunk := sock.recv(_CHUNK):
            data += chunk
            if len(data) > limit:
                raise ControlError(f"more than {limit} bytes were handed over")
    except OSError as error:
        raise ControlError(f"what was handed over cannot be read: {error.strerror}") from error
    return data
