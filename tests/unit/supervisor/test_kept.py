"""Counters on disk: what was shown is never shown as less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from dataplane.control.figures import BUCKETS, Durations, UpstreamFigures
from dataplane.control.stats import Stats
from dataplane.model.names import AppName
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App
from dataplane.supervisor.kept import Kept
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.totals import Totals
from dataplane.system.clock import SystemClock

NAME = AppName("billing")


class FakeLogs:
    """Counts dropped lines as `Logs` does."""

    def __init__(self, dropped: int = 0) -> None:
        self._dropped = dropped

    def dropped(self, app: AppName) -> int:
        return self._dropped

    def go_on(self, app: AppName, dropped: int) -> None:
        self._dropped += dropped


def logs(dropped: int = 0) -> Logs:
    return cast(Logs, FakeLogs(dropped))


def totals(requests: int) -> Totals:
    return Totals(
        stats=Stats(requests_total=requests, answers_total=(0, 0, requests, 0, 0, 0)),
        durations=Durations(sum_us=7, buckets=(requests, *(0,) * (BUCKETS - 1))),
        upstreams={"api": UpstreamFigures(requests_total=requests)},
        routes={("/", "api"): (0, 0, requests, 0, 0, 0)},
    )


def counted() -> App:
    app = App(name=NAME, folded=totals(5), restarts=2)
    app.rollouts_ended = {"swapped": 3}
    app.moved = {"idle": 4}
    app.swaps.add(0.02)
    return app


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path: Path, told: list[str]) -> Kept:
    return Kept(tmp_path / "totals", events=Events(SystemClock(), told.append))


def with_slots(kept: Kept, path: Path, **slots: int) -> None:
    """As if these slots had been there, with so many requests each."""
    donor = App(name=AppName("donor"))
    file = path / "totals" / "billing.json"
    content = json.loads(file.read_text())
    for key, requests in slots.items():
        donor.folded = totals(requests)
        kept.save(donor, logs())
        one = json.loads((path / "totals" / "donor.json").read_text())["folded"]
        content["slots"][key.replace("_", ".")] = {"restarts": requests, "totals": one}
    file.write_text(json.dumps(content))


def test_app_goes_on_counting_where_it_was(kept: Kept) -> None:
    before = counted()
    kept.save(before, logs(dropped=6))
    after, counting = App(name=NAME), logs(dropped=1)
    assert kept.recall(after, counting, ()) == {}
    assert after.folded == before.folded
    assert (after.restarts, after.rollouts_ended, after.moved) == (2, {"swapped": 3}, {"idle": 4})
    assert after.swaps == before.swaps
    assert counting.dropped(NAME) == 7


def test_slot_that_died_meanwhile_is_folded_and_one_that_lives_is_not(
    kept: Kept, tmp_path: Path
) -> None:
    kept.save(counted(), logs())
    with_slots(kept, tmp_path, s1_0=10, s1_1=100)
    app = App(name=NAME)
    assert kept.recall(app, logs(), {"s1.1"}) == {"s1.0": 10, "s1.1": 100}
    assert app.folded.stats.requests_total == 15
    assert app.folded.routes["/", "api"] == (0, 0, 15, 0, 0, 0)
    # Another supervisor dies at once: what was folded is not folded again, what lived is known.
    again = App(name=NAME)
    kept.recall(again, logs(), ())
    assert again.folded.stats.requests_total == 115


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        '{"version": 1}',
        '{"version": 2}',
        '{"version": 1, "folded": {"stats": {"turns": -1}}}',
    ],
)
def test_damaged_file_is_told_and_counts_nothing(
    kept: Kept, tmp_path: Path, told: list[str], damage: str
) -> None:
    kept.save(counted(), logs())
    (tmp_path / "totals" / "billing.json").write_text(damage)
    app = App(name=NAME)
    assert kept.recall(app, logs(), ()) == {}
    assert app.folded == Totals()
    assert app.restarts == 0
    assert ("version" in damage and "2" in damage) or any(
        "totals.not_read" in line for line in told
    )


def test_disk_that_takes_nothing_is_told_once(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file", events=Events(SystemClock(), told.append))
    for _ in range(3):
        kept.save(counted(), logs())
    assert sum("totals.not_written" in line for line in told) == 1


def test_end_that_was_asked_for_begins_anew(kept: Kept) -> None:
    kept.save(counted(), logs())
    kept.forget()
    app: Any = App(name=NAME)
    kept.recall(app, logs(), ())
    assert app.folded == Totals()
