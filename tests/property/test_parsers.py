"""Properties of the parsers, with h11 as a second opinion.

Split anywhere, the same result. What we take, h11 takes and reads alike (h11 is nowhere stricter
but in what is said below). What a body was chunked from comes out again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataplane.engine.parser import (
    Chunked,
    Framing,
    HeadEnd,
    Keep,
    Limits,
    RefusedError,
    RequestHead,
    ResponseHead,
    Verdict,
    parse_request,
    parse_response,
)

LIMITS: Final = Limits(max_bytes=2048, max_fields=64, max_target=512)

# --- what heads are made of: mostly right, so that refusals come from one thing wrong ------------


def mostly(good: list[bytes], odd: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the odd ones in sixteen, or a few bytes of any kind."""
    strange = st.one_of(st.sampled_from(odd), st.binary(max_size=6))
    return st.integers(0, 15).flatmap(lambda n: strange if n == 15 else st.sampled_from(good))


METHODS = mostly([b"GET", b"HEAD", b"POST", b"X-Y"], [b"CONNECT", b"OPTIONS", b"G(T", b" GET"])
TARGETS = mostly(
    [b"/", b"/a/b?c", b"http://a/x", b"/%41?%41", b"/a..b"],
    [b"*", b"http://b/", b"/a/../b", b"/%2e%2e/", b"/%zz", b"/#", b"a:1", b"/ /", b"http://a@a/"],
)
VERSIONS = mostly([b"HTTP/1.1"] * 4 + [b"HTTP/1.0"], [b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"])
FRAMES = mostly(
    [b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"X: y"],
    [
        b"Content-Length: 5, 5", b"Content-Length: +5", b"Content-Length: 99999999999999999999",
        b"Transfer-Encoding: Chunked", b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding: \x0bchunked",
        b"Content-Length : 5", b"Transfer-Encoding : chunked", b" Content-Length: 5",
    ],
)  # fmt: skip
NAMES = mostly(
    [b"X-A", b"x_a", b"TE", b"Upgrade", b"X-Forwarded-For", b"Accept", b"Set-Cookie"],
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"X A", b"", b"X\0", b"X ", b" X", b"X\r"],
)
VALUES = mostly(
    [b"a", b" a b \t", b"", b"\xff", b"close", b"5", b"a" * 40],
    [b"a\r\n b", b"a\rb", b"a\nb", b"\0", b"\x0b", b"\x7f"],
)
MEANINGS = mostly(
    [b"Connection: close", b"Connection: keep-alive, x-a", b"Accept: a"],
    [b"Expect: 100-continue", b"Expect: b", b"Connection: a b", b"Host: a", b"host: b"],
)
ENDS = mostly([b"\r\n"] * 8, [b"\n", b"\r", b"\r\r\n"]) | st.just(b"\r\n")


@st.composite
def field_lines(draw: st.DrawFn) -> list[bytes]:
    lines = [draw(FRAMES)] if draw(st.booleans()) else []
    lines += [draw(MEANINGS)] if draw(st.booleans()) else []
    lines += [
        draw(NAMES) + draw(st.sampled_from([b": ", b":", b":\t"])) + draw(VALUES)
        for _ in range(draw(st.integers(0, 2)))
    ]
    return lines


@st.composite
def request_heads(draw: st.DrawFn) -> bytes:
    lines = [b" ".join((draw(METHODS), draw(TARGETS), draw(VERSIONS)))]
    lines += [b"Host: a"] if draw(st.integers(0, 15)) < 15 else []
    lines += draw(field_lines())
    return b"".join(line + draw(ENDS) for line in lines) + draw(ENDS)


STATUSES = mostly([b"200 OK", b"204 ", b"304", b"100 C"], [b"099 x", b"600 x", b"2000 x", b"2x0 "])


@st.composite
def response_heads(draw: st.DrawFn) -> bytes:
    lines = [draw(VERSIONS) + b" " + draw(STATUSES), *draw(field_lines())]
    return b"".join(line + draw(ENDS) for line in lines) + draw(ENDS)


HEADS = st.one_of(request_heads(), response_heads(), st.binary(max_size=64))


def find_end(data: bytes, cuts: Sequence[int]) -> int | Verdict | None:
    end = HeadEnd(LIMITS)
    try:
        for known in [*sorted(cuts), len(data)]:
            found = end.look(data[:known])
            if found is not None:
                return found
    except RefusedError as error:
        return error.verdict
    return None


def request_of(data: bytes) -> RequestHead | None:
    end = find_end(data, ())
    if not isinstance(end, int):
        return None
    try:
        return parse_request(data[:end], LIMITS)
    except RefusedError:
        return None


def response_of(data: bytes) -> ResponseHead | None:
    end = find_end(data, ())
    if not isinstance(end, int):
        return None
    try:
        return parse_response(data[:end], LIMITS)
    except RefusedError:
        return None


# --- heads ---------------------------------------------------------------------------------------


@given(data=HEADS, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_a_head_ends_at_the_same_place_however_it_is_split(data: bytes, cuts: list[int]) -> None:
    whole = find_end(data, ())
    assert find_end(data, [cut for cut in cuts if cut <= len(data)]) == whole
    assert find_end(data, range(len(data))) == whole


def as_h11_sees(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Names without case; so is a transfer coding (RFC 9112 7), and h11 tells it in lower case."""
    name = name.lower()
    return name, value.lower() if name == b"transfer-encoding" else value


def seen_by_h11(
    event: h11.Request | h11.Response | h11.InformationalResponse,
) -> list[tuple[bytes, bytes]]:
    return [as_h11_sees(name, value) for name, value in event.headers.raw_items()]


@settings(max_examples=400)
@given(data=request_heads())
@example(data=b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
@example(data=b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
def test_a_request_that_is_taken_is_taken_by_h11_and_means_the_same(data: bytes) -> None:
    head = request_of(data)
    if head is None:
        return
    other = h11.Connection(h11.SERVER)
    other.receive_data(data)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    assert event.method == head.method
    assert event.target == head.target
    assert event.http_version == b"1.%d" % head.minor
    assert seen_by_h11(event) == [as_h11_sees(field.name, field.value) for field in head.fields]
    assert other.they_are_waiting_for_100_continue == head.expects_continue
    # The body as h11 understands it: a length of its own, chunks, or none.
    names = dict(event.headers)
    if head.framing is Framing.CHUNKED:
        assert names[b"transfer-encoding"] == b"chunked"
        assert b"content-length" not in names
    elif head.framing is Framing.LENGTH:
        assert int(names[b"content-length"]) == head.content_length
    else:
        assert not names.keys() & {b"content-length", b"transfer-encoding"}


@settings(max_examples=400)
@given(data=response_heads())
@example(data=b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")
@example(data=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n")
def test_a_response_that_is_taken_is_taken_by_h11_and_means_the_same(data: bytes) -> None:
    head = response_of(data)
    if head is None:
        return
    other = h11.Connection(h11.CLIENT)
    other.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    other.send(h11.EndOfMessage())
    other.receive_data(data)
    event = other.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == head.status
    assert seen_by_h11(event) == [as_h11_sees(field.name, field.value) for field in head.fields]
    assert head.framing is not Framing.CLOSE or not head.keep_alive


@given(data=st.one_of(request_heads(), response_heads()))
def test_what_is_taken_is_free_of_bytes_that_could_end_a_line(data: bytes) -> None:
    head = request_of(data) or response_of(data)
    if head is None:
        return
    for field in head.fields:
        assert field.name
        assert not set(field.name) & set(b"\r\n\0 \t:")
        assert not set(field.value) & set(b"\r\n\0")
        assert field.value == field.value.strip(b" \t")


@given(count=st.integers(0, 2048), target=st.integers(0, 600))
def test_limits_hold_to_the_byte(count: int, target: int) -> None:
    start = b"GET /" + b"a" * target + b" HTTP/1.1\r\nHost: a\r\nX: "
    data = start + b"b" * count + b"\r\n\r\n"
    end = find_end(data, range(0, len(data), 7))
    if len(start) - 11 > LIMITS.max_target + 64:
        assert end is Verdict.TARGET
    elif len(data) > LIMITS.max_bytes:
        assert end is Verdict.TOO_BIG
    else:
        assert end == len(data)
        assert (request_of(data) is not None) == (target + 1 <= LIMITS.max_target)


# --- chunked bodies ------------------------------------------------------------------------------

CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b;\\""', b";a;b=c"])
TRAILERS = st.sampled_from([b"", b"X: y\r\n", b"X:\r\nY: \xff\r\n"])


def feed(data: bytes, cuts: Sequence[int], *, keep: Keep) -> tuple[bytes, int, bool] | Verdict:
    """What is kept in all, how many bytes were used, and whether the body is complete."""
    body = Chunked(keep)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    kept, used = b"", 0
    for start, stop in itertools.pairwise(edges):
        try:
            part = body.feed(data[start:stop])
        except RefusedError as error:
            return error.verdict
        kept, used = kept + part.kept, used + part.used
        assert len(kept) <= used
        if part.complete:
            return kept, used, True
    return kept, used, False


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The data, and the body that carries it."""
    chunks = draw(CHUNKS)
    body = b"".join(
        b"%s%x%s\r\n%s\r\n" % (b"0" * draw(st.integers(0, 3)), len(data), draw(EXTENSIONS), data)
        for data in chunks
    )
    return b"".join(chunks), body + b"0" + draw(EXTENSIONS) + b"\r\n" + draw(TRAILERS) + b"\r\n"


@given(body=bodies(), cuts=st.lists(st.integers(0, 300), max_size=8), after=st.binary(max_size=4))
def test_what_was_chunked_comes_out_again(
    body: tuple[bytes, bytes], cuts: list[int], after: bytes
) -> None:
    data, chunked = body
    assert feed(chunked + after, cuts, keep=Keep.BARE) == (data, len(chunked), True)
    kept = feed(chunked + after, cuts, keep=Keep.FRAMED)
    assert not isinstance(kept, Verdict)
    framed, used, complete = kept
    assert complete
    assert used == len(chunked)
    assert feed(framed, (), keep=Keep.BARE) == (data, len(framed), True)
    assert feed(framed, (), keep=Keep.FRAMED) == (framed, len(framed), True)


@given(
    data=st.one_of(
        st.binary(max_size=30),
        st.text(alphabet='0a1F;="\\\r\n :x', max_size=30).map(str.encode),
        bodies().map(lambda body: body[1]),
    ),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    keep=st.sampled_from(Keep),
)
def test_a_body_is_judged_alike_however_it_is_split(
    data: bytes, cuts: list[int], keep: Keep
) -> None:
    whole = feed(data, (), keep=keep)
    assert feed(data, cuts, keep=keep) == whole
    assert feed(data, range(len(data)), keep=keep) == whole


@given(data=bodies(), place=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_spoiled_body_never_reads_as_other_data_to_h11(
    data: tuple[bytes, bytes], place: int, byte: int
) -> None:
    """One byte replaced: if we still take it, h11 finds the same data in what we would send on."""
    spoiled = bytearray(data[1])
    spoiled[place % len(spoiled)] = byte
    kept = feed(bytes(spoiled), (), keep=Keep.FRAMED)
    bare = feed(bytes(spoiled), (), keep=Keep.BARE)
    if isinstance(kept, Verdict) or isinstance(bare, Verdict) or not kept[2]:
        return
    other = h11.Connection(h11.SERVER)
    other.receive_data(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + kept[0]
    )
    assert isinstance(other.next_event(), h11.Request)
    read = b""
    while isinstance(event := other.next_event(), h11.Data):
        read += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert read == bare[0]
