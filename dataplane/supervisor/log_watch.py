"""Tells of access log lines that workers dropped, since nobody took them in time.

A worker only counts them, in its stats page; here the count becomes an event.
"""

from __future__ import annotations

import asyncio
from typing import Final

from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import Fleet, WorkerSlot
from dataplane.system.clock import Clock

WATCH_SECONDS: Final = 1.0
TELL_SECONDS: Final = 10.0  # while it goes on, it is told of this often


class LogWatch:
    """Holds nothing: what was told is with each slot."""

    def __init__(self, *, fleet: Fleet, clock: Clock, events: Events) -> None:
        self._fleet, self._clock, self._events = fleet, clock, events

    async def watch(self) -> None:
        """Looks, until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.look()

    def look(self) -> None:
        """One round over the slots that write a log."""
        for slot in self._fleet.slots():
            if slot.generation.log is not None:
                self._look_at(slot)

    def _look_at(self, slot: WorkerSlot) -> None:
        dropped, now = slot.figures().log_dropped_total, self._clock.monotonic()
        if dropped > slot.lines_told and now - slot.lines_told_at >= TELL_SECONDS:
            self._events.tell(
                "log.dropped", **slot.facts(), lines=dropped - slot.lines_told, total=dropped
            )
            slot.lines_told, slot.lines_told_at = dropped, now
