"""Large bodies go through a pipe: the same bytes, the same ends, no pipe kept in vain."""

from __future__ import annotations

import hashlib
import random
import resource
import threading
from collections.abc import Callable, Iterator

import pytest

from dataplane.engine.engine import TRANSPORT_PLAIN, TRANSPORT_TRICKLE
from tests.support.engine import Proxy, app
from tests.support.upstream import SECONDS, Ended, Peer, Upstream, echo

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

MIN = 256 * 1024  # less that is left of a body is read and written
AT_ONCE = 512 * 1024
HEAD_READ = 68 * 1024  # what comes with a response's head
EDGES = (MIN, MIN + HEAD_READ, MIN + AT_ONCE, MIN + AT_ONCE + HEAD_READ, 4 * MIN)
SIZES = sorted({edge + more for edge in EDGES for more in (-1, 0, 1, 16_384)} | {3_000_017})


@pytest.fixture
def transport() -> int:
    """A pipe is not for the transport that reads a byte at a time."""
    return TRANSPORT_PLAIN


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sends(size: int, *, framed: bool = True) -> Callable[[Peer], None]:
    """Answers each request with noise of that size."""

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            length = b"content-length: %d\r\n" % size if framed else b""
            peer.send(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + noise(size))
            if not framed:
                peer.close()
                return

    return script


@pytest.mark.parametrize("size", SIZES)
def test_bodies_of_every_size_around_the_limits_come_whole_both_ways(
    size: int, proxy: START, upstream: SERVE
) -> None:
    served = upstream(echo)
    running = proxy(served.port)
    data = noise(size)
    with running.client() as client:
        for _ in range(2):
            client.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + data)
            assert digest(client.answer().body) == digest(data)
    assert served.accepted == 1, "the upstream's connection was not used again"
    running.settles()


def test_a_large_body_is_spliced_and_counted(proxy: START, upstream: SERVE) -> None:
    size = 4_000_000
    running = proxy(upstream(sends(size)).port)
    with running.client() as client:
        assert digest(client.get().body) == digest(noise(size))
    stats = running.stats()
    assert size - 2 * AT_ONCE < stats["spliced_bytes_total"] <= size
    assert stats["sent_bytes_total"] > size


def test_the_small_transport_does_without(upstream: SERVE) -> None:
    size = MIN + 1
    with (
        Proxy(app((upstream(sends(size)).port,)), transport=TRANSPORT_TRICKLE) as running,
        running.client() as client,
    ):
        assert len(client.get().body) == size
        assert running.stats()["spliced_bytes_total"] == 0


def test_a_body_that_ends_by_close_comes_whole(proxy: START, upstream: SERVE) -> None:
    size = 6_000_001
    running = proxy(upstream(sends(size, framed=False)).port)
    with running.client() as client:
        assert digest(client.get().body) == digest(noise(size))
    running.settles()


@pytest.mark.parametrize("first", [0, 1, HEAD_READ + 1, MIN, 700_001, 999_999])
def test_an_answer_that_stalls_is_passed_on_as_far_as_it_came(
    first: int, proxy: START, upstream: SERVE
) -> None:
    """Bytes are gathered before they are told of, but none waits for those that do not come."""
    size = 1_000_000
    came, seen = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        for _ in range(2):
            peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            peer.send(noise(size)[:first])
            assert came.wait(SECONDS)
            peer.send(noise(size)[first : first + 1])
            assert seen.wait(SECONDS)
            peer.send(noise(size)[first + 1 :])
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsmall")
        peer.rest()

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        for _ in range(2):
            client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            client.head()
            got = client.exactly(first)
            came.set()
            got += client.exactly(1)
            seen.set()
            got += client.exactly(size - len(got))
            assert digest(got) == digest(noise(size))
        assert client.get().body == b"small"
    assert served.accepted == 1
    running.settles()


