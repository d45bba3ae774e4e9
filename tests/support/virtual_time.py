"""A loop whose time stands still while anything is to be done, and then jumps to what comes next.

So code that waits for seconds, with the loop's own timers, is tested at once and to the tick. Only
for what talks to nobody: a descriptor that gets ready later is never waited for.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TypeVar

Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    """Mutable: what time it is."""

    seconds = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and nothing is left to happen"
            self.seconds += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which is its clock for the code under test as well."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self.clock_reads = 0  # by the code under test: whoever polls has many
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.seconds

    def monotonic(self) -> float:
        self.clock_reads += 1
        return self._jumping.seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._jumping.seconds, UTC)


def run_virtually(
    call: Callable[[VirtualLoop], Coroutine[object, object, Result]],
) -> Result:
    """Runs one coroutine, made with its loop and clock."""
    loops: list[VirtualLoop] = []

    def make() -> VirtualLoop:
        loops.append(VirtualLoop())
        return loops[0]

    with asyncio.Runner(loop_factory=make) as runner:
        runner.get_loop()
        return runner.run(call(loops[0]))


async def let_pass(seconds: float) -> None:
    """Until all that happens within so many seconds has happened."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(seconds, over.set_result, None)
    await over
