"""A swap loses nothing: under load, with idle connections, in the middle of a head or a request."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Final

import pytest

from tests.support.dataplane import (
    APP,
    Dataplane,
    Json,
    app_config,
    eventually,
    tcp_config,
    wait_gone,
)
from tests.support.load import Load, token_upstream
from tests.support.origin import Origin, answering, holding, parroting, streaming
from tests.support.rig import unused_port
from tests.support.wire import Wire, request

SWAPS: Final = 15
IDLE: Final = 200

NOTHING: Final = dict.fromkeys(
    (
        "moved_idle",
        "moved_after_request",
        "moved_streaming",
        "moved_tunnel",
        "finished",
        "closed",
        "reset",
    ),
    0,
)


def images(plane: Dataplane, port: int, **more: Any) -> tuple[str, str]:
    """Two built images that differ in their mark; the first one serves."""
    green = plane.build(app_config(port, mark="green", **more))
    plane.configure(app_config(port, mark="blue", **more))
    plane.start()
    return plane.report()["wanted"], green


def turns(*digests: str) -> Iterator[str]:
    """What to swap to, for ever; the last one is what serves at first."""
    while True:
        yield from digests


def swap_under(plane: Dataplane, running: Load, *digests: str) -> list[Json]:
    """So many swaps with some requests between; their ledgers."""
    ledgers = []
    for digest, _ in zip(turns(*digests), range(SWAPS), strict=False):
        ledgers.append(plane.swap(digest))
        running.wait_for(50)
    return ledgers


def total(ledgers: list[Json]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for ledger in ledgers:
        assert ledger["outcome"] == "swapped"
        counts.update(ledger["connections"])
    return counts


@contextlib.contextmanager
def draining(plane: Dataplane, image: str, generation: int) -> Iterator[Future[Json]]:
    """A swap under way, blue draining by its own deed: an idle connection of ours has moved."""
    with Wire.connect(plane.address()) as canary:
        canary.get("/canary")
        swap = plane.later(plane.swap, image)
        eventually(lambda: connections(plane, generation))
        yield swap


def wait_draining(plane: Dataplane, generation: int) -> None:
    """Until the generation's workers were told to drain."""
    eventually(
        lambda: {worker["state"] for worker in plane.workers(generation=generation)} == {"draining"}
    )


def connections(plane: Dataplane, generation: int) -> int:
    """How many the generation's workers hold."""
    return sum(worker["connections"] for worker in plane.workers(generation=generation))


# --- under load -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_swaps_under_load_lose_and_close_nothing(
    plane: Dataplane, load_tools: None, workers: int
) -> None:
    with token_upstream() as port:
        blue, green = images(plane, port, workers=workers)
        words = ("--connections", "16", "--verify-body", "--keep-going", "--control")
        before = plane.metric("dataplane_connections_total")
        with Load(plane.address(), *words, "--mark-header", "x-mark") as running:
            ledgers = swap_under(plane, running, green, blue)
            report = running.stop()
        accepted = plane.metric("dataplane_connections_total") - before
    assert (report["failed"], report["first_failures"]) == (0, [])
    assert (report["connects"], report["open_at_end"]) == (16, 16)
    assert accepted == 16
    assert report["marks"].keys() == {"blue", "green"}
    counts = total(ledgers)
    assert counts["closed"] + counts["reset"] + counts["finished"] == 0
    assert counts["moved_idle"] + counts["moved_after_request"] == 16 * SWAPS


@pytest.mark.parametrize("workers", [1, 2])
def test_no_new_connection_fails_through_swaps(
    plane: Dataplane, load_tools: None, workers: int
) -> None:
    """Also with more sockets in the group than one generation has workers."""
    with token_upstream() as port:
        blue, green = images(plane, port, workers=workers)
        one = plane.build(app_config(port, mark="one", workers=3 - workers))
        words = ("--mode", "per-request", "--connections", "8", "--verify-body", "--control")
        with Load(plane.address(), *words, "--keep-going") as running:
            ledgers = swap_under(plane, running, green, one, blue)
            report = running.stop()
    assert (report["failed"], report["first_failures"]) == (0, [])
    counts = total(ledgers)
    assert counts["closed"] + counts["reset"] == 0


