"""Requests and answers on a connection: pipelined, kept alive, half-closed, early, cut off."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from tests.support.engine import Proxy, app, route
from tests.support.upstream import SECONDS, Ended, Peer, Upstream, echo

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

THREE = (
    b"POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nfirst"
    b"POST /2 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n6\r\nsecond\r\n0\r\n\r\n"
    b"GET /3 HTTP/1.1\r\nhost: a\r\n\r\n"
)


def test_three_requests_in_one_segment_are_answered_in_order(proxy: START, upstream: SERVE) -> None:
    served = upstream()
    running = proxy(served.port)
    with running.client() as client:
        client.send(THREE * 3)
        bodies = [client.answer().body for _ in range(9)]
        assert bodies == [b"first", b"second", b""] * 3
        assert [served.next().line.split()[1] for _ in range(3)] == ["/1", "/2", "/3"]
    assert served.accepted == 1


def test_three_requests_split_anywhere_are_answered_in_order(proxy: START, upstream: SERVE) -> None:
    served = upstream()
    running = proxy(served.port)
    with running.client() as client:
        received = 0
        for at in range(1, len(THREE)):
            client.send(THREE[:at])
            received += at
            running.has_read(received)
            client.send(THREE[at:])
            received += len(THREE) - at
            bodies = [client.answer().body for _ in range(3)]
            assert bodies == [b"first", b"second", b""], f"split at {at}"
    assert served.accepted == 1


def test_own_answers_and_proxied_ones_keep_their_order(proxy: START, upstream: SERVE) -> None:
    spec = app([upstream().port], routes=[route("/up"), route("/own", respond=(200, "mine"))])
    running = proxy(spec=spec)
    one = b"POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nup"
    two = b"POST /own HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nGET"
    with running.client() as client:
        client.send(one + b"GET /own HTTP/1.1\r\nhost: a\r\n\r\n" + one)
        assert [client.answer().body for _ in range(3)] == [b"up", b"mine", b"up"]
        client.send(two)
        assert client.answer().body == b"mine"


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "connection: close\r\n", False),
        ("1.1", "connection: Close, x\r\n", False),
        ("1.0", "", False),
        ("1.0", "connection: keep-alive\r\n", True),
        ("1.0", "connection: keep-alive, close\r\n", False),
    ],
)
def test_a_connection_is_kept_exactly_when_its_client_asks_for_it(
    version: str, connection: str, stays: bool, proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream().port)
    with running.client() as client:
        client.send(f"GET / HTTP/{version}\r\nhost: a\r\n{connection}\r\n".encode())
        answer = client.answer()
        if stays:
            told = "keep-alive" if version == "1.0" else None
            assert answer.get("connection") == told
            assert client.get().status == 200
        else:
            assert answer.get("connection") == "close"
            assert client.ends()


def test_an_upstream_that_closes_does_not_close_the_client(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.answer(fields="connection: close\r\nkeep-alive: timeout=5\r\n")

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        for _ in range(3):
            answer = client.get()
            assert answer.get("connection") is None
            assert answer.get("keep-alive") is None
    assert served.accepted == 3


def test_a_half_closed_client_gets_its_answer(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream().port)
    with running.client() as client:
        client.send(THREE)
        client.finish()
        assert [client.answer().body for _ in range(3)] == [b"first", b"second", b""]
        assert client.ends()


def test_100_continue_is_the_upstreams_word(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        head = peer.head()
        assert head.get("expect") == "100-continue"
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = peer.body(head)
        peer.answer(body)

    running = proxy(upstream(script).port)
    with running.client() as client:
        client.send(
            b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        )
        assert client.interim().line == "HTTP/1.1 100 Continue"
        client.send(b"body")
        assert client.answer().body == b"body"


def test_100_that_nobody_asked_for_is_not_passed_on(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.answer()

    running = proxy(upstream(script).port)
    with running.client() as client:
        assert client.get().body == b"ok"


def test_early_hints_pass_and_the_answer_follows(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.request()
            for _ in range(3):
                peer.send(
                    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nconnection: x\r\nx: y\r\n\r\n"
                )
            peer.answer(b"late")

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        for _ in range(2):
            client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            for _ in range(3):
                hint = client.interim()
                assert hint.get("link") == "</a>"
                assert hint.get("x") is None
            assert client.answer().body == b"late"
    with running.client() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.answer().status == 200
    assert served.accepted == 1


def test_an_early_answer_comes_through_while_the_body_is_still_sent(
    proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.answer(b"no", status="403 Forbidden")
        peer.rest()

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.body) == (403, b"no")
        assert answer.get("connection") == "close"
        client.send(b"x" * 100_000)
        assert client.ends()
    running.settles()


def test_an_early_answer_of_an_upstream_that_resets_comes_through(
    proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.answer(b"no", status="413 Content Too Large")

    running = proxy(upstream(script).port)
    for _ in range(20):
        with running.client() as client:
            head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"
            client.send(head + b"x" * 50_000)
            assert client.answer().status == 413
    running.settles()


@pytest.mark.parametrize("framing", ["content-length: 10", "transfer-encoding: chunked"])
@pytest.mark.parametrize("how", ["finish", "close", "reset"])
def test_a_client_that_leaves_amid_its_request_leaves_it_unfinished(
    framing: str, how: str, proxy: START, upstream: SERVE
) -> None:
    """Never may an upstream take the half of a request for the whole."""
    came: queue.Queue[bytes] = queue.Queue()
    began = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        try:
            peer.until(b"abc")
            began.set()
            came.put(b"more: " + peer.exactly(1))
        except (Ended, ConnectionError) as error:
            came.put(error.got if isinstance(error, Ended) else b"")

    running = proxy(upstream(script).port)
    client = running.client()
    client.send(f"POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n".encode())
    client.send(b"abc" if "length" in framing else b"a\r\nabc")
    assert began.wait(SECONDS)
    getattr(client, how)()
    assert came.get(timeout=SECONDS) == b""
    running.settles()
    assert running.stats()["upstream_connections"] == 0


def test_a_client_that_resets_while_it_waits_frees_the_upstream(
    proxy: START, upstream: SERVE
) -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        assert peer.rest() == b""
        gone.set()

    served = upstream(script)
    running = proxy(served.port)
    client = running.client()
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    served.next()
    client.reset()
    assert gone.wait(SECONDS)
    running.settles()


def test_an_answer_that_ends_by_close_does_not_lose_its_tail_to_a_pipelined_request(
    proxy: START, upstream: SERVE
) -> None:
    """The client cannot know that no other request is read: that must not make a reset."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 50_000)

    running = proxy(upstream(script).port)
    for _ in range(5):
        with running.client() as client:
            client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            running.until(lambda stats: stats["answers_total"][2] > 0)
            client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert len(client.answer().body) == 50_000


