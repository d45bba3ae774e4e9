"""Waiting until something in a folder changes (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import select
from pathlib import Path
from types import TracebackType
from typing import Final

_IN_MODIFY: Final = 0x2
_IN_MOVED_TO: Final = 0x80
_IN_MOVED_FROM: Final = 0x40
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_CHANGES: Final = _IN_MODIFY | _IN_MOVED_TO | _IN_MOVED_FROM | _IN_CREATE | _IN_DELETE
_EVENTS_BYTES: Final = 64 * 1024


class FolderWatch:
    """What changes in a folder from now on. A context; mutable: what it was told already."""

    def __init__(self, folder: Path) -> None:
        """Raises `OSError`: no such folder, or no more watches for this user."""
        library = ctypes.CDLL(None, use_errno=True)
        self._fd: Final[int] = _checked(library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        try:
            _checked(library.inotify_add_watch(self._fd, os.fsencode(folder), _CHANGES))
        except OSError:
            os.close(self._fd)
            raise

    def __enter__(self) -> FolderWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def wait(self) -> None:
        """Returns once something has changed since the last call."""
        select.select([self._fd], [], [])
        os.read(self._fd, _EVENTS_BYTES)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
