"""The PROXY protocol towards upstreams: who the client is, on each connection, shared by nobody."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Callable

import pytest

from dataplane.model.spec import AppSpec
from tests.support.client import Client
from tests.support.engine import Proxy
from tests.support.upstream import Peer, Upstream
from tests.support.upstreams import app_of, health

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def reads_v1(peer: Peer) -> None:
    line = peer.until(b"\r\n")
    while True:
        peer.request()
        peer.answer(line)


def reads_v2(peer: Peer) -> None:
    head = peer.exactly(16)
    rest = peer.exactly(struct.unpack("!H", head[14:])[0])
    while True:
        peer.request()
        peer.answer((head + rest).hex().encode())


def end_of(client: Client) -> tuple[str, int]:
    name: tuple[str, int] = client.sock.getsockname()
    return name


def behind_a_proxy(port: int) -> AppSpec:
    """Its http clients are named by a PROXY header, and so to its upstream."""
    spec = app_of(port, proxy_protocol="v1")
    listeners = tuple(
        dataclasses.replace(one, proxy_protocol=True, trusted_proxies=("127.0.0.0/8",))
        if one.protocol == "http"
        else one
        for one in spec.listeners
    )
    return dataclasses.replace(spec, listeners=listeners)


def test_version_1_names_both_ends(proxy: START, upstream: SERVE) -> None:
    running = proxy(spec=app_of(upstream(reads_v1).port, proxy_protocol="v1"))
    with running.client() as client:
        address, port = end_of(client)
        expected = f"PROXY TCP4 {address} 127.0.0.1 {port} {running.port}\r\n"
        for _ in range(2):
            assert client.get().body.decode() == expected


def test_version_2_names_both_ends(proxy: START, upstream: SERVE) -> None:
    running = proxy(spec=app_of(upstream(reads_v2).port, proxy_protocol="v2"))
    with running.client() as client:
        address, port = end_of(client)
        got = bytes.fromhex(client.get().body.decode())
    ends = socket.inet_aton(address) + socket.inet_aton("127.0.0.1")
    assert got == SIGNATURE + b"\x21\x11\0\x0c" + ends + struct.pack("!HH", port, running.port)


@pytest.mark.parametrize(
    ("told", "source"),
    [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\r\n", "TCP4 192.0.2.1 127.0.0.1 1234"),
        ("PROXY TCP6 2001:db8::1 2001:db8::2 1234 80\r\n",
         "TCP6 2001:db8::1 ::ffff:127.0.0.1 1234"),
    ],
)  # fmt: skip
def test_whom_a_trusted_proxy_names_is_named_to_the_upstream(
    told: str, source: str, proxy: START, upstream: SERVE
) -> None:
    running = proxy(spec=behind_a_proxy(upstream(reads_v1).port))
    with running.client() as client:
        client.send(told.encode())
        for _ in range(2):
            assert client.get().body.decode() == f"PROXY {source} {running.port}\r\n"


@pytest.mark.parametrize("by_older", [False, True])
def test_whom_it_named_is_named_after_a_swap_too(
    by_older: bool, proxy: START, upstream: SERVE
) -> None:
    """A record of an older version tells no port."""
    spec = behind_a_proxy(upstream(reads_v1).port)
    blue, green = proxy(spec=spec), proxy(spec=spec)
    told = f"PROXY TCP4 192.0.2.1 127.0.0.1 1234 {blue.port}\r\n"
    with blue.client() as client:
        client.send(told.encode())
        assert client.get().body.decode() == told
        blue.call(blue.engine.pause)
        blue.call(blue.engine.drain)
        records, count, fds = blue.call(lambda: blue.engine.save(1, 1, 4096))
        if by_older:
            records = records[:10] + bytes(2) + records[12:]
        held = [os.dup(fds[0])]
        assert green.call(lambda: green.engine.hold(1, records, count, held)) == b"\0"
        blue.call(lambda: blue.engine.commit(1, b"\0"))
        green.call(lambda: green.engine.start(1, 1))
        expected = told.replace("1234", "0") if by_older else told
        assert client.get().body.decode() == expected


def test_no_connection_is_shared_by_two_clients(proxy: START, upstream: SERVE) -> None:
    served = upstream(reads_v1)
    running = proxy(spec=app_of(served.port, proxy_protocol="v1"))
    with running.client() as one, running.client() as other:
        for _ in range(3):
            for client in (one, other):
                assert f" {end_of(client)[1]} " in client.get().body.decode()
        assert served.accepted == 2  # each client has one of its own, and keeps it
        running.until(lambda stats: stats["upstream_idle"] == 2)
    running.until(lambda stats: stats["upstream_connections"] == 0)  # and it ends with them


def test_a_client_keeps_its_connection_among_many_endpoints(proxy: START, upstream: SERVE) -> None:
    served = [upstream(reads_v1) for _ in range(3)]
    running = proxy(spec=app_of(*(one.port for one in served), proxy_protocol="v1"))
    with running.client() as client:
        for _ in range(6):
            assert client.get().status == 200
    assert sum(one.accepted for one in served) == 1


def test_a_tunnel_begins_with_it(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.until(b"\r\n") + peer.exactly(5))

    running = proxy(spec=app_of(upstream(script).port, proxy_protocol="v1"))
    with running.client("raw") as client:
        client.send(b"hello")
        line = client.until(b"\r\n")
        assert line.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
        assert client.exactly(5) == b"hello"


@pytest.mark.parametrize(
    ("version", "begins"), [("v1", b"PROXY UNKNOWN\r\n"), ("v2", SIGNATURE + b"\x20\0\0\0")]
)
def test_a_health_check_speaks_for_itself(
    version: str, begins: bytes, proxy: START, upstream: SERVE
) -> None:
    heard: list[bytes] = []

    def script(peer: Peer) -> None:
        heard.append(peer.exactly(len(begins)))
        peer.request()
        peer.answer()

    served = upstream(script)
    proxy(spec=app_of(served.port, proxy_protocol=version, health=health()))
    assert served.next().line == "GET /healthz HTTP/1.1"
    assert heard[0] == begins


def test_a_request_that_fails_over_says_the_same_to_the_next(
    proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    served = upstream(reads_v1)
    for seed in range(2):
        spec = app_of(dead(), served.port, proxy_protocol="v1")
        with proxy(spec=spec, seed=(seed, 0)).client() as client:
            assert client.get().body.startswith(b"PROXY TCP4 ")
