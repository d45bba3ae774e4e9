"""Who hangs is found, and nobody else is."""

from __future__ import annotations

import dataclasses
import mmap
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from dataplane.control.stats import PAGE_BYTES, STATS_MAGIC, STATS_VERSION, StatsPage
from dataplane.model.lifecycle import Event, Life
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import AppGeneration, Fleet, WorkerSlot
from dataplane.supervisor.heartbeat import ROUNDS, Heartbeat
from dataplane.supervisor.lives import Lives

HANG = 5.0


@dataclasses.dataclass(slots=True)
class Clock:
    """A clock that a test moves."""

    seconds: float = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


class Fake:
    """A fleet of one slot, and what happened to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.page = StatsPage("test")
        self.slot = WorkerSlot(
            generation=cast(AppGeneration, None),
            number=0,
            control_path=Path("none"),
            stats=self.page,
            life=Life.SERVING,
        )
        self.events: list[Event] = []
        self.heartbeat = Heartbeat(
            fleet=cast(Fleet, self),
            lives=cast(Lives, self),
            clock=self.clock,
            events=cast(Events, self),
            hang_seconds=HANG,
        )
        self.turns = 0

    def slots(self) -> list[WorkerSlot]:
        return [self.slot]

    def happen(self, slot: WorkerSlot, event: Event) -> None:
        self.events.append(event)

    def tell(self, name: str, **fields: object) -> None:
        assert name == "worker.hung"

    def turn(self) -> None:
        self.turns += 1
        with mmap.mmap(self.page.fd, PAGE_BYTES) as page:
            struct.pack_into("=IIQ", page, 0, STATS_MAGIC, STATS_VERSION, self.turns)

    def rounds(self, count: int, *, turning: bool = False) -> None:
        for _ in range(count):
            self.clock.seconds += HANG / ROUNDS
            if turning:
                self.turn()
            self.heartbeat.look()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(WorkerSlot, "facts", lambda self: {})
    made = Fake()
    yield made
    made.page.close()


def test_who_turns_is_left_alone(fake: Fake) -> None:
    fake.rounds(100, turning=True)
    assert fake.events == []


def test_who_stands_still_for_the_deadline_is_told_once_it_is_over(fake: Fake) -> None:
    fake.rounds(3, turning=True)
    fake.rounds(ROUNDS - 1)
    assert fake.events == []
    fake.rounds(1)
    assert fake.events == [Event.HUNG]


@pytest.mark.parametrize("life", [Life.PAUSING, Life.GONE, Life.CUT, Life.BORN, Life.READY])
def test_who_is_not_expected_to_turn_is_left_alone(fake: Fake, life: Life) -> None:
    fake.slot.life = life
    fake.rounds(100)
    assert fake.events == []


def test_after_a_halt_of_the_machine_nobody_is_judged_by_it(fake: Fake) -> None:
    fake.rounds(2, turning=True)
    fake.clock.seconds += 3600
    fake.heartbeat.look()
    fake.rounds(ROUNDS - 1)
    assert fake.events == []
    fake.rounds(1)
    assert fake.events == [Event.HUNG]
