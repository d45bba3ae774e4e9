"""The engine as the move protocol wants to see it: one object for both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dataplane.control.move import HoldFailed, Saved, Started
from dataplane.engine.engine import MOVE_VERSION, Engine, EngineError


class MovingEngine:
    """`GivingEngine` and `TakingEngine` over the native engine."""

    version: Final = MOVE_VERSION

    def __init__(self, engine: Engine, turn_soon: Callable[[], None]) -> None:
        """`turn_soon` has the engine look, soon, at what no descriptor would tell it of."""
        self._engine = engine
        self._turn_soon = turn_soon

    def save(self, batch: int, max_fds: int, max_bytes: int, version: int) -> Saved:
        records, count, fds = self._engine.save(batch, max_fds, max_bytes, version)
        return Saved(records=records, count=count, fds=fds)

    def commit(self, batch: int, verdicts: bytes) -> None:
        self._engine.commit(batch, verdicts)
        self._turn_soon()  # these may have been the last ones

    def take_back(self, batch: int) -> None:
        self._engine.take_back(batch)
        self._turn_soon()

    def hold(self, batch: int, records: bytes, count: int, fds: Sequence[int]) -> bytes:
        try:
            return self._engine.hold(batch, records, count, fds)
        except EngineError as error:
            raise HoldFailed(str(error)) from error

    def start(self, batch: int, count: int) -> Started:
        started, stall_us = self._engine.start(batch, count)
        self._turn_soon()  # a whole request may have come along
        return Started(count=started, stall_us=stall_us)

    def drop(self, batch: int) -> None:
        self._engine.drop(batch)
