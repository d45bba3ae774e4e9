"""Connections handed from one engine of this process to another, as two workers do it.

Descriptors are duplicated, as the kernel does when they are passed over a socket.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from dataplane.engine.engine import MOVE_VERSION, NOTE_EMPTY, NOTE_MOVABLE
from tests.support.engine import Proxy

ROOM = 1024 * 1024
MOST_FDS = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a message would carry: the descriptors are copies."""

    number: int
    records: bytes
    count: int
    fds: tuple[int, ...]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def drain(blue: Proxy) -> None:
    """Blue accepts no more and stops what may move."""
    blue.call(blue.engine.pause)
    blue.call(blue.engine.drain)


def save(
    blue: Proxy, number: int = 1, most: int = MOST_FDS, *, version: int = MOVE_VERSION
) -> Batch:
    """Freezes a batch. The copies are made before any turn: nothing of it can end under them."""

    def saved() -> Batch:
        records, count, fds = blue.engine.save(number, most, ROOM, version)
        return Batch(
            number=number, records=records, count=count, fds=tuple(os.dup(fd) for fd in fds)
        )

    return blue.call(saved)


def hold(green: Proxy, batch: Batch) -> bytes:
    """Green's verdicts."""
    return green.call(
        lambda: green.engine.hold(batch.number, batch.records, batch.count, batch.fds)
    )


def settle(blue: Proxy, green: Proxy, batch: Batch) -> int:
    """Holds, commits and starts: how many run at green."""
    verdicts = hold(green, batch)
    blue.call(lambda: blue.engine.commit(batch.number, verdicts))
    started, stalls = green.call(lambda: green.engine.start(batch.number, batch.count))
    assert len(stalls) == started == verdicts.count(0)
    return started


def move_all(blue: Proxy, green: Proxy, number: int = 1) -> int:
    """One batch, whole."""
    return settle(blue, green, save(blue, number))


class Ring:
    """Engines between which all connections go round. Mutable: who has them, and the batches."""

    def __init__(self, sides: Sequence[Proxy]) -> None:
        self.sides = list(sides)
        self.at = 0
        self.batches = 0
        self.hops = 0
        for other in self.sides[1:]:
            other.call(other.engine.pause)

    @property
    def serving(self) -> Proxy:
        return self.sides[self.at]

    def hop(self) -> int:
        """A swap to the next: how many connections moved."""
        blue, green = self.serving, self.sides[(self.at + 1) % len(self.sides)]
        green.call(green.engine.serve)
        drain(blue)
        moved = 0
        while blue.stats()["connections"]:
            blue.notes_one_of(NOTE_MOVABLE | NOTE_EMPTY)
            self.batches += 1
            moved += move_all(blue, green, self.batches)
        self.at = (self.at + 1) % len(self.sides)
        self.hops += 1
        tally = blue.call(blue.engine.tally)
        assert (tally.closed, tally.reset, tally.declined) == (0, 0, ()), tally
        return moved
