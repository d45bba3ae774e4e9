"""The real engine in this process: a thread that waits for its descriptor and calls turn.

All calls of the engine are made on that thread, as it allows no other; a test asks for them by
`call`, and waits for what it expects by `until`, which looks after every turn.
"""

from __future__ import annotations

import contextlib
import mmap
import queue
import select
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

from dataplane.engine._native import ffi
from dataplane.engine.engine import NOTE_AGAIN, TRANSPORT_PLAIN, Engine
from dataplane.model.spec import (
    AppSpec,
    EndpointSpec,
    HeaderEdits,
    LimitsSpec,
    ListenerSpec,
    MatchSpec,
    RedirectSpec,
    RespondSpec,
    RouteSpec,
    TimeoutsSpec,
    UpstreamSpec,
)
from tests.support.client import Client
from tests.support.upstream import SECONDS

Result = TypeVar("Result")
Pairs = Iterable[tuple[str, str]]


def edits(set_: Pairs = (), remove: Iterable[str] = ()) -> HeaderEdits:
    return HeaderEdits(set=tuple(sorted(set_)), remove=tuple(remove))


def route(
    path: str | None = "/",
    *,
    upstream: str | None = "api",
    host: str | None = None,
    methods: Sequence[str] = (),
    headers: Pairs = (),
    redirect: tuple[str, int] | None = None,
    respond: tuple[int, str] | None = None,
    timeout_ms: int = 10_000,
    request: HeaderEdits | None = None,
    response: HeaderEdits | None = None,
) -> RouteSpec:
    own = redirect is not None or respond is not None
    return RouteSpec(
        match=MatchSpec(
            host=host, path=path, methods=tuple(sorted(methods)), headers=tuple(sorted(headers))
        ),
        upstream=None if own else upstream,
        redirect=None if redirect is None else RedirectSpec(to=redirect[0], status=redirect[1]),
        respond=None if respond is None else RespondSpec(status=respond[0], body=respond[1]),
        request_timeout_ms=timeout_ms,
        request_headers=request or edits(),
        response_headers=response or edits(),
    )


def app(
    ports: Sequence[int] = (),
    *,
    routes: Sequence[RouteSpec] | None = None,
    upstreams: Sequence[tuple[str, Sequence[int]]] | None = None,
    listeners: Sequence[str] = ("web",),
    balance: Any = "round_robin",
    keepalive: int = 64,
    connect_ms: int = 5_000,
    header_ms: int = 10_000,
    body_idle_ms: int = 10_000,
    idle_ms: int = 10_000,
    tunnel_idle_ms: int = 10_000,
    connections: int = 0,
    header_bytes: int = 32 * 1024,
    headers: int = 100,
    body_bytes: int = 0,
) -> AppSpec:
    """An app with http listeners and a tcp one named `raw`; `ports` are those of upstream `api`."""
    named = [("api", ports)] if upstreams is None else upstreams
    return AppSpec(
        version=1,
        app="test",
        listeners=(
            *(
                ListenerSpec(name=name, bind="127.0.0.1:0", protocol="http", upstream=None)
                for name in listeners
            ),
            *(
                ListenerSpec(name="raw", bind="127.0.0.1:0", protocol="tcp", upstream=name)
                for name, _ in named[:1]
            ),
        ),
        routes=tuple([route()] if routes is None else routes),
        upstreams=tuple(
            UpstreamSpec(
                name=name,
                balance=balance,
                endpoints=tuple(EndpointSpec(address="127.0.0.1", port=port) for port in given),
                connect_timeout_ms=connect_ms,
                keepalive=keepalive,
            )
            for name, given in named
        ),
        timeouts=TimeoutsSpec(
            header_ms=header_ms,
            body_idle_ms=body_idle_ms,
            idle_ms=idle_ms,
            tunnel_idle_ms=tunnel_idle_ms,
        ),
        limits=LimitsSpec(
            connections=connections,
            header_bytes=header_bytes,
            headers=headers,
            body_bytes=body_bytes,
        ),
        drain_deadline_ms=30_000,
        ready_deadline_ms=5_000,
        workers=1,
    )


