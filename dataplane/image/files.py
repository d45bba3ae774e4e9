"""Files that are there whole or not at all, whatever happens meanwhile: a crash, a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

TEMPORARY: Final = ".new-"  # how the names of unfinished files and folders begin

# A file that was written to within the same tick of the kernel's clock for files looks unwritten.
SETTLED_NS: Final = 20_000_000

FileIdentity: TypeAlias = tuple[int, ...]


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


def open_plain(path: Path) -> io.BufferedReader:
    """Opens a file for reading that is one itself: no link to another place, no pipe to wait for.

    Raises OSError, which says so.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return open(fd, "rb")


def digest_of_file(path: Path) -> str:
    """The file's SHA-256, as blobs are named. Raises OSError, also for what is no plain file."""
    with open_plain(path) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock file, waiting for whoever holds it; the kernel frees it if we die. Those who
    hold it shared keep out only who wants it alone."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# --- noticing that a file is another -----------------------------------------------------------


def file_identity(path: Path) -> FileIdentity:
    """Changes whenever the file does, be it replaced or written to, and whatever a link leads to.
    Raises OSError.

    The first of it is its mode; the last is the time of its last change, which nobody but root can
    set back.
    """
    told = os.lstat(path)
    identity = _identity(told)
    if stat.S_ISLNK(told.st_mode):
        there = os.stat(path)
        return (*identity, *_identity(there), max(told.st_ctime_ns, there.st_ctime_ns))
    return identity


def _identity(told: os.stat_result) -> FileIdentity:
    return (
        told.st_mode, told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns,
    )  # fmt: skip


def file_clock() -> int:
    """The clock that the kernel stamps files with, a tick ahead of it at most."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


def is_settled(identity: FileIdentity, begun: int) -> bool:
    """Whether a later change would show: of what was read at `begun`, by the same clock."""
    return begun - identity[-1] > SETTLED_NS
