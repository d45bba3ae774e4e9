"""What cannot connect to one endpoint waits for the others, where they are full."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Proxy
from tests.support.upstream import SECONDS, Peer, Upstream
from tests.support.upstreams import app_of

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]
DEAD = Callable[[], int]


class Held:
    """Answers a request with its line and body when it is let, after a PROXY header or without."""

    def __init__(self, *, with_header: bool = False) -> None:
        self.with_header = with_header
        self.let = threading.Semaphore(0)

    def __call__(self, peer: Peer) -> None:
        header = peer.until(b"\r\n") if self.with_header else b""
        while True:
            head, body = peer.request()
            assert self.let.acquire(timeout=SECONDS)
            peer.answer(header + head.line.encode() + b" " + body)


@pytest.fixture
def late() -> Iterator[socket.socket]:
    """Refuses every connection until the test listens on it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(SECONDS)
        yield sock


@pytest.mark.parametrize("version", [None, "v1"])
def test_a_request_waits_whose_other_endpoint_is_full(
    version: str | None, proxy: START, upstream: SERVE, dead: DEAD
) -> None:
    held = Held(with_header=version is not None)
    spec = app_of(dead(), upstream(held).port, max_connections=1, max_waiting=4,
                  proxy_protocol=version)  # fmt: skip
    running = proxy(spec=spec)
    clients = [running.client() for _ in range(3)]
    for number, client in enumerate(clients):
        head = f"PUT /{number} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
        client.send(f"{head}{number}".encode())
        running.until(lambda stats, due=number: stats["waiting"] == due)  # type: ignore[misc]
    for number, client in enumerate(clients):
        client.send(b"!")
        held.let.release()
        body = client.answer().body.decode()
        assert body.endswith(f"PUT /{number} HTTP/1.1 {number}!")
        own = client.sock.getsockname()[1]
        assert body.startswith(f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} ") == (version is not None)
        client.close()
    running.settles()


def test_too_many_of_them_are_a_503(proxy: START, upstream: SERVE, dead: DEAD) -> None:
    held = Held()
    spec = app_of(dead(), upstream(held).port, max_connections=1, max_waiting=1, connect_ms=300)
    running = proxy(spec=spec)
    first, second, third = (running.client() for _ in range(3))
    first.send(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: stats["upstream_connections"] == 1)
    second.send(b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: stats["waiting"] == 1)
    assert third.get().status == 503  # at once
    assert second.answer().status == 503  # after its wait
    held.let.release()
    assert first.answer().status == 200


def test_where_no_endpoint_is_left_to_wait_for_it_fails_at_once(proxy: START, dead: DEAD) -> None:
    running = proxy(spec=app_of(dead(), dead(), max_connections=1, max_waiting=4))
    with running.client() as client:
        assert client.get().status == 502
    assert running.stats()["waited_total"] == 0


def test_tunnels_wait_too(proxy: START, upstream: SERVE, dead: DEAD) -> None:
    served = upstream(lambda peer: peer.send(peer.exactly(1)))
    running = proxy(spec=app_of(dead(), served.port, max_connections=1, max_waiting=4))
    first = running.client("raw")
    running.until(lambda _: served.accepted == 1)
    second = running.client("raw")
    running.until(lambda stats: stats["waiting"] == 1 and stats["tunnels"] == 1)
    second.send(b"b")
    first.send(b"a")
    assert first.exactly(1) == b"a"
    first.close()
    assert second.exactly(1) == b"b"
    second.close()
    running.settles()


def test_nobody_waits_behind_one_that_waits_for_another_endpoint(
    proxy: START, upstream: SERVE, late: socket.socket
) -> None:
    held = Held()
    running = proxy(
        spec=app_of(late.getsockname()[1], upstream(held).port, max_connections=1, max_waiting=4)
    )
    first, second, third = (running.client() for _ in range(3))
    first.send(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: stats["requests_active"] == 1)
    second.send(b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: stats["waiting"] == 1)
    late.listen()
    third.send(b"GET /3 HTTP/1.1\r\nhost: a\r\n\r\n")
    sock, _ = late.accept()
    with sock:
        peer = Peer(sock, 0, queue.Queue())
        assert peer.request()[0].line == "GET /3 HTTP/1.1"
        assert running.stats()["waiting"] == 1
        peer.answer(b"late")
        assert third.answer().body == b"late"
    held.let.release()
    held.let.release()
    assert b"/1" in first.answer().body
    assert b"/2" in second.answer().body
