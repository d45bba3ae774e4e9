"""Endpoints that fail are left out, by their failures or by checks, and come back."""

from __future__ import annotations

import itertools
import mmap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dataplane.control.shared import SHARED_BYTES, SharedPage
from dataplane.engine.engine import NOTE_EVENTS
from tests.support.client import Client
from tests.support.engine import Proxy
from tests.support.upstream import SECONDS, Peer, Upstream, dawdle, echo
from tests.support.upstreams import app_of, ejection, health

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]


class Moody:
    """An upstream that answers what it is told to; `probes` are the checks that came."""

    def __init__(self, name: str, status: str = "200 OK") -> None:
        self.name = name
        self.status = status
        self.probes = 0
        self.requests = 0
        self.times: list[float] = []  # of the requests

    def __call__(self, peer: Peer) -> None:
        while True:
            head, _ = peer.request()
            if head.get("user-agent") == "dataplane":
                self.probes += 1
            else:
                self.times.append(time.monotonic())
                self.requests += 1
            if self.status == "cut":
                peer.reset()
                return
            peer.answer(self.name.encode(), status=self.status)


@pytest.fixture
def page() -> Iterator[SharedPage]:
    shared = SharedPage("test", b"0123456789abcdef")
    yield shared
    shared.close()


def mapped(page: SharedPage) -> mmap.mmap:
    return mmap.mmap(page.fd, SHARED_BYTES)


def asked(client: Client, *, until: Callable[[bytes], bool]) -> None:
    """Asks again and again until an answer's body, or something else, is as it is to be."""
    give_up = time.monotonic() + SECONDS
    while not until(client.get().body):
        assert time.monotonic() < give_up
        dawdle(0.005)


def heard(running: Proxy, kind: str) -> tuple[str, str]:
    """Waits for an event of that kind: its upstream and endpoint."""
    found: list[tuple[str, str]] = []

    def look(_: object) -> bool:
        if running.notes & NOTE_EVENTS:
            found.extend(
                (event.upstream, event.endpoint)
                for event in running.engine.events()
                if event.kind == kind
            )
        return bool(found)

    running.until(look)
    return found[0]


# --- passive ---------------------------------------------------------------------------------


def test_one_that_fails_in_a_row_is_left_out_and_comes_back(proxy: START, upstream: SERVE) -> None:
    bad, good = Moody("b", "cut"), Moody("g")
    served = upstream(bad), upstream(good)
    spec = app_of(*(one.port for one in served), ejection=ejection(3, 1500))
    running = proxy(spec=spec)
    with running.client() as client:
        statuses = Counter(client.get().status for _ in range(6))
        assert statuses == {502: 3, 200: 3}
        assert heard(running, "ejected") == ("api", f"127.0.0.1:{served[0].port}")
        assert {client.get().body for _ in range(10)} == {b"g"}
        bad.status = "200 OK"
        asked(client, until=lambda body: body == b"b")
        assert {client.get().body for _ in range(4)} == {b"b", b"g"}
    assert running.stats()["ejections_total"] == 1


def test_one_that_goes_on_failing_is_out_for_twice_as_long(proxy: START, upstream: SERVE) -> None:
    bad = Moody("b", "cut")
    spec = app_of(upstream(bad).port, upstream().port, ejection=ejection(2, 200))
    running = proxy(spec=spec)
    with running.client() as client:
        asked(client, until=lambda _: bad.requests == 4)
    # Out after the second; from then on one more is enough, and it is out for longer.
    _, second, third, fourth = bad.times
    assert third - second >= 0.19
    assert fourth - third >= 0.39


