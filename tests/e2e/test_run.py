"""The command as a person uses it: start, look, change, stop; and what it says when it cannot."""

from __future__ import annotations

import json
import re
import signal
from typing import Any, Final

import pytest

from tests.support.dataplane import APP, Dataplane, app_config, eventually, wait_gone
from tests.support.origin import Origin, echoing, holding
from tests.support.wire import Wire, request

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

VERBS: Final = (
    "run", "up", "down", "swap", "rollback", "stop", "ps", "events", "build", "validate", "schema",
    "plan", "apply", "diff", "logs", "top",
)  # fmt: skip
NOT_YET: Final = ("supervisor",)

# The keys of the contract, exactly.
APP_KEYS: Final = {"app", "state", "wanted", "pending", "addresses", "generations"}
GENERATION_KEYS: Final = {"generation", "image", "code", "state", "since", "seal", "workers"}
SEAL_KEYS: Final = {"seccomp", "landlock", "uid", "cgroup", "egress"}
WORKER_KEYS: Final = {
    "slot", "pid", "state", "connections", "requests", "cpu_seconds", "memory_bytes", "restarts",
}  # fmt: skip
LEDGER_KEYS: Final = {
    "app", "outcome", "from", "to", "ms", "connections", "declined", "stall_ms", "error",
}  # fmt: skip
MS_KEYS: Final = {"build", "spawn", "ready", "switch", "drain", "total"}
CONNECTION_KEYS: Final = {
    "moved_idle", "moved_after_request", "moved_streaming", "moved_tunnel",
    "finished", "closed", "reset",
}  # fmt: skip


# --- run, in the foreground -------------------------------------------------------------------


def test_run_tells_ready_with_address_digest_and_pid_and_serves(plane: Dataplane) -> None:
    with Origin(echoing) as origin:
        plane.configure(app_config(origin.port))
        line = plane.start()
        host, port = plane.address()
        assert f"{host}:{port}" in line
        assert DIGEST.search(line)
        assert f"pid={plane.pid}" in line
        with Wire.connect((host, port)) as client:
            answer = client.get("/path?a=1")
    assert (answer.status, answer.field("x-mark")) == (200, "blue")
    assert json.loads(answer.body)["start"] == "GET /path?a=1 HTTP/1.1"


def test_term_drains_what_is_under_way_and_exits_0(plane: Dataplane) -> None:
    with Origin(holding(b"late")) as origin:
        plane.configure(app_config(origin.port))
        plane.start()
        with Wire.connect(plane.address()) as busy, Wire.connect(plane.address()) as idle:
            assert idle.get("/").body == b"late"
            busy.send(request("/held"))
            origin.wait_asked(2)
            plane.signal(signal.SIGTERM)
            assert idle.at_end()  # told first: nothing moves where nobody takes over
            origin.released.set()
            assert busy.answer().body == b"late"
        assert plane.wait_end() == 0


def test_a_second_signal_ends_it_now(plane: Dataplane) -> None:
    with Origin(holding(b"never")) as origin:
        plane.configure(app_config(origin.port))
        plane.start()
        with Wire.connect(plane.address()) as busy:
            busy.send(request("/held"))
            origin.wait_asked()
            plane.signal(signal.SIGINT)
            plane.event("supervisor.stopping")
            plane.signal(signal.SIGINT)
            plane.wait_end(5)
            assert busy.at_end()


def test_detach_returns_when_ready_and_down_ends_it(plane: Dataplane) -> None:
    plane.configure(app_config())
    told = plane.cli("run", "--app", APP, "--detach").out
    assert told.startswith("ready"), told
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"
    pid = plane.pid
    assert f"pid={pid}" in told
    assert str(pid) in plane.cli("down").out
    wait_gone(pid)
    assert "supervisor.started" in (plane.state_dir / "logs" / "supervisor.log").read_text()
    assert plane.cli("down", "--json").fact() == {"supervisor": None, "workers": []}


def test_detach_tells_why_it_could_not_start(plane: Dataplane) -> None:
    plane.configure("version: 1\napp: billing\nlisteners: [}\n")
    told = plane.cli("run", "--app", APP, "--detach", code=78)
    assert "billing.yaml:3:" in told.err
    assert told.out == ""


