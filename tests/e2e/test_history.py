"""History and rollback from a shell: who did what, how it went, and back again."""

from __future__ import annotations

import json
import os
import pwd
import signal
from typing import Any

import pytest

from tests.support.dataplane import APP, Dataplane, app_config, eventually, wait_gone
from tests.support.wire import Wire

pytestmark = pytest.mark.timeout(60)

ME = pwd.getpwuid(os.geteuid()).pw_name


def history(plane: Dataplane, app: str = APP) -> list[dict[str, Any]]:
    told = plane.cli("history", "--app", app, "--json").fact()
    assert told["app"] == app
    entries: list[dict[str, Any]] = told["history"]
    return entries


def outcomes(plane: Dataplane) -> list[tuple[int | None, str, str]]:
    return [(one["generation"], one["outcome"], one["by"]["user"]) for one in history(plane)]


def body_at(plane: Dataplane) -> bytes:
    with Wire.connect(plane.address()) as client:
        return client.get().body


def test_history_tells_when_who_what_and_how_it_went(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start(faults=True)
    first = plane.report()["generations"][0]["image"]
    plane.configure(app_config(mark="green"))
    plane.cli("swap", "--app", APP)
    second = plane.report()["generations"][0]["image"]
    plane.cli("swap", "--app", APP)  # changes nothing
    plane.swap(force=True, code=502, faults=["crash-before-ready"])
    plane.cli("rollback", "--app", APP)
    assert body_at(plane) == b"blue"
    plane.configure("version: 1\nnonsense: 1\n")
    plane.cli("swap", "--app", APP, code=78)
    plane.cli("stop", "--app", APP)
    assert outcomes(plane) == [
        (1, "first start", "supervisor"),
        (2, "swapped", ME),
        (3, "failed", ME),
        (4, "rolled back", ME),
        (None, "failed", ME),
        (4, "stopped", ME),
    ]
    entries = history(plane)
    assert [one["image"] for one in entries] == [first, second, second, first, None, first]
    times = [one["time"] for one in entries]
    assert times == sorted(times)
    assert entries[1]["ledger"]["to"] == {"generation": 2, "image": second}
    assert entries[1]["asked"] == "swap"
    assert entries[1]["provenance"]["files"][0]["path"] == f"apps/{APP}.yaml"
    assert entries[1]["provenance"]["key"]
    assert entries[1]["by"]["pid"] not in (0, plane.pid)
    assert "never got ready" in entries[2]["error"]
    assert "nonsense" in entries[4]["error"]
    text = plane.cli("history", "--app", APP).out
    for word in ("first start", "rolled back", second.removeprefix("sha256:")[:12], ME):
        assert word in text


def test_restart_after_a_crash_is_the_supervisors(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    pid = plane.worker_pid()
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    eventually(lambda: len(history(plane)) == 2)
    assert outcomes(plane)[-1] == (1, "restarted", "supervisor")
    assert history(plane)[-1]["error"] == "slot 0: killed by SIGKILL"


def test_history_survives_restarts_and_a_torn_last_write(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.swap(force=True)
    plane.signal(signal.SIGTERM)
    assert plane.wait_end() == 0
    path = plane.state_dir / "history" / f"{APP}.jsonl"
    with path.open("ab") as file:
        file.write(b'{"time": "2026-11-22T18:00:00Z", "outco')
    plane.start("up")
    assert plane.event("history.repaired")["app"] == APP
    assert [one[:2] for one in outcomes(plane)] == [
        (1, "first start"),
        (2, "swapped"),
        (2, "stopped"),
        (3, "started"),
    ]
    assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().splitlines())


def test_generation_whose_line_is_lost_is_told_as_a_gap(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.swap(force=True)
    plane.swap(force=True)
    path = plane.state_dir / "history" / f"{APP}.jsonl"
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + third)
    told = [(one["generation"], one["outcome"]) for one in history(plane)]
    assert told == [(1, "first start"), (None, "not recorded"), (3, "swapped")]
    assert "not recorded" in plane.cli("history", "--app", APP).out


def test_rollback_by_name_goes_to_any_stored_image_of_the_app(plane: Dataplane) -> None:
    images = [plane.build(app_config(mark=mark)) for mark in ("one", "two", "three")]
    other = plane.build(app_config(app="other"), app="other")
    plane.start()
    assert body_at(plane) == b"three"
    plane.cli("rollback", "--app", APP, images[0].removeprefix("sha256:")[:12])
    assert body_at(plane) == b"one"
    plane.cli("rollback", "--app", APP, images[1])
    assert body_at(plane) == b"two"
    plane.cli("rollback", "--app", APP)
    assert body_at(plane) == b"one"
    for wrong in (other, "sha256:" + "0" * 64, "abc", "../../etc/passwd", "sha256:"):
        refused = plane.cli("rollback", "--app", APP, wrong, code=1)
        assert refused.err.startswith("dataplane: ")
        assert body_at(plane) == b"one"
    assert [one["outcome"] for one in history(plane)] == ["first start"] + ["rolled back"] * 3


def test_rollback_without_anything_to_go_back_to_says_so(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.swap(force=True)
    refused = plane.cli("rollback", "--app", APP, code=1)
    assert "no other image of billing served before" in refused.err


def test_history_of_an_app_that_is_not_here(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    refused = plane.cli("history", "--app", "none", code=1)
    assert "no app none here" in refused.err


def test_swap_under_way_is_told_as_such(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start(faults=True)
    swap = plane.later(plane.ask_swap, force=True, faults=["hang-before-ready"])
    eventually(lambda: len(plane.report()["generations"]) == 2)
    assert outcomes(plane)[-1] == (2, "under way", ME)
    plane.call("POST", f"/v1/apps/{APP}/stop")
    assert swap.result(10).status == 502
    assert [one[1] for one in outcomes(plane)] == ["first start", "failed", "stopped"]


def test_disk_that_takes_no_history_keeps_nobody_from_serving(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    path = plane.state_dir / "history" / f"{APP}.jsonl"
    path.unlink()
    path.symlink_to("/dev/full")  # as good as a full disk, and never followed
    assert plane.swap(force=True)["outcome"] == "swapped"
    assert plane.event("history.not_written")["app"] == APP
    assert body_at(plane) == b"blue"
    path.unlink()
    plane.swap(force=True)
    told = [(one["generation"], one["outcome"]) for one in history(plane)]
    assert told == [(None, "not recorded"), (2, "swapped"), (3, "swapped")]
