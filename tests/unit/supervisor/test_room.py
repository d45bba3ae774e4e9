"""Only so many boot at once, in the order they came; one that hangs holds up nobody for long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dataplane.supervisor.room import Room
from dataplane.system.clock import SystemClock


def run(life: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(10):
            await life()

    asyncio.run(whole())


async def settle() -> None:
    """Until nobody has anything left to do without an event."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_only_so_many_are_inside_and_the_first_to_wait_is_the_next() -> None:
    async def life() -> None:
        room, inside = Room(SystemClock(), at_once=2, counted_seconds=60), []

        async def boot(number: int) -> None:
            await room.enter(number)
            inside.append(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(boot(number))
            await settle()
            assert inside == [0, 1]
            room.leave(1)
            room.leave(1)  # again: no room comes of it
            room.leave("a stranger")
            await settle()
            assert inside == [0, 1, 2]
            for number in (0, 2):
                room.leave(number)
            await settle()
            assert inside == [0, 1, 2, 3, 4]

    run(life)


def test_who_stays_for_long_is_counted_no_more() -> None:
    async def life() -> None:
        room = Room(SystemClock(), at_once=2, counted_seconds=0.05)
        for number in range(6):  # nobody ever leaves
            await room.enter(number)

    run(life)


def test_who_gives_up_waiting_leaves_its_place_to_the_next() -> None:
    async def life() -> None:
        room = Room(SystemClock(), at_once=1, counted_seconds=60)
        await room.enter("first")
        impatient = asyncio.create_task(room.enter("impatient"))
        patient = asyncio.create_task(room.enter("patient"))
        await settle()
        impatient.cancel()
        await settle()
        assert not patient.done()
        room.leave("first")
        await patient

    run(life)
