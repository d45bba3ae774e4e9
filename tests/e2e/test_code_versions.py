"""Two versions of the proxy's code under one supervisor: a hot fix reaches one app, and goes back.

The fix is one of the engine itself, which every client sees: its own answers carry another `server`
field. So an answer tells which code gave it, whatever the supervisor says.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

import pytest

import dataplane
from tests.support.dataplane import (
    Dataplane,
    Json,
    app_config,
    children,
    eventually,
    tcp_config,
)
from tests.support.installation import change, fix_engine, release
from tests.support.load import Load, token_upstream
from tests.support.origin import Origin, parroting
from tests.support.wire import Wire

BILLING: Final = "billing"
SHOP: Final = "shop"
OLD, NEW = "dataplane", "hot-fixed"  # what `server` says
FIXED: Final = "9.9.9"
IDLE: Final = 20


def server_of(client: Wire) -> str | None:
    """Which code answers on this connection."""
    return client.get("/own").field("server")


def servers(plane: Dataplane) -> dict[str, str | None]:
    """Which code answers on a new one, of each app."""
    told = {}
    for app in (BILLING, SHOP):
        with Wire.connect(plane.address(app=app)) as client:
            told[app] = server_of(client)
    return told


def codes(plane: Dataplane) -> dict[str, str]:
    """The code version of each app's only generation."""
    apps = plane.cli("ps", "--json").fact()["apps"]
    told = {}
    for app in apps:
        (generation,) = app["generations"]
        told[app["app"]] = generation["code"]
    return told


def zygote_of(plane: Dataplane, app: str) -> int:
    """The zygote that forked the app's only worker."""
    worker = plane.worker_pid(app)
    (parent,) = [pid for pid in plane.zygote_pids() if worker in children(pid)]
    return parent


def config(app: str, port: int) -> Json:
    """An app that answers by itself below /own, and by its upstream elsewhere."""
    told = app_config(port, app=app)
    own = {"match": {"path": "/own"}, "respond": {"status": 200, "body": app}}
    return {**told, "routes": [own, *told["routes"]]}


def start(plane: Dataplane, port: int) -> None:
    for app in (BILLING, SHOP):
        plane.configure(config(app, port))
    plane.start("up")


def fix(installed: Path) -> None:
    release(installed, FIXED)
    fix_engine(installed, NEW)


def changes_of(told: Json, app: str) -> dict[str, tuple[str, str]]:
    """Of a plan: what changes in the app."""
    (step,) = [step for step in told["apps"] if step["app"] == app]
    return {one["key"]: (one["from"], one["to"]) for one in step["changes"]}


def test_hot_fix_reaches_one_app_and_the_other_keeps_its_code_and_loses_nothing(
    apart: Dataplane, installed: Path, load_tools: None
) -> None:
    words = ("--connections", "8", "--verify-body", "--keep-going", "--control")
    with token_upstream() as port, contextlib.ExitStack() as until_done:
        start(apart, port)
        assert servers(apart) == {BILLING: OLD, SHOP: OLD}
        assert zygote_of(apart, BILLING) == zygote_of(apart, SHOP)
        loads = {
            app: until_done.enter_context(Load(apart.address(app=app), *words))
            for app in (BILLING, SHOP)
        }
        untouched = apart.worker_pid(SHOP)

        fix(installed)
        ledger = apart.cli("swap", "--app", BILLING, "--json").fact()
        assert ledger["connections"]["closed"] + ledger["connections"]["reset"] == 0
        for load in loads.values():
            load.wait_for(200)

        assert servers(apart) == {BILLING: NEW, SHOP: OLD}
        assert codes(apart) == {BILLING: FIXED, SHOP: dataplane.__version__}
        assert len(apart.zygote_pids()) == 2
        assert zygote_of(apart, BILLING) != zygote_of(apart, SHOP)

        apart.cli("rollback", "--app", BILLING)
        for load in loads.values():
            load.wait_for(200)
        assert servers(apart) == {BILLING: OLD, SHOP: OLD}
        assert codes(apart) == dict.fromkeys((BILLING, SHOP), dataplane.__version__)
        eventually(lambda: len(apart.zygote_pids()) == 1)  # nothing runs the fixed code any more
        assert zygote_of(apart, BILLING) == zygote_of(apart, SHOP)

        assert apart.worker_pid(SHOP) == untouched
        reports = [load.stop() for load in loads.values()]
    for report in reports:
        assert (report["failed"], report["first_failures"]) == (0, [])
        assert (report["connects"], report["open_at_end"]) == (8, 8)


