"""How many generations boot at once: so few that each has its share of the CPUs.

A hundred apps that start together with their host, on CPUs that others use as well, would else slow
each other down until most are not ready within their deadline. One that boots for long is counted
no more after a while: a hanging app holds up no other for longer than that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable
from typing import Final

from dataplane.system.clock import Clock

AT_ONCE: Final = 16
COUNTED_SECONDS: Final = 2.0  # a boot takes some ms of CPU, and a deadline is 5 s where none is set


class Room:
    """Mutable: who boots, and since when."""

    def __init__(
        self, clock: Clock, *, at_once: int = AT_ONCE, counted_seconds: float = COUNTED_SECONDS
    ) -> None:
        self._clock, self._at_once, self._counted = clock, at_once, counted_seconds
        self._inside: dict[Hashable, float] = {}
        self._queue = asyncio.Lock()  # first come, first served
        self._left = asyncio.Event()

    async def enter(self, who: Hashable) -> None:
        """Waits for room, and takes it. Whoever comes in has to leave, whatever becomes of it."""
        async with self._queue:
            while (pause := self._pause()) > 0:
                self._left.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._left.wait()
            self._inside[who] = self._clock.monotonic()

    def leave(self, who: Hashable) -> None:
        """It boots no more. May be called again, and for one that never came in."""
        if self._inside.pop(who, None) is not None:
            self._left.set()

    def _pause(self) -> float:
        """How long until there is room, if nobody leaves."""
        now = self._clock.monotonic()
        ends = sorted(since + self._counted - now for since in self._inside.values())
        counted = [end for end in ends if end > 0]
        surplus = len(counted) - self._at_once
        return counted[surplus] if surplus >= 0 else 0.0
