"""Bodies arrive whole and unchanged, by every framing, in both directions, and at bounded cost."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from dataplane.engine.engine import TRANSPORT_TRICKLE
from tests.support.engine import Proxy
from tests.support.upstream import Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

# Beside the sizes at which buffers and reads change: 16 KiB is a read, 256 KiB the largest one.
SIZES = (0, 1, 1023, 16_383, 16_384, 16_385, 70_000)
LARGE = (262_144, 1_000_003)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def sizes_for(transport: int) -> tuple[int, ...]:
    return SIZES if transport == TRANSPORT_TRICKLE else SIZES + LARGE


def chunks(data: bytes, size: int, extension: bytes = b"") -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    framed = [b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces]
    return b"".join(framed) + b"0\r\n\r\n"


def answers_by(framing: str) -> Callable[[Peer], None]:
    """Echoes a request's body by one framing."""

    def script(peer: Peer) -> None:
        while True:
            _, body = peer.request()
            if framing == "length":
                peer.answer(body)
            elif framing == "chunked":
                peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                peer.send(chunks(body, 5000, b';a="b;\\"c"')[:-2] + b"x-trailer: 1\r\n\r\n")
            else:
                peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + body)
                peer.close()
                return

    return script


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_answers_of_every_size_and_framing_come_whole(
    framing: str, proxy: START, upstream: SERVE, transport: int
) -> None:
    served = upstream(answers_by(framing))
    running = proxy(served.port)
    client = running.client()
    for size in sizes_for(transport):
        data = noise(size)
        client.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + data)
        answer = client.answer()
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(data).digest()
        if framing == "close":
            client.close()
            client = running.client()
    client.close()
    assert framing == "close" or served.accepted == 1


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_chunked_requests_come_whole_and_without_extensions(
    step: int, proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream().port)
    data = noise(1500)
    framed = chunks(data, step, b";x=1")[:-2] + b"x-end: trailer\r\n\r\n"
    with running.client() as client:
        for _ in range(2):
            client.send(
                b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + framed
            )
            assert client.answer().body == data


def test_chunked_answers_are_unchunked_for_http_1_0(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(answers_by("chunked")).port)
    data = noise(20_000)
    with running.client() as client:
        client.send(
            b"PUT / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 20000\r\n\r\n" + data
        )
        answer = client.answer()
        assert answer.get("transfer-encoding") is None
        assert answer.get("connection") == "close"
        assert answer.body == data


def test_both_directions_flow_at_once(proxy: START, upstream: SERVE, transport: int) -> None:
    """An echo that answers while the request still comes: neither side waits for the other."""
    size = 200_000 if transport == TRANSPORT_TRICKLE else 5_000_000

    def script(peer: Peer) -> None:
        head = peer.head()
        left = int(head.get("content-length") or 0)
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % left)
        while left:
            piece = peer.exactly(min(left, 10_000))
            peer.send(piece)
            left -= len(piece)

    running = proxy(upstream(script).port)
    data = noise(size)
    with running.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
        sender = threading.Thread(target=client.send, args=(data,))
        sender.start()
        answer = client.answer()
        sender.join()
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(data).digest()


def test_a_slow_reader_holds_back_the_upstream_and_not_our_memory(
    proxy: START, upstream: SERVE, transport: int
) -> None:
    sent = 0
    size = 20_000 if transport == TRANSPORT_TRICKLE else 8_000_000
    stuck = threading.Event()

    def script(peer: Peer) -> None:
        nonlocal sent
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        peer.sock.settimeout(0.3)
        while sent < size:
            try:
                sent += peer.sock.send(b"x" * min(65_536, size - sent))
            except TimeoutError:
                stuck.set()
                peer.sock.settimeout(10)

    running = proxy(upstream(script).port, send_buffer=4096)
    with running.client(receive_buffer=4096) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        if transport == TRANSPORT_TRICKLE:
            running.until(lambda stats: stats["buffer_bytes"] > 0)
        else:
            assert stuck.wait(10), "the upstream was never held back"
        stats = running.stats()
        assert stats["pipes"] == 1 or 0 < stats["buffer_bytes"] <= 512 * 1024
        assert transport == TRANSPORT_TRICKLE or sent < size
        assert len(client.answer().body) == size
        running.until(lambda stats: stats["buffer_bytes"] == 0)


def test_a_slow_upstream_holds_back_the_client_and_not_our_memory(
    proxy: START, upstream: SERVE, transport: int
) -> None:
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        head = peer.head()
        assert go_on.wait(10)
        assert peer.body(head) == b"x" * size
        peer.answer()

    size = 20_000 if transport == TRANSPORT_TRICKLE else 4_000_000
    running = proxy(upstream(script, receive_buffer=4096).port)
    with running.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
        client.sock.settimeout(0.3)
        sent = 0
        try:
            while sent < size:
                sent += client.sock.send(b"x" * min(65_536, size - sent))
        except TimeoutError:
            pass
        client.sock.settimeout(10)
        held = running.stats()["buffer_bytes"]
        assert held <= 512 * 1024
        go_on.set()
        client.send(b"x" * (size - sent))
        assert client.answer().status == 200


def test_an_answer_without_a_body_is_followed_by_the_next_one(
    proxy: START, upstream: SERVE
) -> None:
    """HEAD, 204 and 304 have no body, whatever their fields say."""
    heads = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    ]

    def script(peer: Peer) -> None:
        for head in heads:
            peer.request()
            peer.send(head)
        peer.request()
        peer.answer(b"last")

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        lengths = [client.get(method="HEAD").get("content-length") for _ in range(3)]
        assert lengths == ["5", None, None]
        assert client.get().status == 204
        assert client.get().status == 304
        assert client.get().body == b"last"
    assert served.accepted == 1


def test_bytes_after_an_answer_are_never_the_next_answer(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        peer.rest()

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        assert client.get().body == b"ok"
        running.until(lambda stats: stats["upstream_connections"] == 0)
        assert client.get().body == b"ok"
    assert served.accepted == 2
