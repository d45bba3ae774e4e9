"""Events: one line each, a bounded ring, and streams that a slow reader cannot make grow."""

from __future__ import annotations

import asyncio

from dataplane.supervisor.events import RING_EVENTS, STREAM_EVENTS, Events, line_of
from dataplane.system.clock import SystemClock


def test_a_line_quotes_what_is_not_plain() -> None:
    event = {
        "time": "T", "event": "worker.ended", "app": "billing", "pid": 7, "status": "exit 0",
        "error": 'a "b"\n\x1b[31m', "empty": "", "nothing": None, "ms": {"build": 1.5, "drain": 0},
    }  # fmt: skip
    assert line_of(event) == (
        'T worker.ended app=billing pid=7 status="exit 0" '
        'error="a \\"b\\"\\n\\u001b[31m" empty="" ms.build=1.5'
    )


def test_the_ring_holds_the_last_ones_and_each_is_written_once() -> None:
    lines: list[str] = []
    events = Events(SystemClock(), lines.append)
    for number in range(RING_EVENTS + 5):
        events.tell("count", number=number)
    assert len(lines) == RING_EVENTS + 5
    assert [event["number"] for event in events.recent()] == list(range(5, RING_EVENTS + 5))


def test_a_stream_begins_with_the_ring_and_goes_on() -> None:
    async def life() -> list[int]:
        events = Events(SystemClock(), lambda _: None)
        events.tell("count", number=0)
        seen = []
        async with asyncio.timeout(5):
            async for event in events.follow():
                seen.append(event["number"])
                if len(seen) == 3:
                    break
                events.tell("count", number=len(seen))
        return seen

    assert asyncio.run(life()) == [0, 1, 2]


def test_a_stream_that_is_not_read_loses_the_oldest_and_stays_bounded() -> None:
    async def life() -> int:
        events = Events(SystemClock(), lambda _: None)
        events.tell("count", number=-1)
        stream = events.follow()
        assert (await anext(stream))["number"] == -1
        for number in range(STREAM_EVENTS + 10):
            events.tell("count", number=number)
        first = await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return int(first["number"])

    assert asyncio.run(life()) == 10
