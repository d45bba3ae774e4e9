"""Every wait has its deadline, and each ends in its own way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dataplane.engine.engine import TRANSPORT_PLAIN
from tests.support.engine import Proxy, route
from tests.support.upstream import SECONDS, Peer, Upstream, dawdle

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

SHORT_MS = 150
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def never(peer: Peer) -> None:
    peer.request()
    peer.rest()


@pytest.mark.parametrize("sent", [b"", b"G", b"\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n"])
def test_a_slow_head_is_a_408_and_silence_is_closed(
    sent: bytes, proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream().port, header_ms=SHORT_MS)
    with running.client() as client:
        client.send(sent)
        if sent:
            answer = client.answer()
            assert (answer.status, answer.get("connection")) == (408, "close")
        assert client.ends()


def test_a_head_that_dribbles_has_no_more_time_than_another(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream().port, header_ms=300)
    begun = time.monotonic()
    with running.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n")
        client.sock.settimeout(0.05)
        while True:
            client.send(b"x: y\r\n")
            try:
                client.buffer = client.sock.recv(4096)
                break
            except TimeoutError:
                assert time.monotonic() - begun < 5
        client.sock.settimeout(SECONDS)
        assert client.answer().status == 408


def test_the_next_head_of_a_kept_connection_has_its_time_too(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream().port, header_ms=SHORT_MS)
    with running.client() as client:
        assert client.get().status == 200
        client.send(b"GET / ")
        assert client.answer().status == 408


def test_an_idle_connection_is_closed_without_a_word(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream().port, idle_ms=SHORT_MS)
    with running.client() as client:
        assert client.get().status == 200
        assert client.ends()
    assert running.stats()["requests_total"] == 1


def test_a_body_that_stops_coming_is_a_408(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream().port, body_idle_ms=SHORT_MS)
    for body in (b"", b"half"):
        with running.client() as client:
            client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n" + body)
            answer = client.answer()
            assert (answer.status, answer.get("connection")) == (408, "close")
            assert client.ends()
    running.settles()
    assert running.stats()["upstream_connections"] == 0


def test_an_upstream_that_never_answers_is_a_504(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(never).port, routes=[route(timeout_ms=SHORT_MS)])
    with running.client() as client:
        for _ in range(2):
            assert client.get().status == 504
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx")
        assert client.answer().status == 504
    running.settles()
    assert running.stats()["upstream_connections"] == 0


def test_an_upstream_that_gives_hints_for_ever_is_a_504(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        while True:
            peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
            dawdle(0.02)

    running = proxy(upstream(script).port, routes=[route(timeout_ms=SHORT_MS)])
    with running.client() as client:
        client.send(GET)
        head = client.head()
        while head.line.startswith("HTTP/1.1 103"):
            head = client.head()
        assert head.line.startswith("HTTP/1.1 504")
    running.settles()


@pytest.mark.parametrize("framing", ["length", "close"])
def test_an_answer_that_stops_coming_is_cut_and_looks_so(
    framing: str, proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        length = b"content-length: 9\r\n" if framing == "length" else b""
        peer.send(b"HTTP/1.1 200 OK\r\n" + length + b"\r\nhalf")
        peer.rest()

    running = proxy(upstream(script).port, body_idle_ms=SHORT_MS)
    with running.client() as client:
        client.send(GET)
        client.until(b"half")
        if framing == "length":
            assert client.rest() == b""
        else:
            with pytest.raises(ConnectionResetError):
                client.rest()
    running.settles()


def test_an_answer_that_keeps_coming_slowly_is_not_cut(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        for _ in range(8):
            dawdle(SHORT_MS / 1000)
            peer.send(b"x")

    # More than one pause and less than all: a machine that is busy adds to each.
    running = proxy(upstream(script).port, body_idle_ms=5 * SHORT_MS)
    with running.client() as client:
        assert client.get().body == b"x" * 8


# Byte by byte the kernel's own window probes make progress for a reader that stopped.
@pytest.mark.parametrize("transport", [TRANSPORT_PLAIN])
def test_a_reader_that_stops_is_cut_and_a_slow_one_is_not(proxy: START, upstream: SERVE) -> None:
    """Progress counts, not the whole of what waits: a buffer may take many deadlines to leave."""
    size = 300_000

    def script(peer: Peer) -> None:
        peer.request()
        peer.answer(b"x" * size)

    options = {"body_idle_ms": 400, "send_buffer": 4096}
    running = proxy(upstream(script).port, **options)
    with running.client(receive_buffer=4096) as slow, running.client(receive_buffer=4096) as dead:
        slow.send(GET)
        dead.send(GET)
        begun = time.monotonic()
        slow.head()
        got = 0
        while time.monotonic() - begun < 1.2:
            got += len(slow.exactly(1000))
            dawdle(0.02)
        assert running.stats()["connections"] == 1
        slow.exactly(size - got)
        with pytest.raises(ConnectionResetError):
            dead.rest()


def test_a_slow_connect_does_not_count_against_the_answer(proxy: START, upstream: SERVE) -> None:
    """The time for the answer begins when the request has been sent."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        go.wait(SHORT_MS / 2000)
        peer.request()
        peer.answer()

    running = proxy(upstream(script).port, routes=[route(timeout_ms=SHORT_MS * 4)])
    with running.client() as client:
        assert client.get().status == 200


def test_an_idle_tunnel_is_reset(proxy: START, upstream: SERVE) -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        with pytest.raises(ConnectionResetError):
            peer.rest()
        gone.set()

    running = proxy(upstream(script).port, tunnel_idle_ms=SHORT_MS)
    with running.client("raw") as client:
        with pytest.raises(ConnectionResetError):
            client.rest()
        assert gone.wait(SECONDS)


def test_deadlines_far_apart_come_in_their_order(proxy: START, upstream: SERVE) -> None:
    """Beyond the wheel's horizon (16 s) as well: those must not fire early."""
    running = proxy(upstream().port, header_ms=SHORT_MS, idle_ms=60_000)
    with running.client() as kept:
        assert kept.get().status == 200
        for _ in range(3):
            with running.client() as client:
                assert client.ends()
        assert kept.get().status == 200
