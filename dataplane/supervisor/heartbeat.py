"""Finds workers that hang: alive for the kernel, but their engine no longer turns.

Every engine bumps a counter in its stats page at each turn, and has a timer that makes it turn. A
counter that stands still for the deadline is told to the lifecycle's table; nothing else is done.
"""

from __future__ import annotations

import asyncio
from typing import Final

from dataplane.model.lifecycle import BEATING, Event
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import Fleet, WorkerSlot
from dataplane.supervisor.lives import Lives
from dataplane.system.clock import Clock

HANG_SECONDS: Final = 5.0
ROUNDS: Final = 5  # looks at each heartbeat within the deadline


class Heartbeat:
    """Mutable: when it last looked."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        lives: Lives,
        clock: Clock,
        events: Events,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        self._fleet, self._lives, self._clock, self._events = fleet, lives, clock, events
        self._hang_seconds = hang_seconds
        self._looked_at = clock.monotonic()

    async def watch(self) -> None:
        """Looks, until it is cancelled."""
        while True:
            await asyncio.sleep(self._hang_seconds / ROUNDS)
            self.look()

    def look(self) -> None:
        """One round over all slots."""
        now = self._clock.monotonic()
        # Who was itself held up (a suspended machine, a debugger) cannot judge anybody's silence.
        held_up = now - self._looked_at > 2 * self._hang_seconds / ROUNDS
        self._looked_at = now
        for slot in self._fleet.slots():
            if held_up or slot.life not in BEATING or slot.stats.turns() != slot.beat:
                slot.beat_at, slot.beat = now, slot.stats.turns()
            elif now - slot.beat_at >= self._hang_seconds:
                self._hung(slot, now)

    def _hung(self, slot: WorkerSlot, now: float) -> None:
        silent = round(now - slot.beat_at, 1)
        self._events.tell("worker.hung", **slot.facts(), pid=slot.pid, silent_seconds=silent)
        slot.error = f"no turn of its engine for {silent} s"
        self._lives.happen(slot, Event.HUNG)
