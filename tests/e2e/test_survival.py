"""A supervisor is killed, at rest or in the middle of a swap: the next one goes on, unnoticed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from dataplane.control.messages import Ask, Identity, Serve, Serving
from tests.e2e.test_swap_faults import ask
from tests.support.dataplane import (
    APP,
    Dataplane,
    Json,
    app_config,
    eventually,
    process_state,
    wait_gone,
)
from tests.support.load import Load, token_upstream
from tests.support.origin import Origin, holding
from tests.support.wire import Wire, request

KEPT: Final = 8
FRESH: Final = 2
LISTEN: Final = "0A"  # /proc/net/tcp


class Watched:
    """An app of two workers under load, over kept connections and over new ones."""

    def __init__(self, plane: Dataplane, port: int, kept: Load, fresh: Load) -> None:
        self.plane = plane
        self.port = port
        self._kept, self._fresh = kept, fresh
        self._counters: dict[str, float] = {}

    def go_on(self) -> None:
        """Until either kind of client has been served for a while."""
        self._kept.wait_for(100)
        self._fresh.wait_for(10)

    def next_supervisor(self, *words: str) -> None:
        """Starts it, and claims that what can be counted has not gone back."""
        self.plane.start(*(words or ("up",)))
        self.count()

    def count(self) -> None:
        """Each counter is at least what it was when it was looked at last."""
        text = self.plane.call("GET", "/metrics").body
        kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
        now = {}
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if kinds.get(series.partition("{")[0]) == "counter":
                now[series] = float(value)
        fell = {series: (was, now.get(series)) for series, was in self._counters.items()
                if now.get(series, -1.0) < was}  # fmt: skip
        assert not fell
        self._counters = now

    def claim_one_generation(self, number: int | None = None) -> int:
        """One serves, and the kernel knows no other worker and no other socket."""
        plane = self.plane

        def settled() -> list[Json] | None:
            told = plane.report()["generations"]
            states = [worker["state"] for one in told for worker in one["workers"]]
            alone = len(told) == 1 and set(states) == {"serving"}
            return told if alone and len(plane.living()) == len(states) else None

        (generation,) = eventually(settled)
        if number is not None:
            assert generation["generation"] == number
        pids = {worker["pid"] for worker in generation["workers"]}
        assert plane.living() == dict.fromkeys(pids, generation["generation"])
        assert len(listening(plane.address()[1])) == len(pids)
        return int(generation["generation"])

    def claim_nobody_noticed(self) -> None:
        """Not one answer is missing, not one kept connection was closed."""
        self.go_on()
        kept, fresh = self._kept.stop(), self._fresh.stop()
        for report in (kept, fresh):
            assert (report["failed"], report["first_failures"]) == (0, [])
        assert (kept["connects"], kept["open_at_end"]) == (KEPT, KEPT)


@pytest.fixture
def watched(plane: Dataplane, load_tools: None) -> Iterator[Watched]:
    with token_upstream() as port:
        plane.configure(two_workers(port))
        plane.start(faults=True)
        words = ("--verify-body", "--keep-going", "--control")
        with (
            Load(plane.address(), "--connections", str(KEPT), *words) as kept,
            Load(plane.address(), "--connections", str(FRESH), "--reopen", *words) as fresh,
        ):
            made = Watched(plane, port, kept, fresh)
            made.go_on()
            made.count()
            yield made


def two_workers(port: int, **more: Any) -> Json:
    return app_config(port, workers=2, access_log={"format": "json"}, **more)


def listening(port: int) -> list[str]:
    """The sockets that listen on a port of 127.0.0.1, by inode."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[9] for row in rows if row[3] == LISTEN and row[1].endswith(f":{port:04X}")]


# --- at rest ----------------------------------------------------------------------------------


def test_next_supervisor_adopts_what_serves_and_all_works_as_before(watched: Watched) -> None:
    plane = watched.plane
    before, address = plane.report(), plane.address()
    plane.kill()
    watched.go_on()
    watched.next_supervisor()
    after = plane.report()
    for told in (before, after):
        for generation in told["generations"]:
            del generation["since"]
            for worker in generation["workers"]:
                for name in ("requests", "connections", "cpu_seconds", "memory_bytes"):
                    del worker[name]
    assert after == before
    assert plane.address() == address
    watched.claim_one_generation(1)
    green = plane.build(two_workers(watched.port, mark="green"))
    ledger = plane.swap(green)
    assert (ledger["outcome"], ledger["to"]["generation"]) == ("swapped", 2)
    counts = ledger["connections"]
    assert counts["moved_idle"] + counts["moved_after_request"] >= KEPT
    watched.claim_one_generation(2)
    watched.count()
    plane.cli("rollback", "--app", APP)
    watched.claim_one_generation(3)
    watched.count()
    told = plane.cli("history", "--app", APP, "--json").fact()["history"]
    assert [(one["generation"], one["outcome"]) for one in told] == [
        (1, "first start"),
        (1, "adopted"),
        (2, "swapped"),
        (3, "rolled back"),
    ]
    assert told[1]["by"]["pid"] == plane.pid
    watched.claim_nobody_noticed()
    plane.cli("stop", "--app", APP)
    assert plane.living() == {}
    assert listening(address[1]) == []


