"""The access log and the figures of an engine: each exchange once, as it was, and told why."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from dataplane.engine.engine import TRANSPORT_TRICKLE, AccessLog
from dataplane.model.spec import AccessLogSpec, AppSpec
from tests.support.engine import Proxy, app, route
from tests.support.upstream import Peer, Upstream, dawdle

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

FIELDS: Final = [
    "time", "app", "generation", "image", "client", "method", "host", "path", "protocol", "status",
    "bytes_in", "bytes_out", "duration_ms", "upstream", "endpoint", "upstream_ms", "retries",
    "request_id", "trace_id", "user_agent", "referer", "outcome",
]  # fmt: skip
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"


class Log:
    """The pipe that an engine writes to. Mutable: the lines that were read."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)
        self.lines: list[bytes] = []

    @property
    def access_log(self) -> AccessLog:
        return AccessLog(fd=self.write_fd, generation=7, image="sha256:" + "0123456789abcdef" * 4)

    def read(self) -> None:
        try:
            while data := os.read(self.read_fd, 1 << 20):
                assert data.endswith(b"\n"), "whole lines are written"
                self.lines += data.splitlines()
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class Logged:
    """An engine with a log."""

    def __init__(self, log: Log, running: Proxy) -> None:
        self.log, self.running = log, running

    def entries(self, count: int) -> list[dict[str, Any]]:
        """Once that many lines were made: all of them."""
        self.running.until(
            lambda stats: stats["log_lines_total"] >= count and not stats["log_pending"]
        )
        self.log.read()
        assert len(self.log.lines) == count, self.log.lines
        return [json.loads(line) for line in self.log.lines]

    def only(self) -> dict[str, Any]:
        (entry,) = self.entries(1)
        return entry


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.close()


@pytest.fixture
def logged(proxy: START, log: Log) -> Callable[..., Logged]:
    def start(spec: AppSpec, kind: Any = "json", **options: Any) -> Logged:
        spec = dataclasses.replace(spec, access_log=AccessLogSpec(format=kind))
        return Logged(log, proxy(spec=spec, log=log.access_log, **options))

    return start


START_LOGGED = Callable[..., Logged]


def test_a_line_has_the_fields_of_the_contract_and_what_was_so(
    logged: START_LOGGED, upstream: SERVE
) -> None:
    served = upstream()
    started = logged(app([served.port], routes=[route("/api/")]))
    fields = (
        f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nuser-agent: curl/8\r\n"
        "referer: http://a/b\r\n"
    )
    with started.running.client() as client:
        answer = client.get("/api/x?a=b", fields=fields)
    entry = started.only()
    seen = served.next()
    assert list(entry) == FIELDS
    assert seen.get("traceparent") == f"00-{TRACE}-00f067aa0ba902b7-01"
    assert seen.get("x-request-id") == entry["request_id"]
    assert {
        "app": "test", "generation": 7, "image": "0123456789ab", "client": "127.0.0.1",
        "method": "GET", "host": "a.example", "path": "/api/x?a=b", "protocol": "HTTP/1.1",
        "status": 200, "upstream": "api", "endpoint": f"127.0.0.1:{served.port}", "retries": 0,
        "trace_id": TRACE, "user_agent": "curl/8", "referer": "http://a/b", "outcome": "ok",
    }.items() <= entry.items()  # fmt: skip
    assert entry["bytes_in"] == len(f"GET /api/x?a=b HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n")
    assert entry["bytes_out"] == len(answer.head.raw) + len(answer.body)
    assert 0 < entry["upstream_ms"] <= entry["duration_ms"] < 10_000


