"""Memory files: sealed ones that can never change again, and pages that two processes share.

A sealed memfd has no name in any file system; whoever holds it can read it, and nobody, its maker
included, can change its bytes or its size.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

from dataplane.model.errors import ControlError

SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
# Nothing that travels in a memory file is larger: an image's spec has some kilobytes.
SIZE_LIMIT: Final = 16 * 1024 * 1024
# Of what is mapped by several, little of which is ever touched.
SHARED_LIMIT: Final = 1024 * 1024 * 1024

_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3


def new_memfd(name: str) -> int:
    """A descriptor of an empty memory file, for whoever fills it and then seals it."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create(name, flags)  # a kernel that does not know the flag: EINVAL


def sealed_memfd(name: str, data: bytes) -> int:
    """A descriptor of a memory file that holds `data` and can no longer be changed."""
    fd = new_memfd(name)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        seal_memfd(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal_memfd(fd: int) -> None:
    """Fixes content and size of a memory file for good."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def shared_memfd(name: str, size: int) -> int:
    """A descriptor of `size` zero bytes to be mapped by several; its size is fixed for good."""
    fd = new_memfd(name)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS & ~fcntl.F_SEAL_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_sealed(fd: int) -> bytes:
    """All of a sealed memory file. Raises `ControlError` for one that could still change."""
    if (seals := _seals(fd)) != SEALS:
        raise ControlError(f"a memory file that is not sealed: {seals:#x}")
    return os.pread(fd, _size(fd, SIZE_LIMIT), 0)


def shared_size(fd: int) -> int:
    """The size of a memory file that is shared, in bytes, once it is known to be fixed for good.

    Raises `ControlError` for one that could shrink under who maps it.
    """
    if (seals := _seals(fd)) != SEALS & ~fcntl.F_SEAL_WRITE:
        raise ControlError(f"a shared memory file with other seals: {seals:#x}")
    return _size(fd, SHARED_LIMIT)


def _seals(fd: int) -> int:
    """Which of ours are on it. Raises `ControlError` for what is no memory file."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS
    except OSError as error:
        raise ControlError(f"not a memory file: {error.strerror}") from error


def _size(fd: int, limit: int) -> int:
    size = os.fstat(fd).st_size
    if size > limit:
        raise ControlError(f"a memory file of {size} bytes, at most {limit} are taken")
    return size
