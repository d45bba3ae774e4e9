"""Clients that send what is no request, and upstreams that give what is no answer.

Each gets the status that the contract names, with a line that says why; nobody else notices.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from dataplane.engine.parser import Verdict
from tests.conformance.heads import REQUESTS, Refused
from tests.support.dataplane import APP, Dataplane, app_config, eventually
from tests.support.origin import (
    Origin,
    Script,
    answering,
    garbage,
    never,
    resetting,
    resetting_mid_answer,
)
from tests.support.rig import unused_port
from tests.support.wire import Message, Wire, request

STATUS: Final = {
    Verdict.MALFORMED: 400,
    Verdict.TOO_BIG: 431,
    Verdict.TARGET: 414,
    Verdict.CODING: 501,
    Verdict.METHOD: 501,
    Verdict.EXPECT: 417,
    Verdict.VERSION: 505,
}


def claim_own_answer(answer: Message, status: int) -> None:
    """One of the proxy's own: a status, and one line that says why."""
    assert answer.status == status, answer
    assert answer.field("content-type") == "text/plain"
    assert answer.field("server") == "dataplane"
    assert answer.body.count(b"\n") <= 1
    assert answer.body.strip()


# --- clients ----------------------------------------------------------------------------------


def test_malformed_request_never_reaches_an_upstream(plane: Dataplane) -> None:
    """Every head that the conformance tables refuse, over a socket; beside it another client."""
    limits = {"header_bytes": "4KiB", "headers": 32}
    with Origin(answering(b"whole")) as origin:
        plane.configure(app_config(origin.port, limits=limits, timeouts={"header": "2s"}))
        plane.start()
        cases = [case for case in REQUESTS if isinstance(case, Refused)]
        assert len(cases) > 50
        wrong = []
        with Wire.connect(plane.address()) as other:
            assert other.get().status == 200
            for case in cases:
                with Wire.connect(plane.address()) as client:
                    # What comes after is of no matter, so that none may wait for more.
                    client.send(case.data + b"\r\n\r\n" + request("/smuggled"))
                    answer = client.answer()
                    if answer.status != STATUS[case.verdict] or not client.at_end():
                        wrong.append((case.name, case.section, answer.status))
            assert other.get().status == 200
        assert not wrong
        assert [asked.start for asked in origin.requests] == ["GET / HTTP/1.1"] * 2


def test_head_too_large_is_told_and_the_connection_ends(plane: Dataplane) -> None:
    with beside(plane, limits={"header_bytes": "2KiB", "headers": 20}) as origin:
        for fields in ([f"x-large: {'a' * 3000}"], [f"x-{number}: 1" for number in range(40)]):
            with Wire.connect(plane.address()) as client:
                client.send(request("/", *fields))
                claim_own_answer(client.answer(), 431)
                assert client.at_end()
        with Wire.connect(plane.address()) as client:
            client.send(request("/" + "a" * 1500))
            assert client.answer().status in (200, 414)
        with Wire.connect(plane.address()) as client:
            # Without an end in sight: refused when the limit is reached, not kept.
            with contextlib.suppress(OSError):
                client.send(b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000)
            claim_own_answer(client.answer(), 431)
        assert not [asked for asked in origin.requests if asked.values("x-large")]


def test_body_too_large_is_told(plane: Dataplane) -> None:
    with beside(plane, limits={"body_bytes": "1KiB"}):
        with Wire.connect(plane.address()) as client:
            client.send(request("/", "content-length: 2000", method="POST"))
            claim_own_answer(client.answer(), 413)
        with Wire.connect(plane.address()) as client:
            client.send(request("/", "content-length: 1000", method="POST") + b"a" * 1000)
            assert client.answer().status == 200


def test_head_too_slow_is_told_and_the_connection_ends(plane: Dataplane) -> None:
    """However busily the bytes trickle, the deadline is the whole head's."""
    slow = {"header": "400ms", "idle": "30s"}
    with beside(plane, timeouts=slow), Wire.connect(plane.address()) as client:
        client.sock.settimeout(0.05)
        began = time.monotonic()
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n")
        answered = b""
        while not answered:
            assert time.monotonic() - began < 5
            with contextlib.suppress(OSError):
                client.send(b"x: 1\r\n")
            with contextlib.suppress(TimeoutError):
                answered = client.exactly(12)
        assert answered == b"HTTP/1.1 408"
        assert time.monotonic() - began >= 0.35


def test_idle_connection_is_closed_after_its_time_without_a_word(plane: Dataplane) -> None:
    with beside(plane, timeouts={"idle": "300ms"}), Wire.connect(plane.address()) as client:
        assert client.get().status == 200
        assert client.at_end()


