"""A swap that makes things worse is taken back by itself; one that does not is left alone."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from dataplane.model.lifecycle import CRASH_LOOP_DEATHS
from tests.support.dataplane import APP, Dataplane, app_config, eventually
from tests.support.wire import Wire

pytestmark = pytest.mark.timeout(60)

REQUESTS = 50


def failing(**more: Any) -> dict[str, Any]:
    config = app_config(mark="green", **more)
    config["routes"][0]["respond"] = {"status": 503, "body": "sorry"}
    return config


def ask(plane: Dataplane, times: int = REQUESTS) -> list[int]:
    with Wire.connect(plane.address()) as client:
        return [client.get().status for _ in range(times)]


def newest(plane: Dataplane) -> dict[str, Any]:
    entry: dict[str, Any] = plane.cli("history", "--app", APP, "--json").fact()["history"][-1]
    return entry


def serving(plane: Dataplane) -> str:
    image: str = plane.report()["generations"][-1]["image"]
    return image


def test_one_that_answers_with_errors_goes_and_history_says_why(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    blue = serving(plane)
    assert ask(plane) == [200] * REQUESTS
    plane.configure(failing())
    plane.cli("swap", "--app", APP)
    green = serving(plane)
    assert ask(plane) == [503] * REQUESTS
    taken = plane.event("rollout.taken_back", app=APP)
    assert (taken["image"], taken["former"]) == (green, blue)
    eventually(lambda: newest(plane)["outcome"] == "rolled back")
    assert ask(plane, 1) == [200]
    assert serving(plane) == blue
    last = newest(plane)
    assert last["by"]["user"] == "supervisor"
    assert "50 of 50 answers were 500 or above, 0 of 50 before" in last["error"]


def test_one_that_crash_loops_goes(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    blue = serving(plane)
    plane.configure(app_config(mark="green"))
    plane.cli("swap", "--app", APP)
    number = plane.report()["generations"][-1]["generation"]
    killed: set[int] = set()

    def living() -> list[int]:
        pids = {int(one["pid"] or 0) for one in plane.workers(generation=number)}
        return list(pids - killed - {0})

    for _ in range(CRASH_LOOP_DEATHS):
        eventually(living)
        (pid,) = living()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    taken = plane.event("rollout.taken_back", app=APP)
    assert f"died {CRASH_LOOP_DEATHS} times" in taken["reason"]
    eventually(lambda: serving(plane) == blue and plane.report()["state"] == "serving")
    assert ask(plane, 1) == [200]


def test_one_that_is_no_worse_is_proven_and_then_left_alone(plane: Dataplane) -> None:
    short: dict[str, Any] = {"rollout": {"probation": "100ms"}}
    plane.configure(app_config(**short))
    plane.start()
    ask(plane)
    plane.configure(failing(**short))
    plane.cli("swap", "--app", APP)
    green = serving(plane)
    plane.event("rollout.proven", app=APP)
    assert ask(plane) == [503] * REQUESTS
    assert serving(plane) == green


def test_errors_that_were_there_before_are_no_reason(plane: Dataplane) -> None:
    short: dict[str, Any] = {"rollout": {"probation": "1s"}}
    plane.configure(failing(**short))
    plane.start()
    ask(plane)
    config = failing(**short)
    config["routes"][0]["respond"]["body"] = "still sorry"
    plane.configure(config)
    plane.cli("swap", "--app", APP)
    ask(plane)
    plane.event("rollout.proven", app=APP)


def test_a_rollback_is_never_taken_back(plane: Dataplane) -> None:
    plane.configure(failing())
    plane.configure(app_config(app="other", rollout={"probation": "1s"}))
    plane.start("up")
    bad = serving(plane)
    plane.configure(app_config())
    plane.cli("swap", "--app", APP)
    ask(plane)
    plane.cli("rollback", "--app", APP)
    assert ask(plane) == [503] * REQUESTS
    plane.configure(app_config(app="other", mark="green", rollout={"probation": "1s"}))
    plane.cli("swap", "--app", "other")
    plane.event("rollout.proven", app="other")  # so a look at all apps was taken since
    assert serving(plane) == bad
