"""Whatever an upstream does, its client gets the right status or notices, and nobody else does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import Proxy, app, route
from tests.support.upstream import SECONDS, Peer, Upstream, echo

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def says(data: bytes, *, then: str = "close") -> Callable[[Peer], None]:
    """Takes a request, says these bytes, and ends so."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(data)
        if then == "wait":
            peer.rest()
        else:
            getattr(peer, then)()

    return script


# What an upstream does before it has answered: always 502.
BEFORE: dict[str, Callable[[Peer], None]] = {
    "closes at once": lambda peer: peer.close(),
    "resets at once": lambda peer: peer.reset(),
    "closes after the request": says(b""),
    "resets after the request": says(b"", then="reset"),
    "half a status line": says(b"HTTP/1."),
    "half a head": says(OK + b"content-length: 5\r\n"),
    "half a head and a reset": says(OK + b"content-length: 5\r\n", then="reset"),
    "only an interim answer": says(b"HTTP/1.1 103 Early\r\n\r\n"),
    "garbage": says(b"\0\1\2\3 what?\r\n\r\n", then="wait"),
    "another protocol": says(b"SSH-2.0-OpenSSH_9\r\n"),
    "HTTP/2": says(b"\0\0\x12\4\0\0\0\0\0", then="wait"),
    "a status of two digits": says(b"HTTP/1.1 20 OK\r\n\r\n", then="wait"),
    "a status of four digits": says(b"HTTP/1.1 2000 OK\r\n\r\n", then="wait"),
    "a status beyond all": says(b"HTTP/1.1 999 OK\r\n\r\n", then="wait"),
    "a bare LF": says(b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", then="wait"),
    "a fold": says(OK + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n", then="wait"),
    "two lengths": says(OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab", then="wait"),
    "length and coding": says(
        OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", then="wait"
    ),
    "an unknown coding": says(OK + b"transfer-encoding: gzip\r\n\r\nxx", then="wait"),
    "a switch nobody asked for": says(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n", then="wait"
    ),
    "a head too large": says(OK + b"x: " + b"a" * 40_000 + b"\r\n\r\n", then="wait"),
    "too many fields": says(OK + b"x: y\r\n" * 101 + b"\r\n", then="wait"),
    "a bad first chunk": says(OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", then="wait"),
}

# What it does in the middle of its answer: the client must see that this is not the whole.
AMID: dict[str, Callable[[Peer], None]] = {
    "length, close": says(OK + b"content-length: 9\r\n\r\nhalf"),
    "length, reset": says(OK + b"content-length: 9\r\n\r\nhalf", then="reset"),
    "chunked, close": says(OK + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    "chunked, close amid a chunk": says(OK + b"transfer-encoding: chunked\r\n\r\n9\r\nhalf"),
    "chunked, reset": says(OK + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", then="reset"),
    "until close, reset": says(OK + b"\r\nhalf", then="reset"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_an_upstream_that_breaks_before_its_answer_is_a_502(
    name: str, proxy: START, upstream: SERVE, transport: int
) -> None:
    running = proxy(upstream(BEFORE[name]).port)
    with running.client() as client:
        client.send(GET)
        if name == "only an interim answer":
            client.interim()
        if name == "a bad first chunk" and transport == 1:
            assert client.head().line == "HTTP/1.1 200 OK"  # the head came alone: too late
            assert client.rest() == b""
        else:
            answer = client.answer()
            assert (answer.status, answer.get("server")) == (502, "dataplane")
            if name == "only an interim answer":
                return
            client.send(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
            if name != "a bad first chunk":  # an answer to HEAD has none
                assert client.answer(to_head=True).status == 502
    running.settles()
    assert running.stats()["upstream_connections"] == 0


@pytest.mark.parametrize("name", AMID)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_answer_cut_off_never_looks_whole(
    name: str, version: str, proxy: START, upstream: SERVE
) -> None:
    came = threading.Event()
    script = AMID[name]

    def waits(peer: Peer) -> None:
        send = peer.send

        def send_and_wait(data: bytes) -> None:
            send(data)
            assert came.wait(SECONDS)

        peer.send = send_and_wait  # type: ignore[method-assign]
        script(peer)

    running = proxy(upstream(waits).port)
    with running.client() as client:
        client.send(f"GET / HTTP/{version}\r\nhost: a\r\n\r\n".encode())
        head = client.head()
        client.until(b"half")
        came.set()
        framed = head.get("content-length") or head.get("transfer-encoding")
        if framed:
            rest = client.rest()
            assert not rest.endswith(b"0\r\n\r\n")
        else:  # only a reset tells
            with pytest.raises(ConnectionResetError):
                client.rest()
    running.settles()


def test_a_refused_connection_goes_to_the_other_endpoint(
    proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    served = upstream()
    for seed in range(3):
        ports = (dead(), dead(), served.port)
        running = proxy(*ports, seed=(seed, 0))
        with running.client() as client:
            for _ in range(6):
                client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
                assert client.answer().body == b"body"
        assert running.stats()["own_answers_total"] == [0] * 8


@pytest.mark.parametrize("balance", ["round_robin", "least_request"])
def test_all_endpoints_refusing_is_a_502(
    balance: str, proxy: START, dead: Callable[[], int]
) -> None:
    running = proxy(dead(), dead(), balance=balance)
    with running.client() as client:
        assert client.get().status == 502
        assert client.get().status == 502
    assert running.stats()["upstream_connect_failures_total"] == 4


def test_round_robin_takes_turns_and_least_request_takes_the_idle_one(
    proxy: START, upstream: SERVE
) -> None:
    block = threading.Event()

    def slow(peer: Peer) -> None:
        while True:
            peer.request()
            assert block.wait(SECONDS)
            peer.answer(b"slow")

    def named(name: bytes) -> Callable[[Peer], None]:
        def script(peer: Peer) -> None:
            while True:
                peer.request()
                peer.answer(name)

        return script

    turns = proxy(upstream(named(b"a")).port, upstream(named(b"b")).port)
    with turns.client() as client:
        assert sorted(client.get().body for _ in range(10)) == [b"a"] * 5 + [b"b"] * 5
    stuck = upstream(slow)
    running = proxy(stuck.port, upstream(named(b"fast")).port, balance="least_request")
    waiting = running.client()
    waiting.send(GET)
    stuck.next()
    with running.client() as client:
        assert {client.get().body for _ in range(10)} == {b"fast"}
    block.set()
    assert waiting.answer().body == b"slow"


def test_a_pooled_connection_closed_at_idle_fails_no_request(proxy: START, upstream: SERVE) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.answer(b"%d" % peer.number)
        assert go.wait(SECONDS)

    running = proxy(upstream(script).port)
    with running.client() as client:
        assert client.get().body == b"0"
        assert running.stats()["upstream_idle"] == 1
        go.set()
        running.until(lambda stats: stats["upstream_idle"] == 0)
        assert client.get().body == b"1"


def ends_without_a_word(*, with_reset: bool) -> Callable[[Peer], None]:
    """Answers once, takes another request and ends: as if its end had crossed that request."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.answer(b"")
        peer.request()
        if with_reset:
            peer.reset()

    return script


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_a_request_that_crossed_the_end_of_a_pooled_connection_is_sent_again(
    method: str, with_reset: bool, proxy: START, upstream: SERVE
) -> None:
    served = upstream(ends_without_a_word(with_reset=with_reset))
    running = proxy(served.port)
    with running.client() as client:
        for number in range(4):
            answer = client.get(f"/{number}", method=method)
            assert answer.status == 200
    seen = [served.next().raw for _ in range(4 + 3)]
    assert [head.split()[1] for head in seen] == [b"/0", b"/1", b"/1", b"/2", b"/2", b"/3", b"/3"]
    assert seen[1] == seen[2], "the same request, its id included"
    running.settles()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab",
        b"PATCH / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"LINK / HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_what_may_not_be_repeated_is_not_sent_again(
    request_bytes: bytes, proxy: START, upstream: SERVE
) -> None:
    served = upstream(ends_without_a_word(with_reset=False))
    running = proxy(served.port)
    with running.client() as client:
        assert client.get().status == 200
        client.send(request_bytes)
        assert client.answer().status == 502
    assert served.accepted == 1


def test_a_request_is_sent_again_only_once(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        if peer.number == 0:
            peer.answer()
            peer.request()

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        assert client.get().status == 200
        assert client.get().status == 502
    assert served.accepted == 2


def test_a_request_of_which_an_answer_began_is_not_sent_again(
    proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.answer()
        peer.request()
        peer.send(b"HTTP/1.1 2")

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        assert client.get().status == 200
        assert client.get().status == 502
    assert served.accepted == 1


def test_an_upstream_that_closes_after_every_answer_without_saying_so(
    proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.answer()

    running = proxy(upstream(script).port)
    with running.client() as client:
        assert [client.get().status for _ in range(200)] == [200] * 200


@pytest.fixture
def unanswering() -> Iterator[int]:
    """A port whose queue of new connections is full: a connect there is never answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port: int = listening.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port
        for filler in fillers:
            filler.close()


def test_a_connect_that_is_not_answered_goes_elsewhere_or_is_a_504(
    unanswering: int, proxy: START, upstream: SERVE
) -> None:
    alone = proxy(unanswering, connect_ms=100)
    with alone.client() as client:
        assert client.get().status == 504
    beside = proxy(unanswering, upstream().port, connect_ms=100)
    with beside.client() as client:
        assert [client.get().status for _ in range(2)] == [200, 200]


def test_other_requests_do_not_notice_a_broken_upstream(proxy: START, upstream: SERVE) -> None:
    spec = app(
        upstreams=[("good", [upstream(echo).port]), ("bad", [upstream(BEFORE["garbage"]).port])],
        routes=[route("/", upstream="good"), route("/bad", upstream="bad")],
    )
    running = proxy(spec=spec)
    with running.client() as good, running.client() as bad:
        for _ in range(10):
            bad.send(b"GET /bad HTTP/1.1\r\nhost: a\r\n\r\n")
            good.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
            assert good.answer().body == b"body"
            assert bad.answer().status == 502


def test_a_peer_that_never_reads_does_not_hold_up_the_end(proxy: START, upstream: SERVE) -> None:
    """Closing the engine amid everything is in order; the fixtures look at what is left."""
    running = proxy(upstream(says(OK + b"content-length: 9\r\n\r\nhalf", then="wait")).port)
    for _ in range(5):
        client = running.client()
        client.send(GET * 3)
    last = running.client()
    last.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    last.until(b"half")
