"""`Engine`: the native engine as one object, built from an app's spec.

Thin: it turns pointers into an object with `close`, results into exceptions, and a spec into calls
of the builder. It never decides anything, and never touches a connection's bytes.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from dataplane.engine._native import ffi, lib
from dataplane.engine.errors import EngineError, check
from dataplane.engine.limits import OF_APP, add_limits, add_route_limits
from dataplane.engine.upstreams import EVENTS, UpstreamEvent, add_retries, add_upstream, method_bits
from dataplane.model.spec import AppSpec, ListenerSpec, RouteSpec

__all__ = ["ABI", "Engine", "EngineError", "Tally"]

ABI: Final = 1

# What `Engine.turn` has to tell, as bits.
NOTE_AGAIN: Final = 1
NOTE_MOVABLE: Final = 2
NOTE_EMPTY: Final = 4
NOTE_EVENTS: Final = 8

TRANSPORT_PLAIN: Final = 0
TRANSPORT_TRICKLE: Final = 1

# All buffers of one worker together: 500 connections whose both sides are as slow as can be.
MAX_BUFFER_BYTES: Final = 256 * 1024 * 1024

# Of an image's digest, in each line of an access log.
IMAGE_DIGITS: Final = 12

_LOG_FORMATS: Final = {
    "none": lib.DP_LOG_NONE,
    "json": lib.DP_LOG_JSON,
    "combined": lib.DP_LOG_COMBINED,
}
# Why a connection is not taken: what `Engine.hold` says of it, and the word in the ledger.
DECLINED: Final = {
    lib.DP_DECLINED_OTHER: "unknown",
    lib.DP_DECLINED_LISTENER: "listener_gone",
    lib.DP_DECLINED_DENIED: "denied",
    lib.DP_DECLINED_UPSTREAM: "upstream_gone",
    lib.DP_DECLINED_NO_ROOM: "no_room",
}
# The newest version of records that this engine writes and takes.
MOVE_VERSION: Final[int] = lib.DP_MOVE_VERSION
_PROTOCOLS: Final = {"http": lib.DP_HTTP, "tcp": lib.DP_TCP}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of connections while draining, or on arrival."""

    moved_idle: int
    moved_after_request: int
    moved_streaming: int
    moved_tunnel: int
    finished: int
    closed: int
    reset: int
    declined: tuple[tuple[str, int], ...]  # why some could not move, and how many


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    """Where an engine's access log goes, and what its lines say of the engine."""

    fd: int  # a pipe, made non-blocking; stays the caller's
    generation: int
    image: str  # digest


