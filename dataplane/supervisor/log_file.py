"""One app's access log on disk: whole lines appended, set aside by size, made anew by name.

Used by the log writer alone, so it loads next to nothing. What the disk does not take is dropped
and counted, and a line that was taken in part is taken back: readers see whole lines. The file is
looked up by its name before each batch: one that somebody moved or removed is followed by a new
one.
"""

from __future__ import annotations

import errno
import fcntl
import os

FILE_MODE = 0o640
FOLDER_MODE = 0o700
NAME = "access.log"
LINE_BYTES = 4096  # the longest line: what a killed writer may have left torn is shorter


class LogFile:
    """Mutable: the open file, and what became of lines so far. Files set aside are NAME.1 to .N."""

    def __init__(self, folder: str, rotate_bytes: int, keep: int) -> None:
        self.path = f"{folder}/{NAME}"
        self.rotate_bytes = rotate_bytes
        self.keep = keep
        self.written = 0  # lines
        self.dropped = 0
        self.error: str | None = None  # why the last lines were not written, as errno names it
        self._folder = folder
        self._fd = -1

    def append(self, lines: bytearray | bytes, length: int) -> None:
        """Writes the first `length` bytes, which are whole lines. Never raises."""
        at = 0
        try:
            while at < length:
                size = self._ready()
                end = self._fitting(lines, at, length, size)
                if end == at:
                    self._set_aside()
                else:
                    at = self._write(lines, at, end)
            self.error = None
        except OSError as error:
            self.error = errno.errorcode.get(error.errno or 0, "EIO")
            self.dropped += lines.count(b"\n", at, length)

    def reopen(self) -> None:
        """Closes the file; the next lines go to one of that name, new if need be."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ready(self) -> int:
        """Has the file of that name open; returns its size."""
        if self._fd >= 0:
            held = os.fstat(self._fd)
            if _identity(self.path) == (held.st_dev, held.st_ino):
                return held.st_size
            self.reopen()
        os.makedirs(self._folder, FOLDER_MODE, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, FILE_MODE)
        self._repair()
        return os.fstat(self._fd).st_size

    def _repair(self) -> None:
        """Takes back a line that a killed writer left torn, unless another one is at work here."""
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n" and self._locked(fcntl.LOCK_EX):
            begin = max(0, size - LINE_BYTES)
            end = os.pread(self._fd, LINE_BYTES, begin).rfind(b"\n")
            if end < 0 and begin > 0:
                os.write(self._fd, b"\n")  # no line of ours: what is there stays
            else:
                os.ftruncate(self._fd, begin + end + 1)
                self.dropped += 1
        self._locked(fcntl.LOCK_SH)

    def _locked(self, kind: int) -> bool:
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _fitting(self, lines: bytearray | bytes, at: int, length: int, size: int) -> int:
        """Where the lines end that still fit into the file; `at`: none does, set it aside first."""
        room = self.rotate_bytes - size
        if length - at <= room:
            return length
        end = lines.rfind(b"\n", at, at + max(0, room)) + 1
        if end > at:
            return end
        return at if size > 0 else lines.index(b"\n", at, length) + 1

    def _write(self, lines: bytearray | bytes, at: int, end: int) -> int:
        """Returns how far it got, in whole lines. Raises `OSError` where not one was taken."""
        with memoryview(lines) as all_lines, all_lines[at:end] as some:
            put = os.write(self._fd, some)
        whole = end
        if put < end - at:
            whole = max(at, lines.rfind(b"\n", at, at + put) + 1)
            if torn := at + put - whole:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - torn)
            if whole == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += lines.count(b"\n", at, whole)
        return whole

    def _set_aside(self) -> None:
        for number in range(self.keep, 1, -1):
            try:
                os.rename(f"{self.path}.{number - 1}", f"{self.path}.{number}")
            except FileNotFoundError:
                pass  # there are not that many yet
        os.rename(self.path, f"{self.path}.1")
        self.reopen()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        told = os.stat(path)
    except FileNotFoundError:
        return None
    return told.st_dev, told.st_ino
