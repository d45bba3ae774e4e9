"""Engines that move pipes instead of connections: for the move protocol without the real engine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dataplane.control.move import HoldFailed, Saved, Started

Fds = tuple[int, ...]


def extra(name: str) -> int:
    """How many descriptors more than one a connection of that name has."""
    return int(name.partition("+")[2] or 0)


class PipeEngine:
    """Has "connections", each a name and descriptors; records are the names' lines.

    `a+2` has two descriptors more than one. Such a one is a record of version 2.
    """

    def __init__(self, *names: str, padding: int = 0, version: int = 2) -> None:
        self.padding = padding
        self.version = version
        self.running: dict[str, Fds] = {}
        self.frozen: dict[int, dict[str, Fds]] = {}
        self.held: dict[int, dict[str, Fds]] = {}
        self.gone: list[bytes] = []
        self.decline: dict[str, int] = {}
        self.fails = False
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        fds = []
        for _ in range(1 + extra(name)):
            fd, other = os.pipe()
            os.close(other)
            fds.append(fd)
        self.running[name] = tuple(fds)

    def save(self, batch: int, max_fds: int, max_bytes: int, version: int) -> Saved:
        names, fds = [], 0
        for name in self.running:
            if (version >= 2 or not extra(name)) and fds + 1 + extra(name) <= max_fds:
                names.append(name)
                fds += 1 + extra(name)
        if not names:
            return Saved(records=b"", count=0, fds=())
        self.frozen[batch] = {name: self.running.pop(name) for name in names}
        records = b"".join(name.encode().ljust(self.padding, b".") + b"\n" for name in names)
        return Saved(
            records=records,
            count=len(names),
            fds=tuple(fd for some in self.frozen[batch].values() for fd in some),
        )

    def commit(self, batch: int, verdicts: bytes) -> None:
        close(self.frozen.pop(batch))
        self.gone.append(verdicts)

    def take_back(self, batch: int) -> None:
        self.running |= self.frozen.pop(batch)

    def hold(self, batch: int, records: bytes, count: int, fds: Sequence[int]) -> bytes:
        names = [line.rstrip(b".").decode() for line in records.splitlines()]
        if self.fails or (self.version < 2 and any(map(extra, names))):
            for fd in fds:
                os.close(fd)
            raise HoldFailed("no room")
        assert len(names) == count
        assert len(fds) == count + sum(map(extra, names))
        rest = iter(fds)
        given = {name: tuple(next(rest) for _ in range(1 + extra(name))) for name in names}
        close({name: given.pop(name) for name in names if name in self.decline})
        self.held[batch] = given
        return bytes(self.decline.get(name, 0) for name in names)

    def start(self, batch: int, count: int) -> Started:
        started = self.held.pop(batch)
        assert len(started) <= count
        self.running |= started
        return Started(count=len(started), stall_us=tuple(range(1, len(started) + 1)))

    def drop(self, batch: int) -> None:
        close(self.held.pop(batch))

    def close(self) -> None:
        for group in (self.running, *self.frozen.values(), *self.held.values()):
            close(group)


def close(group: dict[str, Fds]) -> None:
    for fds in group.values():
        for fd in fds:
            os.close(fd)
