"""Many deadlines, of which the next one is always at hand."""

from __future__ import annotations

import heapq
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=str)

# A heap this much longer than what it is for is made anew: what was moved leaves its old entry.
SLACK: Final = 64


class Deadlines(Generic[Key]):
    """Mutable: at most one deadline for each key, on whatever clock the caller reads."""

    def __init__(self) -> None:
        self._when: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def set(self, key: Key, when: float) -> None:
        """Sets or moves one."""
        if self._when.get(key) == when:
            return
        self._when[key] = when
        heapq.heappush(self._heap, (when, key))
        if len(self._heap) > 2 * len(self._when) + SLACK:
            self._heap = [(when, key) for key, when in self._when.items()]
            heapq.heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Takes one away, if there is one."""
        self._when.pop(key, None)

    def next(self) -> float | None:
        """When the earliest is."""
        while self._heap and self._when.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> Key | None:
        """Takes the earliest away if it is due."""
        when = self.next()
        if when is None or when > now:
            return None
        key = heapq.heappop(self._heap)[1]
        del self._when[key]
        return key
