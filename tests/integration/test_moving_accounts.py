"""What is counted and told of a connection that moves: once, by whoever holds it at the end."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from dataplane.control.shared import SHARED_BYTES, SharedPage
from dataplane.engine.engine import AccessLog
from dataplane.model.spec import AccessLogSpec, AppSpec
from tests.support.client import Client
from tests.support.engine import Proxy, app, route
from tests.support.hand_over import Ring, drain, hold, save, settle
from tests.support.upstream import Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

GET: Final = b"GET /a?b HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\nuser-agent: curl\r\n\r\n"
UPGRADE: Final = GET[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
SWITCH: Final = b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


class Log:
    """The pipe that both engines write to."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)

    def of(self, generation: int) -> AccessLog:
        return AccessLog(fd=self.write_fd, generation=generation, image="sha256:" + "0" * 64)

    def entries(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in os.read(self.read_fd, 1 << 16).splitlines()]
        except BlockingIOError:
            return []

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.close()


@pytest.fixture
def page() -> Iterator[SharedPage]:
    shared = SharedPage("test", b"0123456789abcdef")
    yield shared
    shared.close()


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What the upstream waits for in the middle."""
    event = threading.Event()
    yield event
    event.set()


def started(client: Client, kind: str) -> None:
    """To where it flows: 4 bytes of the other side have come."""
    if kind == "response":
        client.send(GET)
        client.head()
    elif kind == "websocket":
        client.send(UPGRADE)
        client.head()
    assert client.exactly(4) == b"1234"


def ended(client: Client, kind: str, go_on: threading.Event) -> None:
    go_on.set()
    assert client.exactly(4) == b"5678"
    if kind != "response":
        client.finish()
        assert client.ends()


def script(kind: str, go_on: threading.Event) -> Callable[[Peer], None]:
    """Half of what it has to say, then the rest."""

    def play(peer: Peer) -> None:
        if kind != "raw":
            peer.request()
            head = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n"
            peer.send(SWITCH if kind == "websocket" else head)
        peer.send(b"1234")
        assert go_on.wait(10)
        peer.send(b"5678")
        peer.rest()

    return play


@pytest.fixture(params=["response", "raw", "websocket"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def listener(kind: str) -> str:
    return "raw" if kind == "raw" else "web"


def with_log(spec: AppSpec, form: Any = "json") -> AppSpec:
    return dataclasses.replace(spec, access_log=AccessLogSpec(format=form))


@pytest.mark.parametrize("form", ["json", "combined", "none"])
def test_one_line_tells_all_of_it_by_whoever_ends_it(
    form: str, kind: str, proxy: START, upstream: SERVE, log: Log, go_on: threading.Event
) -> None:
    """Where blue wrote none, or wrote it in another way, the request's own part is not known."""
    served = upstream(script(kind, go_on))
    blue = proxy(spec=with_log(app([served.port]), form), log=log.of(1))
    green = proxy(spec=with_log(app([served.port])), log=log.of(2))
    with blue.client(listener(kind)) as client:
        started(client, kind)
        drain(blue)
        assert settle(blue, green, save(blue)) == 1
        assert log.entries() == []
        ended(client, kind, go_on)
        green.until(lambda stats: bool(stats["log_lines_total"] and not stats["log_pending"]))
    (entry,) = log.entries()
    assert blue.stats()["log_lines_total"] == 0
    status = {"response": 200, "websocket": 101, "raw": None}[kind]
    assert (entry["generation"], entry["status"], entry["outcome"]) == (2, status, "ok")
    assert (entry["upstream"], entry["endpoint"]) == ("api", f"127.0.0.1:{served.port}")
    assert entry["bytes_out"] >= 8
    assert entry["client"] == "127.0.0.1"
    if kind != "raw":
        known = form == "json"
        assert entry["bytes_in"] == len(GET if kind == "response" else UPGRADE)
        assert (entry["path"], entry["request_id"], entry["user_agent"]) == (
            ("/a?b", "mine", "curl") if known else (None, None, None)
        )
        if form != "none":
            assert 0 < entry["upstream_ms"] <= entry["duration_ms"] < 10_000


def mapped(page: SharedPage) -> mmap.mmap:
    return mmap.mmap(page.fd, SHARED_BYTES)


def test_shared_counts_pass_from_one_slot_to_the_other(
    kind: str, proxy: START, upstream: SERVE, page: SharedPage, go_on: threading.Event
) -> None:
    """Of endpoints, connections, sources and requests: none twice, none left when it is over."""
    served = upstream(script(kind, go_on))
    plain = app([served.port], routes=[route("/a"), route("/own", respond=(200, "own"))])
    spec = dataclasses.replace(
        plain,
        upstreams=tuple(
            dataclasses.replace(one, max_connections=1, max_waiting=0) for one in plain.upstreams
        ),
        limits=dataclasses.replace(
            plain.limits, connections=2, connections_per_source=2, requests=1
        ),
    )
    ring = Ring([proxy(spec=spec, shared=mapped(page)) for _ in range(2)])

    def is_full() -> None:
        """One connection of two is open: one more may come, and no third."""
        with ring.serving.client() as second:
            status = second.get("/own").status
            assert status == (503 if kind == "response" else 200)
            with ring.serving.client() as third:
                third.send(b"GET /own HTTP/1.1\r\nhost: a\r\n\r\n")
                assert third.answer().status == 503
        ring.serving.until(lambda stats: bool(stats["connections"] == 1))

    with ring.serving.client(listener(kind)) as client:
        started(client, kind)
        for _ in range(4):
            is_full()
            assert ring.hop() == 1
            (endpoint,) = page.endpoints()
            assert endpoint.open == 1
        is_full()
        ended(client, kind, go_on)
    for side in ring.sides:
        side.settles()
    with ring.serving.client() as one, ring.serving.client() as two:
        assert one.get("/own").status == two.get("/own").status == 200


@pytest.mark.parametrize("end", ["drop", "green dies"])
def test_what_green_only_held_is_counted_by_blue_alone(
    end: str, kind: str, proxy: START, upstream: SERVE, page: SharedPage, go_on: threading.Event
) -> None:
    served = upstream(script(kind, go_on))
    plain = app([served.port])
    spec = dataclasses.replace(
        plain,
        upstreams=tuple(
            dataclasses.replace(one, max_connections=5, max_waiting=0) for one in plain.upstreams
        ),
    )
    blue, green = (proxy(spec=spec, shared=mapped(page)) for _ in range(2))
    with blue.client(listener(kind)) as client:
        started(client, kind)
        drain(blue)
        assert hold(green, save(blue)) == b"\0"
        if end == "drop":
            green.call(lambda: green.engine.drop(1))
            green.settles()
        else:
            green.close()
        blue.call(lambda: blue.engine.take_back(1))
        (endpoint,) = page.endpoints()
        assert endpoint.open == 1
        blue.call(blue.engine.serve)
        ended(client, kind, go_on)
    blue.settles()
