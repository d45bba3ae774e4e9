"""Reads a tar that may have been made to harm: strictly, forward only, in bounded memory.

Only plain files and folders at plain names are taken, as POSIX `ustar` has them. Nothing is left
to interpretation: no links, devices, sparse files or extended headers, no second member of a name,
no byte where there should be none. Writes nothing and decides nothing about content.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Final, Protocol

from dataplane.model.errors import ImageError

BLOCK: Final = 512
CHUNK: Final = 1 << 18  # what is in memory at a time
MAX_TRAILER: Final = 1 << 20  # zeros after the end: tar pads to its blocking factor

# By the type flag. What is plain is not here.
_REFUSED: Final = {
    "1": "a hard link",
    "2": "a symbolic link",
    "3": "a device",
    "4": "a device",
    "6": "a pipe",
    "7": "a reserved kind of file",
    "S": "a sparse file",
    "x": "an extended header",
    "g": "an extended header",
    "X": "an extended header",
    "L": "a long name",
    "K": "a long link name",
    "M": "a part of another volume",
    "D": "a list of a folder",
    "V": "a volume's label",
}
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_OCTAL: Final = re.compile(rb" *([0-7]{1,11})[ \0]*")


class Stream(Protocol):
    """Where the bytes come from: a file, a pipe."""

    def read(self, size: int, /) -> bytes: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file or a folder, by the name that the tar says, whatever it is."""

    name: str
    size: int
    is_folder: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """More than this is refused, before it is read."""

    members: int
    member_bytes: int
    total_bytes: int


class StrictTar:
    """Mutable: how far the stream was read."""

    def __init__(self, stream: Stream, what: str, bounds: Bounds) -> None:
        self._stream, self._what, self._bounds = stream, what, bounds
        self._left = 0  # of the member at hand
        self._seen: set[str] = set()
        self._total = 0

    def members(self) -> Iterator[Member]:
        """Each member; its `content` is to be read before the next. Raises `ImageError`."""
        first = True
        while True:
            block = self._exactly(BLOCK)
            if first:
                self._refuse_packed(block)
            first = False
            if not any(block):
                self._end()
                return
            member = self._member(block)
            yield member
            for _ in self.content():
                pass
            if any(self._exactly(-member.size % BLOCK)):
                raise self._wrong(f"{member.name!r} is followed by bytes that are none of it")

    def content(self) -> Iterator[bytes]:
        """What is left of the member at hand, in pieces. Raises `ImageError`."""
        while self._left:
            chunk = self._exactly(min(self._left, CHUNK))
            self._left -= len(chunk)
            yield chunk

    def _member(self, block: bytes) -> Member:
        told = self._number(block[148:156], "checksum")
        if told != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
            raise self._wrong("a header's checksum is wrong")
        posix = block[257:265] == b"ustar\x0000"
        if not posix and block[257:265] != b"ustar  \0":
            raise self._wrong("a header is not of the format ustar")
        raw = block[:100].split(b"\0")[0]
        if posix and (prefix := block[345:500].split(b"\0")[0]):
            raw = prefix + b"/" + raw
        try:
            name = raw.decode("ascii")
        except UnicodeDecodeError:
            raise self._wrong(f"the name {raw!r} is not ASCII") from None
        flag = block[156:157].decode("latin-1")
        if flag not in ("0", "\0", "5"):
            kind = _REFUSED.get(flag, f"of the unknown kind {flag!r}")
            raise self._wrong(f"{name!r} is {kind}")
        is_folder = flag == "5"
        size = self._number(block[124:136], f"size of {name!r}")
        if is_folder and size:
            raise self._wrong(f"the folder {name!r} has content")
        if size > self._bounds.member_bytes:
            limit = self._bounds.member_bytes
            raise self._wrong(f"{name!r} has {size} bytes, at most {limit} are taken")
        self._count(name, size)
        self._left = size
        return Member(name=name, size=size, is_folder=is_folder)

    def _count(self, name: str, size: int) -> None:
        if name in self._seen:
            raise self._wrong(f"{name!r} is in it twice")
        self._seen.add(name)
        if len(self._seen) > self._bounds.members:
            raise self._wrong(f"more than {self._bounds.members} members")
        self._total += size
        if self._total > self._bounds.total_bytes:
            raise self._wrong(f"more than {self._bounds.total_bytes} bytes in all")

    def _end(self) -> None:
        if any(self._exactly(BLOCK)):
            raise self._wrong("one block of its end is missing")
        left = MAX_TRAILER
        while chunk := self._stream.read(CHUNK):
            left -= len(chunk)
            if any(chunk) or left < 0:
                raise self._wrong("something follows its end")

    def _number(self, field: bytes, what: str) -> int:
        found = _OCTAL.fullmatch(field)
        if found is None:
            raise self._wrong(f"the {what} is not an octal number")
        return int(found[1], 8)

    def _refuse_packed(self, block: bytes) -> None:
        for magic, name in _PACKED.items():
            if block.startswith(magic):
                raise self._wrong(f"it is compressed by {name}: unpack it first")

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._stream.read(size)
            if not part:
                raise self._wrong("it is cut off")
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _wrong(self, text: str) -> ImageError:
        return ImageError(f"{self._what} is refused: {text}")
