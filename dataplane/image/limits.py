"""Access, rates and limits of a config file: what the schema cannot say of them, and their spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dataplane.image.typed import Place
from dataplane.image.upstreams import Fault
from dataplane.image.values import duration_ms, network, size_bytes
from dataplane.model.spec import AccessSpec, LimitsSpec, RateSpec, TimeoutsSpec


def limits_faults(value: dict[str, Any], protocols: set[str]) -> Iterator[Fault]:
    """What is wrong with the limits of a whole file. It lacks what was found faulty before."""
    rates: list[tuple[Place, dict[str, Any]]] = [(("rate",), value.get("rate") or {})]
    for index, route in enumerate(value["routes"]):
        rates.append((("routes", index, "rate"), (route or {}).get("rate") or {}))
    for place, rate in rates:
        if rate.get("burst") and not rate.get("requests"):
            message = "a burst needs a rate: requests is 0, which is no limit"
            yield Fault(place=(*place, "burst"), message=message, hint="say requests: 100")
    if protocols != {"tcp"}:
        return
    if (value.get("rate") or {}).get("requests"):
        message = "requests are counted on http listeners, and this app has none"
        hint = "limits: {connections_per_source: ...} holds for tcp"
        yield Fault(place=("rate",), message=message, hint=hint, key=True)
    if (value.get("limits") or {}).get("requests"):
        message = "requests are counted on http listeners, and this app has none"
        yield Fault(place=("limits", "requests"), message=message, hint="remove it", key=True)


def access_spec(value: dict[str, Any] | None) -> AccessSpec | None:
    """None: all may come."""
    allow, deny = (_networks((value or {}).get(key, ())) for key in ("allow", "deny"))
    return AccessSpec(allow=allow, deny=deny) if allow or deny else None


def rate_spec(value: dict[str, Any] | None) -> RateSpec | None:
    """None: no limit."""
    if value is None or not value["requests"]:
        return None
    per = value["per"]
    return RateSpec(
        requests=value["requests"],
        burst=value["burst"],
        header=per["header"].lower() if isinstance(per, dict) else None,
    )


def limits_spec(value: dict[str, Any]) -> LimitsSpec:
    return LimitsSpec(
        connections=value["connections"],
        header_bytes=size_bytes(value["header_bytes"]),
        headers=value["headers"],
        body_bytes=size_bytes(value["body_bytes"]),
        connections_per_source=value["connections_per_source"],
        requests=value["requests"],
    )


def timeouts_spec(value: dict[str, Any]) -> TimeoutsSpec:
    return TimeoutsSpec(
        header_ms=duration_ms(value["header"]),
        body_idle_ms=duration_ms(value["body_idle"]),
        idle_ms=duration_ms(value["idle"]),
        tunnel_idle_ms=duration_ms(value["tunnel_idle"]),
        request_ms=duration_ms(value["request"]),
        send_ms=duration_ms(value["send"]),
    )


def _networks(texts: Any) -> tuple[str, ...]:
    return tuple(sorted({network(text) for text in texts}))
