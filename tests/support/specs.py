"""App specs for tests, complete and short to ask for."""

from __future__ import annotations

import dataclasses

from dataplane.model.spec import (
    AppSpec,
    EndpointSpec,
    HeaderEdits,
    LimitsSpec,
    ListenerSpec,
    MatchSpec,
    RespondSpec,
    RouteSpec,
    TimeoutsSpec,
    UpstreamSpec,
)

NO_EDITS = HeaderEdits(set=(), remove=())
ANYTHING = MatchSpec(host=None, path="/", methods=(), headers=())


def route_to(upstream: str, match: MatchSpec = ANYTHING) -> RouteSpec:
    return RouteSpec(
        match=match,
        upstream=upstream,
        redirect=None,
        respond=None,
        request_timeout_ms=5000,
        request_headers=NO_EDITS,
        response_headers=NO_EDITS,
    )


def route_answering(body: str, match: MatchSpec = ANYTHING) -> RouteSpec:
    answer = RespondSpec(status=200, body=body)
    return dataclasses.replace(route_to("", match), upstream=None, respond=answer)


def upstream(name: str, *ports: int) -> UpstreamSpec:
    return UpstreamSpec(
        name=name,
        balance="round_robin",
        endpoints=tuple(EndpointSpec(address="127.0.0.1", port=port) for port in ports),
        connect_timeout_ms=1000,
        keepalive=16,
    )


def app_spec(
    *routes: RouteSpec,
    upstreams: tuple[UpstreamSpec, ...] = (),
    listener: str = "web",
    drain_deadline_ms: int = 5000,
) -> AppSpec:
    """One http listener with these routes; without any, every request is answered "ok"."""
    return AppSpec(
        version=1,
        app="billing",
        listeners=(
            ListenerSpec(name=listener, bind="127.0.0.1:0", protocol="http", upstream=None),
        ),
        routes=routes or (route_answering("ok"),),
        upstreams=upstreams,
        timeouts=TimeoutsSpec(
            header_ms=10_000, body_idle_ms=30_000, idle_ms=60_000, tunnel_idle_ms=3_600_000
        ),
        limits=LimitsSpec(connections=10_000, header_bytes=32_768, headers=100, body_bytes=0),
        drain_deadline_ms=drain_deadline_ms,
        ready_deadline_ms=5000,
        workers=1,
    )
