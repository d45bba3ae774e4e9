"""Clients that are slow on purpose: each way of being so has a deadline that ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable

import pytest

from dataplane.engine.engine import TRANSPORT_PLAIN
from dataplane.model.spec import AppSpec
from tests.support.client import Client
from tests.support.engine import Proxy, app, route
from tests.support.upstream import SECONDS, Peer, Upstream, dawdle

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
CHUNKS = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


def slow(port: int, *, request_ms: int = 0, send_ms: int = 0, **options: int) -> AppSpec:
    spec = app([port], routes=[route()], **options)  # type: ignore[arg-type]
    return dataclasses.replace(
        spec, timeouts=dataclasses.replace(spec.timeouts, request_ms=request_ms, send_ms=send_ms)
    )


def dribble(client: Client, first: bytes, piece: bytes) -> float:
    """Sends a piece every moment until the other side has an answer: how long it took."""
    begun = time.monotonic()
    client.send(first)
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set() and time.monotonic() - begun < SECONDS:
            with contextlib.suppress(OSError):
                client.send(piece)
            dawdle(0.03)

    sender = threading.Thread(target=go_on)
    sender.start()
    try:
        answer = client.answer()
    finally:
        over.set()
        sender.join()
    assert answer.status == 408
    assert answer.get("connection") == "close"
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\n", b"x: y\r\n"),
        (POST, b"a"),
        (CHUNKS, b"1\r\na\r\n"),
    ],
    ids=["head", "body", "chunks"],
)
def test_a_request_that_dribbles_ends_at_its_whole_deadline(
    first: bytes, piece: bytes, proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        with contextlib.suppress(Exception):
            peer.request()

    running = proxy(spec=slow(upstream(script).port, request_ms=400))
    with running.client() as client:
        took = dribble(client, first, piece)
        assert 0.35 <= took < 3
    running.settles()


def test_the_whole_deadline_is_for_the_request_and_not_for_the_answer(
    proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        while peer.request() is not None:
            dawdle(0.4)
            peer.answer()

    running = proxy(spec=slow(upstream(script).port, request_ms=200))
    with running.client() as client:
        assert client.get().status == 200
        dawdle(0.3)  # and between two requests another one's is not there
        assert client.get().status == 200


# Byte by byte the kernel's own window probes make progress for a reader that stopped.
@pytest.mark.parametrize("transport", [TRANSPORT_PLAIN])
def test_a_reader_that_takes_nothing_is_cut_by_send_and_not_by_body_idle(
    proxy: START, upstream: SERVE
) -> None:
    size = 8 << 20

    def script(peer: Peer) -> None:
        peer.request()
        with contextlib.suppress(OSError):
            peer.answer(b"x" * size)

    spec = slow(upstream(script).port, send_ms=300, body_idle_ms=60_000)
    running = proxy(spec=spec, send_buffer=4096)
    with running.client(receive_buffer=4096) as client:
        begun = time.monotonic()
        client.send(GET)
        running.until(lambda stats: stats["connections"] == 1 and stats["requests_active"] == 1)
        running.until(lambda stats: stats["connections"] == 0)
        assert 0.25 <= time.monotonic() - begun < SECONDS
    running.settles()


# Byte by byte the kernel's own window probes make progress for a reader that stopped.
@pytest.mark.parametrize("transport", [TRANSPORT_PLAIN])
def test_sending_a_body_does_not_excuse_from_reading(proxy: START, upstream: SERVE) -> None:
    """Who sends on and on but takes nothing of the answer is cut as well."""
    size = 8 << 20

    def script(peer: Peer) -> None:
        peer.head()
        with contextlib.suppress(OSError):
            peer.answer(b"x" * size)
            while peer.sock.recv(65536):
                pass

    spec = slow(upstream(script).port, send_ms=300, body_idle_ms=60_000)
    running = proxy(spec=spec, send_buffer=4096)
    with running.client(receive_buffer=4096) as client:
        client.send(CHUNKS)
        over = threading.Event()

        def go_on() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    client.send(b"1\r\na\r\n")
                    dawdle(0.03)

        sender = threading.Thread(target=go_on)
        sender.start()
        try:
            running.until(lambda stats: stats["requests_active"] == 1)
            running.until(lambda stats: stats["connections"] == 0)
        finally:
            over.set()
            sender.join()
