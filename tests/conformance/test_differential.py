"""Our parsers against two that are not ours, on every case of the tables and on generated messages.

What we take, h11 and llhttp take as well and read alike, however the bytes are split; where they do
not, that stands in a table with its reason. What we refuse they may take: each such case stands in a
table too, and the section beside the case in `heads.py` says why we do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engine.parser import Framing, parse_request, parse_response
from tests.conformance.heads import CHUNKED, REQUESTS, RESPONSES, Refused, Taken
from tests.conformance.readers import (
    Reader,
    Reading,
    h11_request,
    h11_response,
    llhttp_request,
    llhttp_response,
    our_request,
    our_response,
    parts_of,
)
from tests.property.test_parsers import request_heads, response_heads

REQUEST_READERS: Final[dict[str, Reader]] = {"h11": h11_request, "llhttp": llhttp_request}
RESPONSE_READERS: Final[dict[str, Reader]] = {"h11": h11_response, "llhttp": llhttp_response}
NEXT: Final = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"
CHUNKS: Final = b"5;a=b\r\nhello\r\n03\r\n\r\n!\r\n0\r\nX: y\r\n\r\n"

# What we take and they do not, or read otherwise: (reader, case) and why that is theirs to answer.
OTHERWISE: Final[dict[tuple[str, str], str]] = {
    (
        "llhttp",
        "method with all token bytes",
    ): "it knows a list of methods; RFC 9110 9.1 lets there be others",
    ("llhttp", "chunked, any case"): "it knows no tab behind a coding; RFC 9110 5.6.3 does",
    ("llhttp", "trailers that frame"): "it refuses a length in trailers; we drop it, as 6.5.1 says",
    ("h11", "length with zeros"): "it takes no more than 20 digits, whatever they are",
    ("h11", "101"): "its caller must have asked for an upgrade; ours has, or it is a 502",
    ("h11", "101 that names nothing"): "as above",
    ("h11", "101 without the option"): "as above",
    ("h11", "101 to h2c"): "as above",
    ("llhttp", "upgrade with a length"): "it ends a message at any Upgrade; we do not upgrade then",
    ("llhttp", "upgrade with chunks"): "as above",
}

# What we refuse and they take. A newer version of theirs may take less.
_BOTH: Final = frozenset(
    {
        "quotation mark",
        "angle bracket",
        "fragment",
        "fragment in query",
        "NUL encoded in query",
        "percent at the end",
        "percent u",
        "way up, encoded slash",
        "way up, encoded backslash",
        "way up, parameter",
        "way up at the start",
        "absolute-form, other Host",
        "absolute-form, other port",
        "absolute-form, userinfo",
        "absolute-form, ws",
        "absolute-form, port and no name",
        "asterisk-form without OPTIONS",
        "CONNECT",
        "an IPv6 address without brackets",
        "an IPv6 address, something after",
        "an address of the future",
        "empty",
        "only a port",
        "port of letters",
        "port with a sign",
        "port beyond",
        "port far beyond",
        "port and port",
        "userinfo",
        "URI",
        "path",
        "query",
        "space",
        "two in one",
        "encoded",
        "high byte",
        "empty label",
        "length beyond its bound",
        "option with a space",
        "option with a semicolon",
        "option with a high byte",
        "more options than anyone has",
        "another expectation",
        "two expectations",
        "an empty expectation",
        "TE in HTTP/1.0",
        "status 600",
        "HTTP/2",
        "length too large",
        "chunked in HTTP/1.0",
        "100 with a body told",
        "100 chunked",
    }
)
LAXER: Final[dict[str, frozenset[str]]] = {
    "h11": _BOTH
    | {
        "major 3",
        "minor 9",
        "the HTTP/2 preface",
        "TRACE with a length",
        "TRACE with chunks",
        "absolute-form, one slash",
        "absolute-form, backslashes",
        "a target that is a name",
        "authority-form without CONNECT",
        "bare LF ends the request line",
        "bare LF ends a field",
        "bare LF ends the head",
        "fold",
        "fold with tab",
        "fold of nothing",
        "BEL in a value",
        "ESC in a value",
        "DEL in a value",
        "length that wraps to 5",
        "length, list of equals",
        "length twice, equal",
        "CL.TE",
        "TE.CL",
        "TE.CL, length zero",
        "TE, folded",
        "TE, space before the name",
        "TE, LF before the name",
        "bare LF after reason",
        "HTTP/1.2",
        "length and chunked",
        "length twice",
        "length list",
    },
    "llhttp": _BOTH
    | {
        "TRACE with a length",
        "TRACE with chunks",
        "HTTP/0.9",
        "no Host",
        "two Hosts, equal",
        "two Hosts, differing",
        "two Hosts in HTTP/1.0",
        "TE.TE the other way round",
        "TE, identity before chunked",
        "TE, gzip",
        "TE, xchunked",
        "TE, chunkedx",
        "TE, chunk",
        "TE, comma first",
        "TE, parameter",
        "TE, semicolon",
        "TE, quoted",
        "TE, single quotes",
        "TE, high byte last",
        "TE, no-break space first",
        "status 000",
        "NUL in reason",
        "empty line first",
        "chunked twice",
        "chunked not last",
        "gzip, chunked",
        "101 with a length",
    },
}


def with_body(head: bytes, *, request: bool) -> bytes:
    """The head with a body as it announces; a length that is too long to send gets none."""
    found = parse_request(head) if request else parse_response(head)
    if found.framing is Framing.CHUNKED:
        return head + CHUNKS
    length = found.content_length or 0
    return head + b"x" * length if found.framing is Framing.LENGTH and length < 100 else head


def every_split(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    yield from (parts_of(data, [cut]) for cut in range(1, len(data)))


def check_taken(case: Taken, ours: Reader, others: dict[str, Reader], *, request: bool) -> None:
    data = with_body(case.data, request=request)
    whole = ours([data])
    assert whole is not None
    if request and whole.body is not None:
        data += NEXT  # what follows must not change what was read
    for parts in every_split(data):
        assert ours(parts) == whole
    for name, reader in others.items():
        if (name, case.name) in OTHERWISE:
            assert reader([data]) != whole, "it does not read otherwise any more"
            continue
        for parts in every_split(data):
            assert reader(parts) == whole, name


def check_refused(case: Refused, ours: Reader, others: dict[str, Reader]) -> None:
    for parts in every_split(case.data):
        assert ours(parts) is None
    for name, reader in others.items():
        if reader([case.data]) is not None:
            assert case.name in LAXER[name], f"{name} takes it: is it right to refuse it?"


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
def test_requests_of_the_table(case: Taken | Refused) -> None:
    if isinstance(case, Taken):
        check_taken(case, our_request, REQUEST_READERS, request=True)
    else:
        check_refused(case, our_request, REQUEST_READERS)


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
def test_responses_of_the_table(case: Taken | Refused) -> None:
    if isinstance(case, Taken):
        check_taken(case, our_response, RESPONSE_READERS, request=False)
    else:
        check_refused(case, our_response, RESPONSE_READERS)


HEAD: Final = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

# Bodies that we refuse and they take, and why.
LAXER_BODIES: Final[dict[str, frozenset[str]]] = {
    # It looks at extensions and trailers less closely, and takes bare LF for a line's end there.
    "h11": frozenset(
        {
            "space last",
            "tab last",
            "size beyond 62 bits",
            "bare LF at the end",
            "extension of nothing",
            "extension with spaces",
            "extension with a bare CR",
            "trailer folded",
            "trailer with a bare LF",
            "bare LF after size",
            "extension with a NUL",
            "extension with a line end quoted",
            "extension with a bare LF",
        }
    ),
    "llhttp": frozenset({"extension of nothing", "extension with spaces", "underscore"}),
}


@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.name)
def test_chunked_bodies_of_the_table(case: Taken | Refused) -> None:
    """Refused ones are often cut off: only a body that the others find whole tells anything."""
    data = HEAD + case.data
    ours = our_request([data])
    for name, reader in REQUEST_READERS.items():
        theirs = reader([data])
        if (name, case.name) in OTHERWISE:
            assert theirs != ours, "it does not read otherwise any more"
        elif isinstance(case, Taken):
            assert theirs == ours, name
        elif theirs is not None and theirs.body is not None:
            assert case.name in LAXER_BODIES[name], f"{name} takes it: is it right to refuse it?"


def agrees(ours: Reading | None, theirs: Reading | None) -> bool:
    return ours is None or ours.body is None or theirs == ours


METHODS: Final = {b"GET", b"HEAD", b"POST", b"OPTIONS"}  # that llhttp knows, of what is generated


@settings(max_examples=400)
@given(head=request_heads(), body=st.sampled_from([b"", b"hello", CHUNKS]), cut=st.integers(0, 200))
def test_what_we_take_of_generated_requests_the_others_read_alike(
    head: bytes, body: bytes, cut: int
) -> None:
    data = head + body + NEXT
    ours = our_request([data])
    assert our_request(parts_of(data, [min(cut, len(data))])) == ours
    if ours is None or any(name == b"upgrade" for name, _ in ours.fields):
        return
    assert agrees(ours, h11_request([data]))
    assert ours.start[0] not in METHODS or agrees(ours, llhttp_request([data]))


@settings(max_examples=400)
@given(
    head=response_heads(), body=st.sampled_from([b"", b"hello", CHUNKS]), cut=st.integers(0, 200)
)
def test_what_we_take_of_generated_responses_the_others_read_alike(
    head: bytes, body: bytes, cut: int
) -> None:
    data = head + body
    ours = our_response([data])
    assert our_response(parts_of(data, [min(cut, len(data))])) == ours
    if ours is None or ours.start[0] in (b"100", b"101"):
        return
    assert agrees(ours, h11_response([data]))
    assert agrees(ours, llhttp_response([data]))


def test_tables_name_cases_that_there_are() -> None:
    names = {case.name for case in (*REQUESTS, *RESPONSES)}
    for laxer in LAXER.values():
        assert laxer <= names
    assert {case for _, case in OTHERWISE} <= names | {case.name for case in CHUNKED}
    assert all(laxer <= {case.name for case in CHUNKED} for laxer in LAXER_BODIES.values())
