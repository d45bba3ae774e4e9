"""Responses move while they flow: whole, in order, and the connection lives on where they end."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

import pytest

from dataplane.engine.engine import DECLINED, NOTE_MOVABLE, TRANSPORT_TRICKLE, Engine
from dataplane.model.spec import AccessSpec, AppSpec
from tests.support.client import Client
from tests.support.engine import Proxy, app, route
from tests.support.flood import Listener, Speaker
from tests.support.hand_over import Ring, drain, hold, move_all, save, settle
from tests.support.upstream import Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

GET: Final = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
SIZE: Final = 3_000_000
HOPS: Final = 30


def pieces(size: int, count: int) -> list[bytes]:
    data = bytes(range(251)) * (size // 251 + 1)
    step = max(size // count, 1)
    return [data[at : min(at + step, size)] for at in range(0, size, step)]


def plain(peer: Peer, parts: list[bytes], go_on: Callable[[], None]) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % sum(map(len, parts)))
    for part in parts:
        peer.send(part)
        go_on()


def chunked(peer: Peer, parts: list[bytes], go_on: Callable[[], None]) -> None:
    """With extensions and trailer fields, and a chunk's framing torn at each of its bytes."""
    peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n")
    for number, part in enumerate(parts):
        whole = b"%x;n=%d\r\n" % (len(part), number) + part + b"\r\n"
        cut = number % 9
        peer.send(whole[:cut])
        go_on()
        peer.send(whole[cut:])
    peer.send(b"0\r\nx-su")
    go_on()
    peer.send(b"m: 1\r\n\r\n")


def until_close(peer: Peer, parts: list[bytes], go_on: Callable[[], None]) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
    for part in parts:
        peer.send(part)
        go_on()
    peer.close()


FRAMINGS: Final[dict[str, Callable[[Peer, list[bytes], Callable[[], None]], None]]] = {
    "content-length": plain,
    "chunked": chunked,
    "until close": until_close,
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_response_moves_between_any_two_pieces_of_it(
    framing: str, proxy: START, upstream: SERVE
) -> None:
    """After each piece that came, and so in each state of its framing."""
    parts = pieces(4_000, 40)
    came: queue.SimpleQueue[None] = queue.SimpleQueue()
    go_on = threading.Semaphore(0)

    def turn() -> None:
        came.put(None)
        assert go_on.acquire(timeout=10)

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            FRAMINGS[framing](peer, parts, turn)

    served = upstream(script)
    ring = Ring([proxy(served.port) for _ in range(2)])
    with ring.serving.client() as client:
        client.send(GET[:-2] + b"te: trailers\r\n\r\n")
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=lambda: answers.put(client.answer()))
        thread.start()
        ring.serving.until(lambda stats: bool(stats["answers_total"][2] == 1))
        while thread.is_alive():
            try:
                came.get(timeout=0.05)
            except queue.Empty:
                continue
            if ring.serving.stats()["connections"]:
                ring.hop()
            go_on.release()
        thread.join()
        assert answers.get(timeout=1).body == b"".join(parts)
        assert client.trailers == ([b"x-sum: 1"] if framing == "chunked" else [])
    streaming = sum(side.call(side.engine.tally).moved_streaming for side in ring.sides)
    assert ring.hops >= len(parts)
    assert streaming >= 1
    for side in ring.sides:
        side.settles()
    assert sum(side.stats()["requests_total"] for side in ring.sides) == 1
    assert sum(sum(side.figures().durations.buckets) for side in ring.sides) == 1


def frame(framing: str) -> Callable[[bytes], bytes]:
    def chunk(block: bytes) -> bytes:
        return b"%x\r\n" % len(block) + block + b"\r\n"

    return chunk if framing == "chunked" else bytes


