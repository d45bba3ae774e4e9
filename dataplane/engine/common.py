"""Memory that a zygote and its workers have in common, kept in common.

Forked processes share a page until one of them writes to it, and Python writes to whatever it looks
at: it counts references. Most of that cancels itself out, so a worker that has just started has
hundreds of pages of its own whose content is the zygote's. Therefore the zygote's memory becomes a
sealed memory file, mapped privately where it was, and a worker gives back each page that holds what
the file says: it is the file's page again, until the next write. Nothing changes for who reads.

No other thread may run in either process.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Final

from dataplane.engine._native import ffi, lib
from dataplane.system.memfd import new_memfd, seal_memfd

# Bytes. Less is not worth a mapping of its own, and what the C library of threads and errno keeps
# lies in the small ones; more is address space that was reserved.
SMALLEST: Final = 128 * 1024
LARGEST: Final = 16 * 1024 * 1024

# Bytes: obmalloc gives what is larger to the C library, which looks for it in larger steps.
_LARGEST_OBJECT: Final = 512
_LARGEST_CHUNK: Final = 2048

PAGEMAP: Final = "/proc/self/pagemap"
_FIELDS_BEFORE_PATH: Final = 5
_NO_NAME: Final = "[anon]"
_TAKEN: Final = ("/", "[heap", "[anon")  # but no stack: it is in use


class CommonMemory:
    """The memory of the process that makes it, as it is then. Made once, before any fork."""

    def __init__(self, maps: Path = Path("/proc/self/maps")) -> None:
        """Raises OSError where the kernel refuses; memory that was not moved is as it was."""
        found = _areas(maps)
        self._areas: Final[Any] = ffi.new("dp_memory_area[]", len(found))
        self._count: Final = len(found)
        self._given: Final[Any] = ffi.new("uint64_t *")
        base = ffi.new("const uint8_t **")
        size = 0
        for area, (start, length) in zip(self._areas, found, strict=True):
            area.start, area.len, area.offset = start, length, size
            size += length
        fd = new_memfd("zygote")
        try:
            os.ftruncate(fd, size)
            # One call for all: between two of them Python would write to what was copied.
            result = lib.dp_memory_share(self._areas, self._count, fd)
            self.shared: Final[int] = sum(area.len for area in self._areas)
            seal_memfd(fd)
            if result == lib.DP_OK:
                result = lib.dp_memory_map(fd, size, base)
            if result != lib.DP_OK:
                raise OSError(ffi.errno, os.strerror(ffi.errno))
        finally:
            os.close(fd)
        self._base: Final[Any] = base[0]

    def give_back(self, pagemap: int) -> int:
        """Of a process that was forked since: how many bytes are common again.

        `pagemap` is the caller's own, of `open_pagemap`. Raises OSError.
        """
        result = lib.dp_memory_give_back(self._areas, self._count, self._base, pagemap, self._given)
        if result != lib.DP_OK:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        return int(self._given[0])


def fill_gaps() -> None:
    """Takes for good what free room there is between this process's objects, Python's and C's.

    Whoever is forked from it makes its own objects side by side in new pages, instead of one here
    and one there in pages that it would otherwise share.
    """
    for allocate, largest in (
        (ctypes.pythonapi.PyObject_Malloc, _LARGEST_OBJECT),
        (ctypes.pythonapi.PyMem_RawMalloc, _LARGEST_CHUNK),
    ):
        address = ctypes.cast(allocate, ctypes.c_void_p).value
        lib.dp_memory_fill(ffi.cast("void *(*)(size_t)", address), largest)


def open_pagemap() -> int:
    """A descriptor by which this process tells its own pages. A sealed one cannot open it."""
    return os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)


def _areas(maps: Path) -> list[tuple[int, int]]:
    """Start and length of what may be written to and is nobody else's: heaps, libraries' data."""
    found = []
    for line in maps.read_text(errors="surrogateescape").splitlines():
        words = line.split(maxsplit=_FIELDS_BEFORE_PATH)
        name = words[_FIELDS_BEFORE_PATH] if len(words) > _FIELDS_BEFORE_PATH else _NO_NAME
        if words[1] != "rw-p" or not name.startswith(_TAKEN):
            continue
        start, end = (int(word, 16) for word in words[0].split("-"))
        if SMALLEST <= end - start <= LARGEST:
            found.append((start, end - start))
    return found
