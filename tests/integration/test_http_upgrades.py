"""Upgrades: a tunnel after the upstream's 101 and never before; either side may end alone."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from dataplane.engine.engine import TRANSPORT_TRICKLE
from tests.support.engine import Proxy, app, route
from tests.support.upstream import Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

ASK = (
    b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def switching(peer: Peer) -> None:
    """Answers 101 and echoes; then ends as the client does."""
    peer.request()
    peer.send(SWITCH)
    while data := peer.buffer or peer.sock.recv(65536):
        peer.buffer = b""
        peer.send(data)


def test_a_websocket_passes_both_ways_after_the_101(proxy: START, upstream: SERVE) -> None:
    served = upstream(switching)
    running = proxy(served.port)
    with running.client() as client:
        client.send(ASK)
        head = client.head()
        assert head.line == "HTTP/1.1 101 Switching Protocols"
        assert (head.get("connection"), head.get("upgrade")) == ("upgrade", "WebSocket")
        assert head.get("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        asked = served.next()
        assert (asked.get("connection"), asked.get("upgrade")) == ("upgrade", "websocket")
        assert asked.get("sec-websocket-key") == "dGhlIHNhbXBsZSBub25jZQ=="
        assert running.stats()["tunnels"] == 1
        assert running.stats()["requests_active"] == 0
        for word in (b"\x81\x05hello", b"\0\xff\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            client.send(word)
            assert client.exactly(len(word)) == word
        client.finish()
        assert client.ends()
    assert running.stats()["answers_total"][1] == 1


def test_early_bytes_wait_for_the_101(proxy: START, upstream: SERVE) -> None:
    seen: list[bytes] = []
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        go_on.wait(10)
        peer.sock.setblocking(False)
        try:
            seen.append(peer.sock.recv(100))
        except BlockingIOError:
            seen.append(b"nothing came")
        peer.sock.settimeout(10)
        peer.send(SWITCH + b"first words")
        seen.append(peer.exactly(len(b"early bird, late bird")))

    running = proxy(upstream(script).port)
    with running.client() as client:
        client.send(ASK + b"early bird")
        client.send(b", late bird")
        running.has_read(len(ASK))
        go_on.set()
        assert client.head().line.startswith("HTTP/1.1 101 ")
        assert client.exactly(11) == b"first words"
        assert client.ends()
    assert seen == [b"nothing came", b"early bird, late bird"]


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "426 Upgrade Required"])
def test_without_a_101_what_follows_is_a_request_like_any_other(
    status: str, proxy: START, upstream: SERVE
) -> None:
    """Bytes behind a refused upgrade are judged by the proxy: they never reach the upstream raw."""

    def script(peer: Peer) -> None:
        while True:
            head, _ = peer.request()
            peer.answer(head.line.encode(), status=status)

    served = upstream(script)
    running = proxy(served.port)
    with running.client() as client:
        client.send(ASK + b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n" + b"\x81\x05hello")
        assert client.answer().body == b"GET /chat HTTP/1.1"
        assert client.answer().body == b"GET /next HTTP/1.1"
        assert client.answer().status == 400
        assert client.ends()
    assert [served.next().get("upgrade"), served.next().get("upgrade")] == ["websocket", None]
    assert running.stats()["tunnels"] == 0


BAD_SWITCHES = {
    "to something else": SWITCH.replace(b"WebSocket", b"irc"),
    "to another version": SWITCH.replace(b"WebSocket", b"websocket/2"),
    "to h2c": SWITCH.replace(b"WebSocket", b"h2c"),
    "to nothing": SWITCH.replace(b"upgrade: WebSocket\r\n", b""),
    "without the option": SWITCH.replace(b"connection: upgrade\r\n", b""),
    "with two fields": SWITCH.replace(b"upgrade: WebSocket", b"upgrade: websocket\r\nupgrade: x"),
    "with a length": SWITCH.replace(b"sec-", b"content-length: 5\r\nsec-", 1),
    "with a coding": SWITCH.replace(b"sec-", b"transfer-encoding: chunked\r\nsec-", 1),
    "in HTTP/1.0": SWITCH.replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("name", BAD_SWITCHES)
def test_a_101_that_does_not_fit_is_a_502(name: str, proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(BAD_SWITCHES[name] + b"GET / HTTP/1.1\r\n")
        peer.rest()

    running = proxy(upstream(script).port)
    with running.client() as client:
        client.send(ASK)
        assert client.answer().status == 502


@pytest.mark.parametrize(
    "fields",
    [
        b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
        b"connection: upgrade\r\nupgrade: H2C\r\n",
        b"connection: upgrade\r\nupgrade: h2c-14\r\n",
        b"connection: upgrade\r\nupgrade: HTTP/2.0\r\n",
        b"upgrade: websocket\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\nupgrade: h2c\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 2\r\n",
    ],
)
def test_what_may_not_be_asked_for_is_not_passed_on_and_gets_no_tunnel(
    fields: bytes, proxy: START, upstream: SERVE
) -> None:
    """An upstream that switches all the same is broken."""

    def script(peer: Peer) -> None:
        while True:
            head, _ = peer.request()
            assert head.get("upgrade") is None
            assert head.get("http2-settings") is None
            assert head.get("connection") is None
            peer.send(SWITCH) if "/switch" in head.line else peer.answer()

    running = proxy(upstream(script).port)
    for path, status in ((b"/", 200), (b"/switch", 502)):
        with running.client() as client:
            client.send(b"GET " + path + b" HTTP/1.1\r\nhost: a\r\n" + fields + b"\r\nhi")
            assert client.answer().status == status


def test_any_other_protocol_passes_where_the_upstream_says_so(
    proxy: START, upstream: SERVE
) -> None:
    def script(peer: Peer) -> None:
        head, _ = peer.request()
        assert head.get("upgrade") == "IRC/6.9"
        peer.send(SWITCH.replace(b"WebSocket", b"irc/6.9"))
        peer.send(peer.exactly(4))

    with proxy(upstream(script).port).client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n"
            b"upgrade: h2c, IRC/6.9, websocket\r\ncontent-length: 0\r\n\r\n"
        )
        assert client.head().get("upgrade") == "irc/6.9"
        client.send(b"PING")
        assert client.exactly(4) == b"PING"


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_each_side_may_end_alone(who: str, proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(SWITCH)
        if who == "client":
            assert peer.rest() == b"all of it"
            peer.send(b"after your end")
        else:
            peer.send(b"all of it")
            peer.finish()
            assert peer.exactly(14) == b"after your end"

    with proxy(upstream(script).port).client() as client:
        client.send(ASK)
        client.head()
        if who == "client":
            client.send(b"all of it")
            client.finish()
            assert client.rest() == b"after your end"
        else:
            assert client.rest() == b"all of it"
            client.send(b"after your end")
            client.finish()


def test_much_passes_both_ways_at_once_and_whole(
    proxy: START, upstream: SERVE, transport: int
) -> None:
    size = 50_000 if transport == TRANSPORT_TRICKLE else 8_000_000
    there, back = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    sums: list[str] = []

    def script(peer: Peer) -> None:
        peer.request()
        sender = threading.Thread(target=lambda: peer.send(SWITCH + back))
        sender.start()
        sums.append(hashlib.sha256(peer.exactly(size)).hexdigest())
        sender.join()
        peer.finish()
        peer.rest()

    with proxy(upstream(script).port).client() as client:
        sender = threading.Thread(target=client.send, args=(ASK + there,))
        sender.start()
        client.head()
        assert hashlib.sha256(client.exactly(size)).digest() == hashlib.sha256(back).digest()
        sender.join()
        client.finish()
        assert client.ends()
    assert sums == [hashlib.sha256(there).hexdigest()]


def test_an_idle_tunnel_has_its_own_time(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(switching).port, tunnel_idle_ms=300, idle_ms=60_000)
    with running.client() as client:
        client.send(ASK)
        client.head()
        client.send(b"x")
        assert client.exactly(1) == b"x"
        with pytest.raises(ConnectionResetError):
            client.rest()


def test_a_reset_reaches_the_other_side(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(SWITCH)
        peer.exactly(2)
        peer.reset()

    with proxy(upstream(script).port).client() as client:
        client.send(ASK)
        client.head()
        client.send(b"hi")
        with pytest.raises(ConnectionResetError):
            client.rest()


def test_a_tunnel_outlives_a_drain_until_it_ends(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(switching).port)
    with running.client() as client:
        client.send(ASK)
        client.head()
        running.call(running.engine.drain)
        running.call(running.engine.close_idle)
        client.send(b"still here")
        assert client.exactly(10) == b"still here"
        client.finish()
        assert client.ends()
        running.until(lambda stats: stats["connections"] == 0)
        assert running.call(running.engine.tally).finished == 1


def test_an_upgrade_that_is_refused_by_us_is_no_tunnel(proxy: START) -> None:
    running = proxy(spec=app([1], routes=[route("/chat", respond=(200, "own\n"))]))
    with running.client() as client:
        client.send(ASK + ASK.replace(b"/chat", b"/none"))
        assert client.answer().body == b"own\n"
        assert client.answer().status == 404


def test_connect_stays_refused(proxy: START, upstream: SERVE) -> None:
    served = upstream()
    with proxy(served.port).client() as client:
        client.send(b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n\x16\x03\x01")
        assert client.answer().status == 501
        assert client.ends()
    assert served.accepted == 0
