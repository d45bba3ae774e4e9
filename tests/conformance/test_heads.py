"""Each case of the tables, whole and split at every byte, through the engine's own parsers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import pytest

from dataplane.engine.parser import (
    Chunked,
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
from tests.conformance.heads import CHUNKED, REQUESTS, RESPONSES, Refused, Taken

LIMITS: Final = Limits(max_bytes=4096, max_fields=32, max_target=1024)


def cases(table: Iterable[Taken | Refused]) -> list[Any]:
    return [pytest.param(case, id=f"{case.name} ({case.section})") for case in table]


def head_len(data: bytes, parts: Iterable[int]) -> int | None:
    """Where the head ends when what came grows to each of these lengths in turn."""
    end = HeadEnd(LIMITS)
    for known in parts:
        found = end.look(data[:known])
        if found is not None:
            return found
    return None


def every_split(data: bytes) -> Iterable[list[int]]:
    yield [len(data)]
    yield list(range(len(data) + 1))
    yield from ([cut, len(data)] for cut in range(1, len(data)))


def summary(head: RequestHead | ResponseHead) -> dict[str, Any]:
    found = {name: getattr(head, name) for name in head.__slots__}
    found["fields"] = tuple((field.name, field.value) for field in head.fields)
    found["dropped"] = tuple(field.name for field in head.fields if field.dropped)
    return found


def check_head(
    case: Taken | Refused, parse: Callable[[bytes, Limits], RequestHead | ResponseHead]
) -> None:
    ends: set[int | Verdict | None] = set()
    for parts in every_split(case.data):
        try:
            ends.add(head_len(case.data, parts))
        except RefusedError as error:
            ends.add(error.verdict)
    assert len(ends) == 1, "the verdict depends on how the bytes were split"
    (end,) = ends
    if isinstance(end, Verdict):
        assert isinstance(case, Refused)
        assert end is case.verdict
        return
    assert end is not None, "the case holds no whole head"
    data = case.data[:end]
    if isinstance(case, Refused):
        with pytest.raises(RefusedError) as refusal:
            parse(data, LIMITS)
        assert refusal.value.verdict is case.verdict
        return
    head = parse(data, LIMITS)
    found = summary(head)
    assert {name: found[name] for name in case.found} == case.found


@pytest.mark.parametrize("case", cases(REQUESTS))
def test_request_head(case: Taken | Refused) -> None:
    check_head(case, parse_request)


@pytest.mark.parametrize("case", cases(RESPONSES))
def test_response_head(case: Taken | Refused) -> None:
    check_head(case, parse_response)


@pytest.mark.parametrize("case", cases(CHUNKED))
def test_chunked_body(case: Taken | Refused) -> None:
    for keep in Keep:
        outcomes: set[bytes | Verdict] = set()
        for cut in {0, *range(1, min(len(case.data), 256)), len(case.data)}:
            body = Chunked(keep)
            try:
                first = body.feed(case.data[:cut])
                assert first.complete == (cut == len(case.data) and isinstance(case, Taken))
                outcomes.add(first.kept + body.feed(case.data[cut:]).kept)
            except RefusedError as error:
                outcomes.add(error.verdict)
        assert len(outcomes) == 1, "the outcome depends on how the bytes were split"
        (outcome,) = outcomes
        if isinstance(case, Refused):
            assert outcome is case.verdict
        else:
            framed = case.found.get("framed")
            expected = {
                Keep.BARE: case.found["body"],
                Keep.FRAMED: framed,
                Keep.TRAILERS: case.found.get("trailed", framed),
            }[keep]
            assert expected is None or outcome == expected


def test_response_to_head_has_no_body() -> None:
    head = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", to_head=True)
    assert head.framing.name == "NONE"
    assert head.content_length == 5


def test_names_of_cases_are_said_once() -> None:
    for table in (REQUESTS, RESPONSES, CHUNKED):
        names = [(case.name, case.section) for case in table]
        assert len(names) == len(set(names))
