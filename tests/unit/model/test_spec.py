"""The spec's JSON: canonical, complete, and strictly read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from dataplane.model.spec import (
    AppSpec,
    EndpointSpec,
    HeaderEdits,
    LimitsSpec,
    ListenerSpec,
    MatchSpec,
    RespondSpec,
    RouteSpec,
    SpecError,
    TimeoutsSpec,
    UpstreamSpec,
    decode,
)

NO_EDITS = HeaderEdits(set=(), remove=())
SPEC = AppSpec(
    version=1,
    app="billing",
    listeners=(ListenerSpec(name="web", bind="127.0.0.1:8080", protocol="http", upstream=None),),
    routes=(
        RouteSpec(
            match=MatchSpec(
                host="*.example.com", path="/", methods=("GET",), headers=(("x-beta", "1"),)
            ),
            upstream="api",
            redirect=None,
            respond=None,
            request_timeout_ms=30_000,
            request_headers=HeaderEdits(set=(("x-app", "billing"),), remove=("x-internal",)),
            response_headers=NO_EDITS,
        ),
        RouteSpec(
            match=MatchSpec(host=None, path="/healthz", methods=(), headers=()),
            upstream=None,
            redirect=None,
            respond=RespondSpec(status=200, body="grüß dich\n"),
            request_timeout_ms=30_000,
            request_headers=NO_EDITS,
            response_headers=NO_EDITS,
        ),
    ),
    upstreams=(
        UpstreamSpec(
            name="api",
            balance="least_request",
            endpoints=(EndpointSpec(address="::1", port=9001),),
            connect_timeout_ms=1000,
            keepalive=64,
        ),
    ),
    timeouts=TimeoutsSpec(header_ms=1, body_idle_ms=2, idle_ms=3, tunnel_idle_ms=4),
    limits=LimitsSpec(connections=1, header_bytes=1024, headers=3, body_bytes=0),
    drain_deadline_ms=30_000,
    ready_deadline_ms=5_000,
    workers=1,
)


def test_json_gives_back_the_same_spec() -> None:
    assert AppSpec.from_json(SPEC.to_json()) == SPEC


def test_json_is_canonical() -> None:
    told = SPEC.to_json()
    value = json.loads(told)
    again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert told == again.encode()
    assert b"gr\xc3\xbc\xc3\x9f dich" in told


def changed(path: str, value: object) -> bytes:
    """The spec's JSON with one place changed; a value of `...` removes it."""
    document: Any = json.loads(SPEC.to_json())
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place[int(step)] if step.isdecimal() else place[step]
    if value is ...:
        del place[last]
    else:
        place[int(last) if last.isdecimal() else last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 2, "spec.version: 2 is not one of (1,)"),
        ("version", True, "spec.version: True is not one of"),
        ("workers", ..., "spec: missing workers"),
        ("workers", "1", "spec.workers: expected int, got str"),
        ("workers", True, "spec.workers: expected int, got bool"),
        ("workers", 1.0, "spec.workers: expected int, got float"),
        ("extra", 1, "spec: unknown extra"),
        ("listeners", {}, "spec.listeners: expected a list"),
        ("listeners.0.protocol", "udp", "spec.listeners[0].protocol: 'udp' is not one of"),
        ("listeners.0.upstream", ..., "spec.listeners[0]: missing upstream"),
        ("routes.0.match", None, "spec.routes[0].match: expected an object"),
        ("routes.0.match.headers.0", ["x"], "headers[0]: expected 2 items, got 1"),
        ("routes.0.match.headers.0", "xy", "headers[0]: expected a list"),
        ("upstreams.0.endpoints.0.port", None, "endpoints[0].port: expected int, got NoneType"),
        ("upstreams.0.endpoints.0", [], "endpoints[0]: expected an object, got list"),
    ],
)
def test_what_is_not_a_spec_is_refused_with_its_place(
    path: str, value: object, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        AppSpec.from_json(changed(path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff"])
def test_what_is_not_even_json_is_refused(data: bytes) -> None:
    with pytest.raises(SpecError):
        AppSpec.from_json(data)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.workers = 2  # type: ignore[misc]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """A kind of object that got a field after its first release."""

    old: int
    new: str = "as before"


def test_spec_of_before_access_logs_has_none() -> None:
    older = json.loads(SPEC.to_json())
    del older["access_log"]
    assert AppSpec.from_json(json.dumps(older).encode()) == SPEC
    assert SPEC.access_log.format == "none"


def test_field_that_came_later_may_be_missing() -> None:
    assert decode(Grown, {"old": 1}, "grown") == Grown(old=1)
    assert decode(Grown, {"old": 1, "new": "told"}, "grown") == Grown(old=1, new="told")


def test_field_that_was_always_there_may_not() -> None:
    with pytest.raises(SpecError, match="missing old"):
        decode(Grown, {"new": "told"}, "grown")
