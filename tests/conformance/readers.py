"""Two parsers that are not ours, asked the same question: what messages are in these bytes?

h11 (pure Python) and llhttp (by httptools, strict, as it comes). What each says is brought into one
form, so that readings can be compared; a refusal is `None`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import h11
import httptools

from dataplane.engine.parser import (
    Chunked,
    Framing,
    HeadEnd,
    Keep,
    Limits,
    RefusedError,
    RequestHead,
    ResponseHead,
    parse_request,
    parse_response,
)

LIMITS: Final = Limits(max_bytes=8192, max_fields=64, max_target=2048)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The first message in some bytes. Names are lower case; `body` is None where it is not whole."""

    start: tuple[bytes, bytes, int]  # method and target, or status and b"", and HTTP/1.minor
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


Reader: TypeAlias = Callable[[Iterable[bytes]], Reading | None]


def parts_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def _as_told(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A transfer coding has no case (RFC 9112 7), and h11 tells it in lower case."""
    return name, value.lower() if name == b"transfer-encoding" else value


# --- ours ------------------------------------------------------------------------------------


def _ours(
    parts: Iterable[bytes], parse: Callable[[bytes], RequestHead | ResponseHead]
) -> Reading | None:
    end, known, pieces = HeadEnd(LIMITS), b"", iter(parts)
    try:
        length = None
        for part in pieces:
            known += part
            length = end.look(known)
            if length is not None:
                break
        if length is None:
            return None
        head = parse(known[:length])
        body = _body(head, [known[length:], *pieces])
    except RefusedError:
        return None
    if isinstance(head, RequestHead):
        start = (head.method, head.target, head.minor)
    else:
        start = (b"%d" % head.status, b"", head.minor)
    return Reading(
        start=start,
        fields=tuple(_as_told(field.name.lower(), field.value) for field in head.fields),
        body=body,
    )


def _body(head: RequestHead | ResponseHead, parts: list[bytes]) -> bytes | None:
    if head.framing is Framing.NONE:
        return b""
    if head.framing is Framing.CLOSE:
        return b"".join(parts)
    if head.framing is Framing.LENGTH:
        assert head.content_length is not None
        data = b"".join(parts)[: head.content_length]
        return data if len(data) == head.content_length else None
    chunked, kept = Chunked(Keep.BARE), b""
    for part in parts:
        piece = chunked.feed(part)
        kept += piece.kept
        if piece.complete:
            return kept
    return None


def our_request(parts: Iterable[bytes]) -> Reading | None:
    return _ours(parts, lambda data: parse_request(data, LIMITS))


def our_response(parts: Iterable[bytes]) -> Reading | None:
    return _ours(parts, lambda data: parse_response(data, LIMITS))


# --- h11 -------------------------------------------------------------------------------------


def _h11(connection: h11.Connection, parts: Iterable[bytes], *, to_end: bool) -> Reading | None:
    head: h11.Request | h11.Response | h11.InformationalResponse | None = None
    body, whole = b"", False
    try:
        for part in [*parts, b""] if to_end else parts:
            connection.receive_data(part)
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    whole = True
                elif isinstance(event, h11.InformationalResponse):
                    head, whole = head or event, True
                elif isinstance(event, h11.Request | h11.Response):
                    head = head or event
                else:
                    break
                if whole:
                    break
            if whole:
                break
    except h11.RemoteProtocolError:
        if head is None:
            return None
        whole = False
    if head is None:
        return None
    if isinstance(head, h11.Request):
        start = (head.method, head.target, int(head.http_version[-1:]))
    else:
        start = (b"%d" % head.status_code, b"", int(head.http_version[-1:]))
    fields = tuple(_as_told(name.lower(), value) for name, value in head.headers.raw_items())
    return Reading(
        start=start,
        fields=fields,
        body=body if whole else None,
    )


def h11_request(parts: Iterable[bytes]) -> Reading | None:
    return _h11(h11.Connection(h11.SERVER, 8192), parts, to_end=False)


def h11_response(parts: Iterable[bytes]) -> Reading | None:
    connection = h11.Connection(h11.CLIENT, 8192)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    return _h11(connection, parts, to_end=True)


# --- llhttp ----------------------------------------------------------------------------------


class _Heard:
    """llhttp's callbacks, for the first message alone. Mutable."""

    def __init__(self, *, request: bool) -> None:
        self.parser: Final = (
            httptools.HttpRequestParser(self) if request else httptools.HttpResponseParser(self)
        )
        self.start: tuple[bytes, bytes, int] | None = None
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.whole = False

    def on_url(self, url: bytes) -> None:
        if self.start is None:
            self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.start is None:  # a trailer field comes later
            self.fields.append(_as_told(name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self.start is None:
            parser = self.parser
            minor = int(parser.get_http_version()[-1:])
            if isinstance(parser, httptools.HttpRequestParser):
                self.start = (parser.get_method(), self.target, minor)
            else:
                self.start = (b"%d" % parser.get_status_code(), b"", minor)

    def on_body(self, body: bytes) -> None:
        if not self.whole:
            self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


def _llhttp(parts: Iterable[bytes], *, request: bool) -> Reading | None:
    heard = _Heard(request=request)
    for part in parts:
        try:
            heard.parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            heard.whole = True
        except httptools.HttpParserError:
            break
        if heard.whole:
            break
    if heard.start is None:
        return None
    names = dict(heard.fields)
    to_close = not request and not names.keys() & {b"content-length", b"transfer-encoding"}
    return Reading(
        start=heard.start,
        fields=tuple(heard.fields),
        body=heard.body if heard.whole or to_close else None,
    )


def llhttp_request(parts: Iterable[bytes]) -> Reading | None:
    return _llhttp(parts, request=True)


def llhttp_response(parts: Iterable[bytes]) -> Reading | None:
    return _llhttp(parts, request=False)
