"""Engines that move pipes instead of connections: for the move protocol without the real engine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dataplane.control.move import HoldFailed, Saved, Started


class PipeEngine:
    """Has "connections", each a name and a descriptor; records are the names' lines."""

    def __init__(self, *names: str, padding: int = 0) -> None:
        self.padding = padding
        self.running: dict[str, int] = {}
        self.frozen: dict[int, dict[str, int]] = {}
        self.held: dict[int, dict[str, int]] = {}
        self.gone: list[str] = []
        self.decline: set[str] = set()
        self.fails = False
        for name in names:
            fd, other = os.pipe()
            os.close(other)
            self.running[name] = fd

    def save(self, batch: int, max_fds: int, max_bytes: int) -> Saved:
        names = list(self.running)[:max_fds]
        if not names:
            return Saved(records=b"", fds=())
        self.frozen[batch] = {name: self.running.pop(name) for name in names}
        records = b"".join(name.encode().ljust(self.padding, b".") + b"\n" for name in names)
        return Saved(records=records, fds=tuple(self.frozen[batch].values()))

    def commit(self, batch: int, declined: bytes) -> None:
        for fd in self.frozen.pop(batch).values():
            os.close(fd)
        self.gone.append(declined.hex())

    def take_back(self, batch: int) -> None:
        self.running |= self.frozen.pop(batch)

    def hold(self, batch: int, records: bytes, fds: Sequence[int]) -> bytes:
        if self.fails:
            for fd in fds:
                os.close(fd)
            raise HoldFailed("no room")
        names = [line.rstrip(b".").decode() for line in records.splitlines()]
        assert len(names) == len(fds)
        bits = bytearray((len(fds) + 7) // 8)
        self.held[batch] = {}
        for index, (name, fd) in enumerate(zip(names, fds, strict=True)):
            if name in self.decline:
                bits[index // 8] |= 1 << index % 8
                os.close(fd)
            else:
                self.held[batch][name] = fd
        return bytes(bits)

    def start(self, batch: int, count: int) -> Started:
        started = self.held.pop(batch)
        assert len(started) <= count
        self.running |= started
        return Started(count=len(started), stall_us=tuple(range(1, len(started) + 1)))

    def drop(self, batch: int) -> None:
        for fd in self.held.pop(batch).values():
            os.close(fd)

    def close(self) -> None:
        for group in (self.running, *self.frozen.values(), *self.held.values()):
            for fd in group.values():
                os.close(fd)
