"""An upstream server to try the proxy with: it answers what it was asked, as JSON.

An honest peer in a process of its own: HTTP/1.1 with keep-alive, slow answers, streams. It is for
demonstrations and knows nothing of the proxy.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import urllib.parse
from collections.abc import AsyncIterator
from typing import Final

import h11
import uvloop

_IDLE_SECONDS: Final = 120.0  # longer than the proxy keeps a connection, so that it closes first
_READ_BYTES: Final = 65536
_MAX_MS: Final = 600_000


def serve_upstream(listener: socket.socket, name: str, lifeline: int | None) -> None:
    """Answers on the listening socket until SIGTERM, SIGINT or the end of the lifeline pipe."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(listener, name, lifeline))


async def _serve(listener: socket.socket, name: str, lifeline: int | None) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_signal_handler(signal.SIGINT, over.set)
    if lifeline is not None:
        os.set_blocking(lifeline, False)
        loop.add_reader(lifeline, over.set)  # nothing is ever written: it can only end
    server = await asyncio.start_server(lambda r, w: _Peer(name, r, w).serve(), sock=listener)
    async with server:
        await over.wait()


class _Peer:
    """One connection of a client. Mutable: h11 keeps its state."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        """Answers requests until the client leaves."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client left, or is none: its connection ends and no other notices
        finally:
            self._writer.close()

    async def _exchange(self) -> bool:
        request: h11.Request | None = None
        received = 0
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            match event:
                case h11.Request():
                    request = event
                case h11.Data():
                    received += len(event.data)
                case _:
                    return False
        if request is None:
            return False
        target = urllib.parse.urlsplit(request.target.decode("ascii", "backslashreplace"))
        query = dict(urllib.parse.parse_qsl(target.query))
        match target.path:
            case "/healthz":
                await self._answer(b"ok\n", "text/plain")
            case "/stream":
                await self._stream(_ticks(_number(query, "ticks", 5), _number(query, "ms", 200)))
            case path:
                if path == "/slow":
                    await asyncio.sleep(_number(query, "ms", 1000) / 1000)
                await self._answer(self._told(request, received), "application/json")
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _told(self, request: h11.Request, received: int) -> bytes:
        fields = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        told = {
            "upstream": self._name,
            "method": request.method.decode(),
            "target": request.target.decode("ascii", "backslashreplace"),
            "headers": fields,
            "body_bytes": received,
        }
        return json.dumps(told, indent=2).encode() + b"\n"

    async def _next_event(self) -> object:
        async with asyncio.timeout(_IDLE_SECONDS):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event

    async def _answer(self, body: bytes, kind: str) -> None:
        fields = [("content-type", kind), ("content-length", str(len(body)))]
        head = h11.Response(status_code=200, reason=b"OK", headers=fields)
        await self._send(head, h11.Data(data=body), h11.EndOfMessage())

    async def _stream(self, parts: AsyncIterator[bytes]) -> None:
        fields = [("content-type", "text/plain")]
        await self._send(h11.Response(status_code=200, reason=b"OK", headers=fields))
        async for part in parts:
            await self._send(h11.Data(data=part))
        await self._send(h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        async with asyncio.timeout(_IDLE_SECONDS):
            await self._writer.drain()


async def _ticks(count: int, milliseconds: int) -> AsyncIterator[bytes]:
    for number in range(1, count + 1):
        yield b"tick %d\n" % number
        if number < count:
            await asyncio.sleep(milliseconds / 1000)


def _number(query: dict[str, str], name: str, otherwise: int) -> int:
    text = query.get(name, "")
    return min(int(text), _MAX_MS) if text.isdecimal() and len(text) < 10 else otherwise
