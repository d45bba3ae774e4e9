"""What the benchmarks make of their rounds: ratios, verdicts, and a page that shows all of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from xml.etree import ElementTree

import pytest

SCRIPTS: Final = str(Path(__file__).resolve().parents[3] / "benchmarks")
MODULES: Final = ("bench", "pairs", "plots", "page", "tables", "measure", "works", "peers")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts are neighbours in a folder, not a package."""
    sys.path.insert(0, SCRIPTS)
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(SCRIPTS)


def rounds(scripts: dict[str, ModuleType], *cpu_us: float, **more: Any) -> list[Any]:
    usual = {
        "requests": 100, "seconds": 1.0, "per_second": 100.0, "bytes_per_second": 1e6,
        "p50_us": 100.0, "p99_us": 200.0, "p999_us": 300.0, "held": 1.0,
        "own_share": 0.9, "busy_share": 0.9,
    }  # fmt: skip
    return [scripts["measure"].Round(cpu_us=one, **{**usual, **more}) for one in cpu_us]


def row(scripts: dict[str, ModuleType], work: str, **taken: list[Any]) -> dict[str, Any]:
    versions = dict.fromkeys(taken, "1.0")
    made: dict[str, Any] = scripts["bench"].summary(
        scripts["works"].WORKS[work], versions, taken, {"caddy": "not <installed>"}, {}
    )
    return made


def test_a_ratio_is_of_pairs_and_its_interval_holds_it(scripts: dict[str, ModuleType]) -> None:
    # The machine got twice as slow half-way: every pair still says the same.
    told = scripts["pairs"].ratio([8, 8, 16, 16], [10, 10, 20, 20])
    assert (told.value, told.low, told.high, told.pairs) == (0.8, 0.8, 0.8, 4)
    spread = scripts["pairs"].ratio([8, 9, 10, 11, 12], [10, 10, 10, 10, 10])
    assert 0.8 <= spread.low < spread.value == 1.0 < spread.high <= 1.2


def test_the_best_peer_is_neither_ours_nor_the_floor(scripts: dict[str, ModuleType]) -> None:
    told = row(
        scripts,
        "small",
        dataplane=rounds(scripts, 9, 9),
        floor=rounds(scripts, 5, 5),
        nginx=rounds(scripts, 10, 10),
        haproxy=rounds(scripts, 12, 12),
    )
    assert told["best"] == "nginx"
    assert told["ratio"]["value"] == 0.9
    assert told["misses"] == ["ratio 0.900, not 0.80", "floor ratio 1.800, not 1.20"]


def test_who_does_not_hold_the_rate_is_no_peer_to_beat(scripts: dict[str, ModuleType]) -> None:
    told = row(
        scripts,
        "rate",
        dataplane=rounds(scripts, 20, p99_us=250.0),
        nginx=rounds(scripts, 30),
        envoy=rounds(scripts, 10, held=0.8),
    )
    assert told["best"] == "nginx"
    assert told["misses"] == ["p99 250 us, not 200"]


def test_a_round_in_which_something_else_ran_is_told(scripts: dict[str, ModuleType]) -> None:
    told = row(scripts, "small", nginx=rounds(scripts, 10, own_share=0.5, busy_share=1.0))
    assert told["peers"][0]["disturbed"]


def test_table_and_page_show_all_that_was_measured(scripts: dict[str, ModuleType]) -> None:
    one = row(
        scripts, "small", dataplane=rounds(scripts, 9), floor=rounds(scripts, 8),
        nginx=rounds(scripts, 10),
    )  # fmt: skip
    points = [{"size": 1, "cpu_us": 9.0, "rounds": [9.0]}, {"size": 1000, "cpu_us": 9.5}]
    report = {
        "machine": {"cpu": "<cpu>", "cpus": 2, "kernel": "6", "at": "now", "commit": "abc"},
        "size": {"rounds": 1, "seconds": 1},
        "rows": [one],
        "memory": {
            "title": "memory", "connections": 10, "bytes": {"dataplane": 160.0, "nginx": 500.0},
            "target": 300.0, "absent": {}, "misses": [],
        },
        "curves": [{"name": "idle", "title": "idle", "peers": {"dataplane": points}, "absent": {}}],
        "missed": one["misses"],
        "lacking": ["haproxy lacks"],
    }  # fmt: skip
    text = scripts["tables"].report_text(report)
    for part in (
        "dataplane / nginx: 0.90",
        "target 0.80: MISSED",
        "caddy      left out",
        "1,000: 9.50",
    ):
        assert part in text
    page = scripts["page"].html(report)
    assert "not &lt;installed&gt;" in page
    assert "<cpu>" not in page
    for drawing in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + drawing.partition("</svg>")[0] + "</svg>")
