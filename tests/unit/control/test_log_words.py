"""What the supervisor and its log writer say: what is sent is what is heard, nothing else is."""

from __future__ import annotations

import pytest

from dataplane.control.log_words import (
    PipeEnd,
    PipeOrder,
    Report,
    decode_order,
    decode_told,
    encode_order,
    encode_told,
)


def test_what_is_said_is_what_is_heard() -> None:
    order = decode_order(encode_order(PipeOrder(7, "billing", 64 << 20, 5)))
    assert (order.number, order.app, order.rotate_bytes, order.keep) == (7, "billing", 64 << 20, 5)
    report = decode_told(encode_told(Report("billing", 10, 2, "ENOSPC")))
    assert isinstance(report, Report)
    told = (report.app, report.written, report.dropped, report.state)
    assert told == ("billing", 10, 2, "ENOSPC")
    end = decode_told(encode_told(PipeEnd(7)))
    assert isinstance(end, PipeEnd)
    assert end.number == 7


@pytest.mark.parametrize(
    "datagram",
    [
        b"", b"1 pipe", b"2 pipe 7 billing 1 1", b"1 pipe 7 .. 1 1", b"1 pipe 7 a/b 1 1",
        b"1 pipe x billing 1 1", b"1 pipe 7  1 1", b"1 pipe 7 billing 1 1 1", b"\xff",
    ],
)  # fmt: skip
def test_order_that_is_none_is_refused(datagram: bytes) -> None:
    with pytest.raises(ValueError):
        decode_order(datagram)


@pytest.mark.parametrize(
    "datagram", [b"", b"1 end", b"1 end x", b"2 end 1", b"1 report a 1 2", b"1 other a 1 2 x"]
)
def test_word_that_is_none_is_refused(datagram: bytes) -> None:
    with pytest.raises(ValueError):
        decode_told(datagram)
