"""The supervisor with real zygotes and workers, where several things happen at once or go wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import command_line
from tests.support.dataplane import APP, Dataplane, app_config, children, eventually, wait_gone
from tests.support.origin import Origin, holding
from tests.support.wire import Wire, request

pytestmark = pytest.mark.slow


@pytest.fixture
def plane() -> Iterator[Dataplane]:
    """Folders of its own; what was started is ended, and nothing may be left of it."""
    folder = Path(tempfile.mkdtemp())
    made = Dataplane(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def body_at(plane: Dataplane) -> bytes:
    with Wire.connect(plane.address()) as client:
        return client.get().body


# --- what it says is what its document says ---------------------------------------------------


def test_answers_are_as_the_document_describes_them(plane: Dataplane) -> None:
    plane.configure(app_config(workers=2))
    plane.start(faults=True)
    document = plane.call("GET", "/v1/openapi.json").body

    def holds(schema: str, value: Any) -> None:
        root = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
        jsonschema.Draft202012Validator(root).validate(value)

    holds("Apps", plane.call("GET", "/v1/apps").body)
    holds("App", plane.report())
    holds("Ledger", plane.swap(force=True))
    holds("Ledger", plane.swap())
    failed = plane.call(
        "POST", f"/v1/apps/{APP}/swap", {"force": True, "faults": ["crash-before-ready"]}
    )
    assert failed.status == 502
    holds("Problem", failed.body)
    plane.configure("version: 1\nnonsense: 1\n")
    refused = plane.ask_swap()
    assert refused.status == 422
    assert refused.body["findings"][0]["path"].endswith("billing.yaml")
    holds("Problem", refused.body)


def test_counters_never_go_back_at_a_swap_or_a_restart(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    names = ("requests_total", "connections_total", "received_bytes_total", "sent_bytes_total")
    before = dict.fromkeys(names, 0.0)
    for change in ("swap", "kill", "swap"):
        for _ in range(3):
            assert body_at(plane) == b"blue"
        seen = {name: plane.metric(f"dataplane_{name}") for name in names}
        assert all(seen[name] > before[name] for name in names), (change, before, seen)
        if change == "swap":
            plane.swap(force=True)
        else:
            pid = plane.worker_pid()
            os.kill(pid, signal.SIGKILL)
            wait_gone(pid)
        after = {name: plane.metric(f"dataplane_{name}") for name in names}
        assert all(after[name] >= seen[name] for name in names), (change, seen, after)
        before = seen
    assert plane.metric("dataplane_swaps_total") == 3
    assert plane.metric("dataplane_worker_restarts_total") == 1


# --- several at once --------------------------------------------------------------------------


def test_stop_gives_up_a_swap_that_has_not_switched(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start(faults=True)
    swap = plane.later(plane.ask_swap, force=True, faults=["hang-before-ready"])
    eventually(lambda: len(plane.report()["generations"]) == 2)
    stopped = plane.call("POST", f"/v1/apps/{APP}/stop")
    assert (stopped.status, stopped.body["state"]) == (200, "stopped")
    assert stopped.body["generations"] == []
    failed = swap.result(10)
    assert failed.status == 502
    assert failed.body["ledger"]["outcome"] == "failed"


def test_zygote_that_dies_with_a_fork_under_way_fails_the_swap_alone(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    (zygote,) = plane.zygote_pids()
    os.kill(zygote, signal.SIGSTOP)
    swap = plane.later(plane.ask_swap, force=True)
    eventually(lambda: len(plane.report()["generations"]) == 2)
    os.kill(zygote, signal.SIGKILL)
    failed = swap.result(10)
    assert failed.status == 502
    assert "zygote" in failed.body["detail"]
    assert body_at(plane) == b"blue"
    assert plane.swap(force=True)["outcome"] == "swapped"


def test_green_slot_that_lives_gives_back_what_it_was_given(plane: Dataplane) -> None:
    """Of two green slots one is killed while blue drains: the other's connections go on."""
    with Origin(holding(b"slow")) as origin:
        green = plane.build(app_config(origin.port, mark="green", workers=2))
        plane.configure(app_config(origin.port, workers=2))
        plane.start()
        address = plane.address()
        busy = Wire.connect(address)
        idle = [Wire.connect(address) for _ in range(16)]
        origin.released.set()
        for client in idle:
            assert client.get().field("x-mark") == "blue"
        origin.released.clear()
        busy.send(request("/held"))
        origin.wait_asked(17)
        swap = plane.later(plane.swap, green, code=502)
        eventually(lambda: plane.report()["generations"][-1]["state"] == "serving")
        eventually(lambda: _connections(plane, 2) == 16)
        one, other = plane.workers(generation=2)
        victim, survivor = (one, other) if one["connections"] else (other, one)
        os.kill(victim["pid"], signal.SIGKILL)
        ledger = swap.result(20)
        assert ledger["outcome"] == "failed"
        origin.released.set()
        assert busy.answer().field("x-mark") == "blue"
        alive = 0
        for client in idle:
            if not _is_cut(client):
                assert client.get().field("x-mark") == "blue"
                alive += 1
            client.close()
        busy.close()
        assert alive == survivor["connections"]
        assert [known["generation"] for known in plane.report()["generations"]] == [1]


def _connections(plane: Dataplane, generation: int) -> int:
    return sum(worker["connections"] for worker in plane.workers(generation=generation))


