"""Whether the files that a process has mapped are still those on disk.

A package that is replaced (libssl, the interpreter) leaves old processes on the old files, so a
fork of a zygote would keep a hole open that the host has closed. What is compared is each file now
with the same path when the process had just started; only a replacement in between those two, while
it was loading its libraries, goes unnoticed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeAlias

_FIELDS_BEFORE_PATH: Final = 5

_Identity: TypeAlias = tuple[int, int, int, int] | None  # None: there is no such file


class MappedFiles:
    """The files that were mapped when this was made: of this process, or of another of ours.

    Raises OSError for one that is gone.
    """

    def __init__(self, maps: Path = Path("/proc/self/maps")) -> None:
        self._known = {path: _identity(path) for path in _mapped(maps)}

    def changed(self) -> tuple[str, ...]:
        """The paths where another file is now, or none, or the same with other content."""
        return tuple(path for path, known in self._known.items() if _identity(path) != known)


def _mapped(maps: Path) -> list[str]:
    found: dict[str, None] = {}
    for line in maps.read_text(errors="surrogateescape").splitlines():
        words = line.split(maxsplit=_FIELDS_BEFORE_PATH)
        if len(words) > _FIELDS_BEFORE_PATH and words[-1].startswith("/"):
            found[words[-1]] = None
    return list(found)


def _identity(path: str) -> _Identity:
    try:
        told = os.stat(path)
    except OSError:
        return None
    return (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)
