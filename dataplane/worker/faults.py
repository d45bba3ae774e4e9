"""Failures on purpose, for tests: a worker that crashes, hangs or stops at a named point.

No config leads here. The names come with the message that asks for the fork, which the supervisor
fills from its own environment for tests and leaves empty otherwise.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import Final

from dataplane.model.errors import ControlError

CRASH_BEFORE_READY: Final = "crash-before-ready"
HANG_BEFORE_READY: Final = "hang-before-ready"
EXIT_AFTER_READY: Final = "exit-after-ready"
STOP_TURNING: Final = "stop-turning"  # once it serves: alive, but its heartbeat stands still
CRASH_AT: Final = "crash-at:"  # and a step
HANG_AT: Final = "hang-at:"

# The steps of a move, on either side, in their order.
BLUE_STEPS: Final = ("blue:offered", "blue:acknowledged", "blue:committing", "blue:committed")
GREEN_STEPS: Final = (
    "green:receiving",
    "green:offered",
    "green:held",
    "green:acknowledged",
    "green:starting",
    "green:started",
)

CRASH_STATUS: Final = 70

_NAMES: Final = frozenset(
    (CRASH_BEFORE_READY, HANG_BEFORE_READY, EXIT_AFTER_READY, STOP_TURNING)
) | {f"{kind}{step}" for kind in (CRASH_AT, HANG_AT) for step in BLUE_STEPS + GREEN_STEPS}


class Faults:
    """The failures that one worker is to show. Frozen."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Raises `ControlError` for a name that is none: a test that tests nothing."""
        if unknown := sorted(set(names) - _NAMES):
            raise ControlError(f"unknown fault {', '.join(unknown)}")
        self._names: Final = frozenset(names)

    def before_ready(self) -> None:
        """Just before the worker would say that it is ready."""
        if CRASH_BEFORE_READY in self._names:
            _crash()
        if HANG_BEFORE_READY in self._names:
            select.poll().poll()

    def after_ready(self) -> None:
        """Just after it said so."""
        if EXIT_AFTER_READY in self._names:
            _crash()

    @property
    def stops_turning(self) -> bool:
        """Whether the engine is to be left alone once it serves."""
        return STOP_TURNING in self._names

    async def step(self, name: str) -> None:
        """At a step of a move, as in `BLUE_STEPS` and `GREEN_STEPS`."""
        if f"{CRASH_AT}{name}" in self._names:
            _crash()
        if f"{HANG_AT}{name}" in self._names:
            await asyncio.get_running_loop().create_future()


def _crash() -> None:
    os._exit(CRASH_STATUS)
