"""Tells the engine an app's upstreams, and what it says of them in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

from dataplane.engine._native import ffi, lib
from dataplane.engine.errors import EngineError, check
from dataplane.model.spec import HealthSpec, RetriesSpec, UpstreamSpec

EVENTS: Final = {
    lib.DP_EVENT_DOWN: "down",
    lib.DP_EVENT_UP: "up",
    lib.DP_EVENT_EJECTED: "ejected",
    lib.DP_EVENT_LOST: "lost",
}
_BALANCES: Final = {
    "round_robin": lib.DP_ROUND_ROBIN,
    "least_request": lib.DP_LEAST_REQUEST,
    "p2c": lib.DP_P2C,
    "maglev": lib.DP_MAGLEV,
}
_KEYS: Final = {
    "source": lib.DP_BY_SOURCE,
    "header": lib.DP_BY_HEADER,
    "cookie": lib.DP_BY_COOKIE,
}
_CAUSES: Final = {"connect-failure": lib.DP_ON_CONNECT_FAILURE, "reset": lib.DP_ON_RESET}
_PROXY: Final = {None: 0, "v1": 1, "v2": 2}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamEvent:
    """What happened to an endpoint. kind "lost": more happened at once than could be told."""

    kind: str  # "down", "up", "ejected", "lost"
    upstream: str
    endpoint: str  # its address, as in the config


def add_upstream(engine: Any, upstream: UpstreamSpec) -> int:
    """Adds it with its endpoints and its check; returns its index. Raises `EngineError`."""
    where = f"upstream {upstream.name}"
    texts = []

    def text(value: str | None) -> Any:
        if value is None:
            return ffi.NULL
        texts.append(ffi.new("char[]", value.encode()))
        return texts[-1]

    options = ffi.new("dp_upstream_options *")
    options.name = text(upstream.name)
    options.endpoints = len(upstream.endpoints)
    options.balance = _BALANCES[upstream.balance]
    if upstream.key is not None:
        options.key = _KEYS[upstream.key.by]
        options.key_name = text(upstream.key.name)
    options.sticky = text(upstream.sticky_cookie)
    options.connect_timeout_ms = upstream.connect_timeout_ms
    options.keepalive = upstream.keepalive
    options.max_connections = upstream.max_connections
    options.max_waiting = upstream.max_waiting
    if upstream.ejection is not None:
        options.eject_failures = upstream.ejection.failures
        options.eject_ms = upstream.ejection.for_ms
        options.eject_server_errors = upstream.ejection.server_errors
    options.slow_start_ms = upstream.slow_start_ms
    options.proxy_protocol = _PROXY[upstream.proxy_protocol]
    index = check(lib.dp_upstream_add(engine, options), where)
    for endpoint in upstream.endpoints:
        address = endpoint.address.encode()
        check(
            lib.dp_endpoint_add(engine, index, address, endpoint.port, endpoint.weight),
            f"{where}, endpoint {endpoint.text}",
        )
    if upstream.health is not None:
        _add_check(engine, index, upstream.health, where)
    return index


def _add_check(engine: Any, upstream: int, health: HealthSpec, where: str) -> None:
    texts = [
        ffi.NULL if value is None else ffi.new("char[]", value.encode())
        for value in (health.path, health.host)
    ]
    options = ffi.new("dp_health_options *")
    options.path, options.host = texts
    options.interval_ms = health.interval_ms
    options.timeout_ms = health.timeout_ms
    options.fall = health.fall
    options.rise = health.rise
    options.status_min = health.status_min
    options.status_max = health.status_max
    check(lib.dp_upstream_check(engine, upstream, options), f"{where}: health")


def add_retries(engine: Any, route: int, retries: RetriesSpec, where: str) -> None:
    """Says when the route's requests are sent again. Raises `EngineError`."""
    numbers = [int(cause) for cause in retries.on if cause not in _CAUSES]
    statuses = ffi.new("uint16_t[]", numbers)
    options = ffi.new("dp_retry_options *")
    options.attempts = retries.attempts
    options.causes = sum(_CAUSES[cause] for cause in retries.on if cause in _CAUSES)
    options.statuses, options.status_count = statuses, len(numbers)
    options.methods = method_bits(retries.methods, where)
    options.budget_percent = retries.budget_percent
    check(lib.dp_route_retry(engine, route, options), f"{where}: retries")


def method_bits(methods: Iterable[str], where: str) -> int:
    """The engine's set of these methods. Raises `EngineError` for one it does not know."""
    bits = 0
    for method in methods:
        bit = lib.dp_method_bit(method.encode(), len(method.encode()))
        if not bit:
            raise EngineError(f"{where}: method {method}", lib.DP_EMETHOD)
        bits |= bit
    return bits
