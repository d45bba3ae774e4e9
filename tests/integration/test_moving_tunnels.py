"""Tunnels move while they carry: no byte is lost, doubled or out of order, and no end is early."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import queue
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from dataplane.engine.engine import (
    DECLINED,
    NOTE_EMPTY,
    NOTE_MOVABLE,
    TRANSPORT_TRICKLE,
    Engine,
    EngineError,
)
from dataplane.model.spec import AccessSpec, AppSpec
from tests.support.client import Client
from tests.support.engine import Proxy, app, route
from tests.support.flood import Listener, Speaker
from tests.support.hand_over import Ring, drain, hold, move_all, save, settle
from tests.support.upstream import Peer, Upstream, Wire, dawdle

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

ASK = (
    b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
KINDS: Final = ("raw", "websocket")
HOPS: Final = 40


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A tunnel of a tcp listener, and one that began as an exchange."""
    name: str = request.param
    return name


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def opened(running: Proxy, kind: str, **options: Any) -> Client:
    """A client whose tunnel is there."""
    if kind == "raw":
        client = running.client("raw", **options)
    else:
        client = running.client(**options)
        client.send(ASK)
        assert client.head().line == "HTTP/1.1 101 Switching Protocols"
    running.until(lambda stats: bool(stats["tunnels"] and not stats["requests_active"]))
    return client


def switched(peer: Peer, kind: str) -> None:
    """The upstream's part in that."""
    if kind == "websocket":
        peer.request()
        peer.send(SWITCH)


def echoing(kind: str) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        switched(peer, kind)
        while data := peer.buffer or peer.sock.recv(65536):
            peer.buffer = b""
            peer.send(data)

    return script


def speak(wire: Wire, data: bytes) -> None:
    wire.send(data)
    wire.finish()


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set at the end, whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def test_both_directions_carry_on_while_the_tunnel_goes_round(
    kind: str, proxy: START, upstream: SERVE, transport: int
) -> None:
    slow = transport == TRANSPORT_TRICKLE
    block, most = (500, 400) if slow else (64 * 1024, None)
    parts: queue.SimpleQueue[tuple[Speaker, Listener]] = queue.SimpleQueue()
    over = threading.Event()

    def script(peer: Peer) -> None:
        switched(peer, kind)
        parts.put((Speaker(peer, 1, block=block, most=most), Listener(peer)))
        assert over.wait(60)

    served = upstream(script)
    ring = Ring([proxy(served.port) for _ in range(3)])
    with opened(ring.serving, kind) as client:
        speaker, listener = Speaker(client, 2, block=block, most=most), Listener(client)
        other, heard = parts.get(timeout=10)
        while ring.hops < HOPS or min(listener.got, heard.got) < 20 * block:
            assert ring.hop() == 1
        assert speaker.digest() == heard.digest()
        assert other.digest() == listener.digest()
        over.set()
    assert served.accepted == 1
    for side in ring.sides:
        side.settles()
    if not slow:
        assert sum(side.stats()["spliced_bytes_total"] for side in ring.sides) > 0


def test_messages_go_to_and_fro_and_the_tunnel_moves_between_any_two(
    kind: str, proxy: START, upstream: SERVE
) -> None:
    served = upstream(echoing(kind))
    ring = Ring([proxy(served.port) for _ in range(2)])
    with opened(ring.serving, kind) as client:
        for number in range(40):
            client.send(b"%d" % number)
            assert ring.hop() == 1
            assert client.exactly(len(b"%d" % number)) == b"%d" % number
            assert ring.hop() == 1
        client.finish()
        assert client.ends()
    for side in ring.sides:
        side.settles()
    tally = ring.sides[0].call(ring.sides[0].engine.tally)
    assert (tally.moved_tunnel, tally.moved_idle, tally.moved_streaming) == (1, 0, 0)


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_a_half_closed_tunnel_moves_and_its_other_half_goes_on(
    first: str, kind: str, proxy: START, upstream: SERVE, over: threading.Event
) -> None:
    ended, go_on = threading.Event(), threading.Event()
    came: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        switched(peer, kind)
        if first == "upstream":
            peer.send(b"bye")
            peer.finish()
            came.put(peer.rest())
        else:
            came.put(peer.rest())
            ended.set()
            assert go_on.wait(10)
            peer.send(b"after all")

    served = upstream(script)
    ring = Ring([proxy(served.port) for _ in range(2)])
    with opened(ring.serving, kind) as client:
        if first == "client":
            client.send(b"bye")
            client.finish()
            assert ended.wait(10)
        else:
            assert client.rest() == b"bye"
        for _ in range(4):
            assert ring.hop() == 1
        if first == "client":
            go_on.set()
            assert client.rest() == b"after all"
        else:
            client.send(b"after all")
            assert ring.hop() == 1
            client.finish()
        for side in ring.sides:
            side.settles()
    assert came.get(timeout=10) == (b"bye" if first == "client" else b"after all")