def test_connections_kept_open_move_between_old_and_new_code_both_ways(
    apart: Dataplane, installed: Path
) -> None:
    apart.configure(app_config())
    apart.start()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire.connect(apart.address())) for _ in range(IDLE)]
        halfway = stack.enter_context(Wire.connect(apart.address()))
        assert {server_of(client) for client in (*clients, halfway)} == {OLD}
        fix(installed)
        halfway.send(b"GET /own HTTP/1.1\r\nho")  # a head that old code begins, new code ends
        there = apart.cli("swap", "--app", BILLING, "--json").fact()["connections"]
        halfway.send(b"st: test\r\n\r\n")
        assert halfway.answer().field("server") == NEW
        assert {server_of(client) for client in clients} == {NEW}
        halfway.send(b"GET /own HTTP/1.1\r\nho")
        back = apart.cli("rollback", "--app", BILLING, "--json").fact()["connections"]
        halfway.send(b"st: test\r\n\r\n")
        assert halfway.answer().field("server") == OLD
        assert {server_of(client) for client in clients} == {OLD}
    for counts in (there, back):
        assert {name: count for name, count in counts.items() if count} == {"moved_idle": IDLE + 1}
    assert apart.metric("dataplane_connections_total") == IDLE + 1


def test_ps_plan_and_diff_show_the_code_versions(apart: Dataplane, installed: Path) -> None:
    with token_upstream() as port:
        start(apart, port)
        old = apart.report(BILLING)["wanted"]
        fix(installed)
        planned = apart.cli("plan", "--json", code=2).fact()
        for app in (BILLING, SHOP):
            changes = changes_of(planned, app)
            assert changes.keys() == {"code", "code layer"}
            assert changes["code"] == (dataplane.__version__, FIXED)
        apart.cli("swap", "--app", BILLING)
        new = apart.report(BILLING)["wanted"]
        planned = apart.cli("plan", "--json", code=2).fact()
        assert [step["app"] for step in planned["apps"] if step["action"] == "replace"] == [SHOP]
        assert f"    ~ code: {dataplane.__version__} -> {FIXED}\n" in apart.cli("plan", code=2).out

        differs = apart.cli("diff", old, new, code=2).out
        assert f"~ code: {dataplane.__version__} -> {FIXED}\n" in differs
        between = apart.cli("diff", BILLING, SHOP, code=2).out
        assert f"~ code: {FIXED} -> {dataplane.__version__}\n" in between

        head, *rows = (re.split("  +", line) for line in apart.cli("ps").out.splitlines())
        shown = {row[0]: row[head.index("CODE")] for row in rows}
        assert shown == {
            app: f"{version}/{apart.report(app)['generations'][0]['code_layer'][7:15]}"
            for app, version in {BILLING: FIXED, SHOP: dataplane.__version__}.items()
        }


def test_fix_that_keeps_its_version_is_told_apart_by_its_code_layer(
    apart: Dataplane, installed: Path
) -> None:
    """A hot fix made in place at night, with the version forgotten."""
    apart.configure(app_config())
    apart.start()
    (before,) = apart.report()["generations"]
    fix_engine(installed, NEW)
    planned = apart.cli("plan", code=2).out
    assert "    ~ code layer: " in planned
    assert "~ code: " not in planned
    apart.cli("apply")
    (after,) = apart.report()["generations"]
    assert after["code"] == before["code"]
    assert after["code_layer"] != before["code_layer"]
    with Wire.connect(apart.address()) as client:
        assert server_of(client) == NEW


@pytest.mark.parametrize("first", [BILLING, SHOP])
def test_apps_of_two_code_versions_come_back_each_with_its_own_after_a_restart(
    apart: Dataplane, installed: Path, first: str
) -> None:
    with token_upstream() as port:
        start(apart, port)
        fix(installed)
        apart.cli("swap", "--app", first)
        expected = {BILLING: OLD, SHOP: OLD, first: NEW}
        assert servers(apart) == expected
        apart.cli("down")
        assert apart.wait_end() == 0
        apart.start("up")  # which changes nothing that serves: the older code is what was wanted
        assert servers(apart) == expected
        assert len(apart.zygote_pids()) == 2


def test_code_that_knows_no_tunnels_takes_the_rest_and_each_tunnel_ends_where_it_is(
    apart: Dataplane, installed: Path
) -> None:
    """Neither code refuses the other: what its records cannot carry drains, all else moves."""
    with Origin(parroting) as origin:
        told, raw = app_config(), tcp_config(origin.port)
        listeners = [*told["listeners"], {**raw["listeners"][0], "name": "raw"}]
        apart.configure({**told, "listeners": listeners, "upstreams": raw["upstreams"]})
        apart.start()
        release(installed, FIXED)
        moving = installed / "dataplane" / "worker" / "moving.py"
        change(moving, "version: Final = MOVE_VERSION", "version: Final = 1")
        with Wire.connect(apart.address()) as idle:
            for number, verb in enumerate(("swap", "rollback"), 1):

                def drains(number: int = number) -> bool:
                    workers = apart.workers(generation=number)
                    return {worker["state"] for worker in workers} == {"draining"}

                assert idle.get().status == 200
                with Wire.connect(apart.address("raw")) as tunnel:
                    tunnel.send(b"before")
                    assert tunnel.exactly(6) == b"before"
                    swap = apart.later(apart.cli, verb, "--app", BILLING, "--json")
                    eventually(drains)
                    for _ in range(3):
                        tunnel.send(b"meanwhile")
                        assert tunnel.exactly(9) == b"meanwhile"
                    assert not swap.done()
                ledger = swap.result(30).fact()
                counts = {name: count for name, count in ledger["connections"].items() if count}
                assert counts == {"moved_idle": 1, "finished": 1}
                assert ledger["declined"] == {}
