"""Infrastructure as code from a shell: plan, apply, diff, and what runs after a restart."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.support.dataplane import Dataplane, app_config
from tests.support.rig import unused_port
from tests.support.wire import Wire

MANY: Final = 16


def file_of(plane: Dataplane, app: str) -> Path:
    return plane.config_dir / "apps" / f"{app}.yaml"


def break_file(plane: Dataplane, app: str) -> None:
    """A key that is none, in its third line."""
    file_of(plane, app).write_text(f"version: 1\napp: {app}\nlistner: []\n")


def body_of(plane: Dataplane, app: str) -> bytes:
    with Wire.connect(plane.address(app=app)) as client:
        return client.get().body


def pids(plane: Dataplane) -> dict[str, int]:
    apps = plane.call("GET", "/v1/apps").body["apps"]
    return {app["app"]: plane.worker_pid(app["app"]) for app in apps if app["generations"]}


def start(plane: Dataplane, *apps: str) -> None:
    for app in apps:
        plane.configure(app_config(app=app))
    plane.start("up")


# --- plan and apply ----------------------------------------------------------------------------


def test_nothing_to_do_is_told_and_nothing_is_touched(plane: Dataplane) -> None:
    start(plane, "one", "two")
    before = pids(plane)
    # What a file means counts, not how it is written.
    file = file_of(plane, "one")
    file.write_text(f"# a comment\n{file.read_text()}")
    assert plane.cli("plan").out == "plan: 2 unchanged\n"
    assert plane.cli("apply").out == "applied: 2 unchanged\n"
    assert pids(plane) == before
    assert all(app["generations"][0]["generation"] == 1
               for app in plane.call("GET", "/v1/apps").body["apps"])  # fmt: skip


def test_apply_does_what_plan_showed(plane: Dataplane) -> None:
    start(plane, "changed", "gone", "same")
    before = pids(plane)
    plane.configure(app_config(app="changed", mark="green", timeouts={"idle": "90s"}))
    plane.configure(app_config(app="new"))
    file_of(plane, "gone").unlink()
    planned = plane.cli("plan", code=2).out.splitlines()
    assert [line.split()[:3] for line in planned if not line.startswith(" ")] == [
        ["~", "changed", "replace"],
        ["-", "gone", "remove"],
        ["+", "new", "add"],
        ["plan:", "1", "to"],
    ]
    assert "    ~ routes[path=/].respond.body: blue -> green" in planned
    assert "    ~ timeouts.idle: 1m -> 90s" in planned
    assert "    + listeners[web].bind: 127.0.0.1:0" in planned
    assert planned[-1] == "plan: 1 to replace, 1 to add, 1 to remove, 1 unchanged"
    assert pids(plane) == before

    applied = plane.cli("apply").out
    assert applied.splitlines()[-1] == "applied: 1 swapped, 1 started, 1 removed, 1 unchanged"
    after = pids(plane)
    assert sorted(after) == ["changed", "new", "same"]
    assert after["same"] == before["same"]
    assert (body_of(plane, "changed"), body_of(plane, "new")) == (b"green", b"blue")
    assert plane.cli("plan").out == "plan: 3 unchanged\n"


def test_kept_plan_is_done_or_refused(plane: Dataplane) -> None:
    start(plane, "one", "two")
    plane.configure(app_config(app="one", mark="green"))
    plane.cli("plan", "--out", "kept.json", code=2)
    plane.configure(app_config(app="two", mark="green"))
    refused = plane.cli("apply", "kept.json", code=1)
    assert "not what the plan showed" in refused.err
    assert (body_of(plane, "one"), body_of(plane, "two")) == (b"blue", b"blue")
    plane.configure(app_config(app="two"))
    assert "applied: 1 swapped, 1 unchanged" in plane.cli("apply", "kept.json").out
    assert "not what the plan showed" in plane.cli("apply", "kept.json", code=1).err
    named = plane.cli("plan", "--json").fact()["plan"]
    assert plane.cli("apply", named).out == "applied: 2 unchanged\n"


@pytest.mark.parametrize("content", ["{}", "[]", "no", '{"plan": "x", "config_dir": "/"}'])
def test_file_that_is_no_plan_is_refused(plane: Dataplane, content: str) -> None:
    (plane.folder / "kept.json").write_text(content)
    assert "is not a plan" in plane.cli("apply", "kept.json", code=1).err


def test_broken_file_stops_no_other_and_is_told_with_its_line(plane: Dataplane) -> None:
    start(plane, "bad", "good")
    before = pids(plane)
    break_file(plane, "bad")
    planned = plane.cli("plan", code=1)
    assert f"{file_of(plane, 'bad')}:3:1: " in planned.err
    assert "1 broken" in planned.out
    plane.configure(app_config(app="good", mark="green"))
    assert plane.cli("plan", "--json", code=1).fact()["counts"]["replace"] == 1
    applied = plane.cli("apply", code=78)
    assert f"{file_of(plane, 'bad')}:3:1: " in applied.err
    assert applied.out.splitlines()[-1] == "applied: 1 swapped, 1 broken, 0 unchanged"
    assert (body_of(plane, "bad"), body_of(plane, "good")) == (b"blue", b"green")
    assert plane.worker_pid("bad") == before["bad"]


def test_failed_swap_stops_no_other_and_the_exit_code_tells(plane: Dataplane) -> None:
    start(plane, "bad", "broken", "good")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        plane.configure(app_config(app="bad", mark="green", bind=taken))
        plane.configure(app_config(app="good", mark="green"))
        break_file(plane, "broken")
        applied = plane.cli("apply", code=1)
    assert "bad: failed: " in applied.out
    assert "applied: 1 swapped, 1 failed, 1 broken, 0 unchanged" in applied.out
    bodies = [body_of(plane, app) for app in ("bad", "broken", "good")]
    assert bodies == [b"blue", b"blue", b"green"]


def test_folder_that_cannot_be_read_removes_nothing(plane: Dataplane) -> None:
    start(plane, "one")
    pid = plane.worker_pid("one")
    plane.config_dir.rename(plane.folder / "away")
    assert "no such folder" in plane.cli("plan", code=1).err
    assert "no such folder" in plane.cli("apply", code=78).err
    plane.config_dir.mkdir()
    (plane.config_dir / "apps").mkdir()
    assert "there is no app" in plane.cli("apply", code=78).err
    assert plane.worker_pid("one") == pid


def test_hangup_is_apply(plane: Dataplane) -> None:
    start(plane, "one", "two")
    before = pids(plane)
    plane.configure(app_config(app="one", mark="green"))
    plane.configure(app_config(app="three"))
    os.kill(plane.pid, signal.SIGHUP)
    ended = plane.event("apply.ended")
    assert (ended["swapped"], ended["started"], ended["nothing"]) == (1, 1, 1)
    assert (body_of(plane, "one"), body_of(plane, "three")) == (b"green", b"blue")
    assert plane.worker_pid("two") == before["two"]


def test_plan_needs_a_supervisor(plane: Dataplane) -> None:
    assert "no supervisor runs" in plane.cli("plan", code=1).err


# --- wanted state ------------------------------------------------------------------------------


def test_restart_brings_what_served_and_tells_what_differs(plane: Dataplane) -> None:
    start(plane, "bad", "changed", "gone", "same")
    break_file(plane, "bad")
    plane.configure(app_config(app="changed", mark="green"))
    plane.configure(app_config(app="new"))
    file_of(plane, "gone").unlink()
    plane.cli("down")
    assert plane.wait_end() == 0
    plane.start("up")
    told = {app["app"]: app for app in plane.call("GET", "/v1/apps").body["apps"]}
    assert {name: app["state"] for name, app in told.items()} == dict.fromkeys(
        ("bad", "changed", "gone", "new", "same"), "serving"
    )
    assert body_of(plane, "changed") == b"blue"
    plane.event("app.pending", app="changed", action="replace")
    plane.event("app.pending", app="gone", action="remove")
    assert ":3:1: " in plane.event("app.config_broken", app="bad")["error"]
    pending = {app["app"] for app in plane.cli("ps", "--json").fact()["apps"] if app["pending"]}
    assert pending == {"changed", "gone"}
    plane.cli("apply", code=78)
    assert not any(app["pending"] for app in plane.cli("ps", "--json").fact()["apps"])
    assert body_of(plane, "changed") == b"green"


def test_app_that_was_rolled_back_differs_from_its_file(plane: Dataplane) -> None:
    plane.configure(app_config(app="one"))
    plane.start("run", "--app", "one")
    plane.configure(app_config(app="one", mark="green"))
    plane.cli("swap", "--app", "one")
    assert plane.report("one")["pending"] is False
    plane.cli("rollback", "--app", "one")
    assert plane.report("one")["pending"] is True
    assert "1 to replace" in plane.cli("plan", code=2).out
    plane.cli("apply")
    assert plane.report("one")["pending"] is False
    assert body_of(plane, "one") == b"green"


def test_stopped_app_stays_stopped_over_restarts_and_applies(plane: Dataplane) -> None:
    start(plane, "one", "two")
    plane.cli("stop", "--app", "one")
    plane.configure(app_config(app="one", mark="green"))
    assert "(stopped; start it by: dataplane run --app one)" in plane.cli("plan").out
    plane.cli("apply")
    plane.cli("down")
    assert plane.wait_end() == 0
    plane.start("up")
    plane.cli("apply")
    assert (plane.report("one")["state"], plane.report("two")["state"]) == ("stopped", "serving")
    plane.cli("run", "--app", "one")
    assert body_of(plane, "one") == b"green"


def test_removed_app_stays_away_over_restarts_until_its_file_is_back(plane: Dataplane) -> None:
    start(plane, "one", "two")
    file_of(plane, "one").unlink()
    plane.cli("apply")
    plane.cli("down")
    assert plane.wait_end() == 0
    plane.start("up")
    assert sorted(pids(plane)) == ["two"]
    plane.configure(app_config(app="one", mark="green"))
    assert plane.cli("apply").out.splitlines()[-1] == "applied: 1 started, 1 unchanged"
    assert body_of(plane, "one") == b"green"


def test_one_broken_file_among_many_new_apps(plane: Dataplane) -> None:
    names = [f"app{number:02d}" for number in range(MANY)]
    for name in names:
        plane.configure(app_config(app=name))
    break_file(plane, names[7])
    plane.start("up")
    healthy = [name for name in names if name != names[7]]
    assert sorted(pids(plane)) == healthy
    assert {body_of(plane, name) for name in healthy} == {b"blue"}
    assert f"{file_of(plane, names[7])}:3:1: " in plane.log()
    plane.configure(app_config(app=names[7]))
    assert plane.cli("apply").out.splitlines()[-1] == f"applied: 1 started, {MANY - 1} unchanged"


def test_addresses_go_from_app_to_app_in_one_apply(plane: Dataplane) -> None:
    """An app that is renamed keeps its address, and so does one that takes another's place."""
    first, second = (f"127.0.0.1:{unused_port()}" for _ in range(2))
    plane.configure(app_config(app="former", bind=first))
    plane.configure(app_config(app="mover", bind=second))
    plane.start("up")
    file_of(plane, "former").unlink()
    plane.configure(app_config(app="a-heir", mark="heir", bind=second))
    plane.configure(app_config(app="mover", mark="moved", bind=first))
    applied = plane.cli("apply").out
    assert applied.splitlines()[-1] == "applied: 1 swapped, 1 started, 1 removed, 0 unchanged"
    assert plane.address(app="mover")[1] == int(first.rpartition(":")[2])
    assert (body_of(plane, "mover"), body_of(plane, "a-heir")) == (b"moved", b"heir")


