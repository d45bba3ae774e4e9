"""What an app does with requests: routes, edits, forwarded fields, own answers, bodies."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.support.dataplane import Dataplane, app_config, tcp_config
from tests.support.load import Load, token_upstream
from tests.support.origin import Origin, echoing, parroting
from tests.support.sanitised import measures
from tests.support.wire import Message, Wire, request


def to(upstream: str) -> dict[str, Any]:
    """A route's way to an upstream that can tell by which one it was reached."""
    return {"upstream": upstream, "request_headers": {"set": {"x-came-to": upstream}}}


ROUTES: Final[list[dict[str, Any]]] = [
    {"match": {"host": "shop.example", "path": "/"}, **to("shop")},
    {"match": {"host": "*.shop.example"}, "respond": {"status": 200, "body": "any shop"}},
    {"match": {"path": "/api/", "methods": ["DELETE"]}, "respond": {"status": 405, "body": "no"}},
    {"match": {"path": "/api/", "headers": {"x-beta": "1"}}, **to("shop")},
    {"match": {"path": "/api/"}, **to("api")},
    {"match": {"path": "/api/exact"}, "respond": {"status": 200, "body": "exact"}},
    {"match": {"path": "/old/"}, "redirect": {"to": "/new/", "status": 308}},
    {"match": {"path": "/away"}, "redirect": {"to": "https://example.com/", "status": 301}},
    {"match": {"path": "/healthz"}, "respond": {"status": 200, "body": "ok\n"}},
    {
        "match": {"path": "/edited"},
        "upstream": "api",
        "request_headers": {"set": {"x-app": "billing"}, "remove": ["x-internal"]},
        "response_headers": {"set": {"x-frame-options": "DENY"}, "remove": ["server-timing"]},
    },
]


@pytest.fixture
def client(plane: Dataplane) -> Iterator[Wire]:
    """A connection to an app with all these routes; both upstreams tell what they were sent."""
    with Origin(echoing) as api, Origin(echoing) as shop:
        config = app_config()
        config["routes"] = ROUTES
        config["upstreams"] = {
            "api": {"endpoints": [api.address]},
            "shop": {"endpoints": [shop.address], "balance": "least_request"},
        }
        plane.configure(config)
        plane.start()
        with Wire.connect(plane.address()) as wire:
            yield wire


def came_to(answer: Message) -> str:
    """Which upstream got it: each route says so in the request."""
    assert answer.status == 200, answer
    return dict(fields_of(answer))["x-came-to"]


def fields_of(answer: Message) -> list[tuple[str, str]]:
    """What the upstream was sent."""
    return [(name, value) for name, value in json.loads(answer.body)["fields"]]


def test_most_specific_route_takes_the_request(client: Wire) -> None:
    assert came_to(client.get("/api/one")) == "api"
    assert came_to(client.get("/any/where", host="shop.example")) == "shop"
    assert client.get("/x", host="www.shop.example:8080").body == b"any shop"
    assert client.get("/api/exact").body == b"exact"
    assert came_to(client.get("/api/exact/not")) == "api"
    assert came_to(client.get("/api/two", "x-beta: 1")) == "shop"
    assert came_to(client.get("/api/three", "x-beta: 2")) == "api"
    client.send(request("/api/four", method="DELETE"))
    assert client.answer().status == 405
    assert client.get("/nowhere").status == 404


def test_redirects_and_fixed_responses_need_no_upstream(client: Wire) -> None:
    moved = client.get("/old/a/b?c=d")
    assert (moved.status, moved.field("location")) == (308, "/new/a/b?c=d")
    away = client.get("/away")
    assert (away.status, away.field("location")) == (301, "https://example.com/")
    assert client.get("/healthz").body == b"ok\n"
    client.send(request("/healthz", method="HEAD"))
    head = client.answer(to_head=True)
    assert (head.status, head.field("content-length"), head.body) == (200, "3", b"")


def test_fields_are_edited_both_ways(client: Wire) -> None:
    answer = client.get("/edited", "x-internal: believe me", "x-app: mine")
    sent = dict(fields_of(answer))
    assert sent["x-app"] == "billing"
    assert "x-internal" not in sent
    assert answer.field("x-frame-options") == "DENY"