class Proxy:
    """An engine that serves. Closing it checks that it kept no account of anything that is over."""

    def __init__(
        self,
        spec: AppSpec,
        *,
        transport: int = TRANSPORT_PLAIN,
        seed: tuple[int, int] = (0, 0),
        send_buffer: int | None = None,
        shared: mmap.mmap | None = None,
    ) -> None:
        self._page = mmap.mmap(-1, 4096)
        self.engine: Final = Engine(
            spec,
            stats=self._page,
            seed=seed,
            tick_ms=1000,
            transport=transport,
            shared=shared,
        )
        self._sockets: dict[str, socket.socket] = {}
        self._clients: list[Client] = []
        for listener in spec.listeners:
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if send_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            sock.bind(("127.0.0.1", 0))
            sock.listen(1024)
            sock.setblocking(False)
            self._sockets[listener.name] = sock
            self.engine.attach(listener.name, sock.fileno())
        self.port: Final = self.port_of("web")
        self.notes = 0  # of the last turn
        self._failed = False
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waits: list[tuple[Callable[[], bool], threading.Event]] = []
        self._bell, self._ear = socket.socketpair()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        self.call(self.engine.serve)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and not self._over and not self._failed:
                self.call(self.engine.reset_all)
                self.settles()
        finally:
            self.close()

    def close(self) -> None:
        if self._over:
            return
        self._over = True
        for client in self._clients:
            client.close()
        self._bell.send(b"x")
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the engine hangs in a turn"
        self.engine.close()
        for sock in (*self._sockets.values(), self._bell, self._ear):
            sock.close()
        self._page.close()

    def port_of(self, listener: str) -> int:
        port: int = self._sockets[listener].getsockname()[1]
        return port

    def client(self, listener: str = "web", **options: Any) -> Client:
        client = Client(self.port_of(listener), **options)
        self._clients.append(client)
        return client

    def call(self, what: Callable[[], Result]) -> Result:
        """Runs it on the engine's thread, between two turns."""
        done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((True, what()))
            except BaseException as error:  # noqa: BLE001 - told to the one who asked
                done.put((False, error))

        self._calls.put(run)
        self._bell.send(b"x")
        well, value = done.get(timeout=SECONDS)
        if not well:
            raise value
        result: Result = value
        return result

    def stats(self) -> dict[str, Any]:
        """The page as it stands after the last turn; gauges and counters by their names."""
        return self.call(self._stats)

    def _stats(self) -> dict[str, Any]:
        page = ffi.cast("dp_stats *", ffi.from_buffer(self._page))
        names = [name for name, _ in ffi.typeof("dp_stats").fields]
        values = {name: getattr(page, name) for name in names}
        for name in ("answers_total", "own_answers_total", "reserved"):
            values[name] = list(values[name])
        return values

    def until(self, what: Callable[[dict[str, Any]], bool]) -> None:
        """Waits until it holds for the stats; it is looked at after every turn."""
        event = threading.Event()
        self.call(lambda: self._waits.append((lambda: what(self._stats()), event)))
        if not event.wait(SECONDS):
            raise AssertionError(f"it never came: {self.stats()}")

    def has_read(self, count: int) -> None:
        """Waits until so many bytes came from clients."""
        self.until(lambda stats: bool(stats["received_bytes_total"] >= count))

    def notes_one_of(self, bits: int) -> None:
        """Waits until a turn had one of these notes to tell."""
        self.until(lambda _: bool(self.notes & bits))

    def settles(self) -> None:
        """Waits until nothing is open but idle upstream connections, and nothing is kept."""

        def settled(stats: dict[str, Any]) -> bool:
            kept = ("connections", "requests_active", "tunnels", "buffer_bytes")
            return (
                all(stats[name] == 0 for name in kept)
                and stats["upstream_connections"] == stats["upstream_idle"]
            )

        self.until(settled)

    def turn(self) -> int:
        """One turn more, for what has no event."""
        return self.call(lambda: self.notes)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.engine.fd, select.POLLIN)
        poll.register(self._ear, select.POLLIN)
        try:
            while not self._over:
                ready = poll.poll(0 if self.notes & NOTE_AGAIN else 1000)
                if any(fd == self._ear.fileno() for fd, _ in ready):
                    self._ear.recv(4096)
                    with contextlib.suppress(queue.Empty):
                        while True:
                            self._calls.get_nowait()()
                self.notes = self.engine.turn(16)
                for wait in list(self._waits):
                    if wait[0]():
                        self._waits.remove(wait)
                        wait[1].set()
        except BaseException:
            self._failed = True  # told by the thread itself; whoever waits for it waits in vain
            raise