class Engine:
    """A sealed engine with its tables. One owner, one thread; `close` it, or use it by `with`."""

    def __init__(
        self,
        spec: AppSpec,
        *,
        stats: mmap.mmap | None,
        seed: tuple[int, int],
        tick_ms: int,
        transport: int = TRANSPORT_PLAIN,
        shared: mmap.mmap | None = None,
        log: AccessLog | None = None,
    ) -> None:
        """Raises `EngineError` for a spec that the engine cannot carry out.

        `stats` is a writable mapping that outlives the engine; `seed` is drawn by each process for
        itself; every `tick_ms` the engine shows in `stats` that it lives. `shared` is what all
        workers of the app share (`control.shared`), a writable mapping that outlives the engine;
        with one of another layout the engine keeps for itself what it learns. Without `log` no
        access log is written, whatever the spec says.
        """
        if lib.dp_abi() != ABI:
            raise EngineError(
                f"the library has ABI {lib.dp_abi()}, expected {ABI}", lib.DP_EVERSION
            )
        self._stats = None if stats is None else ffi.from_buffer(stats, require_writable=True)
        self._shared = None if shared is None else ffi.from_buffer(shared, require_writable=True)
        self._engine = _new(spec, self._stats, seed, tick_ms, transport)
        self._spec: Final = spec
        try:
            self.shares: Final = self._share()
            self._listeners: Final = _Builder(self._engine).build(spec)
            if log is not None:
                self._log_to(log, spec)
            check(lib.dp_engine_seal(self._engine), "sealing the tables")
        except BaseException:
            self.close()
            raise
        self.fd: Final[int] = lib.dp_engine_fd(self._engine)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections. Nothing of this object may be called afterwards."""
        if self._engine is not None:
            lib.dp_engine_free(self._engine)
            self._engine = None
        for page in (self._stats, self._shared):
            if page is not None:
                ffi.release(page)
        self._stats = self._shared = None

    def _share(self) -> bool:
        if self._shared is None:
            return False
        size = len(self._shared)
        result = lib.dp_engine_share(self._engine, self._shared, size, os.getpid())
        if result not in (lib.DP_EVERSION, lib.DP_EMALFORMED):
            check(result, "the app's shared memory")
        return bool(result == lib.DP_OK)

    def _log_to(self, log: AccessLog, spec: AppSpec) -> None:
        line_format = _LOG_FORMATS[spec.access_log.format]
        if line_format == lib.DP_LOG_NONE:
            return
        image = log.image.removeprefix("sha256:")[:IMAGE_DIGITS]
        app = spec.app.encode()
        check(
            lib.dp_engine_log(
                self._engine, line_format, log.fd, app, log.generation, image.encode()
            ),
            "the access log",
        )

    def attach(self, listener: str, fd: int) -> None:
        """Lends a listening socket, which stays the caller's, for the listener of that name."""
        index = self._listeners.get(listener)
        if index is None:
            raise EngineError(f"listener {listener}", lib.DP_EGONE)
        check(lib.dp_listener_attach(self._engine, index, fd), f"listener {listener}")

    def serve(self) -> None:
        """Accepts on all attached sockets. Ends a drain."""
        check(lib.dp_engine_serve(self._engine), "serving")

    def pause(self) -> None:
        """Accepts no more; what is open goes on."""
        check(lib.dp_engine_pause(self._engine), "pausing")

    def probe(self, fd: int) -> None:
        """Takes over one end of a stream socket pair as a connection that is answered here."""
        check(lib.dp_engine_probe(self._engine, fd), "the probe")

    def turn(self, max_rounds: int) -> int:
        """Handles what is ready, at most so many batches; returns NOTE_ bits."""
        notes: int = lib.dp_engine_turn(self._engine, max_rounds)
        if notes < 0:
            raise EngineError("a turn", notes)
        return notes

    def stay(self, others_fd: int) -> int:
        """Handles what comes, and waits for it, until `others_fd` is readable, a signal comes or
        there is something to tell; returns NOTE_ bits. That descriptor must not watch ours."""
        notes: int = lib.dp_engine_stay(self._engine, others_fd)
        if notes < 0:
            raise EngineError("waiting", notes)
        return notes

    def events(self) -> tuple[UpstreamEvent, ...]:
        """What happened to endpoints since this was asked last."""
        found, event = [], ffi.new("dp_event *")
        while lib.dp_event_take(self._engine, event):
            upstream = self._spec.upstreams[event.upstream]
            found.append(
                UpstreamEvent(
                    kind=EVENTS[event.kind],
                    upstream=upstream.name,
                    endpoint=upstream.endpoints[event.endpoint].text,
                )
            )
        return tuple(found)

    def checks_open(self) -> int:
        """How many endpoints with a health check have not been judged by any probe yet."""
        return check(lib.dp_checks_open(self._engine), "health checks")

    def upstreams_down(self) -> tuple[str, ...]:
        """The upstreams whose endpoints' checks all fail."""
        return tuple(
            upstream.name
            for index, upstream in enumerate(self._spec.upstreams)
            if not check(lib.dp_upstream_is_up(self._engine, index), f"upstream {upstream.name}")
        )

    def upstreams_regressed(self) -> tuple[str, ...]:
        """Those of `upstreams_down` that are well for another process of the app."""
        return tuple(
            upstream.name
            for index, upstream in enumerate(self._spec.upstreams)
            if check(lib.dp_upstream_regressed(self._engine, index), f"upstream {upstream.name}")
        )

    def drain(self) -> None:
        """From now on connections stop after their exchange and wait to be saved."""
        check(lib.dp_engine_drain(self._engine), "draining")

    def close_idle(self) -> None:
        """Nobody takes over: closes what waits now, and what finishes later."""
        check(lib.dp_engine_close_idle(self._engine), "closing idle connections")

    def reset_all(self) -> int:
        """Cuts what is left; returns how many connections that were."""
        return check(lib.dp_engine_reset_all(self._engine), "cutting connections")

    def tally(self) -> Tally:
        """What became of connections since draining began."""
        counts = ffi.new("dp_drain_counts *")
        check(lib.dp_engine_drain_counts(self._engine, counts), "counting")
        return Tally(
            moved_idle=counts.moved_idle,
            moved_after_request=counts.moved_after_request,
            moved_streaming=counts.moved_streaming,
            moved_tunnel=counts.moved_tunnel,
            finished=counts.finished,
            closed=counts.closed,
            reset=counts.reset,
            declined=tuple(
                (reason, counts.declined[verdict])
                for verdict, reason in DECLINED.items()
                if counts.declined[verdict]
            ),
        )

    def save(
        self, batch: int, max_fds: int, max_bytes: int, version: int = MOVE_VERSION
    ) -> tuple[bytes, int, tuple[int, ...]]:
        """Freezes what may be saved now as this batch: records, how many, and their descriptors.

        No record is of a later version. The descriptors stay the engine's. Nothing may be saved:
        no batch is open, all are empty.
        """
        # Pages of it that no record reaches are never touched.
        records = bytearray(max_bytes)
        fds = ffi.new("int[]", max_fds)
        fd_count, length = ffi.new("uint32_t *"), ffi.new("size_t *")
        count = check(
            lib.dp_move_save(
                self._engine, batch, version, ffi.from_buffer(records), max_bytes,
                fds, max_fds, fd_count, length,
            ),
            "saving connections",
        )  # fmt: skip
        whole = bytes(memoryview(records)[: length[0]])
        return whole, count, tuple(ffi.unpack(fds, fd_count[0]))

    def commit(self, batch: int, verdicts: bytes) -> None:
        """Another process has them: forgets the batch. What it declined is closed or goes on here.

        `verdicts` is what `hold` gave there; what it has no byte for was taken.
        """
        check(
            lib.dp_move_commit(self._engine, batch, ffi.from_buffer(verdicts), len(verdicts)),
            "giving connections away",
        )

    def take_back(self, batch: int) -> None:
        """All of the batch goes on here."""
        check(lib.dp_move_take_back(self._engine, batch), "taking connections back")

    def hold(self, batch: int, records: bytes, count: int, fds: Sequence[int]) -> bytes:
        """Takes the descriptors over and holds them still; returns a byte for each of the records.

        0: it is held, else a key of `DECLINED`. Raises `EngineError`, for records of an unknown
        version too, and where there are not as many of either as they say: then nothing is held.
        """
        verdicts = ffi.new("uint8_t[]", count)
        result = lib.dp_move_hold(
            self._engine, batch, ffi.from_buffer(records), len(records), count,
            ffi.new("int[]", fds), len(fds), verdicts,
        )  # fmt: skip
        if result < 0:
            for fd in fds:
                os.close(fd)
            raise EngineError("moved connections", result)
        return bytes(ffi.buffer(verdicts))

    def start(self, batch: int, count: int) -> tuple[int, tuple[int, ...]]:
        """The held batch, of at most `count`, begins to run: how many, and how long each stood."""
        stalls = ffi.new("uint32_t[]", count)
        started = check(
            lib.dp_move_start(self._engine, batch, stalls, count), "starting moved connections"
        )
        return started, tuple(ffi.unpack(stalls, min(started, count)))

    def drop(self, batch: int) -> None:
        """Closes the held copies without a word to the clients."""
        check(lib.dp_move_drop(self._engine, batch), "dropping moved connections")