@pytest.mark.parametrize("framing", ["chunked", "until close"])
def test_a_stream_goes_round_while_it_flows(
    framing: str, proxy: START, upstream: SERVE, transport: int
) -> None:
    slow = transport == TRANSPORT_TRICKLE
    block, most = (500, 200) if slow else (64 * 1024, None)
    speakers: queue.SimpleQueue[Speaker] = queue.SimpleQueue()
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        kind = b"transfer-encoding: chunked\r\n" if framing == "chunked" else b""
        peer.send(b"HTTP/1.1 200 OK\r\n%s\r\n" % kind)
        speakers.put(Speaker(peer, 1, block=block, most=most, wrap=frame(framing)))
        assert over.wait(60)

    served = upstream(script)
    ring = Ring([proxy(served.port) for _ in range(3)])
    with ring.serving.client() as client:
        # HTTP/1.0 gets the bare bytes of a chunked body, until the end.
        client.send(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        assert client.head().line == "HTTP/1.1 200 OK"
        speaker, listener = speakers.get(timeout=10), Listener(client)
        while ring.hops < HOPS or listener.got < 20 * block:
            assert ring.hop() == 1
        sent = speaker.digest()
        assert listener.digest() == sent
        over.set()
    for side in ring.sides:
        side.settles()


def test_a_large_download_goes_round_and_its_connections_serve_on(
    proxy: START, upstream: SERVE, transport: int
) -> None:
    """Through pipes, for a reader that rests: the client's and the upstream's are used again."""
    size = 60_000 if transport == TRANSPORT_TRICKLE else 40_000_000
    data = b"".join(pieces(size, 10))

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            peer.answer(data)

    served = upstream(script)
    ring = Ring([proxy(served.port) for _ in range(3)])
    with ring.serving.client(receive_buffer=65_536) as client:
        client.send(GET + GET)
        for _ in range(2):
            head = client.head()
            assert int(head.get("content-length") or 0) == size
            for part in pieces(size, 10):
                assert ring.hop() == 1
                assert client.exactly(len(part)) == part
        # It is idle where the upstream's last byte came in, which may be before the last hop.
        while not any(side.stats()["upstream_idle"] for side in ring.sides):
            ring.serving.turn()
        before, is_here = served.accepted, ring.serving.stats()["upstream_idle"]
        client.send(GET)
        assert client.answer().body == data
        assert served.accepted == before + (0 if is_here else 1)
    for side in ring.sides:
        side.settles()


def test_events_keep_coming_while_the_stream_moves(proxy: START, upstream: SERVE) -> None:
    ask: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        for _ in range(2):  # the second is the green one's, over the connection that it was given
            peer.request()
            peer.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            while event := ask.get():
                peer.send(b"%x\r\n" % len(event) + event + b"\r\n")
            peer.send(b"0\r\n\r\n")
        peer.rest()

    served = upstream(script)
    ring = Ring([proxy(served.port) for _ in range(2)])
    with ring.serving.client() as client:
        client.send(GET)
        client.head()
        for number in range(50):
            event = b"data: %d\n\n" % number
            if number % 2:
                ask.put(event)
            ring.hop()
            if not number % 2:
                ask.put(event)
            assert client.until(b"\r\n") == b"%x\r\n" % len(event)
            assert client.exactly(len(event) + 2) == event + b"\r\n"
        ask.put(b"")
        assert client.until(b"\r\n\r\n") == b"0\r\n\r\n"
        ask.put(b"")
        assert client.get().status == 200
    for side in ring.sides:
        side.settles()


@pytest.mark.parametrize("own", [True, False])
def test_what_is_left_of_a_whole_response_moves_with_the_client_alone(
    own: bool, proxy: START, upstream: SERVE, transport: int
) -> None:
    """The upstream gave all of it and serves others; the client has yet to read."""
    if not own and transport == TRANSPORT_TRICKLE:
        pytest.skip("nothing is read ahead of a slow client there")
    size = 60_000  # as much as one read takes with the head

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            peer.answer(b"x" * size)

    served = upstream(script)
    routes = [route(respond=(200, "x" * size)) if own else route()]
    specs = [app([served.port], routes=routes) for _ in range(2)]
    blue, green = (proxy(spec=spec, send_buffer=4_096) for spec in specs)
    with blue.client(receive_buffer=4_096) as client:
        client.send(GET + GET)
        blue.until(
            lambda stats: bool(
                stats["answers_total"][2] == 1
                and stats["buffer_bytes"]
                and stats["upstream_connections"] == stats["upstream_idle"]
            )
        )
        drain(blue)
        batch = save(blue)
        assert (batch.count, len(batch.fds)) == (1, 1)
        assert settle(blue, green, batch) == 1
        for _ in range(2):
            assert client.answer().body == b"x" * size
    blue.settles()
    green.settles()
    assert green.stats()["requests_total"] == 1


@pytest.mark.parametrize("phase", ["no head yet", "the request's body still comes"])
def test_an_exchange_first_gets_where_it_flows_and_then_moves(
    phase: str, proxy: START, upstream: SERVE
) -> None:
    go_on = threading.Event()
    rest = threading.Event()

    def script(peer: Peer) -> None:
        if phase == "no head yet":
            peer.request()
            assert go_on.wait(10)
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n1234")
        else:
            peer.head()
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n1234")
            assert peer.exactly(6) == b"abcdef"
        assert rest.wait(10)
        peer.send(b"5678")
        peer.rest()

    served = upstream(script)
    blue, green = proxy(served.port), proxy(served.port)
    with blue.client() as client:
        if phase == "no head yet":
            client.send(GET)
            blue.until(lambda stats: bool(stats["requests_active"] == 1))
        else:
            client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc")
            client.head()
            assert client.exactly(4) == b"1234"
        drain(blue)
        assert not blue.turn() & NOTE_MOVABLE
        assert save(blue).count == 0
        if phase == "no head yet":
            go_on.set()
            client.head()
            assert client.exactly(4) == b"1234"
        else:
            client.send(b"def")
        blue.notes_one_of(NOTE_MOVABLE)
        assert move_all(blue, green, 2) == 1
        rest.set()
        assert client.exactly(4) == b"5678"
    assert blue.call(blue.engine.tally).moved_streaming == 1
    blue.settles()
    green.settles()


@pytest.mark.parametrize("steps", ["freeze", "hold and drop"])
def test_a_response_taken_back_goes_on_at_blue_and_moves_later(
    steps: str, proxy: START, upstream: SERVE
) -> None:
    more = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n0")
        for number in range(1, 7):
            assert more.acquire(timeout=10)
            peer.send(b"%d" % number)
        peer.rest()

    served = upstream(script)
    blue, green = proxy(served.port), proxy(served.port)
    with blue.client() as client:
        client.send(GET)
        client.head()
        assert client.exactly(1) == b"0"
        for number in range(1, 6):
            drain(blue)
            batch = save(blue, number)
            more.release()
            if steps == "freeze":
                batch.close()
            else:
                assert hold(green, batch) == b"\0"
                green.call(lambda number=number: green.engine.drop(number))  # type: ignore[misc]
            blue.call(lambda number=number: blue.engine.take_back(number))  # type: ignore[misc]
            assert client.exactly(1) == b"%d" % number
            blue.call(blue.engine.serve)
        drain(blue)
        assert move_all(blue, green, 9) == 1
        more.release()
        assert client.exactly(1) == b"6"
    blue.settles()
    green.settles()


def lacking(reason: str, spec: AppSpec, other: int) -> AppSpec:
    """Green's rules, which have no place for an exchange of blue's."""
    if reason == "upstream_gone":
        return app([other])
    if reason == "denied":
        return dataclasses.replace(spec, access=AccessSpec(allow=(), deny=("127.0.0.0/8",)))
    renamed = tuple(
        dataclasses.replace(listener, name=f"{listener.name}-2") for listener in spec.listeners
    )
    return dataclasses.replace(spec, listeners=renamed)


@pytest.mark.parametrize("reason", ["upstream_gone", "denied", "listener_gone"])
def test_a_response_that_green_has_no_place_for_ends_at_blue_unless_its_source_is_denied(
    reason: str, proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n1234")
        assert go_on.wait(10)
        peer.send(b"5678")
        peer.rest()

    served = upstream(script)
    blue = proxy(served.port)
    spec = lacking(reason, app([served.port]), dead())
    with Engine(spec, stats=None, seed=(0, 0), tick_ms=1000) as engine, blue.client() as client:
        client.send(GET)
        client.head()
        assert client.exactly(4) == b"1234"
        drain(blue)
        batch = save(blue)
        verdicts = engine.hold(1, batch.records, batch.count, batch.fds)
        assert [DECLINED[verdict] for verdict in verdicts] == [reason]
        blue.call(lambda: blue.engine.commit(1, verdicts))
        assert save(blue, 2).count == 0, "it is not offered again"
        if reason == "denied":
            with pytest.raises(ConnectionResetError):
                client.rest()
            go_on.set()
        else:
            go_on.set()
            assert client.exactly(4) == b"5678"
            blue.notes_one_of(NOTE_MOVABLE)
            later = save(blue, 3)
            verdicts = engine.hold(3, later.records, later.count, later.fds)
            assert bool(verdicts[0]) is (reason == "listener_gone"), "between requests again"
            blue.call(lambda: blue.engine.commit(3, verdicts))
    tally = blue.call(blue.engine.tally)
    gone = int(reason == "listener_gone")
    assert tally.declined == ((reason, 1 + gone),)
    assert (tally.reset, tally.closed) == (int(reason == "denied"), gone)
    blue.settles()


def test_a_connection_that_speaks_for_one_client_never_comes_among_others(
    proxy: START, upstream: SERVE
) -> None:
    """It began with a PROXY header, which green's upstream does not ask for."""
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        if peer.number == 0:
            assert peer.until(b"\r\n").startswith(b"PROXY TCP4 127.0.0.1 ")
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n1")
        assert go_on.wait(10)
        peer.send(b"2")
        peer.rest()

    served = upstream(script)
    plain_spec = app([served.port])
    upstreams = tuple(dataclasses.replace(one, proxy_protocol="v1") for one in plain_spec.upstreams)
    blue = proxy(spec=dataclasses.replace(plain_spec, upstreams=upstreams))
    green = proxy(spec=plain_spec)
    with blue.client() as client:
        client.send(GET)
        client.head()
        assert client.exactly(1) == b"1"
        drain(blue)
        assert move_all(blue, green) == 1
        go_on.set()
        assert client.exactly(1) == b"2"
        green.until(lambda stats: bool(stats["requests_active"] == 0))
        assert green.stats()["upstream_connections"] == 0
        assert client.get().body == b"12"
    assert served.accepted == 2
    green.settles()
    blue.settles()


def test_the_body_deadline_goes_on_where_it_was(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        peer.rest()

    served = upstream(script)
    ring = Ring([proxy(served.port, body_idle_ms=600) for _ in range(2)])
    with ring.serving.client() as client:
        client.send(GET)
        client.head()
        assert client.exactly(4) == b"half"
        for _ in range(5):
            ring.hop()
        with pytest.raises(ConnectionResetError):
            client.rest()
    for side in ring.sides:
        side.settles()


def test_a_client_that_leaves_after_the_move_frees_all_of_it(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        peer.rest()

    served = upstream(script)
    blue, green = proxy(served.port), proxy(served.port)
    client: Client = blue.client()
    client.send(GET)
    client.head()
    assert client.exactly(4) == b"half"
    drain(blue)
    assert move_all(blue, green) == 1
    client.reset()
    green.settles()
    assert green.stats()["upstream_connections"] == 0
