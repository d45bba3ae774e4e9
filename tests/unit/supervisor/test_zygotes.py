"""Zygotes at the supervisor's end: what is asked so late is answered, and starts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataplane.model.errors import LaunchError
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import Fleet, WorkerSlot
from dataplane.supervisor.zygotes import Zygotes
from dataplane.system.clock import SystemClock

TREE = Path("/nonexistent")


class Told:
    """In place of `Lives`: `failed` is why no process was made."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def fork_failed(self, _: WorkerSlot, error: str) -> None:
        self.failed.set_result(error)


class Proving:
    """In place of `Images`: a proof that takes until it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()

    def is_proven(self, _: object) -> bool:
        return False

    async def prove(self, _: object) -> None:
        await self.let.wait()


def never(tree: Path, fd: int) -> Sequence[str]:
    raise AssertionError(f"a zygote of {tree} is started, with {fd}")


def test_a_fork_whose_proof_outlasts_the_end_fails_and_starts_nothing() -> None:
    async def whole() -> None:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            told, images = Told(), Proving()
            clock = SystemClock()
            zygotes = Zygotes(
                fleet=Fleet(),
                lives=cast(Any, told),
                images=cast(Any, images),
                clock=clock,
                events=Events(clock, lambda _: None),
                tasks=tasks,
                command=never,
            )
            generation = SimpleNamespace(tree=TREE, image=None)
            zygotes.fork(cast(WorkerSlot, SimpleNamespace(generation=generation)))
            await zygotes.close()
            images.let.set()
            assert "the supervisor ends" in await told.failed
            with pytest.raises(LaunchError, match="the supervisor ends"):
                await zygotes.warm(TREE)

    asyncio.run(whole())
