"""Tells the engine who may come, and how often."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
from typing import Any, Final

from dataplane.engine._native import ffi, lib
from dataplane.engine.errors import check
from dataplane.model.spec import AccessSpec, RateSpec, RouteSpec

OF_APP: Final = -1  # instead of a route's index
_APP_SCOPE: Final = 1
_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96


def add_limits(
    engine: Any, index: int, access: AccessSpec | None, rate: RateSpec | None, where: str
) -> None:
    """For the whole app, see `OF_APP`, or a route of that index. Raises `EngineError`."""
    if access is not None:
        rules = ffi.new("dp_access_rule[]", len(access.allow) + len(access.deny))
        texts = [*access.allow, *access.deny]
        for number, text in enumerate(texts):
            address, bits = _packed(text)
            rules[number].address = list(address)
            rules[number].bits = bits
            rules[number].denies = number >= len(access.allow)
        check(lib.dp_access_set(engine, index, rules, len(texts)), f"{where}: access")
    if rate is not None:
        _rate(engine, index, rate, _APP_SCOPE, where)


def add_route_limits(engine: Any, index: int, route: RouteSpec, where: str) -> None:
    """Those of a route's own. Raises `EngineError`."""
    add_limits(engine, index, route.access, None, where)
    if route.rate is not None:
        # By what it matches: so it counts on in another generation, wherever it stands there.
        match = json.dumps(dataclasses.asdict(route.match), sort_keys=True).encode()
        scope = int.from_bytes(hashlib.blake2b(match, digest_size=8).digest(), "little")
        _rate(engine, index, route.rate, scope, where)


def _rate(engine: Any, index: int, rate: RateSpec, scope: int, where: str) -> None:
    options = ffi.new("dp_rate_options *")
    options.requests = rate.requests
    options.burst = rate.burst
    options.scope = scope
    header = ffi.NULL if rate.header is None else ffi.new("char[]", rate.header.encode())
    options.header = header
    check(lib.dp_rate_set(engine, index, options), f"{where}: rate")


def _packed(text: str) -> tuple[bytes, int]:
    network = ipaddress.ip_network(text)
    if network.version == 4:
        return _MAPPED + network.network_address.packed, network.prefixlen + 96
    return network.network_address.packed, network.prefixlen
