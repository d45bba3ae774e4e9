"""Many apps under one supervisor: the figures are taken in small, and each promise holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.dataplane import Dataplane, app_config, eventually
from tests.support.sanitised import measures
from tests.support.wire import Wire

ROOT: Final = Path(__file__).resolve().parents[2]
APPS: Final = 12

pytestmark = [pytest.mark.timeout(120)]


@measures("figures")
@pytest.mark.parametrize("figure", ["start", "memory", "plan", "swaps", "broken"])
def test_figure_of_many_apps_is_taken_and_no_promise_is_broken(figure: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "many.py"), figure, "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    assert told["figures"]
    assert [one for one in told["figures"] if one["promise"] and not one["ok"]] == []


def test_each_app_has_a_history_of_its_own_and_one_swap_leaves_the_others_alone(
    plane: Dataplane,
) -> None:
    names = [f"app{number}" for number in range(APPS)]
    for name in names:
        plane.configure(app_config(app=name, mark=name))
    plane.start("up")
    pids = {name: plane.worker_pid(name) for name in names}
    plane.configure(app_config(app="app3", mark="changed"))
    plane.cli("swap", "--app", "app3")
    for name in names:
        with Wire.connect(plane.address(app=name)) as client:
            assert client.get().body == (b"changed" if name == "app3" else name.encode())
        assert (plane.worker_pid(name) == pids[name]) == (name != "app3")
        told = plane.call("GET", f"/v1/apps/{name}/history").body["history"]
        outcomes = [one["outcome"] for one in told]
        assert outcomes == ["first start"] + ["swapped"] * (name == "app3")


def test_one_broken_file_among_many_is_named_with_its_line_and_stops_no_other(
    plane: Dataplane,
) -> None:
    names = [f"app{number}" for number in range(APPS)]
    for name in names:
        plane.configure(app_config(app=name, mark=name))
    broken = plane.config_dir / "apps" / "app3.yaml"
    broken.write_text("version: 1\napp: app3\nnonsense: 1\n")
    plane.start("up")
    serving = [one["app"] for one in plane.call("GET", "/v1/apps").body["apps"] if one["addresses"]]
    assert serving == sorted(set(names) - {"app3"})
    eventually(lambda: f"{broken}:3:" in plane.log())