def _is_cut(client: Wire) -> bool:
    client.sock.setblocking(False)
    try:
        return client.sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        client.sock.settimeout(10)


# --- addresses and folders that are taken -----------------------------------------------------


def test_address_in_use_fails_a_swap_by_name_and_blue_serves(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        plane.configure(app_config(bind=taken))
        failed = plane.cli("swap", "--app", APP, "--json", code=1)
        assert f"cannot listen on {taken}: the address is in use" in failed.err
        assert json.loads(failed.out)["outcome"] == "failed"
    assert body_at(plane) == b"blue"
    assert plane.swap()["outcome"] == "swapped"  # once it is free


def test_address_in_use_fails_a_run_by_name_and_leaves_nothing(plane: Dataplane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        plane.configure(app_config(bind=taken))
        for detach in ((), ("--detach",)):
            told = plane.cli("run", "--app", APP, *detach, code=1)
            assert f"dataplane: cannot listen on {taken}: the address is in use" in told.err
            assert told.out == ""
    assert not (plane.run_dir / "supervisor.sock").exists()


def test_second_supervisor_is_refused_and_names_the_first(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    told = plane.cli("up", code=1)
    assert f"already runs on {plane.run_dir}, pid {plane.pid}" in told.err
    other = ["--run-dir", str(plane.folder / "other"), "--state-dir", str(plane.state_dir)]
    told = plane.cli(
        "run", "--app", APP, "--config", str(plane.config_dir), *other, folders=False, code=1
    )
    assert f"already uses {plane.state_dir}, pid {plane.pid}" in told.err
    assert body_at(plane) == b"blue"


def test_folder_whose_path_is_too_long_is_told_before_anything_is_built(plane: Dataplane) -> None:
    plane.configure(app_config())
    long = plane.folder / ("x" * 100)
    told = plane.cli(
        "run", "--app", APP, "--config", str(plane.config_dir), "--run-dir", str(long),
        "--state-dir", str(plane.state_dir), folders=False, code=1,
    )  # fmt: skip
    assert "too long for a socket" in told.err
    assert not long.exists()
    assert not plane.state_dir.exists()


def test_run_folder_that_cannot_be_written_is_told(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.run_dir.write_text("in the way")
    told = plane.cli("run", "--app", APP, code=1)
    assert f"cannot write to the folder {plane.run_dir}" in told.err
    plane.run_dir.unlink()


def test_socket_file_of_a_dead_supervisor_is_replaced(plane: Dataplane) -> None:
    plane.configure(app_config())
    (plane.run_dir / "workers").mkdir(parents=True)
    for path in ("supervisor.sock", f"workers/{APP}.9.0.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(plane.run_dir / path))
    plane.start()
    assert body_at(plane) == b"blue"
    assert [path.name for path in (plane.run_dir / "workers").iterdir()] == [f"{APP}.1.0.sock"]


def test_workers_without_a_supervisor_are_ended_by_down(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    worker = plane.worker_pid()
    plane.kill()
    told = plane.cli("down")
    assert told.out == f"worker stopped, app {APP}, pid {worker}\n"
    wait_gone(worker)
    plane.start()
    assert plane.report()["generations"][0]["generation"] == 2


def test_run_of_one_app_adopts_the_others_too_and_swaps_it_if_its_file_changed(
    plane: Dataplane,
) -> None:
    plane.configure(app_config())
    plane.configure(app_config(app="shop", mark="shop"))
    plane.start("up")
    before = plane.living()
    shop = plane.living("shop")
    with Wire.connect(plane.address()) as kept:
        assert kept.get().body == b"blue"
        plane.kill()
        plane.configure(app_config(mark="green"))
        plane.start("run", "--app", APP)
        assert kept.get().body == b"green"
    assert plane.living("shop") == shop
    eventually(lambda: not before.keys() & plane.living().keys())
    assert plane.report("shop")["state"] == "serving"
    assert plane.report()["generations"][-1]["generation"] == 2


# --- signals ----------------------------------------------------------------------------------


def test_a_signal_that_is_not_built_yet_is_told_and_does_nothing(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.signal(signal.SIGUSR2)
    told = plane.event("signal.passed_over", signal="SIGUSR2")
    assert told["reason"] == "not supported yet"
    assert body_at(plane) == b"blue"


def test_one_app_that_fails_stops_no_other_at_up(plane: Dataplane) -> None:
    plane.configure(app_config())
    (plane.config_dir / "apps" / "broken.yaml").write_text("version: 1\nnonsense: 1\n")
    assert "app=billing" in plane.start("up")
    assert body_at(plane) == b"blue"
    assert "broken.yaml:2:1: unknown key 'nonsense'" in plane.log()
    ready = plane.call("GET", "/readyz")
    assert (ready.status, ready.body["not_serving"]) == (200, ["broken"])


def test_end_that_is_asked_for_during_a_build_waits_for_no_build(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.configure(app_config(app="shop"))
    plane.start()
    swap = plane.later(plane.call, "PUT", "/v1/apps/shop")
    # By its command line: before its exec it is still the supervisor, which waits for that.
    (builder,) = eventually(
        lambda: [pid for pid in children(plane.pid) if " build " in command_line(pid)]
    )
    os.kill(builder, signal.SIGSTOP)
    plane.signal(signal.SIGTERM)
    assert plane.wait_end(5) == 0
    wait_gone(builder)
    with contextlib.suppress(http.client.HTTPException, OSError):
        assert swap.result(5).status == 502
