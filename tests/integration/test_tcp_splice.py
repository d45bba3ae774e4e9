"""Tunnels with much to carry go through pipes, each direction on its own, and back again."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from dataplane.engine.engine import TRANSPORT_PLAIN
from tests.support.engine import Proxy
from tests.support.upstream import SECONDS, Peer, Upstream, Wire

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]


@pytest.fixture
def transport() -> int:
    """A pipe is not for the transport that reads a byte at a time."""
    return TRANSPORT_PLAIN


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def speak(wire: Wire, data: bytes) -> None:
    wire.send(data)
    wire.finish()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_both_directions_carry_much_at_once_and_end_on_their_own(
    proxy: START, upstream: SERVE
) -> None:
    there, back = noise(12_000_001), noise(9_000_007, 2)
    came: list[bytes] = []
    all_came = threading.Event()

    def script(peer: Peer) -> None:
        speaker = threading.Thread(target=speak, args=(peer, back))
        speaker.start()
        came.append(peer.rest())
        all_came.set()
        speaker.join()

    running = proxy(upstream(script).port)
    with running.client("raw") as client:
        speaker = threading.Thread(target=speak, args=(client, there))
        speaker.start()
        got = client.rest()
        speaker.join()
        assert digest(got) == digest(back)
        running.settles()
    assert all_came.wait(SECONDS)
    assert digest(came[0]) == digest(there)
    assert running.stats()["spliced_bytes_total"] > 1_000_000


def test_a_tunnel_that_was_busy_still_answers_small_messages(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        assert digest(peer.exactly(8_000_000)) == digest(noise(8_000_000))
        for _ in range(50):
            assert peer.exactly(4) == b"ping"
            peer.send(b"pong")

    running = proxy(upstream(script).port)
    with running.client("raw") as client:
        client.send(noise(8_000_000))
        for _ in range(50):
            client.send(b"ping")
            assert client.exactly(4) == b"pong"


@pytest.mark.parametrize("first", [0, 1, 65_535, 131_072, 262_143, 262_144, 262_145, 524_289])
def test_the_last_byte_comes_however_much_came_before(
    first: int, proxy: START, upstream: SERVE
) -> None:
    size = 2_000_000 + first

    def script(peer: Peer) -> None:
        peer.send(noise(size))
        peer.finish()
        peer.rest()

    running = proxy(upstream(script).port)
    with running.client("raw") as client:
        assert digest(client.rest()) == digest(noise(size))
        client.finish()
        running.settles()


def test_a_reader_that_rests_holds_one_pipe_and_gets_all_of_it(
    proxy: START, upstream: SERVE
) -> None:
    size = 40_000_000

    def script(peer: Peer) -> None:
        peer.send(noise(size))
        peer.finish()

    running = proxy(upstream(script).port)
    with running.client("raw") as client:
        came = client.exactly(6_000_000)
        running.until(lambda stats: bool(stats["pipes"] == 1))
        assert digest(came + client.rest()) == digest(noise(size))
    running.settles()


def test_a_reset_in_the_middle_is_a_reset_at_the_other_end(proxy: START, upstream: SERVE) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        try:
            while True:
                peer.send(b"x" * 65_536)
        except OSError:
            over.set()

    running = proxy(upstream(script).port)
    client = running.client("raw")
    client.exactly(5_000_000)
    client.reset()
    assert over.wait(SECONDS)
    running.settles()
