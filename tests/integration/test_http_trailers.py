"""Trailer fields: they go on where the next one can take them, and never become anything else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.engine import Proxy, app, edits, route
from tests.support.upstream import Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

SENT = (
    b"x-checksum: 1a2b\r\nhost: b\r\nContent-Length: 5\r\ntransfer_encoding: chunked\r\n"
    b"authorization: c\r\nX-Forwarded-For: d\r\ncookie: e\r\nServer-Timing: total;dur=1\r\n"
)
PASSED = [b"x-checksum: 1a2b", b"Server-Timing: total;dur=1"]
CHUNKED = b"5\r\nhello\r\n0\r\n" + SENT + b"\r\n"


def answering(seen: list[list[bytes]]) -> Callable[[Peer], None]:
    """Answers with trailers of its own; keeps those of each request."""

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            seen.append(list(peer.trailers))
            peer.send(
                b"HTTP/1.1 200 OK\r\ntrailer: x-checksum\r\ntransfer-encoding: chunked\r\n\r\n"
                + CHUNKED
            )

    return script


def post(*fields: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    lines = [b"POST / " + version, b"host: a", *fields, b"transfer-encoding: chunked", b"", b""]
    return b"\r\n".join(lines) + CHUNKED


def test_of_a_requests_trailers_those_go_on_that_mean_nothing_to_a_proxy(
    proxy: START, upstream: SERVE
) -> None:
    seen: list[list[bytes]] = []
    served = upstream(answering(seen))
    with proxy(served.port).client() as client:
        for _ in range(2):
            client.send(post(b"trailer: x-checksum"))
            assert client.answer().body == b"hello"
            assert seen.pop() == PASSED
            assert served.next().get("trailer") == "x-checksum"
    assert served.accepted == 1


def test_a_client_gets_trailers_only_if_it_said_that_it_takes_them(
    proxy: START, upstream: SERVE
) -> None:
    served = upstream(answering([]))
    with proxy(served.port).client() as client:
        for te, wanted in ((b"te: trailers", PASSED), (b"te: deflate", []), (b"x: y", PASSED[:0])):
            client.send(post(te, b"connection: te"))
            answer = client.answer()
            assert answer.body == b"hello"
            assert client.trailers == wanted
            assert answer.get("trailer") == ("x-checksum" if wanted else None)
            head = served.next()
            assert head.get("te") == ("trailers" if wanted else None)
            assert head.get("connection") == ("te" if wanted else None)
    assert served.accepted == 1


def test_http_1_0_gets_the_bare_data(proxy: START, upstream: SERVE) -> None:
    served = upstream(answering([]))
    with proxy(served.port).client() as client:
        client.send(b"GET / HTTP/1.0\r\nte: trailers\r\n\r\n")
        answer = client.answer()
        assert (answer.body, answer.get("trailer")) == (b"hello", None)
        assert served.next().get("te") is None


def test_a_trailer_does_not_get_past_the_edits_of_its_route(proxy: START, upstream: SERVE) -> None:
    seen: list[list[bytes]] = []
    served = upstream(answering(seen))
    edited = route(request=edits(remove=["x-checksum"]), response=edits([("x-checksum", "none")]))
    running = proxy(spec=app([served.port], routes=[edited]))
    with running.client() as client:
        client.send(post(b"te: trailers"))
        answer = client.answer()
        assert answer.get("x-checksum") == "none"
        assert client.trailers == []
        assert seen == [[]]


@pytest.mark.parametrize(
    "bad",
    [
        b"x y: z\r\n\r\n",
        b"x: y\r\n z\r\n\r\n",
        b"x\r\n\r\n",
        b": x\r\n\r\n",
        b"x: \0\r\n\r\n",
        b"x: y\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_a_malformed_trailer_never_completes_a_message(
    bad: bytes, proxy: START, upstream: SERVE
) -> None:
    """The client's: 400 and the end. The upstream's: an answer that is cut off."""
    running = proxy(upstream().port)
    with running.client() as client:
        client.send(post()[: -len(SENT) - 2] + bad)
        assert client.answer().status == 400
        assert client.ends()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        peer.send(b"0\r\n" + bad)
        peer.rest()

    running = proxy(upstream(script).port)
    with running.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: close\r\n\r\n")
        assert not client.rest().endswith(b"0\r\n\r\n")


def test_trailers_without_end_are_refused(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream().port)
    with running.client() as client:
        client.send(post()[: -len(SENT) - 2] + b"x: " + b"y" * 9000)
        assert client.answer().status == 413
        assert client.ends()


def test_a_trailer_that_comes_in_pieces_is_waited_for_without_spinning(
    proxy: START, upstream: SERVE
) -> None:
    seen: list[list[bytes]] = []
    running = proxy(upstream(answering(seen)).port)
    with running.client() as client:
        request = post()
        client.send(request[:-20])
        running.has_read(len(request) - 20)
        before = running.stats()["turns"]
        for _ in range(10):
            running.turn()
        assert running.stats()["turns"] - before < 40
        client.send(request[-20:] + request)
        assert [client.answer().body, client.answer().body] == [b"hello", b"hello"]
    assert seen == [PASSED, PASSED]