def test_what_a_slow_reader_is_owed_moves_in_buffers_and_in_pipes(
    kind: str, proxy: START, upstream: SERVE, transport: int
) -> None:
    """And the end behind it, which stands in the socket, comes last."""
    size = 100_000 if transport == TRANSPORT_TRICKLE else 12_000_000
    data = noise(size)

    def script(peer: Peer) -> None:
        switched(peer, kind)
        speak(peer, data)
        peer.rest()

    served = upstream(script)
    ring = Ring([proxy(served.port, send_buffer=16_384) for _ in range(3)])
    with opened(ring.serving, kind, receive_buffer=8_192) as client:
        got = client.exactly(size // 4)
        while len(got) < size:
            for _ in range(3):
                assert ring.hop() == 1
            got += client.exactly(min(size - len(got), max(size // 12, 1)))
        assert digest(got) == digest(data)
        assert client.ends()
    for side in ring.sides:
        side.settles()


def test_a_pipe_moves_with_the_bytes_in_it(proxy: START, upstream: SERVE, transport: int) -> None:
    if transport == TRANSPORT_TRICKLE:
        pytest.skip("nothing is spliced there")
    data = noise(30_000_000)

    def script(peer: Peer) -> None:
        speak(peer, data)
        peer.rest()

    served = upstream(script)
    blue, green = proxy(served.port), proxy(served.port)
    with opened(blue, "raw") as client:
        got = client.exactly(6_000_000)
        blue.until(lambda stats: bool(stats["pipes"] == 1))
        drain(blue)
        batch = save(blue)
        assert (batch.count, len(batch.fds)) == (1, 4), "two sockets, two ends of a pipe"
        assert settle(blue, green, batch) == 1
        assert (blue.stats()["pipes"], green.stats()["pipes"]) == (0, 1)
        assert digest(got + client.rest()) == digest(data)
    green.settles()
    blue.settles()


@pytest.mark.parametrize("steps", ["freeze", "hold and drop"])
def test_a_tunnel_taken_back_goes_on_at_blue_and_moves_later(
    steps: str, kind: str, proxy: START, upstream: SERVE
) -> None:
    served = upstream(echoing(kind))
    blue, green = proxy(served.port), proxy(served.port)
    with opened(blue, kind) as client:
        for number in range(1, 6):
            drain(blue)
            batch = save(blue, number)
            client.send(b"meanwhile")
            if steps == "freeze":
                batch.close()
            else:
                assert hold(green, batch) == b"\0"
                green.call(lambda number=number: green.engine.drop(number))  # type: ignore[misc]
            blue.call(lambda number=number: blue.engine.take_back(number))  # type: ignore[misc]
            assert client.exactly(9) == b"meanwhile"
            assert blue.turn() & NOTE_MOVABLE
            blue.call(blue.engine.serve)
        drain(blue)
        assert move_all(blue, green, 9) == 1
        client.send(b"there")
        assert client.exactly(5) == b"there"
        client.finish()
        assert client.ends()
    blue.settles()
    green.settles()
    assert green.stats()["moved_in_total"] == 1


def test_held_tunnels_are_still_until_the_commit_and_what_blue_died_with_lives(
    kind: str, proxy: START, upstream: SERVE
) -> None:
    served = upstream(echoing(kind))
    blue, green = proxy(served.port), proxy(served.port)
    with opened(blue, kind) as client:
        drain(blue)
        batch = save(blue)
        assert hold(green, batch) == b"\0"
        client.send(b"early")
        turns = green.stats()["turns"]
        green.until(lambda stats: bool(stats["turns"] > turns + 1))
        assert green.stats()["received_bytes_total"] == 0
        blue._clients.remove(client)  # blue dies, its client does not
        blue.close()
        assert green.call(lambda: green.engine.start(1, 1))[0] == 1
        assert client.exactly(5) == b"early"
        client.finish()
        assert client.ends()
    green.settles()


def test_a_frozen_tunnel_is_not_watched_again_by_the_deadline_of_its_connecting(
    kind: str, proxy: START, upstream: SERVE
) -> None:
    """What blue watched once green has it would wake blue for each byte, for ever."""
    served = upstream(echoing(kind))
    blue, green = (proxy(served.port, connect_ms=100) for _ in range(2))
    with opened(blue, kind) as client:
        drain(blue)
        batch = save(blue)
        dawdle(0.3)
        blue.turn()
        assert settle(blue, green, batch) == 1
        before = blue.stats()["turns"]
        for number in range(100):
            client.send(b"%02d" % number)
            assert client.exactly(2) == b"%02d" % number
        assert blue.stats()["turns"] < before + 20
        client.finish()
        assert client.ends()
    blue.settles()
    green.settles()


def test_an_engine_that_ends_with_held_and_frozen_tunnels_leaks_nothing(
    kind: str, proxy: START, upstream: SERVE
) -> None:
    served = upstream(echoing(kind))
    blue, green = proxy(served.port), proxy(served.port)
    with opened(blue, kind):
        drain(blue)
        batch = save(blue)
        hold(green, batch)
        green.close()
        blue.close()
        for fd in batch.fds:
            with pytest.raises(OSError):
                os.fstat(fd)


def test_the_idle_deadline_goes_on_where_it_was(kind: str, proxy: START, upstream: SERVE) -> None:
    served = upstream(echoing(kind))
    ring = Ring([proxy(served.port, tunnel_idle_ms=600) for _ in range(2)])
    with opened(ring.serving, kind) as client:
        for _ in range(5):
            ring.hop()
        with pytest.raises(ConnectionResetError):
            client.rest()
    for side in ring.sides:
        side.settles()


# --- what is not taken ------------------------------------------------------------------------


def lacking(reason: str, port: int, other: int) -> AppSpec:
    """Green's rules, which have no place for a tunnel of `app([port])`."""
    spec = app([port])
    if reason == "upstream_gone":
        return app([other])
    if reason == "denied":
        return dataclasses.replace(spec, access=AccessSpec(allow=(), deny=("127.0.0.0/8",)))
    renamed = tuple(
        dataclasses.replace(listener, name=f"{listener.name}-2") for listener in spec.listeners
    )
    return dataclasses.replace(spec, listeners=renamed)


@pytest.mark.parametrize("reason", ["denied", "listener_gone"])
def test_a_tunnel_that_greens_rules_forbid_is_cut_at_both_ends_and_told(
    reason: str, kind: str, proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    broke = threading.Event()

    def script(peer: Peer) -> None:
        switched(peer, kind)
        try:
            peer.rest()
        except ConnectionResetError:
            broke.set()

    served = upstream(script)
    blue = proxy(served.port)
    engine = Engine(lacking(reason, served.port, dead()), stats=None, seed=(0, 0), tick_ms=1000)
    with engine, opened(blue, kind) as client:
        drain(blue)
        batch = save(blue)
        verdicts = engine.hold(1, batch.records, batch.count, batch.fds)
        assert [DECLINED[verdict] for verdict in verdicts] == [reason]
        blue.call(lambda: blue.engine.commit(1, verdicts))
        with pytest.raises(ConnectionResetError):
            client.rest()
        assert broke.wait(10)
    blue.settles()
    tally = blue.call(blue.engine.tally)
    assert (tally.reset, tally.closed, tally.moved_tunnel) == (1, 0, 0)
    assert tally.declined == ((reason, 1),)


def test_a_tunnel_whose_endpoint_is_gone_ends_at_blue_in_its_own_time(
    kind: str, proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    served = upstream(echoing(kind))
    blue = proxy(served.port)
    spec = lacking("upstream_gone", served.port, dead())
    engine = Engine(spec, stats=None, seed=(0, 0), tick_ms=1000)
    with engine, opened(blue, kind) as client:
        drain(blue)
        batch = save(blue)
        verdicts = engine.hold(1, batch.records, batch.count, batch.fds)
        assert [DECLINED[verdict] for verdict in verdicts] == ["upstream_gone"]
        blue.call(lambda: blue.engine.commit(1, verdicts))
        client.send(b"here")
        assert client.exactly(4) == b"here"
        assert save(blue, 2).count == 0, "it is not offered again in this drain"
        client.finish()
        assert client.ends()
    blue.settles()
    tally = blue.call(blue.engine.tally)
    assert (tally.reset, tally.closed, tally.finished, tally.moved_tunnel) == (0, 0, 1, 0)
    assert tally.declined == (("upstream_gone", 1),)


def test_an_upstream_that_was_renamed_keeps_its_tunnels(
    kind: str, proxy: START, upstream: SERVE
) -> None:
    served = upstream(echoing(kind))
    blue = proxy(served.port)
    green = proxy(
        spec=app(upstreams=[("first", [1]), ("new", [served.port])], routes=[route(upstream="new")])
    )
    with opened(blue, kind) as client:
        drain(blue)
        assert move_all(blue, green) == 1
        client.send(b"here")
        assert client.exactly(4) == b"here"
        client.finish()
        assert client.ends()
    assert [one.active for one in green.figures().upstreams] == [0, 0]
    green.settles()


def test_a_green_of_other_code_is_refused_nothing_and_takes_no_tunnel(
    kind: str, proxy: START, upstream: SERVE
) -> None:
    """Records of version 1 cannot say what a tunnel is: it stays, and the idle ones move."""
    served = upstream(echoing(kind))
    blue, green = proxy(served.port), proxy(served.port)
    with opened(blue, kind) as client, blue.client() as idle:
        blue.until(lambda stats: bool(stats["connections"] == 2))
        drain(blue)
        batch = save(blue, version=1)
        assert batch.count == 1
        assert settle(blue, green, batch) == 1
        assert save(blue, 2, version=1).count == 0
        client.send(b"here")
        assert client.exactly(4) == b"here"
        client.finish()
        assert client.ends()
        assert idle.get("/none", fields="x: y\r\n").status in (200, 404, 502, 503)
    blue.settles()


def test_an_unknown_version_is_refused_whole(kind: str, proxy: START, upstream: SERVE) -> None:
    served = upstream(echoing(kind))
    blue, green = proxy(served.port), proxy(served.port)
    with opened(blue, kind) as client:
        drain(blue)
        batch = save(blue)
        later = bytearray(batch.records)
        later[4] = 3
        with pytest.raises(EngineError, match="version"):
            green.call(lambda: green.engine.hold(1, bytes(later), 1, batch.fds))
        for fd in batch.fds:
            with pytest.raises(OSError):
                os.fstat(fd)
        blue.call(lambda: blue.engine.take_back(1))
        client.send(b"here")
        assert client.exactly(4) == b"here"
        client.finish()
        assert client.ends()
    blue.settles()
    assert green.stats()["connections"] == 0


def test_a_record_of_a_kind_that_green_does_not_know_ends_at_blue(
    kind: str, proxy: START, upstream: SERVE
) -> None:
    served = upstream(echoing(kind))
    blue, green = proxy(served.port), proxy(served.port)
    with opened(blue, kind) as client:
        drain(blue)
        batch = save(blue)
        later = bytearray(batch.records)
        later[6] = 9
        verdicts = hold(green, dataclasses.replace(batch, records=bytes(later)))
        assert [DECLINED[verdict] for verdict in verdicts] == ["unknown"]
        blue.call(lambda: blue.engine.commit(1, verdicts))
        client.send(b"here")
        assert client.exactly(4) == b"here"
        assert save(blue, 2).count == 0, "it is not offered again in this drain"
        blue.call(blue.engine.serve)
        drain(blue)
        assert move_all(blue, green, 3) == 1
        client.finish()
        assert client.ends()
    blue.settles()
    green.settles()


def test_a_batch_never_has_more_descriptors_than_it_may(proxy: START, upstream: SERVE) -> None:
    served = upstream(echoing("raw"))
    blue, green = proxy(served.port), proxy(served.port)
    clients = [blue.client("raw") for _ in range(9)]
    blue.until(lambda stats: bool(stats["tunnels"] == 9))
    for client in clients:
        client.send(b"x")
        assert client.exactly(1) == b"x"
    drain(blue)
    counts = []
    for number in range(1, 9):
        batch = save(blue, number, most=5)
        counts.append((batch.count, len(batch.fds)))
        if not batch.count:
            break
        assert settle(blue, green, batch) == batch.count
    assert counts == [(2, 4)] * 4 + [(1, 2), (0, 0)]
    blue.notes_one_of(NOTE_EMPTY)
    for client in clients:
        client.send(b"y")
        assert client.exactly(1) == b"y"
        client.finish()
        assert client.ends()
    green.settles()
