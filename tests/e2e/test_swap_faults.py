"""Processes that crash, hang or are killed at any point of a swap: blue serves on."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Iterator
from typing import Final, TypeVar

import pytest

from dataplane.control.messages import (
    MESSAGE_LIMIT,
    Ask,
    Identity,
    Message,
    Serve,
    Serving,
    decode_message,
    encode_message,
)
from dataplane.system.fds import receive_with_fds
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
from tests.support.wire import Ended, Wire, request

CONNECTIONS: Final = 16

_M = TypeVar("_M", bound=Message)


class Loaded:
    """An app before a token upstream, with connections that never pause."""

    def __init__(self, plane: Dataplane, running: Load, green: str) -> None:
        self.plane = plane
        self.running = running
        self.green = green
        self.blue_pid = plane.worker_pid()

    def swap(self, *faults: str) -> Json:
        """A swap that must fail: its ledger."""
        return self.plane.swap(self.green, code=502, faults=list(faults))

    def claim_nobody_noticed(self) -> None:
        """Blue serves, as the same process; not one answer is missing."""
        assert self.plane.worker_pid() == self.blue_pid
        assert self.plane.report()["state"] == "serving"
        self.running.wait_for(200)
        report = self.running.stop()
        assert (report["failed"], report["first_failures"]) == (0, [])
        assert (report["connects"], report["open_at_end"]) == (CONNECTIONS, CONNECTIONS)
        assert report["marks"].keys() == {"blue"}


@pytest.fixture
def loaded(plane: Dataplane, load_tools: None) -> Iterator[Loaded]:
    with token_upstream() as port:
        green = plane.build(app_config(port, mark="green"))
        plane.configure(app_config(port))
        plane.start(faults=True)
        words = ("--connections", str(CONNECTIONS), "--verify-body", "--keep-going", "--control")
        with Load(plane.address(), *words, "--mark-header", "x-mark") as running:
            running.wait_for(100)
            yield Loaded(plane, running, green)


def green_pid(plane: Dataplane, generation: int = 2) -> int:
    """The process of a generation that is being born."""
    (worker,) = eventually(
        lambda: [one for one in plane.workers(generation=generation) if one["pid"]]
    )
    return int(worker["pid"])


# --- green is killed in each state ------------------------------------------------------------


def test_blue_serves_on_when_green_is_killed_before_it_is_ready(loaded: Loaded) -> None:
    swap = loaded.plane.later(loaded.swap, "hang-before-ready")
    os.kill(green_pid(loaded.plane), signal.SIGKILL)
    ledger = swap.result(20)
    assert ledger["outcome"] == "failed"
    assert "SIGKILL" in ledger["error"]
    loaded.claim_nobody_noticed()


@pytest.mark.parametrize("state", ["ready", "serving"])
def test_blue_serves_on_when_green_is_killed_once_it_is(loaded: Loaded, state: str) -> None:
    """The supervisor is held still meanwhile, or the moment would be over before we know."""
    plane = loaded.plane
    (zygote,) = plane.zygote_pids()
    with held(zygote):
        swap = plane.later(loaded.swap)
        path = plane.run_dir / "workers" / f"{APP}.2.0.sock"
        eventually(path.exists)
        # The order to fork follows the socket in the same step; then the supervisor waits again.
        eventually(lambda: process_state(plane.pid) == "S")
        supervisor = plane.pid
        os.kill(supervisor, signal.SIGSTOP)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(10)
            eventually(lambda: control.connect_ex(str(path)) == 0)
            identity = ask(control, Ask(), Identity)
            assert identity.state == "ready"
            if state == "serving":
                ask(control, Serve(), Serving)
                assert ask(control, Ask(), Identity).state == "serving"
            os.kill(identity.pid, signal.SIGKILL)
            wait_gone(identity.pid)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert swap.result(20)["outcome"] == "failed"
    loaded.claim_nobody_noticed()


@pytest.mark.parametrize("step", ["receiving", "offered", "held"])
def test_blue_serves_on_when_green_is_killed_while_it_receives(loaded: Loaded, step: str) -> None:
    """Until blue's commit, what green was given is blue's."""
    swap = loaded.plane.later(loaded.swap, f"hang-at:green:{step}")
    loaded.plane.event("rollout.switched", generation=2)
    pid = green_pid(loaded.plane)
    eventually(lambda: loaded.plane.workers(generation=1)[0]["state"] == "draining")
    os.kill(pid, signal.SIGKILL)
    ledger = swap.result(20)
    assert ledger["outcome"] == "failed"
    assert "green died while draining" in ledger["error"]
    loaded.claim_nobody_noticed()


@pytest.mark.parametrize("step", ["acknowledged", "starting", "started"])
def test_blue_serves_on_when_green_is_killed_with_what_it_was_given(
    plane: Dataplane, step: str
) -> None:
    """What green holds by then may end with it; all else, and all that comes, is served."""
    with Origin(holding(b"whole")) as origin:
        green = plane.build(app_config(origin.port, mark="green"))
        plane.configure(app_config(origin.port))
        plane.start(faults=True)
        with Wire.connect(plane.address()) as idle, Wire.connect(plane.address()) as busy:
            idle.get()
            busy.send(request("/held"))
            origin.wait_asked(2)
            swap = plane.later(plane.swap, green, code=502, faults=[f"hang-at:green:{step}"])
            plane.event("rollout.switched", generation=2)
            eventually(lambda: plane.workers(generation=1)[0]["connections"] <= 1)
            os.kill(green_pid(plane), signal.SIGKILL)
            assert swap.result(20)["outcome"] == "failed"
            origin.released.set()
            answer = busy.answer()
            assert (answer.status, answer.field("x-mark")) == (200, "blue")
            assert busy.get().field("x-mark") == "blue"
        with Wire.connect(plane.address()) as new:
            assert new.get().field("x-mark") == "blue"


def test_blue_serves_on_when_green_is_killed_while_blue_drains(plane: Dataplane) -> None:
    with Origin(holding(b"slow")) as origin:
        green = plane.build(app_config(origin.port, mark="green"))
        plane.configure(app_config(origin.port))
        plane.start()
        blue = plane.worker_pid()
        with Wire.connect(plane.address()) as busy, Wire.connect(plane.address()) as moved:
            moved.get()
            busy.send(request("/held"))
            origin.wait_asked(2)
            swap = plane.later(plane.swap, green, code=502)
            eventually(lambda: moved.get().field("x-mark") == "green")
            os.kill(green_pid(plane), signal.SIGKILL)
            ledger = swap.result(20)
            assert moved.at_end()
            with Wire.connect(plane.address()) as new:
                assert new.get().field("x-mark") == "blue"
            origin.released.set()
            assert busy.answer().field("x-mark") == "blue"
            assert busy.get().field("x-mark") == "blue"
        assert "green died while draining" in ledger["error"]
        assert plane.worker_pid() == blue
        assert plane.report()["wanted"] == ledger["from"]["image"]
        assert plane.swap(green)["outcome"] == "swapped"


# --- green crashes, hangs, cannot be had ------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    ["crash-before-ready", "exit-after-ready", "crash-at:green:offered", "crash-at:green:held"],
)
def test_blue_serves_on_when_green_crashes(loaded: Loaded, fault: str) -> None:
    ledger = loaded.swap(fault)
    assert ledger["outcome"] == "failed"
    assert "green" in ledger["error"]
    loaded.claim_nobody_noticed()


def test_green_that_hangs_is_killed_at_its_deadline(plane: Dataplane) -> None:
    config = app_config(mark="green", rollout={"ready_deadline": "400ms"})
    green = plane.build(config)
    plane.configure(app_config())
    plane.start(faults=True)
    with Wire.connect(plane.address()) as client:
        swap = plane.later(plane.swap, green, code=502, faults=["hang-before-ready"])
        pid = green_pid(plane)
        ledger = swap.result(20)
        wait_gone(pid)
        assert "not ready within 400 ms" in ledger["error"]
        assert 400 <= ledger["ms"]["total"] < 2000
        assert client.get().body == b"blue"
    assert "not ready within 400 ms" in plane.event("rollout.ended", outcome="failed")["error"]
    told = plane.cli("swap", "--app", APP, "--image", green)
    assert "swapped" in told.out


def test_failed_swap_exits_1_and_says_why(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        plane.configure(app_config(mark="green", bind=f"127.0.0.1:{taken.getsockname()[1]}"))
        told = plane.cli("swap", "--app", APP, "--json", code=1)
    assert "address is in use" in told.err
    assert told.fact()["outcome"] == "failed"
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"


# --- blue dies in the middle ------------------------------------------------------------------


@pytest.mark.parametrize("step", ["offered", "acknowledged", "committing", "committed"])
def test_connections_survive_blue_that_crashes_while_it_gives_them(
    plane: Dataplane, step: str
) -> None:
    """Held by green, acknowledged, not committed: green starts them at blue's death."""
    plane.configure(app_config(mark="first"))
    plane.start(faults=True)
    second, third = (plane.build(app_config(mark=mark)) for mark in ("second", "third"))
    plane.swap(second, faults=[f"crash-at:blue:{step}"])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire.connect(plane.address())) for _ in range(20)]
        for client in clients:
            assert client.get().body == b"second"
        assert plane.swap(third)["outcome"] == "swapped"
        for client in clients:
            assert client.get().body == b"third"


