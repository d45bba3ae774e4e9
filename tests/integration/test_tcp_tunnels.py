"""tcp: bytes both ways, each direction ended on its own, and nothing made up at the end."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from dataplane.engine.engine import TRANSPORT_TRICKLE
from tests.support.engine import Proxy
from tests.support.upstream import SECONDS, Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]


def mirror(peer: Peer) -> None:
    while data := peer.sock.recv(65_536):
        peer.send(data)
    peer.finish()


def test_a_tunnel_carries_any_bytes_both_ways(
    proxy: START, upstream: SERVE, transport: int
) -> None:
    running = proxy(upstream(mirror).port)
    size = 50_000 if transport == TRANSPORT_TRICKLE else 5_000_000
    data = random.Random(1).randbytes(size)
    with running.client("raw") as client:

        def speak() -> None:
            client.send(data)
            client.finish()

        sender = threading.Thread(target=speak)
        sender.start()
        came = client.rest()
        sender.join()
        assert hashlib.sha256(came).digest() == hashlib.sha256(data).digest()
    running.settles()


def test_the_server_may_speak_first(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"220 hello\r\n")
        assert peer.until(b"\r\n") == b"QUIT\r\n"
        peer.send(b"221 bye\r\n")

    running = proxy(upstream(script).port)
    with running.client("raw") as client:
        assert client.until(b"\r\n") == b"220 hello\r\n"
        client.send(b"QUIT\r\n")
        assert client.rest() == b"221 bye\r\n"


def test_each_direction_ends_on_its_own(proxy: START, upstream: SERVE) -> None:
    ended = threading.Event()

    def client_first(peer: Peer) -> None:
        assert peer.rest() == b"question"
        ended.set()
        peer.send(b"answer")

    def server_first(peer: Peer) -> None:
        peer.send(b"all I have")
        peer.finish()
        assert peer.rest() == b"still talking"
        ended.set()

    running = proxy(upstream(client_first).port)
    with running.client("raw") as client:
        client.send(b"question")
        client.finish()
        assert client.rest() == b"answer"
    assert ended.is_set()
    ended.clear()
    running = proxy(upstream(server_first).port)
    with running.client("raw") as client:
        assert client.rest() == b"all I have"
        client.send(b"still talking")
        client.finish()
        assert ended.wait(SECONDS)
        running.until(lambda stats: stats["tunnels"] == 0)


def test_a_refused_upstream_resets_the_client(proxy: START, dead: Callable[[], int]) -> None:
    running = proxy(dead(), dead())

    def listen() -> None:
        with running.client("raw") as client:  # the reset may come before connect is back
            client.rest()

    with pytest.raises(ConnectionResetError):
        listen()
    running.settles()
    assert running.stats()["upstream_failures_total"] == 1


def test_a_refused_endpoint_is_passed_over(
    proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    running = proxy(dead(), upstream(mirror).port)
    for _ in range(4):
        with running.client("raw") as client:
            client.send(b"x")
            assert client.exactly(1) == b"x"


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_reset_goes_on_to_the_other_side(
    half_closed: bool, proxy: START, upstream: SERVE
) -> None:
    """A side that took what it got for all there was would be deceived."""
    began, told = threading.Event(), threading.Event()

    def reads(peer: Peer) -> None:
        peer.until(b"half")
        if half_closed:
            assert peer.rest() == b""
        began.set()
        try:
            assert not half_closed or peer.sock.recv(1) == b""  # it ended its side before
            while half_closed:
                peer.send(b"x" * 1000)
            peer.sock.recv(1)
        except (ConnectionResetError, BrokenPipeError):
            told.set()

    running = proxy(upstream(reads).port)
    client = running.client("raw")
    client.send(b"half")
    if half_closed:
        client.finish()
    assert began.wait(SECONDS)
    client.reset()
    assert told.wait(SECONDS)
    running.settles()

    def breaks(peer: Peer) -> None:
        peer.send(b"half")
        peer.until(b"go")
        peer.reset()

    running = proxy(upstream(breaks).port)
    with running.client("raw") as client:
        client.until(b"half")
        client.send(b"go")
        with pytest.raises(ConnectionResetError):
            client.rest()
    running.settles()


def test_a_reset_after_the_end_of_one_direction_ends_a_silent_tunnel(
    proxy: START, upstream: SERVE
) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.rest() == b"end"
        assert over.wait(SECONDS)  # silent: only the engine can end this

    running = proxy(upstream(script).port)
    client = running.client("raw")
    client.send(b"end")
    client.finish()
    running.until(lambda stats: stats["tunnels"] == 1 and stats["received_bytes_total"] == 3)
    client.reset()
    running.until(lambda stats: stats["tunnels"] == 0)
    over.set()


def test_a_slow_reader_holds_back_the_sender(proxy: START, upstream: SERVE, transport: int) -> None:
    size = 20_000 if transport == TRANSPORT_TRICKLE else 8_000_000

    def script(peer: Peer) -> None:
        peer.send(b"x" * size)
        peer.finish()
        peer.rest()

    running = proxy(upstream(script).port, send_buffer=4096)
    with running.client("raw", receive_buffer=4096) as client:
        running.until(lambda stats: stats["buffer_bytes"] > 0)
        assert running.stats()["buffer_bytes"] <= 512 * 1024
        assert len(client.rest()) == size
    running.settles()