def test_what_follows_a_spliced_answer_is_never_the_next_answer(
    proxy: START, upstream: SERVE
) -> None:
    size = 2_000_000

    def script(peer: Peer) -> None:
        peer.request()
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
        peer.send(head + noise(size) + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        peer.rest()

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        for _ in range(2):
            assert digest(client.get().body) == digest(noise(size))
    assert served.accepted == 2


def test_a_pipelined_request_after_a_spliced_upload_is_served(
    proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream(echo).port)
    data = noise(3_000_000)
    request = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(data) + data
    with running.client() as client:
        sender = threading.Thread(target=client.send, args=(request + request,))
        sender.start()
        for _ in range(2):
            assert digest(client.answer().body) == digest(data)
        sender.join()


def test_a_slow_reader_holds_back_the_upstream_and_one_pipe(proxy: START, upstream: SERVE) -> None:
    size = 20_000_000
    running = proxy(upstream(sends(size)).port, send_buffer=4096)
    with running.client(receive_buffer=4096) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        client.head()
        came = client.exactly(2 * HEAD_READ)
        running.until(lambda stats: bool(stats["pipes"] == 1))
        assert running.stats()["spliced_bytes_total"] <= len(came) + 2 * AT_ONCE
        came += client.exactly(size - len(came))
        assert digest(came) == digest(noise(size))
    running.settles()


@pytest.fixture
def short_of_descriptors() -> Iterator[Callable[[], None]]:
    """From the call on, this process may open no descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_pipe_the_body_is_read_and_written(
    proxy: START, upstream: SERVE, short_of_descriptors: Callable[[], None]
) -> None:
    size = 3_000_000

    def script(peer: Peer) -> None:
        peer.request()
        short_of_descriptors()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + noise(size))

    running = proxy(upstream(script).port)
    with running.client() as client:
        assert digest(client.get().body) == digest(noise(size))
    assert running.stats()["spliced_bytes_total"] == 0


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_upstream_that_breaks_off_cuts_the_answer(
    how: str, proxy: START, upstream: SERVE
) -> None:
    sent = 2_000_000

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + b"x" * sent)
        getattr(peer, how)()

    running = proxy(upstream(script).port)
    with running.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        client.head()
        with pytest.raises((Ended, ConnectionError)):
            client.exactly(9_000_000)
    running.settles()
    assert running.stats()["upstream_connections"] == 0


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_goes_in_the_middle_frees_all(
    how: str, proxy: START, upstream: SERVE
) -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 900000000\r\n\r\n")
        try:
            while True:
                peer.send(b"x" * 65_536)
        except OSError:
            gone.set()

    running = proxy(upstream(script).port)
    client = running.client()
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    client.head()
    client.exactly(1_000_000)
    getattr(client, how)()
    assert gone.wait(SECONDS)
    running.settles()


def test_an_upload_that_breaks_off_never_looks_finished(proxy: START, upstream: SERVE) -> None:
    came: list[int] = []
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        try:
            came.append(len(peer.rest()))
        except ConnectionError:
            came.append(-1)
        over.set()

    running = proxy(upstream(script).port)
    client = running.client()
    client.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 3_000_000)
    client.close()
    assert over.wait(SECONDS)
    assert came[0] < 5_000_000
    running.settles()


def test_an_early_answer_to_a_spliced_upload_comes_through(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.exactly(1_000_000)
        peer.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno\n")
        peer.finish()
        peer.rest()

    running = proxy(upstream(script).port)
    with running.client() as client:
        client.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n")
        client.send(b"x" * 1_500_000)
        answer = client.answer()
        assert (answer.status, answer.body) == (413, b"no\n")
        assert answer.get("connection") == "close"


def test_a_reader_that_stops_is_reset_after_its_time(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(sends(20_000_000)).port, send_buffer=4096, body_idle_ms=300)
    with running.client(receive_buffer=4096) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        client.head()
        client.exactly(2 * HEAD_READ)
        running.until(lambda stats: bool(stats["pipes"] == 1))
        running.settles()
        with pytest.raises((Ended, ConnectionError)):
            client.exactly(20_000_000)
