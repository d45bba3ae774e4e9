"""The engine's parsers as Python functions: message heads and chunked bodies, for tests and tools.

Thin: bytes go in, what the C functions found comes out as frozen values, a refusal is an exception.
It must never judge bytes itself, and nothing that serves connections may use it: the engine calls
the same C functions without Python.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
from typing import Any, Final

from dataplane.engine._native import ffi, lib
from dataplane.model.errors import DataplaneError


class Verdict(enum.Enum):
    """Why bytes were refused."""

    MALFORMED = lib.DP_EMALFORMED
    TOO_BIG = lib.DP_ETOOBIG
    VERSION = lib.DP_EVERSION
    TARGET = lib.DP_ETARGET
    CODING = lib.DP_ECODING
    EXPECT = lib.DP_EEXPECT
    METHOD = lib.DP_EMETHOD


class Framing(enum.Enum):
    """How a body's end is told."""

    NONE = lib.DP_BODY_NONE
    LENGTH = lib.DP_BODY_LENGTH
    CHUNKED = lib.DP_BODY_CHUNKED
    CLOSE = lib.DP_BODY_CLOSE


class RefusedError(DataplaneError):
    """The bytes are not taken. Whoever sent them gets no second reading."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"refused: {verdict.name.lower()}")
        self.verdict = verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one head. max_target 0: no limit of its own."""

    max_bytes: int = 16 * 1024
    max_fields: int = 100
    max_target: int = 8 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field line. `dropped`: hop by hop, not to be forwarded."""

    name: bytes
    value: bytes
    dropped: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """What dp_request_parse found; see dp_request_head in dp.h."""

    method: bytes
    target: bytes
    host: bytes
    host_name: bytes
    path: bytes
    query: bytes
    minor: int
    framing: Framing
    content_length: int
    keep_alive: bool
    expects_continue: bool
    has_upgrade: bool
    upgrade: bytes
    takes_trailers: bool
    is_https: bool
    max_forwards: int | None
    fields: tuple[Field, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """What dp_response_parse found. `content_length` is None where none was told."""

    status: int
    reason: bytes
    upgrade: bytes
    minor: int
    framing: Framing
    content_length: int | None
    keep_alive: bool
    fields: tuple[Field, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProxyHeader:
    """What dp_proxy_parse found. `source` and `destination` are None where none is told."""

    length: int
    source: tuple[str, int] | None
    destination: tuple[str, int] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedPart:
    """What one feed made of its bytes: how many were the body's, and what is kept of them."""

    used: int
    kept: bytes
    complete: bool


DEFAULT_LIMITS: Final = Limits()

_NOT_TOLD: Final = 2**64 - 1


class HeadEnd:
    """Finds where a head ends, over as many looks as it takes. Each byte is looked at once."""

    __slots__ = ("_len", "_limits", "_scanned")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = _c_limits(limits)
        self._scanned = ffi.new("uint32_t *")
        self._len = ffi.new("uint32_t *")

    def look(self, data: bytes) -> int | None:
        """The head's length, or None if more must come. data is all that came since its start."""
        result = lib.dp_head_end(data, len(data), self._limits, self._scanned, self._len)
        if result == lib.DP_NEED_MORE:
            return None
        _check(result)
        return int(self._len[0])


class Keep(enum.Enum):
    """What is kept of a chunked body."""

    BARE = lib.DP_CHUNKED_BARE
    FRAMED = lib.DP_CHUNKED_FRAMED
    TRAILERS = lib.DP_CHUNKED_TRAILERS


class Chunked:
    """A chunked body, in parts: what is kept of it is as `keep` says."""

    __slots__ = ("_keep", "_kept", "_rest", "_state", "_used")

    def __init__(self, keep: Keep) -> None:
        self._keep = keep.value
        self._state = ffi.new("dp_chunked *")
        self._used = ffi.new("size_t *")
        self._kept = ffi.new("size_t *")
        self._rest = b""  # of a trailer field that has not ended

    def feed(self, data: bytes) -> ChunkedPart:
        """Takes the next bytes. Once it raised, or was complete, it stays so."""
        room = bytearray(self._rest + data)
        with ffi.from_buffer(room, require_writable=True) as lent:
            result = lib.dp_chunked_feed(
                self._state, lent, len(room), self._keep, self._used, self._kept
            )
        if result != lib.DP_NEED_MORE:
            _check(result)
        used = int(self._used[0])
        before, self._rest = len(self._rest), b""
        if result == lib.DP_NEED_MORE:
            self._rest, used = bytes(room[used:]), len(room)
        return ChunkedPart(
            used=used - before,
            kept=bytes(room[: self._kept[0]]),
            complete=result == lib.DP_OK,
        )


