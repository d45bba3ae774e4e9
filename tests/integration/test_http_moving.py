"""Connections between requests pass from one engine to another: whole, once, to nobody's loss."""

from __future__ import annotations

import dataclasses
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dataplane.engine.engine import NOTE_EMPTY, NOTE_MOVABLE, EngineError
from tests.support.client import Client
from tests.support.engine import Proxy, app, route
from tests.support.hand_over import drain, hold, move_all, save
from tests.support.upstream import SECONDS, Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
def pair(proxy: START) -> Callable[..., tuple[Proxy, Proxy]]:
    """Blue, which serves, and green: the same app, told apart by a mark in each answer."""

    def start(**options: Any) -> tuple[Proxy, Proxy]:
        sides = []
        for mark in ("blue", "green"):
            own = dict(options)
            routes = own.pop("routes", [route(respond=(200, mark))])
            ports = own.pop("ports", [1])
            sides.append(proxy(spec=app(ports, routes=routes, **own)))
        return sides[0], sides[1]

    return start


def test_idle_connections_move_and_are_answered_by_green(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    clients = [blue.client() for _ in range(20)]
    for client in clients:
        assert client.get().body == b"blue"
    drain(blue)
    assert blue.turn() & NOTE_MOVABLE
    assert move_all(blue, green) == 20
    for client in clients:
        assert client.get().body == b"green"
    assert blue.stats()["connections"] == 0
    assert blue.turn() & NOTE_EMPTY
    assert green.stats()["connections"] == 20
    assert (blue.stats()["moved_out_total"], green.stats()["moved_in_total"]) == (20, 20)
    tally = blue.call(blue.engine.tally)
    assert (tally.moved_idle, tally.closed, tally.reset, tally.finished) == (20, 0, 0, 0)


def test_a_partly_read_head_and_pipelined_requests_move_with_their_bytes(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    for number, at in enumerate((1, 10, len(GET) - 1)):
        blue.call(blue.engine.serve)
        client = blue.client()
        before = blue.stats()["received_bytes_total"]
        client.send(GET[:at])
        blue.has_read(before + at)
        drain(blue)
        client.send(GET[at:] + GET)  # stays in the socket, or is read by green
        assert move_all(blue, green, number + 1) == 1
        assert [client.answer().body for _ in range(2)] == [b"green"] * 2
        client.close()


@pytest.mark.parametrize("sent", [b"\r", b"\r\n", b"\r\nGET / HT"])
def test_an_empty_line_before_a_request_moves_too(
    sent: bytes, pair: Callable[..., tuple[Proxy, Proxy]]
) -> None:
    blue, green = pair()
    client = blue.client()
    client.send(sent)
    blue.has_read(len(sent))
    drain(blue)
    assert move_all(blue, green) == 1
    client.send((b"\r\n" + GET)[len(sent) :])
    assert client.answer().body == b"green"


def test_a_request_in_flight_ends_on_blue_and_then_moves(
    pair: Callable[..., tuple[Proxy, Proxy]], upstream: SERVE
) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            assert go.wait(SECONDS)
            peer.answer(b"%d" % peer.number)

    served = upstream(script)
    blue, green = pair(ports=[served.port], routes=[route()])
    client = blue.client()
    client.send(GET + GET)
    served.next()
    drain(blue)
    assert not blue.turn() & NOTE_MOVABLE
    go.set()
    assert client.answer().body == b"0"
    blue.notes_one_of(NOTE_MOVABLE)
    assert move_all(blue, green) == 1
    assert client.answer().body == b"1"
    tally = blue.call(blue.engine.tally)
    assert (tally.moved_idle, tally.moved_after_request) == (0, 1)


def test_a_batch_taken_back_goes_on_at_blue_and_moves_later(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    client = blue.client()
    client.send(GET[:10])
    blue.has_read(10)
    drain(blue)
    assert hold(green, save(blue)) == b"\0"
    client.send(GET[10:])
    green.call(lambda: green.engine.drop(1))
    blue.call(lambda: blue.engine.take_back(1))
    blue.notes_one_of(NOTE_MOVABLE)
    assert move_all(blue, green, 2) == 1
    assert client.answer().body == b"green"
    green.call(lambda: None)
    assert green.stats()["connections"] == 1


def test_a_drain_that_is_called_off_is_served_by_blue_at_once(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    waiting, frozen = blue.client(), blue.client()
    assert waiting.get().body == frozen.get().body == b"blue"
    drain(blue)
    frozen_batch = save(blue, most=1)
    assert frozen_batch.count == 1
    for client in (waiting, frozen):
        client.send(GET)
    blue.until(lambda stats: stats["turns"] > 0)
    blue.call(blue.engine.serve)
    blue.call(lambda: blue.engine.take_back(1))
    frozen_batch.close()
    assert waiting.answer().body == frozen.answer().body == b"blue"
    with blue.client() as third:
        assert third.get().body == b"blue"
    drain(blue)
    assert move_all(blue, green, 2) == 2
    tally = blue.call(blue.engine.tally)
    assert tally.moved_idle == 2, "the requests were before this drain"


def test_what_came_while_a_connection_waited_is_read_when_the_drain_is_called_off(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    """Its edge was told while it waited: no other will come."""
    blue, _ = pair()
    client = blue.client()
    assert client.get().body == b"blue"
    drain(blue)
    turns = blue.stats()["turns"]
    client.send(GET)
    blue.until(lambda stats: stats["turns"] > turns + 1)
    blue.call(blue.engine.serve)
    assert client.answer().body == b"blue"


def test_a_listener_that_green_does_not_have_is_declined_and_closed(proxy: START) -> None:
    blue = proxy(spec=app([1], routes=[route(respond=(200, "blue"))], listeners=("web", "admin")))
    green = proxy(spec=app([1], routes=[route(respond=(200, "green"))]))
    clients = [blue.client("web"), blue.client("admin"), blue.client("web")]
    for client in clients:
        assert client.get().body == b"blue"
    drain(blue)
    assert move_all(blue, green) == 2
    assert clients[0].get().body == clients[2].get().body == b"green"
    assert clients[1].ends()
    tally = blue.call(blue.engine.tally)
    assert (tally.moved_idle, tally.closed) == (2, 1)


def test_deadlines_move_too(pair: Callable[..., tuple[Proxy, Proxy]]) -> None:
    blue, green = pair(idle_ms=300, header_ms=300)
    idle, slow = blue.client(), blue.client()
    assert idle.get().status == 200
    slow.send(b"GET /")
    blue.until(lambda stats: stats["received_bytes_total"] >= 5)
    drain(blue)
    assert move_all(blue, green) == 2
    assert slow.answer().status == 408
    assert idle.ends()


def test_no_peer_means_idle_connections_are_closed_and_busy_ones_finish(
    pair: Callable[..., tuple[Proxy, Proxy]], upstream: SERVE
) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        assert go.wait(SECONDS)
        peer.answer(b"done")

    served = upstream(script)
    routes = [route("/", respond=(200, "own")), route("/up")]
    blue, _ = pair(ports=[served.port], routes=routes)
    idle, busy = blue.client(), blue.client()
    assert idle.get().status == 200
    busy.send(b"GET /up HTTP/1.1\r\nhost: a\r\n\r\n")
    served.next()
    blue.call(blue.engine.pause)
    blue.call(blue.engine.drain)
    blue.call(blue.engine.close_idle)
    assert idle.ends()
    go.set()
    answer = busy.answer()
    assert (answer.body, answer.get("connection")) == (b"done", "close")
    assert busy.ends()
    busy.close()
    blue.notes_one_of(NOTE_EMPTY)
    tally = blue.call(blue.engine.tally)
    assert (tally.closed, tally.finished, tally.moved_idle) == (1, 1, 0)


def test_the_deadline_cuts_what_is_left_and_counts_it(
    pair: Callable[..., tuple[Proxy, Proxy]], upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        peer.rest()

    served = upstream(script)
    blue, _ = pair(ports=[served.port], routes=[route("/", respond=(200, "own")), route("/up")])
    idle, busy, tunnel = blue.client(), blue.client(), blue.client("raw")
    assert idle.get().status == 200
    busy.send(b"GET /up HTTP/1.1\r\nhost: a\r\n\r\n")
    blue.until(lambda stats: stats["requests_active"] == 1 and stats["tunnels"] == 1)
    drain(blue)
    assert blue.call(blue.engine.reset_all) == 3
    for client in (idle, busy, tunnel):
        with pytest.raises(ConnectionResetError):
            client.rest()
    assert blue.call(blue.engine.tally).reset == 3
    blue.settles()


def with_field(records: bytes, at: int, form: str, value: int) -> bytes:
    whole = bytearray(records)
    struct.pack_into(form, whole, at, value)
    return bytes(whole)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[:-1],
    "too long": lambda whole: whole + b"\0",
    "a length of zero": lambda whole: with_field(whole, 0, "<I", 0),
    "a length beyond the end": lambda whole: with_field(whole, 0, "<I", len(whole) + 1),
    "a huge length": lambda whole: with_field(whole, 0, "<I", 0xFFFF_FFFF),
    "another version": lambda whole: with_field(whole, 4, "<H", 3),
    "a version that it is not": lambda whole: with_field(whole, 4, "<H", 2),
    "a longer name": lambda whole: with_field(whole, 8, "B", 255),
    "a longer client": lambda whole: with_field(whole, 9, "B", 47),
    "more bytes than there are": lambda whole: with_field(whole, 12, "<I", 0xFFFF_FFF0),
    "a client that breaks a line": lambda whole: whole.replace(b"127.0.0.1", b"1.2\r\nx:yz"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_records_are_refused_whole_and_blue_goes_on(
    name: str, pair: Callable[..., tuple[Proxy, Proxy]]
) -> None:
    blue, green = pair()
    client = blue.client()
    assert client.get().body == b"blue"
    drain(blue)
    batch = save(blue)
    with pytest.raises(EngineError):
        hold(green, dataclasses.replace(batch, records=BROKEN[name](batch.records)))
    for fd in batch.fds:
        with pytest.raises(OSError):
            os.fstat(fd)
    blue.call(lambda: blue.engine.take_back(1))
    blue.call(blue.engine.serve)
    assert client.get().body == b"blue"
    assert green.stats()["connections"] == 0


def test_unknown_kinds_of_connections_are_declined(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    client = blue.client()
    assert client.get().body == b"blue"
    drain(blue)
    batch = save(blue)
    later = dataclasses.replace(batch, records=with_field(batch.records, 6, "B", 9))
    assert hold(green, later) == b"\1"
    blue.call(lambda: blue.engine.commit(1, b"\1"))
    assert green.call(lambda: green.engine.start(1, 1)) == (0, ())
    assert client.ends()


def test_batches_are_told_apart_and_unknown_ones_are_refused(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    clients = [blue.client() for _ in range(4)]
    for client in clients:
        client.get()
    drain(blue)
    first, second = save(blue, 1, 2), save(blue, 2, 2)
    with pytest.raises(EngineError):
        blue.call(lambda: blue.engine.commit(3, b""))
    with pytest.raises(EngineError):
        green.call(lambda: green.engine.start(1, 1))
    hold(green, first)
    copies = tuple(os.dup(fd) for fd in second.fds)
    with pytest.raises(EngineError):  # the same number twice; it closes what it was given
        hold(green, dataclasses.replace(second, number=1, fds=copies))
    hold(green, second)
    blue.call(lambda: blue.engine.commit(2, b"\0"))
    assert green.call(lambda: green.engine.start(2, 2))[0] == 2
    green.call(lambda: green.engine.drop(1))
    blue.call(lambda: blue.engine.take_back(1))
    blue.call(blue.engine.serve)
    bodies = sorted(client.get().body for client in clients)
    assert bodies == [b"blue", b"blue", b"green", b"green"]


def test_held_connections_are_still_until_the_commit(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    client = blue.client()
    assert client.get().body == b"blue"
    drain(blue)
    batch = save(blue)
    hold(green, batch)
    client.send(GET)
    turns = green.stats()["turns"]
    green.until(lambda stats: stats["turns"] > turns + 1)
    assert green.stats()["requests_total"] == 0
    blue.call(lambda: blue.engine.commit(1, b"\0"))
    green.call(lambda: green.engine.start(1, 1))
    assert client.answer().body == b"green"


def test_an_engine_that_ends_with_held_and_frozen_connections_leaks_nothing(
    pair: Callable[..., tuple[Proxy, Proxy]],
) -> None:
    blue, green = pair()
    clients = [blue.client() for _ in range(3)]
    for client in clients:
        client.send(b"GET / HT")
    blue.until(lambda stats: stats["received_bytes_total"] == 24)
    drain(blue)
    batch = save(blue)
    hold(green, batch)
    green.close()
    blue.close()
    for client in clients:
        with pytest.raises(OSError):
            client.send(b"x")
    for fd in batch.fds:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_swaps_under_load_lose_nothing(proxy: START, upstream: SERVE) -> None:
    """Connections that never stop asking go round a ring of engines; none is opened again."""

    def script(peer: Peer) -> None:
        while True:
            _, body = peer.request()
            peer.answer(body)

    served = upstream(script)
    ring = [proxy(served.port) for _ in range(3)]
    for idle in ring[1:]:
        idle.call(idle.engine.pause)
    over = threading.Event()
    counts: list[int] = []
    failures: list[BaseException] = []

    def ask(client: Client, number: int) -> None:
        count = 0
        try:
            while not over.is_set():
                body = b"%d.%d" % (number, count)
                head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
                client.send(head + body)
                assert client.answer().body == body
                count += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)
        counts.append(count)

    clients = [ring[0].client() for _ in range(8)]
    threads = [
        threading.Thread(target=ask, args=(client, number)) for number, client in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    batch = 0
    for swap in range(12):
        blue, green = ring[swap % 3], ring[(swap + 1) % 3]
        green.call(green.engine.serve)
        drain(blue)
        while blue.stats()["connections"]:
            blue.notes_one_of(NOTE_MOVABLE | NOTE_EMPTY)
            batch += 1
            move_all(blue, green, batch)
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(counts) > 0
    assert sum(side.stats()["connections_total"] for side in ring) == 8


def test_a_connection_moves_with_its_client_and_is_judged_by_greens_trust(
    proxy: START, upstream: SERVE
) -> None:
    served = upstream()
    known = proxy(served.port, trusted=["127.0.0.0/8"], proxy_protocol=True)
    stranger = proxy(served.port)
    said = GET[:-2] + b"x-forwarded-for: 203.0.113.9\r\n\r\n"
    with known.client() as introduced, known.client() as trusted:
        introduced.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + said)
        trusted.send(b"PROXY UNKNOWN\r\n" + said)
        for client in (introduced, trusted):
            assert client.answer().status == 200
        drain(known)
        assert move_all(known, stranger) == 2
        first = {served.next().get("x-forwarded-for") for _ in range(2)}
        assert first == {"192.0.2.1", "203.0.113.9, 127.0.0.1"}
        for client, wanted in ((introduced, "192.0.2.1"), (trusted, "127.0.0.1")):
            client.send(said)
            assert client.answer().status == 200
            assert served.next().get("x-forwarded-for") == wanted
        drain(stranger)
        again = proxy(served.port, trusted=["127.0.0.0/8"])
        assert move_all(stranger, again) == 2
        for client, wanted in (
            (introduced, "192.0.2.1"),
            (trusted, "203.0.113.9, 127.0.0.1"),
        ):
            client.send(said)
            assert client.answer().status == 200
            assert served.next().get("x-forwarded-for") == wanted
