"""Upstreams and retries of a config file: what the schema cannot say of them, and their spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from dataplane.image.check import place_of
from dataplane.image.document import Mapping
from dataplane.image.typed import Place
from dataplane.image.values import (
    IDEMPOTENT,
    duration_ms,
    endpoint_address,
    host_pattern,
    join_address,
    share_percent,
    status_range,
)
from dataplane.model.spec import (
    EjectionSpec,
    EndpointSpec,
    HealthSpec,
    KeySpec,
    RetriesSpec,
    UpstreamSpec,
)

_SOURCE: Final = KeySpec(by="source", name=None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One finding, at a place of the file."""

    place: Place
    message: str
    hint: str | None
    key: bool = False  # it is about the key there, and not about its value


def upstream_faults(
    node: Mapping, place: Place, upstream: dict[str, Any], tunnelled: bool
) -> Iterator[Fault]:
    """What is wrong in one upstream. The value lacks what was found faulty before.

    `tunnelled`: a tcp listener leads to it, where no request can be looked into.
    """
    yield from _endpoint_faults(node, (*place, "endpoints"), upstream.get("endpoints") or [])
    if "key" in upstream and upstream.get("balance") not in (None, "maglev"):
        message = f"{upstream['balance']} needs no key"
        yield Fault(place=(*place, "key"), message=message, hint="balance: maglev", key=True)
    needs_requests = [name for name in ("sticky",) if name in upstream]
    if isinstance(upstream.get("key"), dict):
        needs_requests.append("key")
    for name in needs_requests if tunnelled else ():
        message = f"{name}: a tcp listener leads here, and sees no requests"
        hint = "key: source" if name == "key" else "remove it, or balance: maglev"
        yield Fault(place=(*place, name), message=message, hint=hint, key=True)
    if (health := upstream.get("health")) is not None:
        yield from _health_faults(node, (*place, "health"), health)


def _health_faults(node: Mapping, place: Place, health: dict[str, Any]) -> Iterator[Fault]:
    written = place_of(node, place)
    has_path = isinstance(written, Mapping) and "path" in written.values  # be it faulty
    if health.get("tcp") and has_path:
        message = "a health check has a path or tcp: true, not both"
        yield Fault(place=(*place, "tcp"), message=message, hint="remove one", key=True)
    elif not health.get("tcp", True) and not has_path:
        message = "a health check needs a path"
        yield Fault(place=place, message=message, hint="path: /healthz, or tcp: true", key=True)
    interval, timeout = health.get("interval"), health.get("timeout")
    if interval and timeout and duration_ms(timeout) > duration_ms(interval):
        message = f"a timeout of {timeout} is longer than the interval"
        hint = f"{interval} is the longest"
        yield Fault(place=(*place, "timeout"), message=message, hint=hint)


def _endpoint_faults(
    node: Mapping, place: Place, endpoints: list[str | dict[str, Any] | None]
) -> Iterator[Fault]:
    seen: dict[tuple[str, int], int] = {}
    for index, endpoint in enumerate(endpoints):
        text = endpoint.get("address") if isinstance(endpoint, dict) else endpoint
        if text is None:
            continue
        address = endpoint_address(text)
        if address in seen:
            line = place_of(node, (*place, seen[address])).line
            message = f"endpoint {join_address(*address)} is here twice"
            hint = f"it stands in line {line} already"
            yield Fault(place=(*place, index), message=message, hint=hint)
        seen.setdefault(address, index)


def upstream_spec(name: str, value: dict[str, Any]) -> UpstreamSpec:
    """The spec of one without faults."""
    sticky = value.get("sticky")
    return UpstreamSpec(
        name=name,
        balance=value["balance"],
        endpoints=tuple(map(_endpoint, value["endpoints"])),
        connect_timeout_ms=duration_ms(value["connect_timeout"]),
        keepalive=value["keepalive"],
        key=_key(value.get("key")) if value["balance"] == "maglev" else None,
        sticky_cookie=None if sticky is None else sticky["cookie"],
        max_connections=value["max_connections"],
        max_waiting=value["max_waiting"],
        ejection=EjectionSpec(
            failures=value["ejection"]["failures"],
            for_ms=duration_ms(value["ejection"]["for"]),
            server_errors=value["ejection"]["server_errors"],
        ),
        slow_start_ms=duration_ms(value["slow_start"]),
        health=_health(value.get("health")),
        proxy_protocol=value.get("proxy_protocol"),
    )


def _endpoint(value: str | dict[str, Any]) -> EndpointSpec:
    text, weight = (value["address"], value["weight"]) if isinstance(value, dict) else (value, 1)
    address, port = endpoint_address(text)
    return EndpointSpec(address=address, port=port, weight=weight)


def _key(value: str | dict[str, str] | None) -> KeySpec:
    if not isinstance(value, dict):
        return _SOURCE
    if "header" in value:
        return KeySpec(by="header", name=value["header"].lower())
    return KeySpec(by="cookie", name=value["cookie"])


def _health(value: dict[str, Any] | None) -> HealthSpec | None:
    if value is None:
        return None
    least, most = status_range(value["expect"])
    host = value.get("host")
    return HealthSpec(
        path=None if value["tcp"] else value["path"],
        host=None if host is None else host_pattern(host),
        interval_ms=duration_ms(value["interval"]),
        timeout_ms=duration_ms(value["timeout"]),
        fall=value["fall"],
        rise=value["rise"],
        status_min=least,
        status_max=most,
    )


def retries_spec(value: dict[str, Any] | None) -> RetriesSpec | None:
    """A route's retries; None where it says nothing."""
    if value is None:
        return None
    return RetriesSpec(
        attempts=value["attempts"],
        on=tuple(sorted(value["on"])),
        budget_percent=share_percent(value["budget"]),
        methods=tuple(sorted({*IDEMPOTENT, *value["methods"]})),
    )
