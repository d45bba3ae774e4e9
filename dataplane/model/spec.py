"""An app's spec: what its config file means, complete and normalised.

This is what the config layer of an image holds, as canonical JSON, and what a worker builds its
engine from. Durations are whole milliseconds, sizes bytes; every default is written out. Decoding
is strict: a field too many or too few, or of the wrong type, is a `SpecError`. A field that came
after the first release has a default, which means what code before it did: so an older image's spec
is still understood, and everything that is made today has every field written out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, TypeVar

SPEC_VERSION: Final = 1


class SpecError(ValueError):
    """A config layer that is not a spec this code knows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSpec:
    name: str
    # "127.0.0.1:8080" or "[::1]:8080", numeric, lower case, port 0 takes a free one; "unix:/path".
    bind: str
    protocol: Literal["http", "tcp"]
    upstream: str | None  # tcp only
    proxy_protocol: bool = False  # a PROXY header comes first, from trusted_proxies alone
    trusted_proxies: tuple[str, ...] = ()  # "10.0.0.0/8"; sorted
    mode: str = "0660"  # of a UNIX socket, octal
    owner: str | None = None  # a user's name or number; None: the supervisor's own
    group: str | None = None
    dual_stack: bool = False  # [::] takes IPv4, too


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MatchSpec:
    host: str | None  # lower case, without port; "*.example.com" matches any name below
    path: str | None  # ends in "/": all beneath it, else exactly this; None: any
    methods: tuple[str, ...]  # sorted; empty: any
    headers: tuple[tuple[str, str], ...]  # (lower-case name, exact value), sorted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEdits:
    set: tuple[tuple[str, str], ...]  # (lower-case name, value), sorted
    remove: tuple[str, ...]
    secrets: tuple[tuple[str, str], ...] = ()  # (lower-case name, "file:..." or "env:..."), sorted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RedirectSpec:
    to: str
    status: int  # 301 302 303 307 308


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RespondSpec:
    status: int  # 200..599
    body: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetriesSpec:
    attempts: int  # how often a request is sent again at most
    on: tuple[str, ...]  # "connect-failure", "reset", statuses "400" to "599"; sorted
    budget_percent: int  # of the route's requests
    methods: tuple[str, ...]  # that may be repeated although they may have been executed; sorted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessSpec:
    """Which sources may come: what is denied may not; where nothing is allowed by name, all may."""

    allow: tuple[str, ...]  # networks, "10.0.0.0/8"; sorted
    deny: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RateSpec:
    requests: int  # a second
    burst: int  # how many may come at once; 0 is as 1
    header: str | None  # by its value, lower case; None, or where a request lacks it: by source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    match: MatchSpec
    upstream: str | None  # exactly one of upstream, redirect and respond
    redirect: RedirectSpec | None
    respond: RespondSpec | None
    request_timeout_ms: int
    request_headers: HeaderEdits
    response_headers: HeaderEdits
    retries: RetriesSpec | None = None  # None: only what was certainly not executed
    access: AccessSpec | None = None  # beside the app's
    rate: RateSpec | None = None  # beside the app's


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    address: str  # numeric, without brackets; a host name, lower case; or "unix:/path"
    port: int  # 0: a UNIX socket's
    weight: int = 1

    @property
    def text(self) -> str:
        """As the config file writes it."""
        if self.address.startswith("unix:"):
            return self.address
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """What a consistent choice goes by; without it in a request, by the client's address."""

    by: Literal["source", "header", "cookie"]
    name: str | None  # of the header, lower case, or of the cookie


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EjectionSpec:
    failures: int  # in a row; 0: never
    for_ms: int  # the first time
    server_errors: bool  # an answer of 500 and above is a failure


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthSpec:
    path: str | None  # None: connecting is enough
    host: str | None  # None: the upstream's name
    interval_ms: int
    timeout_ms: int
    fall: int
    rise: int
    status_min: int
    status_max: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSpec:
    name: str
    balance: Literal["round_robin", "least_request", "p2c", "maglev"]
    endpoints: tuple[EndpointSpec, ...]
    connect_timeout_ms: int
    keepalive: int
    key: KeySpec | None = None  # of maglev
    sticky_cookie: str | None = None
    max_connections: int = 0  # to one endpoint; 0: no limit
    max_waiting: int = 0  # requests that wait for one of them
    ejection: EjectionSpec | None = None
    slow_start_ms: int = 0
    health: HealthSpec | None = None
    proxy_protocol: Literal["v1", "v2"] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutsSpec:
    header_ms: int
    body_idle_ms: int
    idle_ms: int
    tunnel_idle_ms: int
    request_ms: int = 0  # first byte of a request to the end of its body; 0: no limit
    send_ms: int = 0  # a client takes nothing of what waits for it; 0: as body_idle_ms


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSpec:
    connections: int  # 0: no limit, as with all of these
    header_bytes: int
    headers: int
    body_bytes: int
    connections_per_source: int = 0
    requests: int = 0  # answered at once


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessLogSpec:
    format: Literal["none", "json", "combined"] = "none"
    rotate_bytes: int = 64 << 20  # a file that would grow beyond is set aside
    keep: int = 5  # files set aside


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    version: Literal[1]
    app: str
    listeners: tuple[ListenerSpec, ...]
    routes: tuple[RouteSpec, ...]  # in the file's order; the engine finds the most specific
    upstreams: tuple[UpstreamSpec, ...]  # sorted by name
    timeouts: TimeoutsSpec
    limits: LimitsSpec
    drain_deadline_ms: int
    ready_deadline_ms: int
    workers: int
    probation_ms: int = 0  # for which a swap is taken back if it makes things worse
    resolve_pause_ms: int = 5000  # between two generations that changed names made
    # What an upstream that is well on blue and not on green means for the swap.
    upstreams_on_rollout: Literal["ignore", "regress"] = "ignore"
    access_log: AccessLogSpec = AccessLogSpec()
    access: AccessSpec | None = None
    rate: RateSpec | None = None

    def to_json(self) -> bytes:
        """Canonical: sorted keys, no spaces, UTF-8. Equal specs give equal bytes."""
        return json.dumps(
            dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @staticmethod
    def from_json(data: bytes) -> AppSpec:
        """Raises `SpecError` for anything but a complete spec of this version."""
        try:
            value = json.loads(data)
        except ValueError as error:
            raise SpecError(f"not JSON: {error}") from error
        return decode(AppSpec, value, "spec")


_T = TypeVar("_T")
_Decoder: TypeAlias = Callable[[Any, str], Any]


def decode(kind: type[_T], value: object, where: str) -> _T:
    """Turns plain JSON values into `kind`, strictly. Raises `SpecError` naming `where`."""
    return typing.cast(_T, learn(typing.cast(Any, kind))(value, where))


@functools.cache
def learn(kind: Any) -> _Decoder:
    """The decoder of a type, made at its first use: looking at types is slow, and wakes much memory
    that forked processes would otherwise share.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _literal(parts)
    if origin is types.UnionType or origin is typing.Union:
        choices = [choice for choice in parts if choice is not type(None)]
        if len(choices) != 1 or len(parts) != 2:
            raise TypeError(f"{kind} cannot be decoded")
        return _optional(learn(choices[0]))
    if origin is tuple:
        if len(parts) == 2 and parts[1] is Ellipsis:
            return _many(learn(parts[0]))
        return _row(tuple(learn(part) for part in parts))
    if origin is dict:
        return _mapping(learn(parts[1]))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        told = dataclasses.fields(kind)
        fields = {field.name: learn(hints[field.name]) for field in told}
        needed = frozenset(field.name for field in told if _is_needed(field))
        return _object(kind, fields, needed)
    return _plain(getattr(kind, "__supertype__", kind))  # NewType


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _literal(choices: tuple[Any, ...]) -> _Decoder:
    def decoder(value: Any, where: str) -> Any:
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return value
        raise SpecError(f"{where}: {value!r} is not one of {choices}")

    return decoder


def _optional(present: _Decoder) -> _Decoder:
    def decoder(value: Any, where: str) -> Any:
        return None if value is None else present(value, where)

    return decoder


def _many(item: _Decoder) -> _Decoder:
    def decoder(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise SpecError(f"{where}: expected a list")
        return tuple([item(value[i], f"{where}[{i}]") for i in range(len(value))])

    return decoder


def _row(items: tuple[_Decoder, ...]) -> _Decoder:
    def decoder(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise SpecError(f"{where}: expected a list")
        if len(value) != len(items):
            raise SpecError(f"{where}: expected {len(items)} items, got {len(value)}")
        return tuple([item(value[i], f"{where}[{i}]") for i, item in enumerate(items)])

    return decoder


def _mapping(item: _Decoder) -> _Decoder:
    def decoder(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: expected an object")
        return {key: item(held, f"{where}.{key}") for key, held in value.items()}

    return decoder


def _object(kind: Any, fields: dict[str, _Decoder], needed: frozenset[str]) -> _Decoder:
    def decoder(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: expected an object, got {type(value).__name__}")
        if value.keys() != fields.keys():
            if unknown := sorted(value.keys() - fields.keys()):
                raise SpecError(f"{where}: unknown {', '.join(unknown)}")
            if missing := sorted(needed - value.keys()):
                raise SpecError(f"{where}: missing {', '.join(missing)}")
        return kind(**{name: fields[name](value[name], f"{where}.{name}") for name in value})

    return decoder


def _plain(expected: type) -> _Decoder:
    def decoder(value: Any, where: str) -> Any:
        if expected is float and type(value) is int:
            return float(value)
        if type(value) is not expected:
            raise SpecError(f"{where}: expected {expected.__name__}, got {type(value).__name__}")
        return value

    return decoder
