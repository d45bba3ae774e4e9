"""What of a head goes on, what is added, and where it goes: fields, routes, redirects, edits."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest

from tests.support.engine import Proxy, app, edits, route
from tests.support.upstream import SECONDS, Head, Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]


@pytest.fixture
def passes(proxy: START, upstream: SERVE) -> Callable[..., Head]:
    """Sends one request and returns its head as the upstream saw it."""

    def send(given: bytes, **options: object) -> Head:
        served = upstream()
        running = proxy(served.port, routes=[route(**options)])  # type: ignore[arg-type]
        with running.client() as client:
            client.send(given)
            answer = client.answer(to_head=given.startswith(b"HEAD"))
            assert answer.status == 200, answer
        return served.next()

    return send


def names(head: Head) -> list[str]:
    return [name for name, _ in head.fields]


def test_end_to_end_fields_pass_unchanged_and_in_order(passes: Callable[..., Head]) -> None:
    head = passes(
        b"GET /a?b=c&d=%20 HTTP/1.1\r\nHost: a.example:8080\r\nAccept: */*\r\nX-Two:  2 \r\n"
        b"x-two: 3\r\nTraceparent: 00-1-2-03\r\nauthorization: Basic eA==\r\nx-empty:\r\n\r\n"
    )
    assert head.line == "GET /a?b=c&d=%20 HTTP/1.1"
    assert head.fields[:7] == (
        ("host", "a.example:8080"),
        ("accept", "*/*"),
        ("x-two", "2"),
        ("x-two", "3"),
        ("traceparent", "00-1-2-03"),
        ("authorization", "Basic eA=="),
        ("x-empty", ""),
    )


def test_hop_by_hop_fields_end_here(passes: Callable[..., Head]) -> None:
    head = passes(
        b"GET / HTTP/1.1\r\nhost: a\r\nConnection: X-Named, keep-alive, host, x-forwarded-for\r\n"
        b"x-named: 1\r\nX-NAMED: 2\r\nkeep-alive: 1\r\nproxy-connection: close\r\nte: trailers\r\n"
        b"trailer: x\r\nupgrade: websocket\r\nproxy: http://evil\r\nhttp2-settings: x\r\n"
        b"expect: \r\nx-stays: 1\r\n\r\n".replace(b"expect: \r\n", b"")
    )
    assert names(head) == [
        "host",
        "x-stays",
        "te",
        "connection",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-request-id",
    ]
    assert (head.get("te"), head.get("connection")) == ("trailers", "te")


def test_nobody_can_forge_where_a_request_came_from(passes: Callable[..., Head]) -> None:
    head = passes(
        b"GET / HTTP/1.1\r\nhost: real\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\n"
        b"x-forwarded-proto: https\r\nx-forwarded-host: evil\r\nx-forwarded-port: 443\r\n"
        b"X_Forwarded_For: 6.6.6.6\r\nx-forwarded_proto: https\r\nX-Real-IP: 6.6.6.6\r\n"
        b"x_real_ip: 6.6.6.6\r\n\r\n"
    )
    assert head.get("x-forwarded-for") == "127.0.0.1"
    assert head.get("x-forwarded-proto") == "http"
    assert head.get("x-forwarded-host") == "real"
    assert b"6.6.6.6" not in head.raw
    assert b"evil" not in head.raw
    assert "x-forwarded-port" not in names(head)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["plain-ID_1.2"], True),
        ([], False),
        ([""], False),
        (["a b"], False),
        (['"; drop'], False),
        (["x" * 129], False),
        (["one", "two"], False),
        (["one", "two", "three"], False),
    ],
)
def test_there_is_exactly_one_request_id(
    given: list[str], kept: bool, passes: Callable[..., Head]
) -> None:
    fields = "".join(f"x-request-id: {value}\r\n" for value in given)
    got = passes(f"GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n".encode()).get("x-request-id")
    if kept:
        assert got == given[0]
    else:
        assert got is not None
        assert re.fullmatch("[0-9a-f]{32}", got)


def test_request_ids_differ(proxy: START, upstream: SERVE) -> None:
    served = upstream()
    running = proxy(served.port, seed=(7, 8))
    with running.client() as client:
        for _ in range(50):
            client.get()
    assert len({served.next().get("x-request-id") for _ in range(50)}) == 50


@pytest.mark.parametrize(
    ("line", "host", "to_line", "to_host"),
    [
        (
            "GET http://b.example/x?y HTTP/1.1",
            "host: b.example\r\n",
            "GET /x?y HTTP/1.1",
            "b.example",
        ),
        ("GET http://b.example HTTP/1.1", "host: b.example\r\n", "GET / HTTP/1.1", "b.example"),
        ("GET http://b.example?q HTTP/1.1", "host: b.example\r\n", "GET /?q HTTP/1.1", "b.example"),
        ("GET http://b.example/ HTTP/1.0", "", "GET / HTTP/1.1", "b.example"),
        ("GET /x HTTP/1.0", "", "GET /x HTTP/1.1", "api"),
        ("GET /x HTTP/1.0", "host: c\r\n", "GET /x HTTP/1.1", "c"),
        ("OPTIONS * HTTP/1.1", "host: c\r\n", "OPTIONS * HTTP/1.1", "c"),
        ("BREW /pot HTTP/1.1", "host: c\r\n", "BREW /pot HTTP/1.1", "c"),
    ],
)
def test_every_form_of_a_target_reaches_the_upstream_with_one_host(
    line: str, host: str, to_line: str, to_host: str, passes: Callable[..., Head]
) -> None:
    head = passes(f"{line}\r\n{host}\r\n".encode(), path=None)
    assert head.line == to_line
    assert head.get("host") == to_host


def test_edits_take_the_place_of_what_is_there(passes: Callable[..., Head]) -> None:
    head = passes(
        b"GET / HTTP/1.1\r\nhost: a\r\nX-App: client\r\nx-app: again\r\nx-internal: 1\r\n"
        b"last: 1\r\n\r\n",
        request=edits([("x-app", "billing")], ["x-internal"]),
    )
    assert head.get("x-app") == "billing"
    assert head.get("x-internal") is None
    assert head.get("last") == "1"


@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1", "GET http://a/ HTTP/1.1"])
def test_edits_may_take_the_place_of_our_own_fields(
    request_line: str, passes: Callable[..., Head]
) -> None:
    head = passes(
        f"{request_line}\r\nhost: a\r\n\r\n".encode(),
        request=edits(
            [("host", "inner"), ("x-forwarded-proto", "https"), ("x-request-id", "fixed")],
            ["x-forwarded-for"],
        ),
    )
    assert head.get("host") == "inner"
    assert head.get("x-forwarded-proto") == "https"
    assert head.get("x-request-id") == "fixed"
    assert head.get("x-forwarded-for") is None
    assert head.get("x-forwarded-host") == "a"


def test_answers_lose_hop_by_hop_fields_and_get_their_edits(proxy: START, upstream: SERVE) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.request()
            peer.answer(
                fields="Connection: x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\nserver: inner\r\n"
                "proxy-connection: x\r\nX-Old: 1\r\nset-cookie: a\r\nset-cookie: b\r\n"
            )

    spec = edits([("x-new", "2"), ("server", "edge")], ["x-old"])
    running = proxy(upstream(script).port, routes=[route(response=spec)])
    with running.client() as client:
        for _ in range(2):
            answer = client.get()
            assert names(answer.head)[:3] == ["set-cookie", "set-cookie", "content-length"]
            assert sorted(names(answer.head)[3:]) == ["date", "server", "x-new"]
            assert answer.get("server") == "edge"
            assert answer.get("x-new") == "2"


def test_edits_hold_for_fixed_answers_too(proxy: START) -> None:
    given = edits([("content-type", "text/html"), ("server", "x"), ("x-y", "z")])
    running = proxy(
        spec=app(routes=[route(respond=(200, "<p>"), response=given)], upstreams=[("api", [1])])
    )
    with running.client() as client:
        answer = client.get()
        assert (answer.get("content-type"), answer.get("server"), answer.get("x-y")) == (
            "text/html",
            "x",
            "z",
        )


ROUTES = [
    route("/", respond=(200, "any")),
    route("/api/", respond=(200, "api")),
    route("/api/v2/", respond=(200, "v2")),
    route("/api/v2/", methods=["POST"], respond=(200, "never: the one before comes first")),
    route("/api/v2/exact", respond=(200, "exact")),
    route("/put", methods=["PUT", "DELETE"], respond=(200, "put")),
    route("/beta", headers=[("x-beta", "1"), ("x-two", "b")], respond=(200, "beta")),
    route("/", host="www.example.com", respond=(200, "www")),
    route("/", host="*.example.com", respond=(200, "wild")),
    route("/", host="*.deep.example.com", respond=(200, "deep")),
    route("/api/", host="*.example.com", methods=["GET"], respond=(200, "wild api")),
    route("/", host="[::1]", respond=(200, "v6")),
]


@pytest.mark.parametrize(
    ("method", "target", "host", "fields", "expected"),
    [
        ("GET", "/", "a", "", "any"),
        ("GET", "/?/api/", "a", "", "any"),
        ("GET", "/api", "a", "", "any"),
        ("GET", "/api/", "a", "", "api"),
        ("GET", "/api/x/y", "a", "", "api"),
        ("GET", "/API/x", "a", "", "any"),
        ("GET", "/api/v2/", "a", "", "v2"),
        ("POST", "/api/v2/x", "a", "", "v2"),
        ("GET", "/api/v2/exact", "a", "", "exact"),
        ("GET", "/api/v2/exact?q", "a", "", "exact"),
        ("GET", "/api/v2/exact/", "a", "", "v2"),
        ("PUT", "/put", "a", "", "put"),
        ("DELETE", "/put", "a", "", "put"),
        ("GET", "/put", "a", "", "any"),
        ("put", "/put", "a", "", "any"),
        ("GET", "/beta", "a", "x-beta: 1\r\nX-TWO: b\r\n", "beta"),
        ("GET", "/beta", "a", "x-beta: 1\r\nx-two: B\r\n", "any"),
        ("GET", "/beta", "a", "x-beta: 1\r\n", "any"),
        ("GET", "/beta", "a", "x-two: a\r\nx-two: b\r\nx-beta: 1\r\n", "beta"),
        ("GET", "/", "www.example.com", "", "www"),
        ("GET", "/", "WWW.Example.COM:8080", "", "www"),
        ("GET", "/", "www.example.com.", "", "www"),
        ("GET", "/", "x.example.com", "", "wild"),
        ("GET", "/", "x.y.example.com", "", "wild"),
        ("GET", "/", "x.deep.example.com", "", "deep"),
        ("GET", "/", "deep.example.com", "", "wild"),
        ("GET", "/", "example.com", "", "any"),
        ("GET", "/", "notexample.com", "", "any"),
        ("GET", "/api/", "x.example.com", "", "wild api"),
        ("POST", "/api/", "x.example.com", "", "wild"),
        ("GET", "/api/", "www.example.com", "", "www"),
        ("GET", "/", "[::1]:80", "", "v6"),
    ],
)
def test_the_most_specific_route_wins(
    method: str, target: str, host: str, fields: str, expected: str, proxy: START
) -> None:
    running = proxy(spec=app(routes=ROUTES, upstreams=[("api", [1])]))
    with running.client() as client:
        client.send(f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n".encode())
        assert client.answer().body.decode() == expected


@pytest.mark.parametrize(
    ("frm", "to", "target", "location"),
    [
        ("/old/", "/new/", "/old/", "/new/"),
        ("/old/", "/new/", "/old/a/b?c=d", "/new/a/b?c=d"),
        ("/old/", "https://b.example/", "/old/a", "https://b.example/a"),
        ("/old", "/new", "/old", "/new"),
        ("/old", "/new", "/old?c", "/new?c"),
        ("/", "https://b.example/", "/a", "https://b.example/a"),
        # "//x" would name another host
        ("/old/", "/", "/old//evil.example/a", "/evil.example/a"),
        ("/old/", "/", "/old///evil.example", "/evil.example"),
        ("/old/", "/", "/old/a//b", "/a//b"),
    ],
)
def test_redirects_keep_the_rest_and_lead_nowhere_else(
    frm: str, to: str, target: str, location: str, proxy: START
) -> None:
    spec = app(routes=[route(frm, redirect=(to, 308))], upstreams=[("api", [1])])
    running = proxy(spec=spec)
    with running.client() as client:
        for _ in range(2):
            answer = client.get(target)
            assert (answer.status, answer.get("location")) == (308, location)


@pytest.mark.parametrize(
    ("status", "has_body"), [(200, True), (204, False), (304, False), (599, True)]
)
def test_fixed_answers_are_framed_right(status: int, has_body: bool, proxy: START) -> None:
    spec = app(routes=[route(respond=(status, "text\n"))], upstreams=[("api", [1])])
    running = proxy(spec=spec)
    with running.client() as client:
        for _ in range(2):
            answer = client.get()
            assert (answer.status, answer.body) == (status, b"text\n" if has_body else b"")
            assert (answer.get("content-length") is not None) == has_body
        assert client.get(method="HEAD").status == status
        assert client.get().status == status


def test_a_route_without_a_match_is_404(proxy: START) -> None:
    spec = app(routes=[route("/a", respond=(200, ""))], upstreams=[("api", [1])])
    running = proxy(spec=spec)
    with running.client() as client:
        assert client.get("/b").status == 404
        assert client.get("/a").status == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.10.99", "127.100.205.255"])
def test_a_clients_address_is_told_in_full(address: str, proxy: START, upstream: SERVE) -> None:
    served = upstream()
    running = proxy(served.port)
    with socket.create_connection(
        ("127.0.0.1", running.port), SECONDS, source_address=(address, 0)
    ) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert served.next().get("x-forwarded-for") == address


def test_trace_and_options_go_as_far_as_they_may(proxy: START, upstream: SERVE) -> None:
    """RFC 9110 7.6.2: one hop less each time, and none beyond the last."""
    served = upstream()
    running = proxy(served.port)
    with running.client() as client:
        for method in ("OPTIONS", "TRACE"):
            assert client.get(method=method, fields="max-forwards: 3\r\n").status == 200
            assert served.next().get("max-forwards") == "2"
        assert client.get(fields="max-forwards: 0\r\n").status == 200
        assert served.next().get("max-forwards") == "0"
        answer = client.get(method="OPTIONS", fields="Max-Forwards: 0\r\n")
        assert (answer.status, answer.body, answer.get("connection")) == (200, b"", None)
        assert client.get(method="TRACE", fields="Max-Forwards: 0\r\n").status == 501
    assert served.seen.empty()


@pytest.mark.parametrize(
    ("fields", "kept"), [("", None), ("date: Tue, 15 Nov 1994\r\n", "Tue, 15")]
)
def test_an_answer_without_a_date_gets_one(
    fields: str, kept: str | None, proxy: START, upstream: SERVE
) -> None:
    """RFC 9110 6.6.1: who forwards it, with a clock, adds what is missing; never a second one."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.answer(fields=fields)

    with proxy(upstream(script).port).client() as client:
        date = client.get().get("date")
        assert date is not None
        assert date.startswith(kept) if kept else date.endswith(" GMT")