# --- idle connections, partly read heads ------------------------------------------------------


def test_idle_connections_answer_with_the_last_generation(plane: Dataplane) -> None:
    plane.configure(app_config(mark="0"))
    plane.start()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire.connect(plane.address())) for _ in range(IDLE)]
        for client in clients:
            assert client.get().body == b"0"
        ledgers = [plane.swap(plane.build(app_config(mark=str(turn)))) for turn in range(1, 6)]
        for client in clients:
            assert client.get().body == b"5"
    for ledger in ledgers:
        assert ledger["connections"] == {**NOTHING, "moved_idle": IDLE}
    assert plane.metric("dataplane_connections_total") == IDLE


def test_connection_that_never_asked_anything_moves(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    with Wire.connect(plane.address()) as client:
        eventually(lambda: plane.workers()[0]["connections"] == 1)
        ledger = plane.swap(plane.build(app_config(mark="green")))
        assert client.get().body == b"green"
    assert ledger["connections"] == {**NOTHING, "moved_idle": 1}


def test_partly_read_head_moves_with_its_bytes(plane: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        _, green = images(plane, origin.port)
        with Wire.connect(plane.address()) as client:
            client.get()
            whole = request("/late", "x-first: 1", "x-second: 2")
            client.send(whole[:30])
            received = plane.metric("dataplane_received_bytes_total")
            ledger = plane.swap(green)
            client.send(whole[30:])
            answer = client.answer()
        assert (answer.status, answer.field("x-mark")) == (200, "green")
        assert origin.requests[-1].values("x-first") == ["1"]
        assert origin.requests[-1].values("x-second") == ["2"]
        assert ledger["connections"] == {**NOTHING, "moved_idle": 1}
        assert received > 0


def test_every_byte_of_a_head_may_be_the_last_before_a_swap(plane: Dataplane) -> None:
    """A swap after each few bytes of one head: it is put together over many generations."""
    with Origin(answering(b"whole")) as origin:
        # The head's own deadline goes on over all of these swaps.
        digests = turns(*images(plane, origin.port, timeouts={"header": "2m"})[::-1])
        whole = request("/sliced", "x-field: value", "content-length: 0", method="POST")
        with Wire.connect(plane.address()) as client:
            for at in range(0, len(whole), 9):
                client.send(whole[at : at + 9])
                plane.swap(next(digests))
            assert client.answer().body == b"whole"
        (asked,) = origin.requests
        assert asked.start == "POST /sliced HTTP/1.1"
        assert asked.values("x-field") == ["value"]


def test_pipelined_requests_are_all_answered_once_and_in_order(plane: Dataplane) -> None:
    with Origin(holding(b"done")) as origin:
        _, green = images(plane, origin.port)
        with Wire.connect(plane.address()) as client:
            client.send(request("/held") + request("/second") + request("/third"))
            origin.wait_asked()
            with draining(plane, green, 2) as swap:
                origin.released.set()
                marks = [client.answer().field("x-mark") for _ in range(3)]
                counts = swap.result(20)["connections"]
        assert marks == ["blue", "green", "green"]
        assert counts == {**NOTHING, "moved_idle": 1, "moved_after_request": 1}
        asked = [one.start.split(" ")[1] for one in origin.requests]
        assert [path for path in asked if path != "/canary"] == ["/held", "/second", "/third"]


# --- requests under way -----------------------------------------------------------------------


def test_request_under_way_finishes_on_blue_and_then_moves(plane: Dataplane) -> None:
    with Origin(holding(b"slow")) as origin:
        _, green = images(plane, origin.port)
        with Wire.connect(plane.address()) as client:
            client.send(request("/held"))
            origin.wait_asked()
            with draining(plane, green, 2) as swap:
                with Wire.connect(plane.address()) as other:
                    assert other.get("/").field("x-mark") == "green"
                assert not swap.done()
                origin.released.set()
                answer = client.answer()
                assert (answer.body, answer.field("x-mark")) == (b"slow", "blue")
                ledger = swap.result(20)
                assert client.get("/").field("x-mark") == "green"
        assert ledger["connections"] == {**NOTHING, "moved_idle": 1, "moved_after_request": 1}


def test_request_body_still_coming_finishes_on_blue_and_then_moves(plane: Dataplane) -> None:
    with Origin(answering(b"took it")) as origin:
        _, green = images(plane, origin.port)
        with Wire.connect(plane.address()) as client:
            client.send(request("/up", "content-length: 10", method="POST") + b"first")
            eventually(lambda: origin.accepts == 1)
            with draining(plane, green, 2) as swap:
                client.send(b"final")
                answer = client.answer()
                assert (answer.body, answer.field("x-mark")) == (b"took it", "blue")
                counts = swap.result(20)["connections"]
            assert counts == {**NOTHING, "moved_idle": 1, "moved_after_request": 1}
            assert client.get().field("x-mark") == "green"


def test_response_that_flows_moves_at_once_and_ends_on_green(plane: Dataplane) -> None:
    with Origin(streaming) as origin:
        _, green = images(plane, origin.port)
        with Wire.connect(plane.address()) as client:
            client.send(request("/stream"))
            assert b"first" in client.until(b"first\r\n")
            for _ in range(2):
                ledger = plane.swap(green, force=True)
                assert ledger["connections"] == {**NOTHING, "moved_streaming": 1}
            origin.released.set()
            client.until(b"0\r\n\r\n")
            assert client.get().field("x-mark") == "green"
        assert origin.accepts == 1, "its upstream connection is in green's pool"


def test_request_that_is_never_answered_is_cut_at_the_deadline(plane: Dataplane) -> None:
    with Origin(holding(b"late")) as origin:
        # Blue's own deadline is what counts, and green's is the default.
        green = plane.build(app_config(origin.port, mark="green"))
        plane.configure(app_config(origin.port, drain={"deadline": "500ms"}))
        plane.start()
        with Wire.connect(plane.address()) as client:
            client.send(request("/held"))
            origin.wait_asked()
            ledger = plane.swap(green)
            assert client.at_end()
        assert ledger["connections"] == {**NOTHING, "reset": 1}
        assert ledger["ms"]["drain"] >= 450


def test_tcp_tunnels_move_and_go_on(plane: Dataplane) -> None:
    with Origin(parroting) as origin:
        plane.configure(tcp_config(origin.port))
        plane.start()
        with Wire.connect(plane.address()) as client, Wire.connect(plane.address()) as ended:
            for one in (client, ended):
                one.send(b"one")
                assert one.exactly(3) == b"one"
            ledger = plane.swap(force=True)
            assert ledger["connections"] == {**NOTHING, "moved_tunnel": 2}
            assert ledger["stall_ms"]["max"] > 0
            ended.sock.shutdown(socket.SHUT_WR)
            assert ended.at_end()
            for _ in range(3):
                client.send(b"two")
                assert client.exactly(3) == b"two"
                ledger = plane.swap(force=True)
                assert ledger["connections"] == {**NOTHING, "moved_tunnel": 1}
        assert origin.accepts == 2
        assert plane.metric("dataplane_connections_moved_total") == 5


# --- one at a time ----------------------------------------------------------------------------


def test_nothing_is_done_where_nothing_changed(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    pid = plane.worker_pid()
    ledger = plane.cli("swap", "--app", APP, "--json").fact()
    assert (ledger["outcome"], ledger["from"]) == ("unchanged", ledger["to"])
    assert plane.worker_pid() == pid
    assert plane.swap(force=True)["outcome"] == "swapped"
    assert plane.worker_pid() != pid


def test_swap_before_the_last_one_switched_is_refused(plane: Dataplane) -> None:
    plane.configure(app_config(rollout={"ready_deadline": "1500ms"}))
    plane.start(faults=True)
    first = plane.later(plane.ask_swap, force=True, faults=["hang-before-ready"])
    eventually(lambda: plane.workers(generation=2))
    told = plane.ask_swap(force=True)
    assert (told.status, told.kind) == (409, "application/problem+json")
    assert "not switched yet" in told.body["detail"]
    assert "not switched yet" in plane.cli("swap", "--app", APP, "--force", code=1).err
    assert first.result(20).status == 502
    assert plane.ask_swap(force=True).status == 200


def test_swap_during_a_drain_supersedes_it(plane: Dataplane) -> None:
    with Origin(holding(b"slow")) as origin:
        plane.configure(app_config(origin.port, mark="1"))
        plane.start()
        with Wire.connect(plane.address()) as busy, Wire.connect(plane.address()) as idle:
            idle.get()
            busy.send(request("/held"))
            origin.wait_asked(2)
            blue = plane.worker_pid()
            first = plane.later(plane.swap, plane.build(app_config(origin.port, mark="2")))
            plane.event("rollout.switched", generation=2)
            assert not first.done()
            second = plane.swap(plane.build(app_config(origin.port, mark="3")))
            wait_gone(blue)
            superseded = first.result(20)
            assert busy.at_end()
            assert idle.get("/").field("x-mark") == "3"
        assert superseded["connections"] == {**NOTHING, "moved_idle": 1, "reset": 1}
        assert second["connections"] == {**NOTHING, "moved_idle": 1}
        assert len(plane.workers()) == 1


def test_wait_for_the_switch_returns_while_blue_drains(plane: Dataplane) -> None:
    with Origin(holding(b"slow")) as origin:
        _, green = images(plane, origin.port)
        with Wire.connect(plane.address()) as busy:
            busy.send(request("/held"))
            origin.wait_asked()
            told = plane.ask_swap(green, wait="switch")
            assert (told.status, told.body["outcome"]) == (200, "swapped")
            assert [one["generation"] for one in plane.report()["generations"]] == [1, 2]
            wait_draining(plane, 1)
            origin.released.set()
            assert busy.answer().body == b"slow"
        plane.event("rollout.ended", app=APP, to={"generation": 2, "image": green})


# --- upstreams, addresses ---------------------------------------------------------------------


def test_upstream_down_stops_neither_start_nor_swap(plane: Dataplane) -> None:
    port = unused_port()
    _, green = images(plane, port)
    with Wire.connect(plane.address()) as client:
        assert client.get().status in (502, 503)
        assert plane.swap(green)["outcome"] == "swapped"
        assert client.get().status in (502, 503)
        with Origin(answering(b"back"), port=port):
            answer = client.get()
            assert (answer.status, answer.body) == (200, b"back")
            fixed = plane.build(app_config(port, mark="fixed"))
            assert plane.swap(fixed)["outcome"] == "swapped"
            assert client.get().field("x-mark") == "fixed"


def test_address_that_changes_is_bound_anew_and_the_old_one_closed(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    old = plane.address()
    port = unused_port()
    with Wire.connect(old) as client:
        client.get()
        ledger = plane.swap(plane.build(app_config(mark="new", bind=f"127.0.0.1:{port}")))
        assert ledger["outcome"] == "swapped"
        # Its listener (by name) is there still: it goes on at green.
        assert client.get().body == b"new"
    with Wire.connect(("127.0.0.1", port)) as client:
        assert client.get().body == b"new"
    with pytest.raises(ConnectionRefusedError):
        Wire.connect(old)


def test_number_of_workers_may_change(plane: Dataplane) -> None:
    plane.configure(app_config(mark="1"))
    plane.start()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire.connect(plane.address())) for _ in range(12)]
        for count in (3, 2, 1, 2):
            for client in clients:
                client.get()
            ledger = plane.swap(plane.build(app_config(mark=str(count), workers=count)))
            assert ledger["connections"] == {**NOTHING, "moved_idle": 12}
            assert len(plane.workers()) == count
            for client in clients:
                assert client.get().body == str(count).encode()
            for _ in range(8):
                with Wire.connect(plane.address()) as new:
                    assert new.get().body == str(count).encode()


def test_two_apps_are_swapped_apart(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.configure(app_config(app="shop", mark="shop"))
    plane.cli("run", "--app", "shop")
    shop = plane.worker_pid("shop")
    assert plane.swap(force=True)["outcome"] == "swapped"
    assert plane.worker_pid("shop") == shop
    with Wire.connect(plane.address(app="shop")) as client:
        assert client.get().body == b"shop"
