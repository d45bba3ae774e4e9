"""The clocks. Whoever measures or stamps takes a `Clock`, so that a test can pass its own.

Durations come from the monotonic clock and never from the wall clock, which jumps.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What time it is, in the two senses."""

    def monotonic(self) -> float:
        """Seconds, for durations: never goes back, begins anywhere, equal in all processes."""

    def now(self) -> datetime:
        """The wall clock in UTC, for stamps that people read."""


class SystemClock:
    """The kernel's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)


def timestamp(when: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: "2026-11-22T18:00:00.123Z"."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
