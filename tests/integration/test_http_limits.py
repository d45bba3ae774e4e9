"""Who may come, how many at once and how often: once for the app, over workers and generations."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from dataplane.control.shared import SHARED_BYTES, SharedPage
from dataplane.engine.engine import NOTE_MOVABLE
from dataplane.model.spec import AccessSpec, AppSpec, RateSpec, RouteSpec
from tests.support.client import Client
from tests.support.engine import Proxy, app, route
from tests.support.hand_over import drain, move_all
from tests.support.upstream import Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
def page() -> Iterator[SharedPage]:
    shared = SharedPage("test", b"0123456789abcdef")
    yield shared
    shared.close()


def mapped(page: SharedPage) -> mmap.mmap:
    return mmap.mmap(page.fd, SHARED_BYTES)


def limited(
    *ports: int,
    routes: Sequence[RouteSpec] | None = None,
    access: AccessSpec | None = None,
    rate: RateSpec | None = None,
    **limits: int,
) -> AppSpec:
    spec = app(ports or (1,), routes=routes or [route(respond=(200, "here"))])
    return dataclasses.replace(
        spec, access=access, rate=rate, limits=dataclasses.replace(spec.limits, **limits)
    )


def access(*, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> AccessSpec:
    return AccessSpec(allow=tuple(allow), deny=tuple(deny))


def rate(requests: int, burst: int, header: str | None = None) -> RateSpec:
    return RateSpec(requests=requests, burst=burst, header=header)


# --- access ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "admitted"),
    [
        (access(), {"127.0.0.1", "127.0.0.2"}),
        (access(deny=["127.0.0.2/32"]), {"127.0.0.1"}),
        (access(allow=["127.0.0.2/32"]), {"127.0.0.2"}),
        (access(allow=["127.0.0.0/8"], deny=["127.0.0.1/32"]), {"127.0.0.2"}),
        (access(allow=["::/0"]), set()),
        (access(allow=["0.0.0.0/0", "::/0"]), {"127.0.0.1", "127.0.0.2"}),
        (access(deny=["::/0"]), {"127.0.0.1", "127.0.0.2"}),
    ],
)
def test_a_source_that_may_not_come_hears_so_before_it_says_a_word(
    rules: AccessSpec, admitted: set[str], proxy: START
) -> None:
    running = proxy(spec=limited(access=rules))
    for source in ("127.0.0.1", "127.0.0.2"):
        with running.client(source=source) as client:
            if source in admitted:
                assert client.get().status == 200
                continue
            answer = client.answer()
            assert answer.status == 403
            assert answer.get("server") == "dataplane"
            assert answer.get("content-type") == "text/plain"
            assert answer.body.endswith(b"\n")
            assert client.ends()
    assert running.stats()["denied_total"] == 2 - len(admitted)


def test_a_tcp_connection_that_may_not_come_is_closed_and_reaches_nobody(
    proxy: START, upstream: SERVE
) -> None:
    came = threading.Event()

    def script(peer: Peer) -> None:
        came.set()
        peer.send(peer.exactly(1))

    running = proxy(spec=limited(upstream(script).port, access=access(deny=["127.0.0.2/32"])))
    with running.client("raw", source="127.0.0.2") as client:
        assert client.ends()
    assert not came.is_set()
    with running.client("raw", source="127.0.0.1") as client:
        client.send(b"a")
        assert client.exactly(1) == b"a"


def test_a_route_has_rules_of_its_own(proxy: START) -> None:
    admin = route("/admin/", respond=(200, "admin"))
    routes = [
        dataclasses.replace(admin, access=access(allow=["127.0.0.2/32"])),
        route("/", respond=(200, "here")),
    ]
    running = proxy(spec=limited(routes=routes))
    with running.client() as client:
        assert client.get("/").status == 200
        assert client.get("/admin/").status == 403
        assert client.get("/").status == 200  # the connection goes on
    with running.client(source="127.0.0.2") as client:
        assert client.get("/admin/").status == 200


def test_thousands_of_rules_are_as_the_few_that_hold(proxy: START) -> None:
    many = [f"10.{i // 250}.{i % 250}.0/24" for i in range(10_000) if i // 250 != 127]
    running = proxy(spec=limited(access=access(allow=[*many, "127.0.0.2/31"], deny=many[::2])))
    with running.client(source="127.0.0.3") as client:
        assert client.get().status == 200
    with running.client(source="127.0.0.4") as client:
        assert client.answer().status == 403


# --- rates -----------------------------------------------------------------------------------


def test_beyond_its_rate_a_source_gets_429_and_the_time_and_others_go_on(proxy: START) -> None:
    running = proxy(spec=limited(rate=rate(1, 3)))
    with running.client() as client, running.client(source="127.0.0.2") as other:
        for _ in range(3):
            assert client.get().status == 200
        refused = client.get()
        assert refused.status == 429
        assert refused.get("retry-after") == "1"
        assert refused.get("connection") is None
        with running.client() as again:  # it is the source's, not the connection's
            assert again.get().status == 429
        assert other.get().status == 200
    assert running.stats()["limited_total"] == 2


def test_a_rate_by_header_counts_each_value_and_without_it_the_source(proxy: START) -> None:
    running = proxy(spec=limited(rate=rate(1, 2, "x-api-key")))
    with running.client() as client:
        for key in ("one", "other"):
            seen = [client.get(fields=f"X-API-Key: {key}\r\n").status for _ in range(3)]
            assert seen == [200, 200, 429]
        assert [client.get().status for _ in range(3)] == [200, 200, 429]
        assert client.get(fields="x-api-key: one\r\n").status == 429


def test_a_route_and_the_app_count_apart(proxy: START) -> None:
    login = dataclasses.replace(route("/login", respond=(200, "in")), rate=rate(1, 1))
    running = proxy(
        spec=limited(routes=[login, route("/", respond=(200, "here"))], rate=rate(1, 4))
    )
    with running.client() as client:
        assert client.get("/login").status == 200
        assert client.get("/login").status == 429
        assert client.get("/").status == 200
        assert client.get("/").status == 200
        assert client.get("/").status == 429


def test_a_rate_counts_once_over_workers_and_generations(proxy: START, page: SharedPage) -> None:
    login = dataclasses.replace(route("/login", respond=(200, "in")), rate=rate(1, 2))
    first = limited(routes=[login, route("/", respond=(200, "here"))], rate=rate(1, 6))
    # The next image has other routes before it.
    second = limited(routes=[route("/new", respond=(200, "new")), *first.routes], rate=rate(1, 6))
    blue, green = proxy(spec=first, shared=mapped(page)), proxy(spec=second, shared=mapped(page))
    with blue.client() as one, green.client() as other:
        assert one.get("/login").status == other.get("/login").status == 200
        assert one.get("/login").status == other.get("/login").status == 429
        assert one.get().status == other.get().status == 200
        assert one.get().status == other.get().status == 429


# --- connections -----------------------------------------------------------------------------


def test_the_connection_limit_counts_once_over_workers(proxy: START, page: SharedPage) -> None:
    one, other = (proxy(spec=limited(connections=2), shared=mapped(page)) for _ in range(2))
    with one.client() as first, other.client() as second:
        assert first.get().status == second.get().status == 200
        for running in (one, other):
            with running.client() as third:
                assert third.answer().status == 503
                assert third.ends()
            with running.client("raw") as tunnel:
                assert tunnel.ends()
            assert running.stats()["refused_total"] == 2
        first.close()
        one.until(lambda stats: stats["connections"] == 0)
        with other.client() as third:
            assert third.get().status == 200


def test_what_a_dead_worker_held_is_given_back(proxy: START, page: SharedPage) -> None:
    spec = limited(connections=2, connections_per_source=1)
    dead = proxy(spec=spec, shared=mapped(page))
    with dead.client() as first, dead.client(source="127.0.0.2") as second:
        assert first.get().status == second.get().status == 200
        page.mark_dead(os.getpid())  # as the supervisor does
        living = proxy(spec=spec, shared=mapped(page))
        with living.client() as third, living.client(source="127.0.0.2") as fourth:
            assert third.get().status == fourth.get().status == 200


def test_a_source_has_so_many_connections_over_all_workers(proxy: START, page: SharedPage) -> None:
    spec = limited(connections_per_source=2)
    one, other = (proxy(spec=spec, shared=mapped(page)) for _ in range(2))
    with one.client() as first, other.client() as second:
        assert first.get().status == second.get().status == 200
        with one.client() as third:
            assert third.answer().status == 503
            assert third.ends()
        with one.client("raw") as tunnel:
            assert tunnel.ends()
        with one.client(source="127.0.0.2") as elsewhere:
            assert elsewhere.get().status == 200
        assert one.stats()["refused_total"] == 2
        second.close()
        other.until(lambda stats: stats["connections"] == 0)
        with one.client() as third:
            assert third.get().status == 200


def test_so_many_requests_are_answered_at_once(proxy: START, upstream: SERVE) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            go.wait(10)
            peer.answer()

    running = proxy(spec=limited(upstream(script).port, routes=[route()], requests=1))
    with running.client() as first, running.client() as second:
        first.send(REQUEST)
        running.until(lambda stats: stats["requests_active"] == 1)
        refused = second.get()
        assert refused.status == 503
        assert refused.get("retry-after") == "1"
        go.set()
        assert first.answer().status == 200
        assert second.get().status == 200
        with contextlib.suppress(ConnectionError):
            second.send(REQUEST[:-2])
        second.close()
        running.until(lambda stats: stats["connections"] == 1)
        assert first.get().status == 200


# --- moving ----------------------------------------------------------------------------------


def moved(blue: Proxy, green: Proxy) -> int:
    drain(blue)
    blue.notes_one_of(NOTE_MOVABLE)
    return move_all(blue, green)


def test_a_moved_connection_is_counted_once_and_never_refused(
    proxy: START, page: SharedPage
) -> None:
    spec = limited(connections=1, connections_per_source=1)
    blue, green = (proxy(spec=spec, shared=mapped(page)) for _ in range(2))
    with blue.client() as client:
        assert client.get().status == 200
        assert moved(blue, green) == 1
        assert client.get().status == 200
        with green.client() as more:
            assert more.answer().status == 503
    green.until(lambda stats: stats["connections"] == 0)
    with green.client() as next_one:
        assert next_one.get().status == 200


def test_a_moved_connection_is_held_against_the_new_rules(proxy: START) -> None:
    blue = proxy(spec=limited())
    green = proxy(spec=limited(access=access(deny=["127.0.0.2/32"])))
    with blue.client() as kept, blue.client(source="127.0.0.2") as unwanted:
        assert kept.get().status == unwanted.get().status == 200
        assert moved(blue, green) == 1
        assert unwanted.ends()
        assert kept.get().status == 200
    assert green.stats()["denied_total"] == 1
    assert blue.call(blue.engine.tally).closed == 1


def test_limits_are_off_where_nothing_is_said(proxy: START) -> None:
    running = proxy(spec=limited())
    clients: list[Client] = [running.client() for _ in range(40)]
    assert {client.get().status for client in clients for _ in range(5)} == {200}
    stats: dict[str, Any] = running.stats()
    assert stats["limited_total"] == stats["denied_total"] == stats["refused_total"] == 0


def test_what_nobody_counts_takes_no_memory(proxy: START, page: SharedPage) -> None:
    """However many workers come and go; a row for each source and worker would be megabytes."""
    for _ in range(3):
        running = proxy(spec=limited(connections=5), shared=mapped(page))
        with running.client() as client:
            assert client.get().status == 200
        running.settles()
        running.close()
    assert os.fstat(page.fd).st_blocks * 512 < 100_000
