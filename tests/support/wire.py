"""A client that sees every byte: one connection, never made anew, each wait with an end."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from types import TracebackType
from typing import Final, Self

SECONDS: Final = 10.0
HEAD_LIMIT: Final = 256 * 1024


class Ended(Exception):
    """The other side closed, or cut, where bytes were due."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A head and its body. Field names are lower case; repeated fields stay apart."""

    start: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.start.split(" ", 2)[1])

    def field(self, name: str) -> str | None:
        """The value of a field that comes at most once."""
        values = self.values(name)
        assert len(values) <= 1, self.fields
        return values[0] if values else None

    def values(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known == name]


class Wire:
    """One TCP connection and what has been read from it. A context. Mutable."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock: Final = sock
        self._buffer = b""
        sock.settimeout(SECONDS)

    @classmethod
    def connect(cls, address: tuple[str, int]) -> Self:
        return cls(socket.create_connection(address, SECONDS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def get(self, path: str = "/", *fields: str, host: str = "test") -> Message:
        """The answer to a GET."""
        self.send(request(path, *fields, host=host))
        return self.answer()

    def answer(self, *, to_head: bool = False) -> Message:
        """The next answer; interim ones (1xx) are passed over."""
        while True:
            start, fields = self.head()
            if not start.split(" ")[1].startswith("1"):
                break
        status = int(start.split(" ")[1])
        body = b"" if to_head or status in (204, 304) else self._body(dict(fields))
        return Message(start=start, fields=fields, body=body)

    def head(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The next head alone."""
        raw = self.until(b"\r\n\r\n").decode("latin-1")
        start, *lines = raw.removesuffix("\r\n\r\n").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return start, tuple((name.lower(), value.strip(" \t")) for name, _, value in pairs)

    def until(self, mark: bytes) -> bytes:
        """All through the mark. Raises `Ended`."""
        while mark not in self._buffer:
            assert len(self._buffer) < HEAD_LIMIT, self._buffer[:200]
            self._read()
        data, _, self._buffer = self._buffer.partition(mark)
        return data + mark

    def exactly(self, count: int) -> bytes:
        """So many bytes. Raises `Ended`."""
        while len(self._buffer) < count:
            self._read()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def rest(self) -> bytes:
        """All until the other side closes."""
        with contextlib.suppress(Ended):
            while True:
                self._read()
        data, self._buffer = self._buffer, b""
        return data

    def at_end(self) -> bool:
        """Whether the other side closes, or cuts, without another byte; waits for either."""
        try:
            self.exactly(1)
        except Ended:
            return True
        return False

    def _body(self, fields: dict[str, str]) -> bytes:
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.until(b"\r\n"), 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            assert self.until(b"\r\n") == b"\r\n"
            return body
        if "content-length" in fields:
            return self.exactly(int(fields["content-length"]))
        return self.rest()

    def _read(self) -> None:
        try:
            part = self.sock.recv(64 * 1024)
        except ConnectionResetError:
            part = b""
        if not part:
            raise Ended(self._buffer[:200])
        self._buffer += part


def request(path: str = "/", *fields: str, host: str = "test", method: str = "GET") -> bytes:
    """A request without a body."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