def test_no_line_of_the_access_log_is_lost_on_its_way(watched: Watched) -> None:
    plane = watched.plane
    plane.kill()
    watched.go_on()
    watched.next_supervisor()
    watched.claim_nobody_noticed()
    folder = plane.state_dir / "logs" / APP

    def all_written() -> bool:
        made = plane.metric("dataplane_access_log_lines_total")
        dropped = plane.metric("dataplane_access_log_dropped_total")
        written = sum(file.read_bytes().count(b"\n") for file in folder.iterdir())
        told.append((made, dropped, written))
        return made - dropped == written > 0

    told: list[tuple[float, float, int]] = []
    with contextlib.suppress(AssertionError):
        eventually(all_written)
    made, dropped, written = told[-1]
    assert written == made - dropped  # what a busy host made it drop is counted


def test_ten_supervisors_in_a_row_are_killed(watched: Watched) -> None:
    plane = watched.plane
    pids = plane.living()
    for _ in range(10):
        plane.kill()
        watched.go_on()
        watched.next_supervisor()
        assert plane.living() == pids
    watched.claim_one_generation(1)
    assert plane.swap(force=True)["outcome"] == "swapped"
    watched.claim_one_generation(2)
    watched.claim_nobody_noticed()


def test_supervisors_that_are_killed_while_they_adopt(watched: Watched) -> None:
    plane = watched.plane
    pids = plane.living()
    plane.kill()
    for told in ("supervisor.started", "worker.adopted", "app.adopted", "log.writer_started"):
        before = plane.log().count(told)
        with (plane.folder / "supervisor.err").open("a") as log:
            starting = subprocess.Popen(plane.command("up"), stdout=subprocess.DEVNULL, stderr=log)
        eventually(functools.partial(is_told, plane, told, before + 1))
        starting.kill()
        starting.wait()
        watched.go_on()
    watched.next_supervisor()
    assert plane.living() == pids
    watched.claim_one_generation(1)
    assert plane.swap(force=True)["outcome"] == "swapped"
    watched.claim_nobody_noticed()


# --- in the middle of a swap ------------------------------------------------------------------

# What the supervisor has just told of the swap when it is killed.
STEPS: Final = ("worker.ready", "worker.serving", "rollout.switched", "worker.ended")


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_a_swap(watched: Watched, step: str) -> None:
    plane = watched.plane
    swap = plane.later(plane.ask_swap, force=True)
    fields = {"generation": 1 if step == "worker.ended" else 2}
    plane.event(step, **fields)
    plane.kill()
    with contextlib.suppress(Exception):
        swap.result(20)
    watched.go_on()
    watched.next_supervisor()
    number = watched.claim_one_generation()
    assert number in ((2,) if step == "worker.ended" else (1, 2))
    watched.count()
    assert plane.swap(force=True)["to"]["generation"] == 3
    watched.claim_one_generation(3)
    watched.claim_nobody_noticed()
    told = plane.cli("history", "--app", APP, "--json").fact()["history"]
    assert {one["generation"] for one in told} == {1, 2, 3}
    assert "not recorded" not in {one["outcome"] for one in told}


def test_killed_while_green_is_born(watched: Watched) -> None:
    """Nothing of a green that is not ready is left."""
    plane = watched.plane
    swap = plane.later(plane.ask_swap, force=True, faults=["hang-before-ready"])
    eventually(lambda: 2 in plane.living().values())
    plane.kill()
    with contextlib.suppress(Exception):
        swap.result(20)
    watched.next_supervisor()
    plane.event("worker.hung", error="it does not answer")
    watched.claim_one_generation(1)
    assert plane.swap(force=True)["outcome"] == "swapped"
    watched.claim_nobody_noticed()


