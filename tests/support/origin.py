"""Small scripted upstreams in this process: a thread for each connection, and a count of them.

A script is a function that gets the accepted connection and does what it likes with it. What such
an upstream was sent can be looked at afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeAlias

from tests.support.wire import SECONDS, Ended, Wire

Script: TypeAlias = Callable[["Origin", Wire], None]

_RESET: Final = struct.pack("ii", 1, 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as it arrived."""

    start: str
    fields: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known == name]


class Origin:
    """A listening socket and its script. A context; mutable."""

    def __init__(self, script: Script, *, port: int = 0, host: str = "127.0.0.1") -> None:
        self._script = script
        self._listener = socket.create_server((host, port), backlog=1024)
        self.port: Final[int] = self._listener.getsockname()[1]
        self.address: Final = f"{host}:{self.port}"
        self.accepts = 0
        self.requests: list[Asked] = []
        self.asked = threading.Semaphore(0)  # a release for each request
        self.released = threading.Event()  # what `held` scripts wait for
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self.cut()
        for thread in list(self._threads):
            thread.join(SECONDS)
            assert not thread.is_alive()

    def cut(self) -> None:
        """Ends every connection that is open."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def wait_asked(self, count: int = 1) -> None:
        """Until so many more requests have arrived."""
        for _ in range(count):
            assert self.asked.acquire(timeout=SECONDS), "no request reached the upstream"

    def read_request(self, peer: Wire) -> Asked:
        """The next request with its body. Raises `Ended`."""
        start, fields = peer.head()
        asked = Asked(start=start, fields=fields)
        if asked.values("expect"):
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        for length in asked.values("content-length"):
            peer.exactly(int(length))
        if asked.values("transfer-encoding"):
            while size := int(peer.until(b"\r\n"), 16):
                peer.exactly(size + 2)
            peer.until(b"\r\n")
        with self._lock:
            self.requests.append(asked)
        self.asked.release()
        return asked

    def _start(self, life: Callable[[], None]) -> None:
        thread = threading.Thread(target=life, daemon=True, name=f"origin {self.port}")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepts += 1
                self._open.add(sock)
            self._start(functools.partial(self._serve, sock))

    def _serve(self, sock: socket.socket) -> None:
        peer = Wire(sock)
        sock.settimeout(None)  # an idle connection of a pool may wait as long as the test
        with contextlib.suppress(Ended, OSError):
            self._script(self, peer)
        with self._lock:
            self._open.discard(sock)
        sock.close()


# --- scripts ----------------------------------------------------------------------------------


def answering(body: bytes) -> Script:
    """Each request is answered so."""

    def script(origin: Origin, peer: Wire) -> None:
        while True:
            origin.read_request(peer)
            peer.send(ok(body))

    return script


def echoing(origin: Origin, peer: Wire) -> None:
    """Each request is answered with itself, as JSON."""
    while True:
        asked = origin.read_request(peer)
        peer.send(ok(json.dumps({"start": asked.start, "fields": asked.fields}).encode()))


def holding(body: bytes) -> Script:
    """As `answering`, but a request for /held is answered only once the origin is released."""

    def script(origin: Origin, peer: Wire) -> None:
        while True:
            if "/held" in origin.read_request(peer).start:
                origin.released.wait(60)
            peer.send(ok(body))

    return script


def streaming(origin: Origin, peer: Wire) -> None:
    """A head and a first chunk; the rest comes once the origin is released."""
    while True:
        origin.read_request(peer)
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        origin.released.wait(60)
        peer.send(b"4\r\nlast\r\n0\r\n\r\n")


def never(origin: Origin, peer: Wire) -> None:
    """Takes requests and says nothing."""
    while True:
        origin.read_request(peer)


def resetting(origin: Origin, peer: Wire) -> None:
    """Resets the connection instead of an answer."""
    origin.read_request(peer)
    reset(peer)


def resetting_mid_answer(origin: Origin, peer: Wire) -> None:
    """Resets after half of the body it promised."""
    origin.read_request(peer)
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf.")
    origin.released.wait(60)  # or the reset overtakes what was sent
    reset(peer)


def garbage(origin: Origin, peer: Wire) -> None:
    """Answers what is no HTTP."""
    origin.read_request(peer)
    peer.send(b"\x00\x01\x02 what?\r\n\r\n")


def parroting(origin: Origin, peer: Wire) -> None:
    """Bytes as they came: an upstream for tcp."""
    while data := peer.sock.recv(64 * 1024):
        peer.send(data)


def ok(body: bytes) -> bytes:
    """A plain answer."""
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def reset(peer: Wire) -> None:
    """Ends the connection by RST."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    peer.sock.close()
