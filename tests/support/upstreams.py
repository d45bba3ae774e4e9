"""Specs of apps whose one upstream has settings of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dataplane.model.spec import (
    AppSpec,
    EjectionSpec,
    EndpointSpec,
    HealthSpec,
    KeySpec,
    RetriesSpec,
)
from tests.support.engine import app

IDEMPOTENT = ("DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE")


def retries(
    *on: str, attempts: int = 2, budget: int = 100, methods: Sequence[str] = ()
) -> RetriesSpec:
    return RetriesSpec(
        attempts=attempts,
        on=tuple(sorted(on)),
        budget_percent=budget,
        methods=tuple(sorted((*IDEMPOTENT, *methods))),
    )


def ejection(failures: int = 3, ms: int = 200, *, server_errors: bool = False) -> EjectionSpec:
    return EjectionSpec(failures=failures, for_ms=ms, server_errors=server_errors)


def health(path: str | None = "/healthz", **fields: Any) -> HealthSpec:
    given: dict[str, Any] = {
        "interval_ms": 100,
        "timeout_ms": 100,
        "fall": 4,  # in a row: one that is well is never out for a busy moment
        "rise": 2,
        "status_min": 200,
        "status_max": 399,
    }
    return HealthSpec(path=path, host=None, **(given | fields))


def key(by: Any, name: str | None = None) -> KeySpec:
    return KeySpec(by=by, name=name)


def app_of(
    *ports: int | tuple[int, int] | EndpointSpec,
    again: RetriesSpec | None = None,
    connect_ms: int = 5000,
    keepalive: int = 64,
    timeout_ms: int = 10_000,
    **upstream: Any,
) -> AppSpec:
    """`ports` of 127.0.0.1, or (port, weight); `upstream` are fields of its spec."""
    spec = app((1,), connect_ms=connect_ms, keepalive=keepalive)
    endpoints = tuple(
        one
        if isinstance(one, EndpointSpec)
        else EndpointSpec(address="127.0.0.1", port=one)
        if isinstance(one, int)
        else EndpointSpec(address="127.0.0.1", port=one[0], weight=one[1])
        for one in ports
    )
    return dataclasses.replace(
        spec,
        upstreams=(dataclasses.replace(spec.upstreams[0], endpoints=endpoints, **upstream),),
        routes=tuple(
            dataclasses.replace(route, retries=again, request_timeout_ms=timeout_ms)
            for route in spec.routes
        ),
    )