def parse_request(data: bytes, limits: Limits = DEFAULT_LIMITS) -> RequestHead:
    """data is one whole head, as HeadEnd found it. Raises RefusedError.

    The path is in the one form in which it is routed and forwarded; the target is as it came.
    """
    head = ffi.new("dp_request_head *")
    _check(lib.dp_request_parse(data, len(data), _c_limits(limits), head))
    room = bytearray(data)
    with ffi.from_buffer(room, require_writable=True) as lent:
        _check(lib.dp_request_normalise(lent, head))
    return RequestHead(
        method=_cut(data, head.method_span),
        target=_cut(data, head.target),
        host=_cut(data, head.host),
        host_name=_cut(data, head.host_name),
        path=_cut(bytes(room), head.path),
        query=_cut(data, head.query),
        minor=head.minor,
        framing=Framing(head.framing),
        content_length=head.content_length,
        keep_alive=bool(head.keep_alive),
        expects_continue=bool(head.expects_continue),
        has_upgrade=bool(head.has_upgrade),
        upgrade=_cut(data, head.upgrade),
        takes_trailers=bool(head.takes_trailers),
        is_https=bool(head.is_https),
        max_forwards=None if head.max_forwards == 2**32 - 1 else head.max_forwards,
        fields=_fields(data, head),
    )


def normalise_path(path: bytes) -> bytes:
    """The one form of a request's path; native/src/dp_path.h tells it. Raises RefusedError."""
    room = bytearray(path)
    length = ffi.new("size_t *")
    with ffi.from_buffer(room, require_writable=True) as lent:
        _check(lib.dp_path_normalise(lent, len(room), length))
    return bytes(room[: length[0]])


def parse_response(
    data: bytes, limits: Limits = DEFAULT_LIMITS, *, to_head: bool = False
) -> ResponseHead:
    """data is one whole head. to_head: it answers a HEAD request. Raises RefusedError."""
    head = ffi.new("dp_response_head *")
    _check(lib.dp_response_parse(data, len(data), _c_limits(limits), to_head, head))
    return ResponseHead(
        status=head.status,
        reason=_cut(data, head.reason),
        upgrade=_cut(data, head.upgrade),
        minor=head.minor,
        framing=Framing(head.framing),
        content_length=None if head.content_length == _NOT_TOLD else head.content_length,
        keep_alive=bool(head.keep_alive),
        fields=_fields(data, head),
    )


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """A PROXY header at the start of data; None: more must come. Raises RefusedError."""
    found = ffi.new("dp_proxy_header *")
    result = lib.dp_proxy_parse(data, len(data), found)
    if result == lib.DP_NEED_MORE:
        return None
    _check(result)

    def shown(address: Any, port: int) -> tuple[str, int] | None:
        size = {4: 4, 6: 16}.get(found.family)
        if size is None:
            return None
        return str(ipaddress.ip_address(bytes(address[0:size]))), port

    return ProxyHeader(
        length=found.header_len,
        source=shown(found.source, found.source_port),
        destination=shown(found.destination, found.destination_port),
    )


def _check(result: int) -> None:
    if result != lib.DP_OK:
        raise RefusedError(Verdict(result))


def _c_limits(limits: Limits) -> Any:
    return ffi.new(
        "dp_head_limits *",
        {
            "max_bytes": limits.max_bytes,
            "max_fields": limits.max_fields,
            "max_target": limits.max_target,
        },
    )


def _cut(data: bytes, span: Any) -> bytes:
    return data[span.off : span.off + span.len]


def _fields(data: bytes, head: Any) -> tuple[Field, ...]:
    return tuple(
        Field(
            name=_cut(data, field.name),
            value=_cut(data, field.value),
            dropped=bool(field.flags & lib.DP_FIELD_DROP),
        )
        for field in head.fields[0 : head.field_count]
    )