def test_each_request_of_a_connection_has_its_own_line(
    logged: START_LOGGED, upstream: SERVE
) -> None:
    started = logged(app([upstream().port]))
    one = b"POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nfirst"
    two = (
        b"POST /2 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n6\r\nsecond\r\n0\r\n\r\n"
    )
    with started.running.client() as client:
        client.send((one + two) * 3)
        for _ in range(6):
            client.answer()
    entries = started.entries(6)
    assert [entry["path"] for entry in entries] == ["/1", "/2"] * 3
    assert [entry["bytes_in"] for entry in entries] == [len(one), len(two)] * 3
    assert len({entry["request_id"] for entry in entries}) == 6


def test_a_clients_own_plain_id_is_kept_and_told(logged: START_LOGGED, upstream: SERVE) -> None:
    served = upstream()
    started = logged(app([served.port]))
    with started.running.client() as client:
        client.get(fields="x-request-id: mine-1\r\n")
        client.get(fields='x-request-id: m"ine\r\n')
    kept, made = started.entries(2)
    assert (kept["request_id"], served.next().get("x-request-id")) == ("mine-1", "mine-1")
    assert made["request_id"] == served.next().get("x-request-id") != 'm"ine'


@pytest.mark.parametrize(
    "value", ["00-1-2-03", f"00-{TRACE}-00f067aa0ba902b7-01, x", f"00-{'0' * 32}-{'1' * 16}-01"]
)
def test_a_trace_that_cannot_be_read_passes_and_is_not_told(
    logged: START_LOGGED, upstream: SERVE, value: str
) -> None:
    served = upstream()
    started = logged(app([served.port]))
    with started.running.client() as client:
        client.get(fields=f"traceparent: {value}\r\n")
    assert served.next().get("traceparent") == value
    assert started.only()["trace_id"] is None


def test_nothing_a_client_sends_stands_in_a_line_as_it_came(
    logged: START_LOGGED, upstream: SERVE
) -> None:
    started = logged(app([upstream().port]))
    hostile = bytes(range(0x80, 0x100, 3)) + b'"},{"\\u0041\\' + b"\t"
    with started.running.client() as client:
        client.send(
            b"GET /a HTTP/1.1\r\nhost: a\r\nuser-agent: a" + hostile + b"z\r\n"
            b"referer: " + b"\xff" * 3000 + b"\r\n\r\n"
        )
        client.answer()
    entry = started.only()
    assert entry["user_agent"].encode("latin-1") == b"a" + hostile + b"z"
    assert entry["referer"].endswith("...")
    (line,) = started.log.lines
    assert line.isascii()
    assert all(byte >= 0x20 and byte != 0x7F for byte in line)


def _break(peer: Peer) -> None:
    peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\nbad header: x\r\n\r\n")


def _cut(peer: Peer) -> None:
    peer.head()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfive!")


def _silent(peer: Peer) -> None:
    peer.head()
    dawdle(2)