def test_run_joins_the_supervisor_that_runs(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.configure(app_config(app="shop", mark="shop"))
    ledger = plane.cli("run", "--app", "shop", "--json").fact()
    assert (ledger["app"], ledger["outcome"], ledger["from"]) == ("shop", "swapped", None)
    with Wire.connect(plane.address(app="shop")) as client:
        assert client.get().body == b"shop"
    plane.configure(app_config(app="shop", mark="shop two"))
    assert plane.cli("run", "--app", "shop", "--json").fact()["to"]["generation"] == 2
    assert plane.cli("run", "--app", "shop", "--json").fact()["outcome"] == "unchanged"
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"


# --- up, stop, rollback -----------------------------------------------------------------------


def test_up_starts_all_apps_as_they_served_and_tells_differences(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.configure(app_config(app="shop", mark="shop"))
    plane.start("up")
    assert {app["app"] for app in plane.call("GET", "/v1/apps").body["apps"]} == {APP, "shop"}
    plane.cli("stop", "--app", "shop")
    plane.cli("down")
    assert plane.wait_end() == 0
    plane.configure(app_config(mark="changed since"))
    plane.start("up")
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"
    assert plane.event("app.pending")["app"] == APP
    assert plane.report()["pending"] is True
    assert plane.report("shop")["state"] == "stopped"


def test_up_takes_the_named_apps_alone(plane: Dataplane) -> None:
    for app in ("one", "two", "three"):
        plane.configure(app_config(app=app, mark=app))
    plane.start("up", "--app", "one", "--app", "three")
    assert {app["app"] for app in plane.call("GET", "/v1/apps").body["apps"]} == {"one", "three"}


def test_stopped_app_closes_its_address_and_can_be_run_again(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.configure(app_config(app="shop", mark="shop"))
    plane.start()
    plane.cli("run", "--app", "shop")
    address = plane.address(app="shop")
    told = plane.cli("stop", "--app", "shop", "--json").fact()
    assert (told["app"], told["state"]) == ("shop", "stopped")
    with pytest.raises(ConnectionRefusedError):
        Wire.connect(address)
    assert plane.cli("run", "--app", "shop", "--json").fact()["outcome"] == "swapped"
    with Wire.connect(plane.address(app="shop")) as client:
        assert client.get().body == b"shop"


def test_rollback_serves_what_served_before(plane: Dataplane) -> None:
    plane.configure(app_config(mark="first"))
    plane.start()
    plane.configure(app_config(mark="second"))
    swapped = plane.cli("swap", "--app", APP, "--json").fact()
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"second"
        back = plane.cli("rollback", "--app", APP, "--json").fact()
        assert client.get().body == b"first"
        assert back["to"]["image"] == swapped["from"]["image"]
        assert back["connections"]["moved_idle"] == 1
        plane.cli("rollback", "--app", APP, swapped["to"]["image"])
        assert client.get().body == b"second"


# --- facts ------------------------------------------------------------------------------------


def test_ps_tells_the_contract(plane: Dataplane) -> None:
    plane.configure(app_config(workers=2))
    plane.start()
    (app,) = plane.cli("ps", "--json").fact()["apps"]
    assert app.keys() == APP_KEYS
    assert (app["app"], app["state"], app["pending"]) == (APP, "serving", False)
    (generation,) = app["generations"]
    assert generation.keys() >= GENERATION_KEYS
    assert generation["seal"].keys() >= SEAL_KEYS
    assert generation["image"] == app["wanted"]
    assert [worker["slot"] for worker in generation["workers"]] == [0, 1]
    for worker in generation["workers"]:
        assert worker.keys() >= WORKER_KEYS
        assert worker["state"] == "serving"
        assert worker["memory_bytes"] > 0
    (address,) = app["addresses"]
    assert address == {"listener": "web", "bind": "{}:{}".format(*plane.address())}
    table = plane.cli("ps").out
    assert "\x1b" not in table
    assert APP in table
    assert app["wanted"].removeprefix("sha256:")[:12] in table


def test_swap_prints_the_ledger_of_the_contract(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    with Wire.connect(plane.address()) as client:
        client.get()
        plane.configure(app_config(mark="green"))
        ledger = plane.cli("swap", "--app", APP, "--json").fact()
        assert client.get().body == b"green"
    assert ledger.keys() == LEDGER_KEYS
    assert ledger["ms"].keys() == MS_KEYS
    assert ledger["connections"].keys() == CONNECTION_KEYS
    assert ledger["stall_ms"].keys() == {"p50", "p99", "max"}
    assert (ledger["outcome"], ledger["error"]) == ("swapped", None)
    assert ledger["connections"] == {**dict.fromkeys(CONNECTION_KEYS, 0), "moved_idle": 1}
    assert (ledger["from"]["generation"], ledger["to"]["generation"]) == (1, 2)
    assert ledger["ms"]["total"] >= ledger["ms"]["drain"] > 0
    assert "swapped" in plane.cli("swap", "--app", APP, "--force").out


def test_events_tell_what_happened(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.swap(force=True)
    lines = plane.cli("events", "--json").out.splitlines()
    names = [json.loads(line)["event"] for line in lines]
    assert names[0] == "supervisor.started"
    assert names.count("rollout.switched") == 2
    assert names.count("worker.ended") == 1
    text = plane.cli("events").out.splitlines()
    assert len(text) == len(lines)
    assert "worker.serving app=billing generation=2 slot=0" in "\n".join(text)


def test_socket_answers_the_calls_that_monitors_make(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    with Wire.connect(plane.address()) as client:
        client.get()
    assert plane.call("GET", "/healthz").status == 200
    assert plane.call("GET", "/readyz").status == 200
    assert plane.call("GET", "/version").body["pid"] == plane.pid
    eventually(lambda: plane.metric("dataplane_requests_total") == 1)
    plane.swap(force=True)
    assert plane.metric("dataplane_requests_total") == 1  # a counter never goes back at a swap
    document = plane.call("GET", "/v1/openapi.json").body
    assert document["openapi"].startswith("3.1")
    assert "/v1/apps/{app}/swap" in document["paths"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/apps/nobody", None, 404),
        ("POST", "/v1/apps/nobody/swap", {}, 404),
        ("DELETE", "/v1/apps/billing", None, 405),
        ("POST", "/v1/apps/billing/swap", {"imgae": "x"}, 422),
        ("POST", "/v1/apps/billing/swap", {"image": "latest"}, 422),
        ("POST", "/v1/apps/billing/swap", {"image": "sha256:" + "0" * 64}, 422),
        ("POST", "/v1/apps/billing/swap", {"faults": ["crash-before-ready"]}, 422),
        ("POST", "/v1/apps/billing/rollback", {}, 409),
        ("POST", "/v1/plan", {"config_dir": "here"}, 422),
        ("POST", "/v1/apply", {"plan": "sha256:" + "0" * 64}, 409),
    ],
)
def test_refused_call_is_a_problem(
    plane: Dataplane, method: str, path: str, body: Any, status: int
) -> None:
    plane.configure(app_config())
    plane.start()
    told = plane.call(method, path, body)
    assert (told.status, told.kind) == (status, "application/problem+json")
    assert told.body["status"] == status
    assert told.body["detail"]
    assert len(plane.workers()) == 1


# --- usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(plane: Dataplane, verb: str) -> None:
    text = plane.cli(verb, "--help", folders=False).out
    assert re.search(rf"example:\s+dataplane {verb}", text), text


@pytest.mark.parametrize("verb", NOT_YET)
def test_verb_that_is_not_built_yet_says_so(plane: Dataplane, verb: str) -> None:
    assert "not supported yet" in plane.cli(verb, "--app", APP, code=64).err


@pytest.mark.parametrize(
    "words",
    [(), ("fly",), ("run",), ("swap", "--app"), ("ps", "--colour"), ("schema", "house")],
    ids=" ".join,
)
def test_usage_error_exits_64(plane: Dataplane, words: tuple[str, ...]) -> None:
    told = plane.cli(*words, code=64, folders=False)
    assert told.err
    assert told.out == ""


@pytest.mark.parametrize("words", [("swap", "--app", APP), ("ps",), ("stop", "--app", APP)])
def test_without_a_supervisor_a_command_says_so(plane: Dataplane, words: tuple[str, ...]) -> None:
    told = plane.cli(*words, code=1)
    assert "no supervisor runs" in told.err


def test_schema_is_printed_and_validate_is_silent_about_what_is_right(plane: Dataplane) -> None:
    plane.configure(app_config())
    schema = json.loads(plane.cli("schema", "app").out)
    assert schema["$schema"].endswith("2020-12/schema")
    plane.cli("validate")
    plane.cli("-t")
