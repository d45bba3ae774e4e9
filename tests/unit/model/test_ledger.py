"""The ledger has exactly the keys that scripts rely on."""

from __future__ import annotations

from dataplane.model.ledger import (
    Durations,
    Ledger,
    MovedCounts,
    Side,
    Stall,
    ledger_text,
)
from dataplane.model.names import AppName, Digest, Generation

BLUE = Side(generation=Generation(6), image=Digest("sha256:" + "a" * 64))
GREEN = Side(generation=Generation(7), image=Digest("sha256:" + "b" * 64))

SWAPPED = Ledger(
    app=AppName("billing"),
    outcome="swapped",
    before=BLUE,
    after=GREEN,
    ms=Durations(build=3.1, spawn=9.8, ready=14.2, switch=0.4, drain=2.6, total=30.1234),
    connections=MovedCounts(moved_idle=900, moved_after_request=38),
    stall_ms=Stall(p50=0.2, p99=1.1, max=1.9),
    declined=(("denied", 1), ("upstream_gone", 2)),
)


def test_json_is_the_contracts() -> None:
    assert SWAPPED.to_json() == {
        "app": "billing",
        "outcome": "swapped",
        "from": {"generation": 6, "image": BLUE.image},
        "to": {"generation": 7, "image": GREEN.image},
        "ms": {
            "build": 3.1, "spawn": 9.8, "ready": 14.2, "switch": 0.4, "drain": 2.6, "total": 30.12,
        },
        "connections": {
            "moved_idle": 900, "moved_after_request": 38, "moved_streaming": 0, "moved_tunnel": 0,
            "finished": 0, "closed": 0, "reset": 0,
        },
        "stall_ms": {"p50": 0.2, "p99": 1.1, "max": 1.9},
        "declined": {"denied": 1, "upstream_gone": 2},
        "error": None,
    }  # fmt: skip


def test_counts_add_up_and_the_worst_stall_is_kept() -> None:
    two = MovedCounts(moved_idle=1, reset=2) + MovedCounts(moved_idle=3, closed=4)
    assert two == MovedCounts(moved_idle=4, reset=2, closed=4)
    assert Stall(p50=1, p99=2, max=3).worst(Stall(p50=0, p99=5, max=4)) == Stall(
        p50=1, p99=5, max=4
    )


def test_text_names_what_a_person_wants_to_know() -> None:
    text = ledger_text(SWAPPED.to_json())
    assert "billing: swapped generation 6 aaaaaaaaaaaa -> generation 7 bbbbbbbbbbbb" in text
    assert "moved_idle=900 moved_after_request=38" in text
    assert "declined: denied=1 upstream_gone=2" in text
    assert "closed" not in text
    older = {key: value for key, value in SWAPPED.to_json().items() if key != "declined"}
    assert "declined" not in ledger_text(older)
    failed = Ledger(
        app=AppName("billing"), outcome="failed", before=BLUE, after=None, error="no luck"
    )
    assert ledger_text(failed.to_json()) == "billing: failed: no luck"
    first = Ledger(app=AppName("billing"), outcome="swapped", before=None, after=GREEN)
    assert ledger_text(first.to_json()).startswith("billing: started generation 7")
