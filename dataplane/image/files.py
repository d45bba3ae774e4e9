"""Files that are there whole or not at all, whatever happens meanwhile: a crash, a full disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".new-"  # how the names of unfinished files and folders begin


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Makes or replaces the file; when this returns, it survives a crash. Raises OSError, and then
    leaves what was there before and nothing beside it."""
    fd, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the folder's entries survive a crash."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file, waiting for whoever holds it; the kernel frees it if we die."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