# --- diff --------------------------------------------------------------------------------------


def test_diff_of_images_and_of_what_serves(plane: Dataplane) -> None:
    start(plane, "one", "two")
    green = plane.build(app_config(app="one", mark="green"), app="one")
    blue = plane.report("one")["wanted"]
    differing = plane.cli("diff", "one", green.removeprefix("sha256:")[:12], code=2)
    assert differing.out.splitlines() == [
        "~ routes[path=/].respond.body: blue -> green",
        "~ routes[path=/].response_headers.set.x-mark: blue -> green",
    ]
    assert plane.cli("diff", blue, "one").out == ""
    told = plane.cli("diff", "one", "two", "--json", code=2).fact()
    assert (told["from"]["image"], told["to"]["app"]) == (blue, "two")
    assert told["changes"] == [{"kind": "changed", "key": "app", "from": "one", "to": "two"}]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("sha256:" + "0" * 64, "no image sha256:000"),
        ("0000000", "no image that begins with 0000000 is in the store"),
        ("none", "no app none serves"),
        ("abc", "no app abc serves"),
        ("../x", "neither an app's name nor a digest, nor the first 4 or more of one"),
    ],
)
def test_diff_with_what_is_no_image(plane: Dataplane, word: str, reason: str) -> None:
    blue = plane.build(app_config())
    refused = plane.cli("diff", blue, word, code=1)
    assert reason in refused.err
    assert refused.out == ""


def test_build_of_all_prints_a_line_for_each_and_tells_the_broken(plane: Dataplane) -> None:
    for app in ("one", "two"):
        plane.configure(app_config(app=app))
    break_file(plane, "bad")
    built = plane.cli("build", "--all", code=78)
    assert [line.split()[1] for line in built.out.splitlines()] == ["one", "two"]
    assert f"{file_of(plane, 'bad')}:3:1: " in built.err
    assert built.out.split()[0] == plane.build(app="one")
    told = json.loads(plane.cli("build", "--all", "--json", code=78).out)
    assert [one["app"] for one in told["apps"]] == ["bad", "one", "two"]