@pytest.mark.parametrize("state", ["ready", "serving"])
def test_killed_before_green_is_switched_to(watched: Watched, state: str) -> None:
    """Green never came so far as to be written down: blue serves on, green gives back."""
    plane = watched.plane
    with frozen_green(plane) as greens:
        if state == "serving":
            for control in greens:
                ask(control, Serve(), Serving)
        watched.go_on()
        plane.kill()
        watched.go_on()
    watched.next_supervisor()
    watched.claim_one_generation(1)
    told = plane.cli("history", "--app", APP, "--json").fact()["history"]
    # Where not even green's number came to the disk, nothing is known of it, and it is given again.
    was_known = told[-1]["generation"] == 2
    assert was_known or state == "ready"
    if was_known:
        assert told[-1]["outcome"] == "failed"
        assert "the supervisor was killed" in told[-1]["error"]
    assert plane.swap(force=True)["to"]["generation"] == 2 + was_known
    watched.claim_nobody_noticed()


@contextlib.contextmanager
def frozen_green(plane: Dataplane) -> Iterator[list[socket.socket]]:
    """A swap that stands still with both of green's workers ready, and a line to each."""
    (zygote,) = plane.zygote_pids()
    supervisor = plane.pid
    paths = [plane.run_dir / "workers" / f"{APP}.2.{slot}.sock" for slot in range(2)]
    os.kill(zygote, signal.SIGSTOP)
    try:
        plane.later(plane.ask_swap, force=True)
        eventually(lambda: all(path.exists() for path in paths))
        eventually(lambda: process_state(supervisor) == "S")
        os.kill(supervisor, signal.SIGSTOP)
    finally:
        os.kill(zygote, signal.SIGCONT)
    with contextlib.ExitStack() as stack:
        controls = []
        for path in paths:
            control = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            control.settimeout(10)
            eventually(functools.partial(connected, control, path))
            assert ask(control, Ask(), Identity).state == "ready"
            controls.append(control)
        yield controls


def is_told(plane: Dataplane, event: str, times: int) -> bool:
    return plane.log().count(event) >= times


def connected(control: socket.socket, path: Path) -> bool:
    return control.connect_ex(str(path)) == 0


def test_killed_while_blue_drains(watched: Watched) -> None:
    """The drain goes on without anybody, and the next supervisor sees it to its end."""
    plane = watched.plane
    with Origin(holding(b"slow")) as origin:
        config = two_workers(watched.port)
        config["upstreams"]["slow"] = {"endpoints": [origin.address]}
        config["routes"].insert(0, {"match": {"path": "/held"}, "upstream": "slow"})
        plane.swap(plane.build(config))
        with Wire.connect(plane.address()) as busy:
            busy.send(request("/held"))
            origin.wait_asked(1)
            swap = plane.later(plane.ask_swap, force=True)
            plane.event("rollout.switched", generation=3)
            eventually(lambda: sorted(plane.living().values()) == [2, 3, 3])
            plane.kill()
            with contextlib.suppress(Exception):
                swap.result(20)
            watched.go_on()
            watched.next_supervisor()
            states = {one["generation"]: one["state"] for one in plane.report()["generations"]}
            assert states == {2: "draining", 3: "serving"}
            origin.released.set()
            assert busy.answer().status == 200
            ended = plane.event("rollout.ended", outcome="swapped", app=APP)
            assert (ended["from"]["generation"], ended["to"]["generation"]) == (2, 3)
            watched.claim_one_generation(3)
    watched.count()
    watched.claim_nobody_noticed()


def test_swap_under_way_is_over_for_who_asked_and_the_next_one_may_ask(watched: Watched) -> None:
    plane = watched.plane
    for round_number in range(4):
        swap = plane.later(plane.ask_swap, force=True)
        step, number = STEPS[round_number % 2], max(plane.living().values())
        next(
            event
            for event in plane.events()
            if event["event"] == step and event["generation"] > number
        )
        plane.kill()
        with contextlib.suppress(Exception):
            swap.result(20)
        watched.next_supervisor()
        watched.claim_one_generation()
    assert plane.swap(force=True)["outcome"] == "swapped"
    watched.claim_nobody_noticed()


def test_nothing_outlives_the_end_of_a_supervisor_that_adopted(watched: Watched) -> None:
    plane = watched.plane
    pids = list(plane.living())
    plane.kill()
    watched.next_supervisor()
    plane.signal(signal.SIGTERM)
    assert plane.wait_end() == 0
    for pid in pids:
        wait_gone(pid)
    assert plane.living() == {}
