"""What is wrong with a request is told by the right status, in one form, and can be read.

Each answer of our own: `server: dataplane`, text/plain, one line; and after a head or a body that
cannot be trusted the connection ends in good order, with no reset that would eat the answer.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.client import Answer
from tests.support.engine import Proxy, app, route
from tests.support.upstream import Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

GET = b"GET / HTTP/1.1\r\n"
HOST = b"host: a\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\n"

# What comes, and the status that answers it.
BAD: dict[str, tuple[bytes, int]] = {
    "not a head": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "a space first": (b" GET / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a bare LF": (b"GET / HTTP/1.1\nhost: a\n\n", 400),
    "a bare CR": (b"GET / HTTP/1.1\r\nhost: a\rx: y\r\n\r\n", 400),
    "two empty lines": (b"\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a NUL": (GET + HOST + b"x: a\0b\r\n\r\n", 400),
    "no host": (GET + b"\r\n", 400),
    "two hosts": (GET + HOST + HOST + b"\r\n", 400),
    "a space before the colon": (GET + HOST + b"x : y\r\n\r\n", 400),
    "a folded line": (GET + HOST + b"x: y\r\n z\r\n\r\n", 400),
    "no version": (b"GET /\r\nhost: a\r\n\r\n", 400),
    "a way up beyond the root": (b"GET /a/../../b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "length and coding": (
        POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
    "a list of lengths": (POST + b"content-length: 3, 3\r\n\r\nabc", 400),
    "a signed length": (POST + b"content-length: +3\r\n\r\nabc", 400),
    "a length too long": (POST + b"content-length: 99999999999999999999\r\n\r\n", 400),
    "a coding in HTTP/1.0": (
        b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunked twice": (POST + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk without a size": (POST + b"transfer-encoding: chunked\r\n\r\n\r\nabc\r\n", 400),
    "a chunk longer than said": (POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400),
    "a chunk with a sign": (POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n", 400),
    "an unknown coding": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "a tunnel": (b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n", 501),
    "an unknown expectation": (POST + b"expect: a-miracle\r\ncontent-length: 3\r\n\r\nabc", 417),
    "HTTP/2 at once": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", 505),
    "a target too long": (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
    "a head too large": (GET + HOST + b"x: " + b"a" * 5000 + b"\r\n\r\n", 431),
    "an endless head": (GET + HOST + b"x: " + b"a" * 60_000, 431),
    "too many fields": (GET + HOST + b"x: y\r\n" * 20 + b"\r\n", 431),
    "a body too large": (POST + b"content-length: 1001\r\n\r\n", 413),
    "a body too large and here": (POST + b"content-length: 70000\r\n\r\n" + b"a" * 70_000, 413),
    "chunks too large": (
        POST
        + b"transfer-encoding: chunked\r\n\r\n"
        + b"100\r\n"
        + b"a" * 256
        + b"\r\n100\r\n"
        + b"a" * 256
        + b"\r\n300\r\n"
        + b"a" * 768
        + b"\r\n0\r\n\r\n",
        413,
    ),
}


def check_own(answer: Answer, status: int) -> None:
    assert answer.status == status
    assert answer.get("server") == "dataplane"
    assert (answer.get("content-type") or "").startswith("text/plain")
    assert answer.get("date") is not None
    assert answer.body.endswith(b"\n")
    assert answer.body.count(b"\n") == 1


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_and_the_connection_ends_in_good_order(
    name: str, proxy: START, upstream: SERVE
) -> None:
    given, status = BAD[name]
    running = proxy(upstream().port, header_bytes=4096, headers=10, body_bytes=1000)
    client = running.client()
    client.send(given)
    answer = client.answer()
    check_own(answer, status)
    assert answer.get("connection") == "close"
    assert client.ends()
    client.close()
    with running.client() as other:
        assert other.get().status == 200


@pytest.mark.parametrize("name", ["a bare CR", "two lengths", "a chunk longer than said"])
def test_a_refusal_survives_a_client_that_still_sends(
    name: str, proxy: START, upstream: SERVE
) -> None:
    """A close with unread input is a reset, and a reset may overtake the answer."""
    given, status = BAD[name]
    running = proxy(upstream().port)
    with running.client() as client:
        client.send(given + b"x" * 200_000)
        check_own(client.answer(), status)
        assert client.ends()


def test_each_status_is_counted(proxy: START, dead: Callable[[], int]) -> None:
    running = proxy(spec=app([dead()], routes=[route("/up"), route("/r", respond=(200, "x"))]))
    with running.client() as client:
        check_own(client.get("/nowhere"), 404)
        check_own(client.get("/up"), 502)
        assert client.get("/r").body == b"x"
    with running.client() as client:
        client.send(b"?\r\n\r\n")
        check_own(client.answer(), 400)
    stats = running.stats()
    assert stats["own_answers_total"] == [1, 0, 0, 1, 1, 0, 0, 0]
    assert stats["answers_total"][2:6] == [1, 0, 2, 1]
    assert stats["requests_total"] == 4


def test_a_refused_route_with_a_body_to_come_is_not_taken_for_a_request(
    proxy: START, upstream: SERVE
) -> None:
    """The body of a request that was answered early must never be read as the next request."""
    running = proxy(upstream().port, routes=[route("/there")])
    with running.client() as client:
        inner = b"GET /there HTTP/1.1\r\nhost: a\r\n\r\n"
        client.send(b"POST /no HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\n")
        answer = client.answer()
        check_own(answer, 404)
        assert answer.get("connection") == "close"
        client.send(inner)
        assert client.ends()
    assert running.stats()["requests_total"] == 1


def test_a_refused_route_with_its_body_here_keeps_the_connection(
    proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream().port, routes=[route("/there")])
    with running.client() as client:
        client.send(b"POST /no HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nGET ")
        first = client.answer()
        check_own(first, 404)
        if first.get("connection") != "close":  # byte by byte the body was still to come
            assert client.get("/there").status == 200


def test_beyond_the_connection_limit_503_comes_through_and_the_rest_goes_on(
    proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream().port, connections=2)
    first, second = running.client(), running.client()
    assert first.get().status == second.get().status == 200
    for _ in range(3):
        with running.client() as third:
            third.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" + b"x" * 100_000)
            check_own(third.answer(), 503)
            assert third.ends()
    assert running.stats()["refused_total"] == 3
    assert running.stats()["connections"] == 2
    assert first.get().status == 200
    first.close()
    running.until(lambda stats: stats["connections"] == 1)
    with running.client() as fourth:
        assert fourth.get().status == 200
    second.close()


def test_a_head_method_gets_no_body_from_us(proxy: START, dead: Callable[[], int]) -> None:
    running = proxy(spec=app([dead()]))
    with running.client() as client:
        for _ in range(2):
            answer = client.get(method="HEAD")
            assert answer.status == 502
            assert int(answer.get("content-length") or 0) > 0


def test_one_empty_line_before_a_request_is_passed_over_however_it_is_split(
    proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream().port)
    request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    with running.client() as client:
        for pieces in ([b"\r\n" + request], [b"\r", b"\n" + request], [b"\r\n", request]):
            before = running.stats()["received_bytes_total"]
            for piece in pieces:
                client.send(piece)
                before += len(piece)
                running.has_read(before)
            assert client.answer().status == 200
        client.send(b"\r\n\r\n")
        assert client.answer().status == 400
        assert client.ends()


def test_a_client_that_says_nothing_or_half_a_head_and_leaves_is_forgotten(
    proxy: START, upstream: SERVE
) -> None:
    running = proxy(upstream().port)
    for sent in (b"", b"GET / HT", b"\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n"):
        client = running.client()
        client.send(sent)
        client.finish()
        assert client.ends()
        client.close()
        client = running.client()
        client.send(sent)
        client.reset()
    running.settles()
    assert running.stats()["requests_total"] == 0


def test_only_data_counts_against_the_limit_of_a_body(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream().port, body_bytes=1000)
    with running.client() as client:
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1000)
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 200
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1001)
        client.send(b"0\r\n\r\n")
        check_own(client.answer(), 413)