def test_refused_connections_count_and_the_client_sees_none_of_it(
    proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    spec = app_of(dead(), upstream().port, ejection=ejection(3, 60_000))
    running = proxy(spec=spec)
    with running.client() as client:
        assert {client.get().status for _ in range(20)} == {200}
    stats = running.stats()
    assert (stats["ejections_total"], stats["upstream_connect_failures_total"]) == (1, 3)


def test_tunnels_teach_too(proxy: START, upstream: SERVE, dead: Callable[[], int]) -> None:
    served = upstream(lambda peer: peer.send(b"x"))
    running = proxy(spec=app_of(dead(), served.port, ejection=ejection(3, 60_000)))
    for _ in range(12):
        with running.client("raw") as client:
            assert client.exactly(1) == b"x"
    stats = running.stats()
    assert (stats["ejections_total"], stats["upstream_connect_failures_total"]) == (1, 3)


def test_failures_that_are_not_in_a_row_leave_an_endpoint_in(proxy: START, upstream: SERVE) -> None:
    turn = itertools.count()

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            if next(turn) // 2 % 2:  # both in turns: well, well, cut, cut
                peer.reset()
                return
            peer.answer()

    running = proxy(spec=app_of(upstream(script).port, upstream(script).port,
                                ejection=ejection(2, 60_000)))  # fmt: skip
    with running.client() as client:
        statuses = Counter(client.get().status for _ in range(20))
    assert statuses[502] >= 5
    assert running.stats()["ejections_total"] == 0


def test_half_of_them_stay_whatever_they_do(proxy: START, dead: Callable[[], int]) -> None:
    running = proxy(spec=app_of(dead(), dead(), dead(), dead(), ejection=ejection(1, 60_000)))
    with running.client() as client:
        assert {client.get().status for _ in range(5)} == {502}
    assert running.stats()["ejections_total"] == 2
    alone = proxy(spec=app_of(dead(), ejection=ejection(1, 60_000)))
    with alone.client() as client:
        assert {client.get().status for _ in range(3)} == {502}  # it is always tried
    assert alone.stats()["ejections_total"] == 0


@pytest.mark.parametrize("counts", [True, False])
def test_answers_of_500_are_failures_where_it_says_so(
    counts: bool, proxy: START, upstream: SERVE
) -> None:
    bad = Moody("b", "500 Internal Server Error")
    rule = ejection(3, 60_000, server_errors=counts)
    running = proxy(spec=app_of(upstream(bad).port, upstream().port, ejection=rule))
    with running.client() as client:
        for _ in range(20):
            client.get()
    assert (bad.requests == 3) is counts


def test_one_that_is_back_begins_with_a_small_share(proxy: START, upstream: SERVE) -> None:
    bad, good = Moody("b", "cut"), Moody("g")
    ports = upstream(bad).port, upstream(good).port
    running = proxy(spec=app_of(*ports, ejection=ejection(1, 50), slow_start_ms=60_000))
    with running.client() as client:
        while client.get().status != 502:
            pass
        bad.status = "200 OK"
        dawdle(0.1)
        found = Counter(client.get().body for _ in range(55))
    assert 2 <= found[b"b"] <= 8  # a tenth of the other's


# --- active ----------------------------------------------------------------------------------


def test_an_endpoint_whose_check_fails_gets_no_requests(proxy: START, upstream: SERVE) -> None:
    sick, well = Moody("s", "503 Service Unavailable"), Moody("w")
    served = upstream(sick), upstream(well)
    running = proxy(spec=app_of(*(one.port for one in served), health=health()))
    assert heard(running, "down") == ("api", f"127.0.0.1:{served[0].port}")
    with running.client() as client:
        assert {client.get().body for _ in range(8)} == {b"w"}
        assert sick.requests == 0
        sick.status = "204 No Content"
        while heard(running, "up")[1] != f"127.0.0.1:{served[0].port}":
            pass
        sick.status = "200 OK"
        assert {client.get().body for _ in range(8)} == {b"s", b"w"}
    assert running.stats()["probe_failures_total"] >= 2


def test_none_is_well_and_the_answer_is_503(proxy: START, upstream: SERVE) -> None:
    sick = Moody("s", "500 Internal Server Error")
    running = proxy(spec=app_of(upstream(sick).port, health=health(fall=1)))
    heard(running, "down")
    with running.client() as client:
        answer = client.get()
        assert (answer.status, answer.body) == (503, b"no endpoint of the upstream is well\n")
    assert running.call(running.engine.upstreams_down) == ("api",)
    assert sick.requests == 0


def test_what_a_check_expects_can_be_set(proxy: START, upstream: SERVE) -> None:
    teapot = Moody("t", "418 Teapot")
    check = health(status_min=418, status_max=418, fall=1)
    running = proxy(spec=app_of(upstream(teapot).port, health=check))
    heard(running, "up")
    teapot.status = "200 OK"
    heard(running, "down")


@pytest.mark.parametrize("how", ["refused", "silent", "garbage", "closes"])
def test_whatever_is_no_good_answer_fails_a_check(
    how: str, proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    def garbage(peer: Peer) -> None:
        peer.request()
        peer.send(b"?\r\n\r\n")
        peer.rest()

    scripts: dict[str, Callable[[Peer], None]] = {
        "silent": lambda peer: dawdle(1),
        "garbage": garbage,
        "closes": lambda peer: peer.close(),
    }
    port = dead() if how == "refused" else upstream(scripts[how]).port
    heard(proxy(spec=app_of(port, health=health())), "down")


def test_connecting_can_be_all_that_is_checked(
    proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    good, bad = upstream(echo), dead()
    running = proxy(spec=app_of(good.port, bad, health=health(None)))
    up, down = heard(running, "up"), None
    assert up == ("api", f"127.0.0.1:{good.port}")
    while down is None:
        down = heard(running, "down")
    assert down == ("api", f"127.0.0.1:{bad}")
    assert running.call(running.engine.checks_open) == 0


# --- shared ----------------------------------------------------------------------------------


def test_workers_probe_once_between_them_and_all_know(
    proxy: START, upstream: SERVE, page: SharedPage
) -> None:
    sick = Moody("s", "500 Internal Server Error")
    spec = app_of(upstream(sick).port, upstream().port, health=health(interval_ms=200))
    running = [proxy(spec=spec, shared=mapped(page), seed=(seed, 9)) for seed in range(3)]
    for one in running:
        one.until(lambda stats: bool(stats["turns"]))
    began = time.monotonic()
    while sick.probes < 6 and time.monotonic() - began < SECONDS:
        dawdle(0.02)
    # One each 200 ms, give or take the jitter, and not one from each of the three.
    assert 6 <= sick.probes <= (time.monotonic() - began) / 0.15 + 3
    for one in running:
        with one.client() as client:
            assert {client.get().status for _ in range(4)} == {200}
    assert sick.requests == 0
    (_, state) = sorted(page.endpoints(), key=lambda found: found.healthy is False)
    assert (state.healthy, state.upstream) == (False, "api")


def test_what_one_worker_ejects_all_leave_out(
    proxy: START, upstream: SERVE, page: SharedPage
) -> None:
    bad = Moody("b", "cut")
    spec = app_of(upstream(bad).port, upstream().port, ejection=ejection(2, 60_000))
    one, other = (proxy(spec=spec, shared=mapped(page)) for _ in range(2))
    with one.client() as client:
        for _ in range(4):
            client.get()
    assert bad.requests == 2
    with other.client() as client:
        assert {client.get().status for _ in range(6)} == {200}
    assert bad.requests == 2


# --- limits ----------------------------------------------------------------------------------


class Busy:
    """Counts how many connections are open at once; answers when it is let."""

    def __init__(self) -> None:
        self.open = self.most = 0
        self.lock = threading.Lock()
        self.let = threading.Semaphore(0)

    def __call__(self, peer: Peer) -> None:
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            while True:
                head, _ = peer.request()
                assert self.let.acquire(timeout=SECONDS)
                peer.answer(head.line.encode())
        finally:
            with self.lock:
                self.open -= 1


def test_requests_wait_for_a_connection_first_come_first_served(
    proxy: START, upstream: SERVE
) -> None:
    busy = Busy()
    running = proxy(spec=app_of(upstream(busy).port, max_connections=1, max_waiting=10))
    clients = [running.client() for _ in range(6)]
    for number, client in enumerate(clients):
        client.send(f"GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        running.until(lambda stats, due=number + 1: stats["requests_active"] == due)  # type: ignore[misc]
    assert running.stats()["waiting"] == 5
    for number, client in enumerate(clients):
        busy.let.release()
        assert f"GET /{number} " in client.answer().body.decode()
    assert busy.most == 1
    assert running.stats()["waiting"] == 0


def test_all_endpoints_have_their_own_limit(proxy: START, upstream: SERVE) -> None:
    one, other = Busy(), Busy()
    ports = upstream(one).port, upstream(other).port
    running = proxy(spec=app_of(*ports, max_connections=2, max_waiting=10))
    clients = [running.client() for _ in range(6)]
    for number, client in enumerate(clients):
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        running.until(lambda stats, due=number + 1: stats["requests_active"] == due)  # type: ignore[misc]
    assert running.stats()["waiting"] == 2
    for _ in range(6):
        one.let.release()
        other.let.release()
    assert {client.answer().status for client in clients} == {200}
    assert (one.most, other.most) == (2, 2)


def test_too_many_that_wait_and_those_that_wait_too_long_are_a_503(
    proxy: START, upstream: SERVE
) -> None:
    busy = Busy()
    spec = app_of(upstream(busy).port, max_connections=1, max_waiting=1, connect_ms=300)
    running = proxy(spec=spec)
    first, second, third = (running.client() for _ in range(3))
    for client in (first, second):
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        running.until(lambda stats: bool(stats["requests_active"]))
    running.until(lambda stats: stats["waiting"] == 1)
    assert third.get().status == 503  # at once
    assert second.answer().status == 503  # after its wait
    busy.let.release()
    assert first.answer().status == 200
    busy.let.release()
    assert second.get().status == 200  # its connection goes on


def test_one_who_leaves_while_waiting_is_forgotten(proxy: START, upstream: SERVE) -> None:
    busy = Busy()
    running = proxy(spec=app_of(upstream(busy).port, max_connections=1, max_waiting=4))
    first, second, third = (running.client() for _ in range(3))
    first.send(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: stats["requests_active"] == 1)
    second.send(b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: stats["waiting"] == 1)
    third.send(b"GET /3 HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: stats["waiting"] == 2)
    second.reset()
    running.until(lambda stats: stats["waiting"] == 1)
    busy.let.release()
    busy.let.release()
    assert first.answer().status == 200
    assert b"/3" in third.answer().body


def test_tunnels_wait_too(proxy: START, upstream: SERVE) -> None:
    running = proxy(
        spec=app_of(upstream(lambda peer: peer.send(peer.exactly(1))).port,
                    max_connections=1, max_waiting=4)
    )  # fmt: skip
    first, second = running.client("raw"), running.client("raw")
    running.until(lambda stats: stats["waiting"] == 1)
    second.send(b"b")
    first.send(b"a")
    assert first.exactly(1) == b"a"
    first.close()
    assert second.exactly(1) == b"b"
    second.close()
    running.settles()


def test_a_limit_counts_once_over_workers_and_a_dead_ones_share_is_given_back(
    proxy: START, upstream: SERVE, page: SharedPage
) -> None:
    busy = Busy()
    spec = app_of(upstream(busy).port, max_connections=1, max_waiting=4, connect_ms=8000)
    one, other = (proxy(spec=spec, shared=mapped(page)) for _ in range(2))
    first, second = one.client(), other.client()
    first.send(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n")
    one.until(lambda stats: stats["requests_active"] == 1)
    second.send(b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n")
    other.until(lambda stats: stats["waiting"] == 1)
    assert page.endpoints()[0].open == 1
    busy.let.release()
    assert first.answer().status == 200  # and its idle connection is given up for the other
    busy.let.release()
    assert second.answer().status == 200
    assert busy.most == 1