def _new(spec: AppSpec, stats: Any, seed: tuple[int, int], tick_ms: int, transport: int) -> Any:
    options = ffi.new("dp_engine_options *")
    options.transport = transport
    options.max_connections = spec.limits.connections
    options.max_header_bytes = spec.limits.header_bytes
    options.max_headers = spec.limits.headers
    options.max_body_bytes = spec.limits.body_bytes
    options.max_buffer_bytes = MAX_BUFFER_BYTES
    options.header_ms = spec.timeouts.header_ms
    options.body_idle_ms = spec.timeouts.body_idle_ms
    options.idle_ms = spec.timeouts.idle_ms
    options.tunnel_idle_ms = spec.timeouts.tunnel_idle_ms
    options.seed_low, options.seed_high = seed
    options.tick_ms = tick_ms
    options.max_per_source = spec.limits.connections_per_source
    options.max_requests = spec.limits.requests
    options.request_ms = spec.timeouts.request_ms
    options.send_ms = spec.timeouts.send_ms
    page = ffi.NULL
    if stats is not None:
        if len(stats) < ffi.sizeof("dp_stats"):
            raise EngineError(f"a stats page of {len(stats)} bytes", lib.DP_EINVAL)
        page = ffi.cast("dp_stats *", stats)
        options.stats_bytes = len(stats)
    engine = ffi.new("dp_engine **")
    check(lib.dp_engine_new(options, page, engine), "making the engine")
    return engine[0]


