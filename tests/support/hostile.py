"""Peers that mean harm, or are only broken: what they say, step by step, and what must come of it.

A step is bytes to send, or an act. A hostile upstream plays its steps once a request has come; a
hostile client plays them on a new connection. Each stands in a table, one entry a behaviour.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
from typing import Final, TypeAlias

from tests.support.upstream import SECONDS, Peer, Script, Wire


class Act(enum.Enum):
    FINISH = "ends its side"
    RESET = "resets"
    LISTEN = "reads until the other side ends"
    WAIT = "waits until the client has its answer"


Step: TypeAlias = bytes | Act


class Outcome(enum.Enum):
    """What the client of a hostile upstream gets."""

    WHOLE = "the answer"
    REFUSED = "502, made by the proxy"
    CUT = "an answer that is visibly not whole"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostileUpstream:
    steps: tuple[Step, ...]
    outcome: Outcome
    status: int = 200
    body: bytes = b"hello"
    method: str = "GET"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostileClient:
    """`answers`: statuses in order; `arrives`: first lines of the requests that come whole."""

    steps: tuple[Step, ...]
    answers: tuple[int, ...]
    arrives: tuple[str, ...] = ()


def play(wire: Wire, steps: tuple[Step, ...], answered: threading.Event | None = None) -> None:
    for step in steps:
        if isinstance(step, bytes):
            wire.send(step)
        elif step is Act.FINISH:
            wire.finish()
        elif step is Act.RESET:
            wire.reset()
            return
        elif step is Act.WAIT:
            assert answered is not None
            assert answered.wait(SECONDS)
        else:
            wire.rest()


def playing(behaviour: HostileUpstream, answered: threading.Event) -> Script:
    """A script that is hostile to /first and answers everything else as it should.

    `answered` is set once the client of /first has its answer.
    """

    def script(peer: Peer) -> None:
        while True:
            head, _ = peer.request()
            if " /first " in head.line:
                play(peer, behaviour.steps, answered)
            else:
                peer.answer(head.line.encode())

    return script


OK: Final = b"HTTP/1.1 200 OK\r\n"
LENGTH: Final = OK + b"content-length: 5\r\n\r\nhello"
EVIL: Final = OK + b"content-length: 4\r\n\r\nevil"
CHUNKED: Final = OK + b"transfer-encoding: chunked\r\n\r\n"
_WHOLE, _REFUSED, _CUT = Outcome.WHOLE, Outcome.REFUSED, Outcome.CUT


def _up(outcome: Outcome, *steps: Step, **more: object) -> HostileUpstream:
    return HostileUpstream(outcome=outcome, steps=steps, **more)  # type: ignore[arg-type]


UPSTREAMS: Final[dict[str, HostileUpstream]] = {
    # --- more than was asked for
    "a second answer at once": _up(_WHOLE, LENGTH + EVIL),
    "a second answer later": _up(_WHOLE, LENGTH, Act.WAIT, EVIL, Act.LISTEN),
    "a byte too many": _up(_WHOLE, LENGTH + b"!"),
    "an empty line too many": _up(_WHOLE, LENGTH + b"\r\n"),
    "a body to HEAD": _up(_WHOLE, LENGTH, method="HEAD", body=b""),
    "a body with 204": _up(
        _WHOLE, b"HTTP/1.1 204 N\r\ncontent-length: 5\r\n\r\nhello", status=204, body=b""
    ),
    "a body with 304": _up(
        _WHOLE, b"HTTP/1.1 304 N\r\ncontent-length: 5\r\n\r\nhello", status=304, body=b""
    ),
    "something behind the last chunk": _up(_WHOLE, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + EVIL),
    "a 100 that nobody waits for": _up(_WHOLE, b"HTTP/1.1 100 C\r\n\r\n" * 3 + LENGTH),
    "hints without end, then an answer": _up(
        _WHOLE, b"HTTP/1.1 103 E\r\nlink: x\r\n\r\n" * 50 + LENGTH
    ),
    "hints without end": _up(_REFUSED, b"HTTP/1.1 103 E\r\nlink: x\r\n\r\n" * 300 + LENGTH),
    "hints that nobody waits for without end": _up(
        _REFUSED, b"HTTP/1.1 100 C\r\n\r\n" * 300 + LENGTH
    ),
    "a 101 that nobody asked for": _up(
        _REFUSED, b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" + EVIL
    ),
    # --- framing that can be read in two ways
    "length and chunks": _up(
        _REFUSED, OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "two lengths": _up(_REFUSED, OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
    "two lengths that agree": _up(_REFUSED, OK + b"content-length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "a list of lengths": _up(_REFUSED, OK + b"content-length: 5, 5\r\n\r\nhello"),
    "a length with a sign": _up(_REFUSED, OK + b"content-length: +5\r\n\r\nhello"),
    "a length below nothing": _up(_REFUSED, OK + b"content-length: -1\r\n\r\nhello"),
    "a length of letters": _up(_REFUSED, OK + b"content-length: five\r\n\r\nhello"),
    "a length that overflows": _up(_REFUSED, OK + b"content-length: 18446744073709551621\r\n\r\nhello"),
    "chunked twice": _up(
        _REFUSED, OK + b"transfer-encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "chunked, then another": _up(_REFUSED, OK + b"transfer-encoding: chunked, gzip\r\n\r\n"),
    "an unknown coding": _up(_REFUSED, OK + b"transfer-encoding: gzip, chunked\r\n\r\n"),
    "chunks in HTTP/1.0": _up(
        _REFUSED, b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "a space before the colon": _up(_REFUSED, OK + b"content-length : 5\r\n\r\nhello"),
    "a folded line": _up(_REFUSED, OK + b"x: y\r\n content-length: 5\r\n\r\nhello"),
    "a bare LF": _up(_REFUSED, b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello"),
    "a bare CR": _up(_REFUSED, OK + b"x: y\rz\r\ncontent-length: 5\r\n\r\nhello"),
    "a NUL": _up(_REFUSED, OK + b"x: \0\r\ncontent-length: 5\r\n\r\nhello"),
    "an empty name": _up(_REFUSED, OK + b": y\r\ncontent-length: 5\r\n\r\nhello"),
    # --- what is no answer
    "garbage": _up(_REFUSED, b"\x16\x03\x01\x02\0\x01\0"),
    "a request": _up(_REFUSED, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "an empty line first": _up(_REFUSED, b"\r\n" + LENGTH),
    "HTTP/2": _up(_REFUSED, b"HTTP/2 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
    "HTTP/0.9": _up(_REFUSED, b"hello", Act.FINISH),
    "status 99": _up(_REFUSED, b"HTTP/1.1 099 No\r\n\r\n"),
    "status 1000": _up(_REFUSED, b"HTTP/1.1 1000 No\r\n\r\n"),
    "a head without end": _up(_REFUSED, OK + b"x: " + b"y" * 40_000),
    "too many fields": _up(_REFUSED, OK + b"x: y\r\n" * 300 + b"\r\n"),
    "nothing, and the end": _up(_REFUSED, Act.FINISH, Act.LISTEN),
    "nothing, and a reset": _up(_REFUSED, Act.RESET),
    "half a head": _up(_REFUSED, OK + b"content-le", Act.FINISH),
    "hints, and the end": _up(_REFUSED, b"HTTP/1.1 100 C\r\n\r\n", Act.FINISH),
    # --- bodies that end too early, or wrongly
    "less than the length": _up(_CUT, OK + b"content-length: 6\r\n\r\nhello", Act.FINISH),
    "less than the length, and a reset": _up(_CUT, OK + b"content-length: 6\r\n\r\nhello", Act.RESET),
    "no last chunk": _up(_CUT, CHUNKED + b"5\r\nhello\r\n", Act.FINISH),
    "half a chunk": _up(_CUT, CHUNKED + b"9\r\nhello", Act.FINISH),
    "half the end": _up(_CUT, CHUNKED + b"5\r\nhello\r\n0\r\n", Act.FINISH),
    "a chunk longer than told": _up(_CUT, CHUNKED, b"3\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a sign": _up(_CUT, CHUNKED, b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size that overflows": _up(_CUT, CHUNKED, b"fffffffffffffffff\r\nhello"),
    "extensions without end": _up(_CUT, CHUNKED, b"5;" + b"a" * 20_000),
    "trailers without end": _up(_CUT, CHUNKED, b"5\r\nhello\r\n0\r\nx: " + b"a" * 20_000),
    # --- what ends by close
    "to the end of the connection": _up(_WHOLE, OK + b"\r\nhel", b"lo", Act.FINISH),
    "no length and a promise to stay": _up(
        _WHOLE, OK + b"connection: keep-alive\r\n\r\nhello", Act.FINISH
    ),
}  # fmt: skip


GET: Final = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST: Final = b"POST /post HTTP/1.1\r\nhost: a\r\n"
NEXT: Final = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
_GET, _POST, _NEXT = "GET / HTTP/1.1", "POST /post HTTP/1.1", "GET /smuggled HTTP/1.1"


def _client(*steps: Step, answers: tuple[int, ...], arrives: tuple[str, ...] = ()) -> HostileClient:
    return HostileClient(steps=steps, answers=answers, arrives=arrives)


CLIENTS: Final[dict[str, HostileClient]] = {
    # --- a request inside another
    "CL.TE": _client(
        POST + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG" + NEXT,
        answers=(400,),
    ),
    "TE.CL": _client(
        POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n5c\r\n" + NEXT,
        answers=(400,),
    ),
    "TE.TE, a tab": _client(
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding:\tx\r\n\r\n0\r\n\r\n" + NEXT,
        answers=(400,),
    ),
    "TE.0": _client(
        POST + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
        answers=(200, 200),
        arrives=(_POST, _GET),
    ),
    "CL.0": _client(
        POST + b"content-length: %d\r\n\r\n" % len(NEXT) + NEXT + GET,
        answers=(200, 200),
        arrives=(_POST, _GET),
    ),
    "0.CL": _client(
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(NEXT) + NEXT,
        answers=(200,),
        arrives=(_GET,),
    ),
    "a look-alike length": _client(
        POST + b"content_length: 40\r\n\r\n" + GET, answers=(200, 200), arrives=(_POST, _GET)
    ),
    "a length behind a bare LF": _client(
        POST + b"x: y\ncontent-length: %d\r\n\r\n" % len(NEXT) + NEXT, answers=(400,)
    ),
    "a length behind a bare CR": _client(
        POST + b"x: y\rcontent-length: 40\r\n\r\n" + NEXT, answers=(400,)
    ),
    "a length in a fold": _client(
        POST + b"x: y\r\n content-length: 40\r\n\r\n" + NEXT, answers=(400,)
    ),
    "a request in a chunk extension": _client(
        POST + b"transfer-encoding: chunked\r\n\r\n1;a=\n" + NEXT, answers=(400,)
    ),
    "a request behind a bare LF in chunks": _client(
        POST + b"transfer-encoding: chunked\r\n\r\n2\r\nxx\n0\r\n\r\n" + NEXT, answers=(400,)
    ),
    "a request in trailers": _client(
        POST + b"transfer-encoding: chunked\r\n\r\n0\r\n" + NEXT, answers=(400,)
    ),
    "framing in trailers": _client(
        POST
        + b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: %d\r\n\r\n" % len(NEXT)
        + GET,
        answers=(200, 200),
        arrives=(_POST, _GET),
    ),
    "a request behind an upgrade": _client(
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" + NEXT,
        answers=(200, 200),
        arrives=(_GET, _NEXT),  # in the open: judged like any other
    ),
    "a request behind a refused one": _client(
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n" + NEXT, answers=(400,)
    ),
    "a request behind CONNECT": _client(
        b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n" + NEXT, answers=(501,)
    ),
    "a request behind the HTTP/2 preface": _client(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NEXT, answers=(505,)
    ),
    "a request behind Expect": _client(
        POST + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello" + GET,
        answers=(200, 200),
        arrives=(_POST, _GET),
    ),
    # --- requests that do not end
    "half a head": _client(GET[:20], Act.FINISH, answers=()),
    "half a head, and a reset": _client(GET[:20], Act.RESET, answers=()),
    "half a body": _client(POST + b"content-length: 9\r\n\r\nhello", Act.FINISH, answers=()),
    "half a body, and a reset": _client(
        POST + b"content-length: 9\r\n\r\nhello", Act.RESET, answers=()
    ),
    "no last chunk": _client(
        POST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Act.FINISH, answers=()
    ),
    "half the end of chunks": _client(
        POST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", Act.FINISH, answers=()
    ),
    "one whole, one half": _client(
        GET + GET[:-1], Act.FINISH, answers=(200,), arrives=(_GET,)
    ),
    # --- too much
    "empty lines": _client(b"\r\n" * 100 + GET, answers=(400,)),
    "a method without end": _client(b"A" * 100_000, answers=(414,)),
    "a target without end": _client(b"GET /" + b"a" * 100_000, answers=(414,)),
    "a field without end": _client(GET[:-2] + b"x: " + b"a" * 100_000, answers=(431,)),
    "fields without end": _client(GET[:-2] + b"x: y\r\n" * 5000, answers=(431,)),
    "options without end": _client(
        GET[:-2] + b"connection: " + b"a," * 200 + b"\r\n\r\n", answers=(431,)
    ),
    "a hundred requests at once": _client(
        GET * 100, answers=(200,) * 100, arrives=(_GET,) * 100
    ),
    # --- forged
    "CR LF in a target": _client(b"GET /\r\nx: y HTTP/1.1\r\nhost: a\r\n\r\n", answers=(400,)),
    "CR LF encoded in a path": _client(
        b"GET /%0d%0ax:%20y HTTP/1.1\r\nhost: a\r\n\r\n", answers=(400,)
    ),
    "userinfo in Host": _client(b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n", answers=(400,)),
    "two hosts by target": _client(
        b"GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n", answers=(400,)
    ),
    "a PROXY header": _client(b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + GET, answers=(400,)),
    "a TLS hello": _client(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", answers=(400,)),
}  # fmt: skip
