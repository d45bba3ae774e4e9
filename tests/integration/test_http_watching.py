"""Which connections the engine has in its epoll set: those that wait, and none without need."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane.engine.engine import TRANSPORT_PLAIN
from tests.support.engine import Proxy
from tests.support.upstream import SECONDS, Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

LISTENERS = 2
TIMER = 1
UPSTREAM = 1
WATCH_LATE = 1.0  # seconds that a client goes unwatched for (DP_WATCH_LATE_MS)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
def transport() -> int:
    return TRANSPORT_PLAIN


@pytest.fixture
def hold() -> Iterator[threading.Event]:
    """Upstreams answer once it is set; at the latest when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def count(running: Proxy) -> int:
    """How many descriptors the epoll set has, by proc(5). On the engine's own thread."""
    info = Path(f"/proc/self/fdinfo/{running.engine.fd}").read_text()
    return sum(line.startswith("tfd:") for line in info.splitlines())


def watched(running: Proxy) -> int:
    """The same between two turns."""
    return running.call(lambda: count(running))


def answers_when_told(hold: threading.Event) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        while True:
            peer.request()
            assert hold.wait(SECONDS)
            peer.answer(b"ok")

    return script


def test_a_client_that_waits_for_its_answer_is_watched_after_a_second(
    proxy: START, upstream: SERVE, hold: threading.Event
) -> None:
    served = upstream(answers_when_told(hold))
    running = proxy(served.port)
    others = LISTENERS + TIMER + UPSTREAM
    with running.client() as client:
        client.send(GET)
        served.next()
        began = time.monotonic()
        early = watched(running)
        assert early == others or time.monotonic() - began > 0.5
        running.until(lambda _: count(running) == others + 1)
        assert time.monotonic() - began > 0.5
        hold.set()
        assert client.answer().body == b"ok"


def test_a_connection_that_is_kept_is_watched_between_requests(
    proxy: START, upstream: SERVE, hold: threading.Event
) -> None:
    hold.set()
    running = proxy(upstream(answers_when_told(hold)).port)
    with running.client() as client:
        assert client.get().body == b"ok"
        assert watched(running) == LISTENERS + TIMER + UPSTREAM + 1
        assert client.get().body == b"ok"
    running.settles()
    assert watched(running) == LISTENERS + TIMER + UPSTREAM


def test_a_request_whose_body_still_comes_is_watched_at_once(
    proxy: START, upstream: SERVE, hold: threading.Event
) -> None:
    running = proxy(upstream(answers_when_told(hold)).port)
    with running.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab")
        running.until(lambda _: count(running) == LISTENERS + TIMER + UPSTREAM + 1)
        client.send(b"cd")
        hold.set()
        assert client.answer().body == b"ok"


def test_a_connection_of_one_request_is_never_watched(
    proxy: START, upstream: SERVE, hold: threading.Event
) -> None:
    served = upstream(answers_when_told(hold))
    running = proxy(served.port)
    request = GET.replace(b"host", b"connection: close\r\nhost")
    took = math.inf
    while took > WATCH_LATE / 2:  # on a busy machine we may look too late
        hold.clear()
        with running.client() as client:
            began = time.monotonic()
            client.send(request)
            served.next()
            seen = watched(running)
            took = time.monotonic() - began
            hold.set()
            assert client.answer().body == b"ok"
            running.settles()
            assert watched(running) == LISTENERS + TIMER + UPSTREAM
    assert seen == LISTENERS + TIMER + UPSTREAM


def test_a_pipelined_request_is_seen_though_nobody_watched(
    proxy: START, upstream: SERVE, hold: threading.Event
) -> None:
    served = upstream(answers_when_told(hold))
    running = proxy(served.port)
    with running.client() as client:
        client.send(GET)
        served.next()
        client.send(GET)
        hold.set()
        assert [client.answer().body for _ in range(2)] == [b"ok", b"ok"]


def test_a_client_that_only_ends_its_side_still_gets_its_answer(
    proxy: START, upstream: SERVE, hold: threading.Event
) -> None:
    served = upstream(answers_when_told(hold))
    running = proxy(served.port)
    with running.client() as client:
        client.send(GET)
        served.next()
        client.sock.shutdown(socket.SHUT_WR)
        hold.set()
        assert client.answer().body == b"ok"
