"""What the engine refuses, as an exception."""

from __future__ import annotations

from dataplane.engine._native import ffi, lib
from dataplane.model.errors import DataplaneError


class EngineError(DataplaneError):
    """The engine refused a call. `result` is its DP_E... number."""

    def __init__(self, what: str, result: int) -> None:
        super().__init__(f"{what}: {ffi.string(lib.dp_result_text(result)).decode()}")
        self.result = result


def check(result: int, what: str) -> int:
    """The result of a call, unless it is a failure: then raises `EngineError`."""
    if result < 0:
        raise EngineError(what, result)
    return result
