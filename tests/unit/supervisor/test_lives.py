"""A worker that closed its channel and lives on is at fault; whoever came after it is not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

import pytest

from dataplane.control.stats import StatsPage
from dataplane.model.lifecycle import Event
from dataplane.supervisor import lives
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import AppGeneration, WorkerSlot
from dataplane.system.clock import SystemClock
from dataplane.system.sockets import packet_pair

SILENCE = 0.02


class Noted(lives.Lives):
    """What would happen to slots, only noted."""

    def __init__(self) -> None:
        super().__init__(SystemClock(), cast(Events, None))
        self.events: list[Event] = []

    def happen(self, slot: WorkerSlot, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> WorkerSlot:
    monkeypatch.setattr(lives, "SILENCE_SECONDS", SILENCE)
    return WorkerSlot(
        generation=cast(AppGeneration, None),
        number=0,
        control_path=Path("none"),
        stats=StatsPage("test"),
    )


@pytest.mark.parametrize("replaced", [False, True])
def test_channel_that_ended_is_held_against_its_own_process_alone(
    slot: WorkerSlot, replaced: bool
) -> None:
    async def tell() -> list[Event]:
        loop = asyncio.get_running_loop()
        noted, pidfd = Noted(), os.pidfd_open(os.getpid())
        ours, theirs = packet_pair()
        noted.forked(slot, 1, pidfd, ours)
        theirs.close()
        first = slot.line
        assert first is not None
        first.read()  # its end
        first.close()
        if replaced:  # by a process whose pidfd got the same number
            ours, theirs = packet_pair()
            noted.forked(slot, 2, pidfd, ours)
        later = loop.create_future()
        loop.call_later(2 * SILENCE, later.set_result, None)
        await later
        loop.remove_reader(pidfd)
        os.close(pidfd)
        assert slot.line is not None
        slot.line.close()
        theirs.close()
        return noted.events

    told = asyncio.run(tell())
    assert told == ([Event.FORKED, Event.FORKED] if replaced else [Event.FORKED, Event.TOLD_FAILED])
    slot.stats.close()