def test_request_that_no_route_takes_is_told_and_the_connection_goes_on(plane: Dataplane) -> None:
    plane.configure(
        {
            **app_config(),
            "routes": [{"match": {"path": "/only"}, "respond": {"status": 200, "body": "ok"}}],
        }
    )
    plane.start()
    with Wire.connect(plane.address()) as client:
        claim_own_answer(client.get("/other"), 404)
        assert client.get("/only").body == b"ok"


def test_connections_beyond_the_limit_are_refused_and_the_others_go_on(plane: Dataplane) -> None:
    plane.configure(app_config(limits={"connections": 2}))
    plane.start()
    with Wire.connect(plane.address()) as one, Wire.connect(plane.address()) as two:
        assert one.get().status == two.get().status == 200
        with Wire.connect(plane.address()) as beyond:
            beyond.send(request())
            assert beyond.rest().startswith((b"", b"HTTP/1.1 503"))
        assert one.get().status == two.get().status == 200
    eventually(lambda: plane.workers()[0]["connections"] == 0)
    with Wire.connect(plane.address()) as later:
        assert later.get().status == 200


# --- upstreams --------------------------------------------------------------------------------


def upstreams(plane: Dataplane, broken: int, whole: int) -> None:
    """/broken goes to the one, all else to the other."""
    config = app_config(whole)
    config["upstreams"]["broken"] = {"endpoints": [f"127.0.0.1:{broken}"]}
    route = {"match": {"path": "/broken"}, "upstream": "broken", "request_timeout": "500ms"}
    config["routes"].append(route)
    plane.configure(config)
    plane.start()


@pytest.mark.parametrize(("script", "status"), [(resetting, 502), (garbage, 502), (never, 504)])
def test_broken_upstream_is_told_and_disturbs_nobody(
    plane: Dataplane, script: Script, status: int
) -> None:
    with Origin(script) as broken, Origin(answering(b"whole")) as whole:
        upstreams(plane, broken.port, whole.port)
        with Wire.connect(plane.address()) as client, Wire.connect(plane.address()) as other:
            for _ in range(3):
                claim_own_answer(client.get("/broken"), status)
                assert other.get().body == b"whole"
                assert client.get().body == b"whole"  # its connection is whole, too


def test_upstream_that_refuses_is_told_and_disturbs_nobody(plane: Dataplane) -> None:
    with Origin(answering(b"whole")) as whole:
        upstreams(plane, unused_port(), whole.port)
        with Wire.connect(plane.address()) as client:
            for _ in range(3):
                answer = client.get("/broken")
                assert answer.status in (502, 503)
                claim_own_answer(answer, answer.status)
                assert client.get().body == b"whole"


def test_upstream_that_resets_in_mid_answer_ends_that_connection_alone(plane: Dataplane) -> None:
    """The head is out: the only honest word left is to cut, so that half is not taken for all."""
    with Origin(resetting_mid_answer) as broken, Origin(answering(b"whole")) as whole:
        upstreams(plane, broken.port, whole.port)
        with Wire.connect(plane.address()) as client, Wire.connect(plane.address()) as other:
            assert other.get().body == b"whole"
            client.send(request("/broken"))
            start, fields = client.head()
            assert start.startswith("HTTP/1.1 200")
            assert dict(fields)["content-length"] == "10"
            assert client.exactly(5) == b"half."
            broken.released.set()
            assert client.at_end()
            assert other.get().body == b"whole"
        assert plane.worker_pid()
        assert plane.workers()[0]["restarts"] == 0


def test_endpoint_that_is_down_leaves_the_others_to_serve(plane: Dataplane) -> None:
    with Origin(answering(b"up")) as up:
        plane.configure(app_config(unused_port(), up.port))
        plane.start()
        with Wire.connect(plane.address()) as client:
            answers = [client.get() for _ in range(6)]
        assert {answer.status for answer in answers} <= {200, 502, 503}
        assert [answer.body for answer in answers if answer.status == 200]


# --- means ------------------------------------------------------------------------------------


@contextlib.contextmanager
def beside(plane: Dataplane, **more: Any) -> Iterator[Origin]:
    """The app with these settings runs; in the end another client, there all along, is served."""
    with Origin(answering(b"whole")) as origin:
        plane.configure(app_config(origin.port, **more))
        plane.start()
        yield origin
        with Wire.connect(plane.address()) as other:
            assert other.get().body == b"whole"
        assert plane.report(APP)["generations"][0]["workers"][0]["restarts"] == 0
