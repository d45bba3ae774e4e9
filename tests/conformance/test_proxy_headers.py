"""Each PROXY header of the table, whole and as it grows: one verdict, by its last byte."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.engine.parser import RefusedError, Verdict, parse_proxy_header
from tests.conformance.proxy_headers import REFUSED, TAKEN, Address


def named(table: tuple[tuple[Any, ...], ...]) -> list[Any]:
    return [pytest.param(*case[2:], id=f"{case[0]} ({case[1]})") for case in table]


@pytest.mark.parametrize(("data", "source", "destination"), named(TAKEN))
def test_header_is_taken_at_its_last_byte(
    data: bytes, source: Address, destination: Address
) -> None:
    assert all(parse_proxy_header(data[:known]) is None for known in range(len(data)))
    for behind in (b"", b"\r\n", b"GET / HTTP/1.1\r\n"):
        header = parse_proxy_header(data + behind)
        assert header is not None
        assert (header.length, header.source, header.destination) == (
            len(data),
            source,
            destination,
        )


@pytest.mark.parametrize(("data", "verdict"), named(REFUSED))
def test_header_is_refused_with_one_verdict(data: bytes, verdict: Verdict) -> None:
    with pytest.raises(RefusedError) as refusal:
        parse_proxy_header(data)
    assert refusal.value.verdict is verdict
    verdicts = set()
    for known in range(len(data) + 1):
        try:
            assert parse_proxy_header(data[:known]) is None
        except RefusedError as error:
            verdicts.add(error.verdict)
    assert verdicts == {verdict}
