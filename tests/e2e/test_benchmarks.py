"""The benchmarks work, and what they call a promise holds: in small, on any machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.sanitised import measures

ROOT: Final = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(220), measures("figures")]


def run(script: str, *words: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The script's JSON; it exits 1 if a promise is broken or nothing could be measured."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words, "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


@pytest.mark.parametrize("figure", ["load", "per-request", "idle", "latency", "gone", "start"])
def test_figure_of_a_swap_is_taken_and_no_promise_is_broken(figure: str) -> None:
    told = run("swap.py", figure, "--quick")
    assert told["figures"]
    assert [one for one in told["figures"] if one["promise"] and not one["ok"]] == []


WORKS: Final = (
    "small", "one", "per-request", "16k", "1m", "up-16k", "up-1m", "tcp", "tcp-1m", "rate",
)  # fmt: skip


def suite(folder: Path, *words: str) -> dict[str, Any]:
    """A tiny run of the suite without the peers; its pages go to the folder."""
    given = ("--tiny", "--no-install", "--peers", "dataplane,floor", "--out", str(folder), *words)
    return run("bench.py", *given)


def test_every_work_is_done_right_and_measured_beside_the_floor(tmp_path: Path) -> None:
    told = suite(tmp_path, "--works", ",".join(WORKS))
    assert [row["name"] for row in told["rows"]] == list(WORKS)
    for row in told["rows"]:
        assert (row["absent"], row["failed"]) == ({}, {}), row
        assert {peer["name"] for peer in row["peers"]} == {"dataplane", "floor"}
        for peer in row["peers"]:
            assert 1.0 < peer["cpu_us"] < 100_000.0, row
            assert 0 < peer["p50_us"] <= peer["p99_us"] <= peer["p999_us"]
        assert row["floor_ratio"]["low"] <= row["floor_ratio"]["high"]


def test_memory_and_curves_are_taken_and_written(tmp_path: Path) -> None:
    told = suite(tmp_path, "--works", "small,memory,idle,routes,endpoints")
    assert set(told["memory"]["bytes"]) == {"dataplane"}
    sizes = {
        curve["name"]: [point["size"] for point in curve["peers"]["dataplane"]]
        for curve in told["curves"]
    }
    assert sizes == {"idle": [0, 100], "routes": [1, 100], "endpoints": [1, 100]}
    page = (tmp_path / "bench.html").read_text()
    assert page.count("<svg") >= 5
    assert not re.search(r"(?:src|href)=|url\(|@import", page), "it needs nothing else"
    assert json.loads((tmp_path / "bench.json").read_text()) == told


def test_a_peer_that_is_not_here_is_told_and_left_out(tmp_path: Path) -> None:
    told = run(
        "bench.py", "--tiny", "--no-install", "--works", "small", "--out", str(tmp_path),
        "--peers", "envoy,floor",
        environment={"PATH": os.environ["PATH"], "PYTHONPATH": str(no_envoy(tmp_path))},
    )  # fmt: skip
    (row,) = told["rows"]
    assert "envoy" in row["absent"]


def no_envoy(folder: Path) -> Path:
    """A place in front of all others where the package is there and holds no program."""
    (folder / "hidden" / "envoy").mkdir(parents=True)
    (folder / "hidden" / "envoy" / "__init__.py").touch()
    return folder / "hidden"
