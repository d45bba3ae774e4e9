"""Which endpoint gets a request: by weight, load, latency, key or cookie."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from dataplane.model.spec import EndpointSpec
from tests.support.client import Client
from tests.support.engine import Proxy
from tests.support.upstream import SECONDS, Peer, Upstream, dawdle
from tests.support.upstreams import app_of, key

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]


# So many that none of four endpoints is left out, nor two of three, wherever their ports lie: of 40
# keys all that were of one endpoint go to the same other one in a run of 500.
KEYS = 100


def named(name: str, *, after: float = 0) -> Callable[[Peer], None]:
    """Answers each request with its name."""

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            if after:
                dawdle(after)
            peer.answer(name.encode())

    return script


def answers(client: Client, count: int, fields: str = "") -> str:
    return "".join(client.get(fields=fields).body.decode() for _ in range(count))


def test_round_robin_honours_weights_and_spreads_them(proxy: START, upstream: SERVE) -> None:
    a, b = upstream(named("a")), upstream(named("b"))
    with proxy(spec=app_of((a.port, 3), (b.port, 1))).client() as client:
        order = answers(client, 40)
    assert Counter(order) == {"a": 30, "b": 10}
    assert "bb" not in order
    assert "aaaaaa" not in order


def test_least_request_prefers_the_idle_one_and_honours_weights(
    proxy: START, upstream: SERVE
) -> None:
    held = threading.Event()

    def holds(peer: Peer) -> None:
        peer.request()
        assert held.wait(SECONDS)
        peer.answer(b"a")

    a, b = upstream(holds), upstream(named("b"))
    running = proxy(spec=app_of(a.port, b.port, balance="least_request"))
    with running.client() as first, running.client() as client:
        first.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        a.next()  # it keeps this one
        assert answers(client, 5) == "bbbbb"
        held.set()
        assert first.answer().body == b"a"


def test_p2c_learns_which_endpoint_is_quick(proxy: START, upstream: SERVE) -> None:
    slow, quick = upstream(named("s", after=0.2)), upstream(named("q"))
    with proxy(spec=app_of(slow.port, quick.port, balance="p2c")).client() as client:
        answers(client, 6)
        assert Counter(answers(client, 40))["q"] >= 36


@pytest.mark.parametrize(
    ("chosen_by", "fields"),
    [
        (key("header", "x-user"), "X-User: {}\r\n"),
        (key("cookie", "session"), "cookie: a=b; session={}; c=d\r\n"),
    ],
)
def test_maglev_keeps_a_key_at_its_endpoint(
    chosen_by: object, fields: str, proxy: START, upstream: SERVE
) -> None:
    names = "abcd"
    served = {name: upstream(named(name)) for name in names}
    ports = [served[name].port for name in names]
    homes: dict[int, str] = {}
    for order in (ports, ports[::-1]):  # the same whatever the list's order, and in each process
        running = proxy(spec=app_of(*order, balance="maglev", key=chosen_by), seed=(order[0], 1))
        with running, running.client() as client:
            for user in range(KEYS):
                told = answers(client, 1, fields.format(user))
                assert told == homes.setdefault(user, told)
    assert set(homes.values()) == set(names)
    served["a"].close()  # its keys spread, and nobody else's moves
    running = proxy(spec=app_of(*ports, balance="maglev", key=chosen_by))
    with running.client() as client:
        moved = {user: answers(client, 1, fields.format(user)) for user in homes}
    assert all(moved[user] == home for user, home in homes.items() if home != "a")
    assert len({moved[user] for user, home in homes.items() if home == "a"} - {"a"}) > 1


def test_maglev_by_source_and_requests_without_the_key_go_by_the_client(
    proxy: START, upstream: SERVE
) -> None:
    ports = [upstream(named(name)).port for name in "abcd"]
    for chosen_by in (key("source"), key("header", "x-user")):
        with proxy(spec=app_of(*ports, balance="maglev", key=chosen_by)).client() as client:
            assert len(set(answers(client, 8))) == 1


def test_a_tunnel_goes_by_its_source(proxy: START, upstream: SERVE) -> None:
    def greet(name: bytes) -> Callable[[Peer], None]:
        return lambda peer: peer.send(name)

    ports = [upstream(greet(name)).port for name in (b"a", b"b", b"c")]
    running = proxy(spec=app_of(*ports, balance="maglev", key=key("source")))
    heard = set()
    for _ in range(4):
        with running.client("raw") as client:
            heard.add(client.exactly(1))
    assert len(heard) == 1


def test_a_sticky_cookie_brings_a_client_back_and_names_nothing(
    proxy: START, upstream: SERVE
) -> None:
    ports = [upstream(named(name)).port for name in "abc"]
    running = proxy(spec=app_of(*ports, sticky_cookie="stick"))
    with running.client() as client:
        first = client.get()
        cookie = first.get("set-cookie") or ""
        found = re.fullmatch(r"stick=([0-9a-f]{16}); Path=/; HttpOnly; SameSite=Lax", cookie)
        assert found is not None
        mine = f"cookie: other=1; stick={found[1]}\r\n"
        for _ in range(6):
            again = client.get(fields=mine)
            assert (again.body, again.get("set-cookie")) == (first.body, None)
        for wrong in ("0" * 16, found[1][:-1], found[1].upper() + "x", ""):
            assert client.get(fields=f"cookie: stick={wrong}\r\n").get("set-cookie") is not None


def test_a_sticky_client_whose_endpoint_is_gone_gets_another_and_is_told(
    proxy: START, upstream: SERVE
) -> None:
    served = {name: upstream(named(name)) for name in "ab"}
    ports = [one.port for one in served.values()]
    running = proxy(spec=app_of(*ports, sticky_cookie="stick"))
    with running.client() as client:
        first = client.get()
        mine = f"cookie: {(first.get('set-cookie') or '').partition(';')[0]}\r\n"
        served[first.body.decode()].close()
        moved = client.get(fields=mine)
        assert moved.body != first.body
        assert moved.get("set-cookie") is not None


def test_one_of_a_thousand_endpoints_is_found_in_every_round(proxy: START, upstream: SERVE) -> None:
    served = upstream(named("a"))
    lonely = [
        EndpointSpec(address=f"127.{index // 250 + 1}.0.{index % 250 + 1}", port=served.port)
        for index in range(999)
    ]
    # Nobody listens there: each refuses at once, and the request goes on to others, so far.
    running = proxy(spec=app_of(served.port, *lonely, balance="maglev", key=key("source")))
    with running.client() as client:
        assert client.get().status in (200, 502)


@pytest.mark.parametrize("address", ["::1", "unix"])
def test_other_families_of_addresses(
    address: str, proxy: START, upstream: SERVE, tmp_path: object
) -> None:
    place = f"{tmp_path}/u.sock" if address == "unix" else address
    served = upstream(named("a"), address=place)
    endpoint = EndpointSpec(
        address=f"unix:{place}" if address == "unix" else address, port=served.port
    )
    running = proxy(spec=app_of(endpoint))
    with running.client() as client:
        assert answers(client, 3) == "aaa"
    assert served.accepted == 1
