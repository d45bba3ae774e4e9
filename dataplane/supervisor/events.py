"""What happened, told three ways at once: a line of the log, a ring for `events`, and its streams.

An event has a fixed name (`worker.ready`) and plain fields; nothing a client sent is ever in it.
"""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from dataplane.system.clock import Clock, timestamp

RING_EVENTS: Final = 1000
# A stream that is read more slowly than this many events behind loses some, and is told.
STREAM_EVENTS: Final = 1000

Event: TypeAlias = dict[str, Any]


class Events:
    """Mutable: the last events, and who listens."""

    def __init__(self, clock: Clock, write_line: Callable[[str], None]) -> None:
        self._clock = clock
        self._write_line = write_line
        self._ring: collections.deque[Event] = collections.deque(maxlen=RING_EVENTS)
        self._streams: set[asyncio.Queue[Event]] = set()

    def tell(self, name: str, /, **fields: Any) -> None:
        """Adds one event, stamped now."""
        event: Event = {"time": timestamp(self._clock.now()), "event": name, **fields}
        self._ring.append(event)
        self._write_line(line_of(event))
        for stream in self._streams:
            if stream.full():
                stream.get_nowait()
            stream.put_nowait(event)

    def recent(self) -> tuple[Event, ...]:
        """What the ring holds, oldest first."""
        return tuple(self._ring)

    async def follow(self) -> AsyncIterator[Event]:
        """What the ring holds, then all that comes, until the caller stops."""
        stream: asyncio.Queue[Event] = asyncio.Queue(STREAM_EVENTS)
        backlog = self.recent()
        self._streams.add(stream)
        try:
            for event in backlog:
                yield event
            while True:
                yield await stream.get()
        finally:
            self._streams.discard(stream)


def line_of(event: Event) -> str:
    """One line for a log: time, name and the fields as key=value, strings quoted where needed."""
    fields = [
        f"{name}={_text(value)}"
        for name, value in _flat(event.items())
        if name not in ("time", "event")
    ]
    return " ".join([event["time"], event["event"], *fields])


def _flat(fields: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Objects as `outer.inner`; of those, what is nothing is left out."""
    for name, value in fields:
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", one) for inner, one in _flat(value.items()) if one)
        elif value is not None:
            yield name, value


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    plain = text.isascii() and text.isprintable() and not set(text) & {" ", '"', "=", "\\"}
    return text if text and plain else json.dumps(text)