def test_many_connections_at_once_share_a_few_upstream_ones(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(echo).port, keepalive=4)
    failures: list[BaseException] = []

    def play(number: int) -> None:
        try:
            with running.client() as client:
                for turn in range(20):
                    body = b"%d.%d" % (number, turn) * (turn + 1)
                    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
                    client.send(head + body)
                    assert client.answer().body == body
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=play, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    running.settles()
    assert running.stats()["upstream_idle"] <= 4


@pytest.mark.parametrize(
    ("method", "framing", "kept"),
    [
        ("GET", b"content-length: 5\r\n\r\nhello", False),
        ("GET", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", False),
        ("OPTIONS", b"content-length: 5\r\n\r\nhello", False),
        ("GET", b"\r\n", True),
        ("DELETE", b"content-length: 5\r\n\r\nhello", True),
        ("POST", b"content-length: 5\r\n\r\nhello", True),
    ],
)
def test_a_body_where_many_read_none_is_the_last_on_its_upstream_connection(
    method: str, framing: bytes, kept: bool, proxy: START, upstream: SERVE
) -> None:
    """One that does not read it would take it for the next request, which may be another's."""
    served = upstream()
    with proxy(served.port).client() as client:
        for _ in range(3):
            client.send(method.encode() + b" / HTTP/1.1\r\nhost: a\r\n" + framing)
            assert client.answer().status == 200
    assert served.accepted == (1 if kept else 3)


def test_an_upstream_that_answered_before_it_had_the_request_is_not_asked_again(
    proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        head = peer.head()
        peer.answer(b"early" if "POST" in head.line else b"in time")
        peer.rest()

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n")
        head = client.head()
        assert head.get("connection") == "close"
        client.send(b"hello")
        assert client.exactly(5) == b"early"
        assert client.ends()
    with running.client() as client:
        assert client.get().body == b"in time"
    assert served.accepted == 2
