"""The benchmarks work, and what they call a promise holds: in small, on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def run(script: str, *words: str) -> dict[str, Any]:
    """The script's JSON; it exits 1 if a promise is broken or nothing could be measured."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words, "--json"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


@pytest.mark.parametrize("figure", ["load", "per-request", "idle", "latency", "gone", "start"])
def test_figure_of_a_swap_is_taken_and_no_promise_is_broken(figure: str) -> None:
    told = run("swap.py", figure, "--quick")
    assert told["figures"]
    assert [one for one in told["figures"] if one["promise"] and not one["ok"]] == []


def test_cpu_per_request_is_measured_beside_the_peers_that_are_here() -> None:
    told = run("compare.py", "--rounds", "1", "--seconds", "1", "--tool", "dp_load")
    ours = next(peer for peer in told["peers"] if peer["name"] == "dataplane")
    assert 1.0 < ours["cpu_us"] < 1000.0
    named = {peer["name"] for peer in told["peers"]} | set(told["absent"])
    assert named == {"dataplane", "haproxy", "nginx"}
