"""The client of the supervisor's API: blocking, one request a connection, for the command line.

It loads no event loop, since a command's start is most of what it takes.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import h11

from dataplane.model.errors import ControlError
from dataplane.system.sockets import check_unix_path, peer_credentials

CONNECT_SECONDS: Final = 5.0
_READ_BYTES: Final = 64 * 1024


class NotRunning(ControlError):
    """Nobody listens on the supervisor's socket."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: bytes

    def value(self) -> Any:
        """The body as JSON. Raises `ControlError`."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ControlError(f"the supervisor answered no JSON: {error}") from error


class Client:
    """One connection to a supervisor. A context; used for one request."""

    def __init__(self, path: Path) -> None:
        """Raises `NotRunning`, or `LaunchError` for a path that no socket can have."""
        check_unix_path(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._http = h11.Connection(h11.CLIENT)
        try:
            self._sock.settimeout(CONNECT_SECONDS)
            self._sock.connect(str(path))
            self._sock.settimeout(None)
            self.pid: Final[int] = peer_credentials(self._sock)[0]
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            self._sock.close()
            raise NotRunning(f"no supervisor runs on {path}") from error
        except OSError as error:
            self._sock.close()
            reason = error.strerror or "it does not answer"
            raise ControlError(f"cannot reach the supervisor on {path}: {reason}") from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = None
    ) -> Answer:
        """Sends a request and returns its whole answer. Raises `ControlError`."""
        self._sock.settimeout(seconds)
        try:
            status = self._begin(method, path, body)
            return Answer(status=status, body=b"".join(self._parts()))
        except TimeoutError as error:
            raise ControlError("the supervisor does not answer") from error
        except (OSError, h11.RemoteProtocolError) as error:
            raise ControlError(f"the supervisor went away: {error}") from error

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of a stream, as they come, until the supervisor ends."""
        try:
            status = self._begin("GET", path, None)
            if status != 200:
                raise ControlError(f"the supervisor answered {status}")
            rest = b""
            for part in self._parts():
                *lines, rest = (rest + part).split(b"\n")
                yield from lines
        except (OSError, h11.RemoteProtocolError):
            return  # it ended, and the stream with it

    def _begin(self, method: str, path: str, body: Any) -> int:
        content = b"" if body is None else json.dumps(body).encode()
        headers = [("host", "dataplane"), ("content-length", str(len(content)))]
        if content:
            headers.append(("content-type", "application/json"))
        data = self._http.send(h11.Request(method=method, target=path, headers=headers)) or b""
        if content:
            data += self._http.send(h11.Data(data=content)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        self._sock.sendall(data)
        while True:
            event = self._event()
            if isinstance(event, h11.Response):
                return int(event.status_code)

    def _parts(self) -> Iterator[bytes]:
        while True:
            event = self._event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return

    def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(self._sock.recv(_READ_BYTES))
        if isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("it closed the connection")
        return event