@pytest.mark.parametrize(
    ("sent", "status", "outcome", "where"),
    [
        (b"GET /own HTTP/1.1\r\nhost: a\r\n\r\n", 200, "ok", "/own"),
        (b"GET /old/x HTTP/1.1\r\nhost: a\r\n\r\n", 308, "ok", "/old/x"),
        (b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n", 404, "no_route", "/nowhere"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n", 400, "malformed", None),
        (b"\0", 400, "malformed", None),
        (b"GET / HTTP/3.0\r\n\r\n", 505, "unknown_version", None),
        (
            b"POST /own HTTP/1.1\r\nhost: a\r\ncontent-length: 2000\r\n\r\n",
            413,
            "body_too_large",
            "/own",
        ),
        (b"GET /dead HTTP/1.1\r\nhost: a\r\n\r\n", 502, "connect_failed", "/dead"),
        (b"GET /break HTTP/1.1\r\nhost: a\r\n\r\n", 502, "upstream_broke", "/break"),
        (b"GET /cut HTTP/1.1\r\nhost: a\r\n\r\n", 200, "upstream_broke", "/cut"),
        (b"GET /silent HTTP/1.1\r\nhost: a\r\n\r\n", 504, "upstream_timeout", "/silent"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_how_an_exchange_ended_is_told_in_a_word(
    logged: START_LOGGED,
    upstream: SERVE,
    dead: Callable[[], int],
    sent: bytes,
    status: int,
    outcome: str,
    where: str | None,
) -> None:
    routes = [
        route("/own", respond=(200, "mine")),
        route("/old/", redirect=("/new/", 308)),
        route("/dead", upstream="dead"),
        route("/break", upstream="break"),
        route("/cut", upstream="cut"),
        route("/silent", upstream="silent", timeout_ms=100),
    ]
    ports = {"dead": dead(), "break": upstream(_break).port, "cut": upstream(_cut).port}
    named = [(name, [port]) for name, port in ports.items()]
    named.append(("silent", [upstream(_silent).port]))
    started = logged(app(routes=routes, upstreams=named, body_bytes=1000))
    with started.running.client() as client:
        client.send(sent)
        client.rest() if outcome == "upstream_broke" and status == 200 else client.answer()
    entry = started.only()
    assert (entry["status"], entry["outcome"], entry["path"]) == (status, outcome, where)
    assert list(entry) == FIELDS
    assert len(entry["request_id"]) == 32


def test_a_connection_beyond_the_limit_is_told_of(logged: START_LOGGED, upstream: SERVE) -> None:
    started = logged(app([upstream().port], connections=1))
    with started.running.client() as first:
        first.get()
        with started.running.client() as second:
            answer = second.answer()
            assert answer.status == 503
    served, refused = started.entries(2)
    assert (served["outcome"], refused["outcome"]) == ("ok", "limit")
    assert (refused["status"], refused["client"], refused["path"]) == (503, "127.0.0.1", None)
    assert refused["bytes_out"] == len(answer.head.raw) + len(answer.body)


def test_a_client_that_leaves_before_its_answer_is_told_of(
    logged: START_LOGGED, upstream: SERVE
) -> None:
    came = threading.Event()
    gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        came.set()
        gone.wait(10)

    started = logged(app([upstream(script).port]))
    client = started.running.client()
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert came.wait(10)
    client.reset()
    entry = started.only()
    gone.set()
    assert (entry["status"], entry["outcome"], entry["bytes_out"]) == (None, "client_gone", 0)


def test_what_the_drains_deadline_cuts_is_told_of(logged: START_LOGGED, upstream: SERVE) -> None:
    started = logged(app([upstream(_silent).port]))
    with started.running.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        started.running.until(lambda stats: bool(stats["requests_active"]))
        started.running.call(started.running.engine.reset_all)
    assert started.only()["outcome"] == "drain_deadline"


def test_a_tunnel_has_a_line_at_its_end(logged: START_LOGGED, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        peer.exactly(5)
        peer.send(b"hello back")
        peer.finish()

    served = upstream(script)
    started = logged(app([served.port]))
    with started.running.client("raw") as client:
        client.send(b"hello")
        client.finish()
        assert client.rest() == b"hello back"
    entry = started.only()
    assert list(entry) == FIELDS
    assert (entry["protocol"], entry["method"], entry["status"]) == ("tcp", None, None)
    assert (entry["bytes_in"], entry["bytes_out"], entry["outcome"]) == (5, 10, "ok")
    assert (entry["upstream"], entry["endpoint"]) == ("api", f"127.0.0.1:{served.port}")


def test_combined_is_apaches(logged: START_LOGGED, upstream: SERVE) -> None:
    started = logged(app([upstream().port]), "combined")
    with started.running.client() as client:
        client.send(
            b"POST /b?c HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nreferer: http://a/\r\n"
            b'user-agent: "ot\xff\r\n\r\nbody'
        )
        client.answer()
        started.running.until(lambda stats: not stats["log_pending"])
        started.log.read()
    (line,) = started.log.lines
    begin, _, rest = line.decode().partition(" - - [")
    assert begin == "127.0.0.1"
    assert rest.endswith('] "POST /b?c HTTP/1.1" 200 4 "http://a/" "\\"ot\\xff"')


def test_a_pipe_that_nobody_reads_stops_nobody(
    logged: START_LOGGED, upstream: SERVE, transport: int
) -> None:
    started = logged(app([1], routes=[route("/", respond=(204, ""))]))
    fcntl.fcntl(started.log.write_fd, fcntl.F_SETPIPE_SZ, 4096)
    count = 700 if transport != TRANSPORT_TRICKLE else 500
    with started.running.client() as client:
        for _ in range(count):
            client.get("/" + "x" * 900)
    stats = started.running.stats()
    assert stats["log_lines_total"] == count
    assert stats["log_dropped_total"] > 0
    while started.running.stats()["log_pending"]:  # as far as the pipe goes, the rest with a turn
        started.log.read()
    started.log.read()
    dropped = started.running.stats()["log_dropped_total"]
    assert len(started.log.lines) + dropped == count
    assert all(json.loads(line)["status"] == 204 for line in started.log.lines)


def test_a_log_that_nobody_will_ever_read_stops_nobody(logged: START_LOGGED, log: Log) -> None:
    started = logged(app([1], routes=[route("/", respond=(204, ""))]))
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, log.read_fd)
    os.close(null)
    with started.running.client() as client:
        for _ in range(3):
            assert client.get().status == 204
    started.running.until(lambda stats: stats["log_dropped_total"] == 3)


# --- figures -----------------------------------------------------------------------------------


def test_requests_count_by_route_and_class_and_by_upstream(
    proxy: START, upstream: SERVE, dead: Callable[[], int]
) -> None:
    routes = [route("/a"), route("/b", respond=(404, "")), route("/c", upstream="down")]
    named = [("api", [upstream().port]), ("down", [dead()])]
    running = proxy(spec=app(routes=routes, upstreams=named))
    with running.client() as client:
        for path in ("/a", "/a", "/b", "/c", "/elsewhere"):
            client.get(path)
    running.settles()
    figures = running.figures()
    by_class = [dict(enumerate(answers)) for answers in figures.routes]
    assert [answers[2] for answers in by_class] == [2, 0, 0, 0]
    assert [answers[4] for answers in by_class] == [0, 1, 0, 1]
    assert [answers[5] for answers in by_class] == [0, 0, 1, 0]
    api, down = figures.upstreams
    assert (api.requests_total, api.connects_total, api.failures_total, api.up) == (2, 1, 0, 1)
    assert (down.connect_failures_total, down.failures_total, down.up) == (1, 1, 0)
    assert (api.active, down.active) == (0, 0)
    assert figures.durations.count == 5
    assert figures.durations.sum_us > 0


def test_a_request_that_gets_no_answer_counts_as_one_without(
    proxy: START, upstream: SERVE, stack: ExitStack
) -> None:
    held = threading.Event()
    stack.callback(held.set)

    def script(peer: Peer) -> None:
        peer.head()
        held.wait(10)

    running = proxy(upstream(script).port)
    client = running.client()
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    running.until(lambda stats: bool(stats["requests_active"]))
    client.sock.shutdown(socket.SHUT_WR)
    client.reset()
    running.until(lambda stats: not stats["requests_active"])
    assert running.figures().routes[0] == (1, 0, 0, 0, 0, 0)


def test_a_head_that_is_none_is_not_the_last_client_s(
    logged: START_LOGGED, upstream: SERVE
) -> None:
    spec = app([upstream().port], trusted=["127.0.0.1/32"])
    started = logged(spec)
    with started.running.client() as client:
        assert client.get("/", fields="x-forwarded-for: 192.0.2.7\r\n").status == 200
        client.send(b"nonsense\r\n\r\n")
        assert client.answer().status == 400
    assert [entry["client"] for entry in started.entries(2)] == ["192.0.2.7", "127.0.0.1"]