# --- a worker that serves ---------------------------------------------------------------------


def test_killed_worker_is_replaced_and_later_connections_are_served(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.configure(app_config(app="shop", mark="shop"))
    plane.cli("run", "--app", "shop")
    killed = plane.worker_pid()
    with Wire.connect(plane.address()) as lost, Wire.connect(plane.address(app="shop")) as shop:
        assert lost.get().body == b"blue"
        shop.get()
        os.kill(killed, signal.SIGKILL)
        with Wire.connect(plane.address()) as queued:  # the socket is the supervisor's: it waits
            assert queued.get().body == b"blue"
        assert lost.at_end()
        assert shop.get().body == b"shop"
    (worker,) = plane.workers()
    assert worker["pid"] != killed
    assert (worker["restarts"], worker["state"]) == (1, "serving")
    assert plane.event("worker.ended", pid=killed)["status"] == "killed by SIGKILL"


def test_restarted_worker_swaps_as_any_other(plane: Dataplane) -> None:
    plane.configure(app_config(workers=2))
    plane.start()
    os.kill(plane.workers()[0]["pid"], signal.SIGKILL)
    eventually(lambda: plane.workers()[0]["restarts"] == 1 and plane.report()["state"] == "serving")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire.connect(plane.address())) for _ in range(10)]
        for client in clients:
            client.get()
        ledger = plane.swap(plane.build(app_config(mark="green", workers=2)))
        assert ledger["connections"]["moved_idle"] == 10
        for client in clients:
            assert client.get().body == b"green"


