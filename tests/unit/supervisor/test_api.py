"""The supervisor's calls: who may, what is refused, and that the document says the same."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from dataplane.control.http import Peer, Request, Response
from dataplane.supervisor.api import OPERATIONS, Api
from dataplane.supervisor.desk import Desk, Standing
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import Fleet, Wish
from dataplane.supervisor.history import History
from dataplane.supervisor.images import Images
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.openapi import document
from dataplane.supervisor.planning import Planning
from dataplane.supervisor.rollouts import Rollouts
from dataplane.supervisor.wanted import Wanted
from dataplane.system.clock import SystemClock

US = Peer(pid=1, uid=os.geteuid(), gid=0)
STRANGER = Peer(pid=1, uid=os.geteuid() + 4711, gid=0)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Of a supervisor that runs nothing: what begins a rollout would fail here."""
    events = Events(SystemClock(), lambda _: None)
    return Desk(
        fleet=Fleet(),
        rollouts=cast(Rollouts, None),
        wanted=Wanted(tmp_path / "apps.json", events),
        images=cast(Images, None),
        history=History(tmp_path / "history", clock=SystemClock(), events=events),
        events=events,
    )


def call(
    desk: Desk, method: str, path: str, body: Any = None, peer: Peer = US, **query: str
) -> tuple[Response, Any]:
    """The answer, and its body as JSON."""
    events = Events(SystemClock(), lambda _: None)
    api = Api(
        desk=desk,
        planning=cast(Planning, None),
        fleet=Fleet(),
        logs=cast(Logs, None),
        events=events,
        default_wish=Wish(config_dir=Path("/nowhere")),
        allow_faults=False,
    )
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    request = Request(method=method, path=path, query=query, body=raw, peer=peer)
    answer = asyncio.run(api.respond(request))
    return answer, json.loads(answer.body) if "json" in answer.content_type else None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/apps", 200),
        ("GET", "/healthz", 200),
        ("GET", "/version", 200),
        ("GET", "/metrics", 200),
        ("GET", "/readyz", 503),
        ("GET", "/", 404),
        ("GET", "/v1/apps/", 404),
        ("GET", "/v1/apps/none", 404),
        ("GET", "/v1/apps/No%2F", 404),
        ("POST", "/v1/apps/none/swap", 404),
        ("POST", "/v1/apps/none/rollback", 404),
        ("POST", "/v1/apps/none/stop", 404),
        ("GET", "/v1/apps/none/history", 404),
        ("DELETE", "/v1/apps/none", 405),
    ],
)
def test_status(desk: Desk, method: str, path: str, status: int) -> None:
    answer, _ = call(desk, method, path)
    assert answer.status == status
    assert (status >= 400) == (answer.content_type == "application/problem+json")


def test_method_that_is_not_for_a_path_names_those_that_are(desk: Desk) -> None:
    answer, _ = call(desk, "DELETE", "/v1/apps/none")
    assert answer.headers == (("allow", "GET, PUT"),)


def test_ready_turns_red_before_anything_is_stopped(desk: Desk) -> None:
    desk.standing = Standing.UP
    assert call(desk, "GET", "/readyz")[0].status == 200
    desk.standing = Standing.STOPPING
    assert call(desk, "GET", "/readyz")[0].status == 503
    answer, told = call(desk, "PUT", "/v1/apps/billing")
    assert (answer.status, told["detail"]) == (409, "the supervisor is stopping")


def test_stranger_may_read_and_change_nothing(desk: Desk) -> None:
    assert call(desk, "GET", "/v1/apps", peer=STRANGER)[0].status == 200
    for operation, _ in OPERATIONS:
        if operation.method != "GET":
            path = re.sub(r"{\w+}", "billing", operation.path)
            assert call(desk, operation.method, path, peer=STRANGER)[0].status == 403


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 5000,
        b"\xff",
        [],
        {"imagee": "sha256:0"},
        {"image": 3},
        {"image": "sha256:0"},
        {"force": "yes"},
        {"config_dir": "relative"},
        {"environment": {"A": 1}},
        {"faults": ["crash-before-ready"]},
    ],
)
def test_body_that_is_not_understood_is_refused(desk: Desk, body: Any) -> None:
    answer, told = call(desk, "PUT", "/v1/apps/billing", body)
    assert (answer.status, told["title"]) == (422, "Unprocessable Entity")


@pytest.mark.parametrize("path", ["/v1/plan", "/v1/apply"])
@pytest.mark.parametrize(
    "body",
    [b"{", [], {"app": "billing"}, {"config_dir": "relative"}, {"environment": {"A": 1}},
     {"plan": 3}],
)  # fmt: skip
def test_plan_that_is_not_understood_is_refused(desk: Desk, path: str, body: Any) -> None:
    assert call(desk, "POST", path, body)[0].status == 422


def test_wait_for_what_is_no_moment_is_refused(desk: Desk) -> None:
    assert call(desk, "PUT", "/v1/apps/billing", wait="never")[0].status == 422


def test_document_describes_every_call_and_its_schemas_are_sound(desk: Desk) -> None:
    _, told = call(desk, "GET", "/v1/openapi.json")
    assert told["openapi"] == "3.1.0"
    described = {(path, method) for path, calls in told["paths"].items() for method in calls}
    assert described == {(one.path, one.method.lower()) for one, _ in OPERATIONS}
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(told)):
        assert name in told["components"]["schemas"]
    for path, calls in told["paths"].items():
        for one in calls.values():
            named = {known["name"] for known in one.get("parameters", ()) if known["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
    assert told == document(operation for operation, _ in OPERATIONS)