class _Builder:
    """Tells an engine its tables. Mutable: what the names so far stand for."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._upstreams: dict[str, int] = {}

    def build(self, spec: AppSpec) -> dict[str, int]:
        """Adds all of the spec; returns each listener's index by its name."""
        for upstream in spec.upstreams:
            self._upstreams[upstream.name] = add_upstream(self._engine, upstream)
        listeners = {}
        for listener in spec.listeners:
            index = -1 if listener.upstream is None else self._upstreams[listener.upstream]
            listeners[listener.name] = check(
                lib.dp_listener_add(
                    self._engine, listener.name.encode(), _PROTOCOLS[listener.protocol], index
                ),
                f"listener {listener.name}",
            )
            self._trust(listener, listeners[listener.name])
        add_limits(self._engine, OF_APP, spec.access, spec.rate, "the app")
        for number, route in enumerate(spec.routes):
            self._route(route, f"routes[{number}]")
        return listeners

    def _trust(self, listener: ListenerSpec, index: int) -> None:
        where = f"listener {listener.name}"
        if listener.proxy_protocol:
            check(lib.dp_listener_expect_proxy(self._engine, index), where)
        for network in listener.trusted_proxies:
            address, _, bits = network.partition("/")
            check(
                lib.dp_listener_trust(self._engine, index, address.encode(), int(bits)),
                f"{where}, trusted network {network}",
            )

    def _route(self, route: RouteSpec, where: str) -> None:
        options = ffi.new("dp_route_options *")
        texts = []  # what the options point at; the engine copies it

        def text(value: str | None) -> Any:
            if value is None:
                return ffi.NULL
            texts.append(ffi.new("char[]", value.encode()))
            return texts[-1]

        options.host = text(route.match.host)
        options.path = text(route.match.path)
        options.methods = method_bits(route.match.methods, where)
        options.upstream = -1 if route.upstream is None else self._upstreams[route.upstream]
        options.request_timeout_ms = route.request_timeout_ms
        if route.redirect is not None:
            options.status = route.redirect.status
            options.location = text(route.redirect.to)
        elif route.respond is not None:
            body = route.respond.body.encode()
            options.status = route.respond.status
            options.body = ffi.from_buffer("uint8_t[]", body)
            options.body_len = len(body)
        index = check(lib.dp_route_add(self._engine, options), where)
        for name, value in route.match.headers:
            check(
                lib.dp_route_match_header(self._engine, index, name.encode(), value.encode()),
                f"{where}: match of header {name}",
            )
        if route.retries is not None:
            add_retries(self._engine, index, route.retries, where)
        add_route_limits(self._engine, index, route, where)
        self._edits(route, index, where)

    def _edits(self, route: RouteSpec, index: int, where: str) -> None:
        request, response = route.request_headers, route.response_headers
        edits = [
            *((lib.DP_EDIT_REQUEST_SET, name, value) for name, value in request.set),
            *((lib.DP_EDIT_REQUEST_REMOVE, name, None) for name in request.remove),
            *((lib.DP_EDIT_RESPONSE_SET, name, value) for name, value in response.set),
            *((lib.DP_EDIT_RESPONSE_REMOVE, name, None) for name in response.remove),
        ]
        for edit, name, value in edits:
            given = ffi.NULL if value is None else value.encode()
            check(
                lib.dp_route_edit(self._engine, index, edit, name.encode(), given),
                f"{where}: edit of header {name}",
            )
