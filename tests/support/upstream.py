"""A scripted upstream: raw sockets that can do anything a real server does, and what none should.

A script is a function that gets one accepted connection and plays its part on it. It runs in a
thread of its own; what it raises is raised again when the upstream is closed, but for connections
that end under it, which is what most tests are about.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import queue
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

SECONDS: Final = 10.0  # nothing here takes that long unless it hangs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of a message: its first line, and its fields in order with lower-case names."""

    line: str
    fields: tuple[tuple[str, str], ...]
    raw: bytes

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field == name]

    def get(self, name: str) -> str | None:
        """The only value of that name. Two are a failure: nobody may guess which one counts."""
        found = self.all(name)
        assert len(found) < 2, f"{name} came {len(found)} times in {self.raw!r}"
        return found[0] if found else None


class Ended(Exception):
    """The other side ended the connection in good order, before all of it had come."""

    def __init__(self, got: bytes) -> None:
        super().__init__(f"the end came after {got[-200:]!r}")
        self.got = got


class Wire:
    """One connection, seen from either end: bytes in, bytes out, nothing assumed."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(SECONDS)
        if sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> None:
        data = self.sock.recv(262144)
        if not data:
            got, self.buffer = self.buffer, b""
            raise Ended(got)
        self.buffer += data

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self._more()
        got, self.buffer = self.buffer.split(mark, 1)
        return got + mark

    def exactly(self, count: int) -> bytes:
        pieces = [self.buffer]
        have = len(self.buffer)
        while have < count:
            data = self.sock.recv(min(262144, count - have))
            if not data:
                raise Ended(b"".join(pieces))
            pieces.append(data)
            have += len(data)
        whole = b"".join(pieces)
        self.buffer = whole[count:]
        return whole[:count]

    def head(self) -> Head:
        raw = self.until(b"\r\n\r\n")
        line, *fields = raw[:-4].decode("latin-1").split("\r\n")
        pairs = [field.partition(":") for field in fields]
        return Head(
            line=line,
            fields=tuple((name.lower(), value.strip()) for name, _, value in pairs),
            raw=raw,
        )

    def chunked(self) -> bytes:
        """A chunked body with its end; trailer fields are a failure, as we never pass them on."""
        body = []
        while size := int(self.until(b"\r\n"), 16):
            body.append(self.exactly(size))
            assert self.exactly(2) == b"\r\n"
        assert self.exactly(2) == b"\r\n"
        return b"".join(body)

    def body(self, head: Head) -> bytes:
        """What a request's head announces."""
        if head.get("transfer-encoding") is not None:
            assert head.get("transfer-encoding") == "chunked"
            assert head.get("content-length") is None
            return self.chunked()
        return self.exactly(int(head.get("content-length") or 0))

    def rest(self) -> bytes:
        """All that comes until the other side ends in good order."""
        pieces = [self.buffer]
        self.buffer = b""
        while data := self.sock.recv(262144):
            pieces.append(data)
        return b"".join(pieces)

    def ends(self) -> bool:
        """Whether the next thing is the end, in good order and with nothing before it."""
        return self.rest() == b""

    def finish(self) -> None:
        """Ends this side; the other may go on."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Ends both sides with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class Peer(Wire):
    """The upstream's end of a connection; `number` counts them from 0."""

    def __init__(self, sock: socket.socket, number: int, seen: queue.Queue[Head]) -> None:
        super().__init__(sock)
        self.number = number
        self._seen = seen

    def request(self) -> tuple[Head, bytes]:
        """The next request, whole; the test sees its head too."""
        head = self.head()
        body = self.body(head)
        self._seen.put(head)
        return head, body

    def answer(self, body: bytes = b"ok", *, status: str = "200 OK", fields: str = "") -> None:
        self.send(
            f"HTTP/1.1 {status}\r\n{fields}content-length: {len(body)}\r\n\r\n".encode() + body
        )


Script = Callable[[Peer], None]


def echo(peer: Peer) -> None:
    """Answers each request with its body, until the connection ends."""
    while True:
        head, body = peer.request()
        peer.answer(
            b"" if head.line.startswith("HEAD ") else body, fields=f"x-n: {peer.number}\r\n"
        )


class Upstream:
    """Listens at a free port of 127.0.0.1 and plays a script on each connection."""

    def __init__(
        self, script: Script = echo, *, receive_buffer: int | None = None, address: str = ""
    ) -> None:
        """`address`: "" is 127.0.0.1, "::1", or the path of a UNIX socket."""
        self.script = script
        self.seen: queue.Queue[Head] = queue.Queue()
        self.accepted = 0
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._peers: list[Peer] = []
        family = socket.AF_UNIX if address.startswith("/") else socket.AF_INET
        if address == "::1":
            family = socket.AF_INET6
        self._listening = socket.socket(family)
        if receive_buffer is not None:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if family == socket.AF_UNIX:
            self._listening.bind(address)
        else:
            self._listening.bind((address or "127.0.0.1", 0))
        self._listening.listen(64)
        self.port: Final[int] = 0 if family == socket.AF_UNIX else self._listening.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if self._failures and error is None:
            raise self._failures[0]

    def next(self) -> Head:
        """The head of the next request that came whole."""
        return self.seen.get(timeout=SECONDS)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join(SECONDS)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a script hangs"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            peer = Peer(sock, self.accepted, self.seen)
            self.accepted += 1
            self._peers.append(peer)
            thread = threading.Thread(target=self._play, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, peer: Peer) -> None:
        try:
            self.script(peer)
        except (Ended, ConnectionError):
            pass
        except OSError as error:
            if peer.sock.fileno() != -1 and error.errno != errno.ENOTCONN:
                self._failures.append(error)
        except BaseException as error:  # noqa: BLE001 - told to the test
            self._failures.append(error)
        finally:
            peer.close()


def dawdle(seconds: float) -> None:
    """A peer that is slow on purpose. It is never what a test waits for."""
    threading.Event().wait(seconds)


def refusing(sock: socket.socket) -> int:
    """A port of 127.0.0.1 that refuses, as long as the socket lives: bound, but not listened at."""
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    return port
