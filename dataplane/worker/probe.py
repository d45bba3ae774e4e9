"""The self-test before READY: one request through the worker's own loop, engine and tables.

Made before the seal, because a socket pair cannot be made after it; run after the seal, so that it
proves the worker as it will serve.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from dataplane.engine.engine import Engine
from dataplane.model.errors import LaunchError
from dataplane.model.spec import AppSpec

PROBE_SECONDS: Final = 3.0
ANSWER_LIMIT: Final = 65536

_EXPECTED: Final = b"HTTP/1.1 200 "


class Probe:
    """A socket pair and a request that the first route takes. Used once."""

    def __init__(self, spec: AppSpec) -> None:
        self._ours, self._engines = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        self._engines.setblocking(False)
        self._request = request_for(spec)

    async def run(self, engine: Engine, turn: Callable[[], None]) -> None:
        """Returns when the request was answered 200. Raises `LaunchError` for anything else."""
        loop = asyncio.get_running_loop()
        with self._ours:
            engine.probe(self._engines.detach())
            # The worker itself adds its engine to the loop when it runs: only then its turns count.
            loop.add_reader(engine.fd, turn)
            try:
                await loop.sock_sendall(self._ours, self._request)
                answer = await self._answer(loop)
            finally:
                loop.remove_reader(engine.fd)
        if not answer.startswith(_EXPECTED):
            line = answer.split(b"\r\n", 1)[0][:80]
            raise LaunchError(f"the request to itself was answered {line!r}")

    async def _answer(self, loop: asyncio.AbstractEventLoop) -> bytes:
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < ANSWER_LIMIT:
            part = await loop.sock_recv(self._ours, ANSWER_LIMIT)
            if not part:
                break
            answer += part
        return answer


def request_for(spec: AppSpec) -> bytes:
    """A request for the spec's first route, or for "/" where it has none."""
    host, path = "localhost", "/"
    if spec.routes:
        match = spec.routes[0].match
        host = (match.host or host).replace("*", "probe", 1)
        path = match.path or path
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
