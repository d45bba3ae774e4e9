"""Memory that is given back to the kernel without anybody noticing."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from dataplane.system.libc import madvise, mallopt

_MADV_DONTNEED: Final = 4
_M_MMAP_THRESHOLD: Final = -3
_OWN_MAPPING: Final = 128 * 1024  # bytes: what the C library begins with


def give_back_empty_pages(held: object) -> int:
    """Gives back the pages inside an object that hold nothing but zeros; returns how many bytes.

    They read as zeros ever after, so nothing changes for the object: private memory that was given
    back is filled with zeros at its next use. For objects that reserve much and use little.
    """
    page = mmap.PAGESIZE
    start = -(-id(held) // page) * page
    end = (id(held) + type(held).__basicsize__) // page * page
    if start >= end:
        return 0
    content = ctypes.string_at(start, end - start)
    empty = bytes(page)
    given, at = 0, content.find(empty)
    while at >= 0:
        used = len(content) - len(content[at:].lstrip(b"\0"))
        first, last = -(-at // page) * page, used // page * page
        if first < last:
            madvise(start + first, last - first, _MADV_DONTNEED)
            given += last - first
        at = content.find(empty, used)
    return given


def keep_large_apart() -> None:
    """What is large gets a mapping of its own, always, whose pages cost nothing until their use.

    By itself the C library would learn from the first of them that is freed to take the next from
    its heap, and write zeros to where it was used before.
    """
    mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)
