"""A raw client: it sends exactly the bytes it is told to and takes an answer for what it is."""

from __future__ import annotations

import dataclasses
import socket

from tests.support.upstream import SECONDS, Head, Wire


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole answer; `body` without its framing."""

    status: int
    head: Head
    body: bytes

    def get(self, name: str) -> str | None:
        return self.head.get(name)


class Client(Wire):
    """One connection to the proxy."""

    def __init__(
        self, port: int, *, receive_buffer: int | None = None, source: str | None = None
    ) -> None:
        sock = socket.socket()
        if source is not None:
            sock.bind((source, 0))
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(SECONDS)
        try:
            sock.connect(("127.0.0.1", port))
            super().__init__(sock)
        except OSError:
            sock.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, target: str = "/", *, method: str = "GET", fields: str = "") -> Answer:
        """Sends a request without a body and returns its answer."""
        self.send(f"{method} {target} HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n".encode())
        return self.answer(to_head=method == "HEAD")

    def interim(self) -> Head:
        """An answer of the 1xx kind."""
        head = self.head()
        assert head.line.startswith("HTTP/1.1 1"), head.line
        return head

    def answer(self, *, to_head: bool = False, after_interim: bool = False) -> Answer:
        """The next whole answer; one that ends before it should is a failure."""
        head = self.head()
        while after_interim and head.line.startswith("HTTP/1.1 1"):
            head = self.head()
        version, _, rest = head.line.partition(" ")
        assert version == "HTTP/1.1", head.line
        status = int(rest[:3])
        if to_head or status in (204, 304):
            body = b""
        elif head.get("transfer-encoding") is not None:
            assert head.get("content-length") is None, head.raw
            body = self.chunked()
        elif head.get("content-length") is not None:
            body = self.exactly(int(head.get("content-length") or 0))
        else:
            assert head.get("connection") == "close", head.raw
            body = self.rest()
        return Answer(status=status, head=head, body=body)
