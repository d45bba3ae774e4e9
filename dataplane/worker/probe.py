"""The self-test before READY: one request through the worker's own engine and tables.

Made before the seal, because a socket pair cannot be made after it; run after the seal, so that it
proves the worker as it will serve.
"""

from __future__ import annotations

import socket
from typing import Final

from dataplane.engine.engine import Engine
from dataplane.model.errors import LaunchError
from dataplane.model.spec import AppSpec

TURNS_LIMIT: Final = 100
ANSWER_LIMIT: Final = 65536

_EXPECTED: Final = b"HTTP/1.1 200 "


class Probe:
    """A socket pair and a request that the first route takes. Used once."""

    def __init__(self, spec: AppSpec) -> None:
        self._ours, self._engines = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        self._engines.setblocking(False)
        self._request = request_for(spec)

    def run(self, engine: Engine) -> None:
        """Returns when the request was answered 200. Raises `LaunchError` for anything else.

        Drives the engine by itself: all that the answer needs is there after each turn.
        """
        answer = b""
        with self._ours:
            self._ours.send(self._request)  # a new socket pair takes far more
            engine.probe(self._engines.detach())
            for _ in range(TURNS_LIMIT):
                engine.turn(1)
                try:
                    part = self._ours.recv(ANSWER_LIMIT)
                except BlockingIOError:
                    continue
                answer += part
                if not part or b"\r\n\r\n" in answer:
                    break
        if not answer.startswith(_EXPECTED):
            line = answer.split(b"\r\n", 1)[0][:80]
            raise LaunchError(f"the request to itself was answered {line!r}")


def request_for(spec: AppSpec) -> bytes:
    """A request for the spec's first route, or for "/" where it has none."""
    host, path = "localhost", "/"
    if spec.routes:
        match = spec.routes[0].match
        host = (match.host or host).replace("*", "probe", 1)
        path = match.path or path
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