def test_forwarded_fields_are_set_and_hop_by_hop_ones_stay_here(client: Wire) -> None:
    answer = client.get(
        "/api/",
        "connection: keep-alive, x-named",
        "x-named: by connection",
        "keep-alive: timeout=5",
        "te: gzip;q=0.5",
        "proxy-connection: keep-alive",
        "x-forwarded-for: 10.0.0.1",
        "x-forwarded-proto: https",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "accept: a",
        "accept: b",
    )
    sent = fields_of(answer)
    names = [name for name, _ in sent]
    assert not {"connection", "x-named", "keep-alive", "proxy-connection", "te"} & set(names)
    once = dict(sent)
    assert once["host"] == "test"
    assert once["x-forwarded-host"] == "test"
    assert once["x-forwarded-proto"] == "http"
    assert once["x-forwarded-for"] == "127.0.0.1"  # nobody's word is taken for it
    assert names.count("x-forwarded-for") == 1
    assert len(once["x-request-id"]) >= 16
    assert once["traceparent"].startswith("00-4bf92f35")
    assert [value for name, value in sent if name == "accept"] == ["a", "b"]


def test_expect_continue_gets_its_answer(client: Wire) -> None:
    client.send(request("/api/", "content-length: 4", "expect: 100-continue", method="POST"))
    assert client.head()[0].startswith("HTTP/1.1 100")
    client.send(b"body")
    assert client.answer().status == 200


def test_bodies_pass_whole_and_both_ways(plane: Dataplane, load_tools: None) -> None:
    """By length, chunked and until close; small and beyond every buffer; each byte is checked."""
    with token_upstream() as port:
        plane.configure(app_config(port))
        plane.start()
        for words in (
            ("--path", "/b/0"),
            ("--path", "/b/3000000", "--requests", "20"),
            ("--path", "/c/700001", "--requests", "20"),
            ("--path", "/b/10", "--body-bytes", "500000", "--requests", "20"),
            ("--path", "/b/10", "--body-bytes", "300000", "--body-chunked", "--requests", "20"),
            ("--path", "/u/100000", "--mode", "per-request", "--requests", "20"),
        ):
            upload = ("--method", "POST") if "--body-bytes" in words else ()
            count = () if "--requests" in words else ("--requests", "200")
            options = ("--connections", "4", "--verify-body", *words, *upload, *count)
            with Load(plane.address(), *options) as running:
                report = running.event("report")
            assert (report["failed"], report["first_failures"]) == (0, []), words
            assert report["ok"] > 0


@measures("memory")
def test_slow_reader_never_grows_the_worker(plane: Dataplane, load_tools: None) -> None:
    """Backpressure: what the client does not take stays at the upstream."""
    with token_upstream() as port:
        plane.configure(app_config(port))
        plane.start()
        with Wire.connect(plane.address()) as small:
            small.get("/b/10", "x-token: a")
            before = plane.workers()[0]["memory_bytes"]
            slow = []
            for _ in range(8):
                wire = Wire.connect(plane.address())
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                wire.send(request("/b/200000000", "x-token: a"))
                wire.head()
                slow.append(wire)
            for _ in range(50):  # the others are served meanwhile
                assert small.get("/b/10", "x-token: a").status == 200
            grown = plane.workers()[0]["memory_bytes"] - before
            for wire in slow:
                wire.close()
        assert grown < 8 * 1024 * 1024, grown


def test_tcp_carries_bytes_both_ways_and_their_ends(plane: Dataplane) -> None:
    sent = bytes(range(256)) * 4096
    with Origin(parroting) as origin:
        plane.configure(tcp_config(origin.port))
        plane.start()
        with Wire.connect(plane.address()) as client:

            def give() -> None:
                client.send(sent)
                client.sock.shutdown(socket.SHUT_WR)

            giving = threading.Thread(target=give)
            giving.start()
            assert client.exactly(len(sent)) == sent
            giving.join(10)
            assert client.at_end()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_is_content(plane: Dataplane) -> None:
    """A client that we did not write: over one connection, with a body, following a redirect."""
    with Origin(echoing) as origin:
        config = app_config(origin.port)
        config["routes"].append({"match": {"path": "/old"}, "redirect": {"to": "/"}})
        plane.configure(config)
        plane.start()
        place = "http://{}:{}".format(*plane.address())
        words = ["curl", "-sS", "--fail", "--max-time", "10", "-L", "-w", "%{http_code} "]
        ran = subprocess.run(
            [*words, "-o", "/dev/null", "-d", "a=b", f"{place}/one", "-o", "/dev/null",
             f"{place}/old"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "200 200 ", "")