def test_hung_worker_is_found_and_replaced(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start("run", "--app", APP, "--hang-seconds", "2.5")
    hung = plane.worker_pid()
    os.kill(hung, signal.SIGSTOP)
    with Wire.connect(plane.address()) as client:
        assert client.sock.getpeername() == plane.address()
        assert plane.event("worker.hung", pid=hung)["silent_seconds"] >= 2.5
        wait_gone(hung)
        # Who waited in the queue is served by the next one; who was accepted has gone with it.
        with contextlib.suppress(Ended):
            assert client.get().body == b"blue"
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"
    assert plane.worker_pid() != hung


def test_idle_worker_is_not_taken_for_hung(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start("run", "--app", APP, "--hang-seconds", "2.5")
    pid = plane.worker_pid()
    names = [event["event"] for event in plane.events(quiet_seconds=4)]
    assert "worker.hung" not in names
    assert plane.worker_pid() == pid


def test_crash_loop_is_told_and_ends_by_itself(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    for restarts in range(5):
        worker = eventually(functools.partial(serving_again, plane, restarts))
        os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: plane.report()["state"] == "crash-loop")
    eventually(functools.partial(shown_in_crash_loop, plane))
    assert plane.event("app.crash_loop", app=APP)["deaths"] == 5
    eventually(lambda: plane.report()["state"] == "serving")
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"


def shown_in_crash_loop(plane: Dataplane) -> bool:
    """Whether ps shows it. Where it was slower than the pause, another death makes a longer one."""
    shown = "crash-loop" in plane.cli("ps").out
    (worker,) = plane.workers()
    if not shown and worker["state"] == "serving":
        os.kill(worker["pid"], signal.SIGKILL)
    return shown


def serving_again(plane: Dataplane, restarts: int) -> Json | None:
    """The app's worker, if it serves after so many restarts."""
    (worker,) = plane.workers()
    return worker if (worker["restarts"], worker["state"]) == (restarts, "serving") else None


def test_rollback_from_a_generation_that_hangs_works(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start(faults=True)
    broken = plane.build(app_config(mark="broken"))
    plane.swap(broken, faults=["stop-turning"])  # alive, serving by its word, and no use
    told = plane.call("POST", f"/v1/apps/{APP}/rollback", {})
    assert (told.status, told.body["outcome"]) == (200, "swapped")
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"


# --- zygote and supervisor --------------------------------------------------------------------


def test_killed_zygote_harms_nobody_and_is_replaced(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    (zygote,) = plane.zygote_pids()
    worker = plane.worker_pid()
    with Wire.connect(plane.address()) as client:
        client.get()
        os.kill(zygote, signal.SIGKILL)
        plane.event("zygote.died", pid=zygote)
        assert client.get().body == b"blue"
        assert plane.worker_pid() == worker
        ledger = plane.swap(plane.build(app_config(mark="green")))
        assert ledger["connections"]["moved_idle"] == 1
        assert client.get().body == b"green"
    os.kill(plane.zygote_pids()[0], signal.SIGKILL)
    crashed = plane.worker_pid()
    os.kill(crashed, signal.SIGKILL)
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"green"
    assert plane.workers()[0]["restarts"] == 1


def test_workers_outlive_the_supervisor_and_down_ends_them(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    worker, address = plane.worker_pid(), plane.address()
    with Wire.connect(address) as client:
        client.get()
        plane.signal(signal.SIGKILL)
        assert plane.wait_end() == -signal.SIGKILL
        assert client.get().body == b"blue"
        with Wire.connect(address) as new:
            assert new.get().body == b"blue"
        told = plane.cli("down", "--json").fact()
        assert told == {"supervisor": None, "workers": [worker]}
        assert client.at_end()
    wait_gone(worker)


# --- means ------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(pid: int) -> Iterator[None]:
    """The process stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ask(control: socket.socket, message: Message, kind: type[_M]) -> _M:
    """Says it to a worker's control socket; the answer, which must be of this kind."""
    control.send(encode_message(message))
    packet = receive_with_fds(control, MESSAGE_LIMIT)
    assert packet is not None
    answer = decode_message(packet.data)
    assert isinstance(answer, kind), answer
    return answer
