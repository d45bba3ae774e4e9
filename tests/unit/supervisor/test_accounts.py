"""A ledger's durations are the spans between the marks, whatever was reached."""

from __future__ import annotations

import pytest

from dataplane.model.ledger import Durations
from dataplane.supervisor.accounts import durations


@pytest.mark.parametrize(
    ("marks", "forked_at", "expected"),
    [
        (
            {"asked": 1.0, "built": 2.0, "ready": 4.0, "serving": 5.0, "gone": 7.0, "ended": 8.0},
            3.0,
            Durations(build=1000, spawn=1000, ready=1000, switch=1000, drain=2000, total=6000),
        ),
        ({"asked": 1.0, "ended": 3.0}, None, Durations(total=2000)),
        (
            {"asked": 1.0, "built": 2.0, "ended": 3.0},
            2.5,
            Durations(build=1000, spawn=500, total=2000),
        ),
        (
            {"asked": 1.0, "built": 2.0, "ready": 3.0, "serving": 4.0},
            2.5,
            Durations(build=1000, spawn=500, ready=500, switch=1000, total=3000),
        ),
    ],
    ids=["swapped", "build failed", "green died", "at the switch"],
)
def test_durations(marks: dict[str, float], forked_at: float | None, expected: Durations) -> None:
    assert durations(marks, forked_at) == expected
