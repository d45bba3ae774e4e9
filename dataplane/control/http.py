"""The server of the supervisor's API: HTTP/1.1 by h11 over a UNIX socket, small and bounded.

It turns bytes into a `Request` and a `Response` into bytes; what a request means is the caller's.
Every wait has an end. It never serves a proxy's client: those are the engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from dataplane.system.sockets import peer_credentials

HEAD_LIMIT: Final = 16 * 1024
BODY_LIMIT: Final = 64 * 1024
REQUEST_SECONDS: Final = 10.0  # from a request's first byte to its last
IDLE_SECONDS: Final = 60.0
SEND_SECONDS: Final = 30.0
ACCEPT_PAUSE_SECONDS: Final = 0.1
CONNECTIONS: Final = 256

_READ_BYTES: Final = 16 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    path: str  # decoded, without the query
    query: Mapping[str, str]
    body: bytes
    peer: Peer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """`stream`, where it is given, is sent after `body` as it comes, until it or the peer ends."""

    status: int
    content_type: str = "application/json"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    stream: AsyncIterator[bytes] | None = None


Respond: TypeAlias = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200) -> Response:
    """A value as JSON, with a line's end for whoever reads it in a terminal."""
    return Response(status=status, body=json.dumps(value).encode() + b"\n")


def problem(
    status: int, detail: str, *, headers: tuple[tuple[str, str], ...] = (), **more: Any
) -> Response:
    """RFC 9457: what went wrong, for programs and people."""
    value = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **more,
    }
    return Response(
        status=status,
        content_type="application/problem+json",
        body=json.dumps(value).encode() + b"\n",
        headers=headers,
    )


async def serve(listening: socket.socket, respond: Respond) -> None:
    """Serves until it is cancelled; then every connection is closed. The socket is the caller's."""
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    room = asyncio.Semaphore(CONNECTIONS)
    async with asyncio.TaskGroup() as connections:
        while True:
            await room.acquire()
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError:  # it went again, or we have no descriptor for it: it can wait
                room.release()
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            served = connections.create_task(_serve_connection(sock, respond))
            served.add_done_callback(lambda _: room.release())


async def _serve_connection(sock: socket.socket, respond: Respond) -> None:
    with sock:
        sock.setblocking(False)
        try:
            await _Connection(sock, respond).run()
        except (OSError, TimeoutError):
            pass  # it went, or was too slow: either way nobody is left to be told
        except Exception:  # noqa: BLE001 - a connection's top: its failure must end no other
            with contextlib.suppress(OSError):  # a log whose disk is full must stop nobody
                traceback.print_exc()


class _TooLarge(Exception):
    """A request's body is beyond the limit."""


class _Connection:
    """Mutable. One peer and its requests, one after the other."""

    def __init__(self, sock: socket.socket, respond: Respond) -> None:
        self._sock = sock
        self._respond = respond
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        pid, uid, gid = peer_credentials(sock)
        self._peer = Peer(pid=pid, uid=uid, gid=gid)

    async def run(self) -> None:
        while True:
            try:
                request = await self._request()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                await self._refuse(problem(status, str(error)))
                return
            except _TooLarge:
                await self._refuse(problem(413, f"a body may have {BODY_LIMIT} bytes"))
                return
            if request is None:
                return
            await self._send(request, await self._respond(request))
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> Request | None:
        """The next request, or None when the peer ends. Raises h11's errors and `_TooLarge`."""
        async with asyncio.timeout(IDLE_SECONDS):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                await self._read()
        if not isinstance(event, h11.Request):
            return None
        body = bytearray()
        async with asyncio.timeout(REQUEST_SECONDS):
            while True:
                part = self._http.next_event()
                if part is h11.NEED_DATA:
                    if self._http.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        await self._write(self._http.send(go_on))
                    await self._read()
                elif isinstance(part, h11.Data):
                    body += part.data
                    if len(body) > BODY_LIMIT:
                        raise _TooLarge
                else:
                    break
        target = urlsplit(event.target.decode("ascii"))
        return Request(
            method=event.method.decode("ascii"),
            path=unquote(target.path),
            query=dict(parse_qsl(target.query, keep_blank_values=True)),
            body=bytes(body),
            peer=self._peer,
        )

    async def _send(self, request: Request, response: Response) -> None:
        headers = [("content-type", response.content_type), ("server", "dataplane")]
        headers += response.headers
        if response.stream is None:
            headers.append(("content-length", str(len(response.body))))
        head = h11.Response(
            status_code=response.status,
            headers=headers,
            reason=HTTPStatus(response.status).phrase.encode(),
        )
        data = self._http.send(head) or b""
        if request.method != "HEAD" and response.body:
            data += self._http.send(h11.Data(data=response.body)) or b""
        if response.stream is None:
            data += self._http.send(h11.EndOfMessage()) or b""
        await self._write(data)
        if response.stream is not None:
            await self._stream(response.stream)

    async def _stream(self, parts: AsyncIterator[bytes]) -> None:
        """Until it ends, or the peer does: whichever is first ends the other."""

        async def give() -> None:
            async for part in parts:
                await self._write(self._http.send(h11.Data(data=part)))
            await self._write(self._http.send(h11.EndOfMessage()))

        async def watch() -> None:
            while await self._loop.sock_recv(self._sock, _READ_BYTES):
                pass

        try:
            async with asyncio.TaskGroup() as group:
                giving, watching = group.create_task(give()), group.create_task(watch())
                await asyncio.wait({giving, watching}, return_when=asyncio.FIRST_COMPLETED)
                giving.cancel()
                watching.cancel()
        except* OSError:
            pass  # it went with events of ours unread, or takes none
        raise ConnectionResetError  # a stream is a connection's last answer

    async def _refuse(self, response: Response) -> None:
        """The answer to what is no request: the connection ends with it."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        head = h11.Response(
            status_code=response.status,
            headers=[
                ("content-type", response.content_type),
                ("content-length", str(len(response.body))),
                ("connection", "close"),
            ],
        )
        data = self._http.send(head) or b""
        data += self._http.send(h11.Data(data=response.body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        await self._write(data)

    async def _read(self) -> None:
        self._http.receive_data(await self._loop.sock_recv(self._sock, _READ_BYTES))

    async def _write(self, data: bytes | None) -> None:
        if data:
            async with asyncio.timeout(SEND_SECONDS):
                await self._loop.sock_sendall(self._sock, data)
