"""A request is sent again where that is safe, or where its route says so, and never otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.support.engine import Proxy
from tests.support.upstream import Peer, Upstream, echo
from tests.support.upstreams import app_of, retries

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def cuts(times: int) -> Callable[[Peer], None]:
    """Takes a request and cuts the connection without an answer, so many times; then answers."""
    turn = itertools.count()

    def script(peer: Peer) -> None:
        while True:
            head, body = peer.request()
            if next(turn) < times:
                peer.reset()
                return
            peer.answer(body or head.line.encode())

    return script


def says(status: str, times: int) -> Callable[[Peer], None]:
    turn = itertools.count()

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            if next(turn) < times:
                peer.answer(b"no", status=status)
            else:
                peer.answer(b"yes")

    return script


def test_without_a_word_a_request_that_may_have_been_executed_is_not_repeated(
    proxy: START, upstream: SERVE
) -> None:
    served = upstream(cuts(1))
    running = proxy(spec=app_of(served.port))
    with running.client() as client:
        assert client.get().status == 502
    assert served.accepted == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_route_may_ask_for_it(method: str, proxy: START, upstream: SERVE) -> None:
    served = upstream(cuts(2))
    running = proxy(spec=app_of(served.port, again=retries("reset", attempts=2)))
    with running.client() as client:
        client.send(f"{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody".encode())
        assert client.answer().body == b"body"
    assert served.accepted == 3
    assert running.stats()["retries_total"] == 2


def test_only_so_often(proxy: START, upstream: SERVE) -> None:
    served = upstream(cuts(9))
    running = proxy(spec=app_of(served.port, again=retries("reset", attempts=2)))
    with running.client() as client:
        assert client.get().status == 502
    assert served.accepted == 3


def test_a_post_only_where_the_route_lists_it(proxy: START, upstream: SERVE) -> None:
    post = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"
    never = proxy(spec=app_of(upstream(cuts(1)).port, again=retries("reset")))
    with never.client() as client:
        client.send(post)
        assert client.answer().status == 502
    listed = proxy(spec=app_of(upstream(cuts(1)).port, again=retries("reset", methods=["POST"])))
    with listed.client() as client:
        client.send(post)
        assert client.answer().body == b"body"


def test_another_endpoint_is_chosen_where_there_is_one(proxy: START, upstream: SERVE) -> None:
    bad, good = upstream(cuts(99)), upstream()
    for seed in range(4):
        spec = app_of(bad.port, good.port, again=retries("reset", attempts=1))
        with proxy(spec=spec, seed=(seed, 0)).client() as client:
            for _ in range(4):
                assert client.get().status == 200


def test_a_status_that_the_route_names_is_tried_again(proxy: START, upstream: SERVE) -> None:
    served = upstream(says("503 Service Unavailable", 1))
    running = proxy(spec=app_of(served.port, again=retries("503")))
    with running.client() as client:
        answer = client.get()
        assert (answer.status, answer.body) == (200, b"yes")
    other = upstream(says("500 Internal Server Error", 1))
    running = proxy(spec=app_of(other.port, again=retries("503")))
    with running.client() as client:
        assert client.get().status == 500


def test_the_last_answer_goes_to_the_client_when_all_tries_are_spent(
    proxy: START, upstream: SERVE
) -> None:
    served = upstream(says("503 Service Unavailable", 9))
    running = proxy(spec=app_of(served.port, again=retries("503", attempts=2)))
    with running.client() as client:
        answer = client.get()
        assert (answer.status, answer.body) == (503, b"no")
    assert served.accepted == 3


def test_a_body_still_coming_is_repeated_as_far_as_it_was_kept(
    proxy: START, upstream: SERVE
) -> None:
    heard: list[bytes] = []
    turn = itertools.count()

    def script(peer: Peer) -> None:
        head = peer.head()
        if next(turn) == 0:
            peer.exactly(4)
            peer.reset()
            return
        heard.append(peer.body(head))
        peer.answer(b"done")

    served = upstream(script)
    running = proxy(spec=app_of(served.port, again=retries("reset")))
    with running.client() as client:
        client.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\n\r\nbody")
        running.until(lambda stats: bool(stats["retries_total"]))
        client.send(b"more")
        assert client.answer().body == b"done"
    assert heard == [b"bodymore"]


def test_a_body_too_large_to_keep_is_not_repeated(proxy: START, upstream: SERVE) -> None:
    size = 100_000
    served = upstream(cuts(1))
    running = proxy(spec=app_of(served.port, again=retries("reset")))
    with running.client() as client:
        client.send(f"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n".encode())
        client.send(b"x" * size)
        assert client.answer().status == 502
    assert served.accepted == 1
    running.settles()


def test_no_attempt_means_none_at_all(
    proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    good = upstream()
    spec = app_of(dead(), good.port, again=retries("connect-failure", "reset", attempts=0))
    with proxy(spec=spec).client() as client:
        assert sorted(client.get().status for _ in range(2)) == [200, 502]


def test_the_budget_keeps_a_failing_upstream_from_a_multiple_of_its_load(
    proxy: START, upstream: SERVE
) -> None:
    served = upstream(says("503 Service Unavailable", 10_000))
    running = proxy(spec=app_of(served.port, again=retries("503", attempts=1, budget=10)))
    with running.client() as client:
        for _ in range(100):
            assert client.get().status == 503
    # A few are always in hand: 10, and one a second; then a tenth of the requests.
    assert 19 <= running.stats()["retries_total"] <= 30
    assert running.stats()["retries_refused_total"] >= 70


def test_an_answer_that_has_begun_is_never_tried_again(proxy: START, upstream: SERVE) -> None:
    def half(peer: Peer) -> None:
        peer.request()
        peer.send(OK[:-1])
        peer.reset()

    served = upstream(half)
    running = proxy(spec=app_of(served.port, again=retries("reset", "502")))
    with running.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        client.head()
        client.rest()
    assert served.accepted == 1


def test_echo_serves_as_before(proxy: START, upstream: SERVE) -> None:
    served = upstream(echo)
    with proxy(spec=app_of(served.port, again=retries("reset", "503"))).client() as client:
        for _ in range(3):
            assert client.get().status == 200
    assert served.accepted == 1
