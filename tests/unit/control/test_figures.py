"""Sections of a stats mapping: nothing that does not fit the reader's own layout is believed."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable

import pytest

from dataplane.control.figures import (
    BOUNDS_US,
    BUCKETS,
    NO_FIGURES,
    ROUTES,
    TABLE_AT,
    TABLE_MAGIC,
    Durations,
    Figures,
    UpstreamFigures,
    mapping_bytes,
    read_figures,
)

SIZE = mapping_bytes(2, 3)
KINDS = (1, 2, 3)


def filled() -> bytearray:
    """A mapping for two upstreams and three routes, as an engine would leave it."""
    page = bytearray(SIZE)
    at = TABLE_AT + 16 + 8 * 16
    struct.pack_into("=IIII", page, TABLE_AT, TABLE_MAGIC, 1, 3, 0)
    for place, (kind, count, stride) in enumerate(((1, 1, 8 * 642), (2, 2, 64), (3, 4, 64))):
        at = -(-at // 64) * 64
        struct.pack_into("=IIII", page, TABLE_AT + 16 + 16 * place, kind, count, stride, at)
        for entry in range(count):
            figures = range(entry + 1, entry + 1 + stride // 8)
            struct.pack_into(f"={stride // 8}Q", page, at + entry * stride, *figures)
        at += count * stride
    return page


def section_at(kind: int) -> int:
    return TABLE_AT + 16 + 16 * KINDS.index(kind)


def read(page: bytearray) -> Figures:
    return read_figures(bytes(page), len(page), 2, 3)


def test_sections_are_read_from_where_the_table_says() -> None:
    figures = read(filled())
    assert (figures.durations.sum_us, figures.durations.buckets[0]) == (1, 2)
    assert len(figures.durations.buckets) == BUCKETS
    assert [upstream.requests_total for upstream in figures.upstreams] == [1, 2]
    assert figures.upstreams[1].up == 1
    assert figures.routes == tuple(tuple(range(n, n + 6)) for n in range(1, 5))


def test_mapping_that_nobody_wrote_has_no_figures() -> None:
    assert read(bytearray(SIZE)) == NO_FIGURES
    assert read_figures(bytes(100), 100, 2, 3) == NO_FIGURES


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 9), (4, 5), (4, 2**31), (8, 8), (8, 2**31), (12, SIZE), (12, 2**32 - 64)],
    ids=["kind", "count", "large count", "stride", "large stride", "offset", "large offset"],
)
def test_section_that_does_not_fit_is_passed_over(place: int, value: int) -> None:
    page = filled()
    struct.pack_into("=I", page, section_at(ROUTES) + place, value)
    figures = read(page)
    assert figures.routes == ()
    assert len(figures.upstreams) == 2


def test_entries_that_have_grown_are_read_as_far_as_they_are_known() -> None:
    page = filled() + bytearray(4 * 128)
    at = len(page) - 4 * 128
    for entry in range(4):
        struct.pack_into("=16Q", page, at + entry * 128, *range(entry, entry + 16))
    struct.pack_into("=IIII", page, section_at(ROUTES), ROUTES, 4, 128, at)
    assert read(page).routes == tuple(tuple(range(n, n + 6)) for n in range(4))


def test_table_of_another_version_or_size_is_not_believed() -> None:
    page = filled()
    struct.pack_into("=I", page, TABLE_AT + 4, 2)
    assert read(page) == NO_FIGURES
    page = filled()
    struct.pack_into("=I", page, TABLE_AT + 8, 2**32 - 1)
    assert len(read(page).upstreams) == 2


def test_mapping_of_memory_is_read_as_well() -> None:
    with mmap.mmap(-1, SIZE) as page:
        page[:] = bytes(filled())
        assert read_figures(page, SIZE, 2, 3) == read(filled())


def test_counts_up_to_a_bound_are_exact() -> None:
    buckets = [0] * BUCKETS
    for index, bound in enumerate(BOUNDS_US):
        buckets[index] = 1
        assert Durations(buckets=tuple(buckets)).up_to((bound,)) == (index + 1,)
    durations = Durations(buckets=(1,) * BUCKETS)
    assert durations.up_to((1, 10, 1000, 60_000_000)) == (1, 10, 190, 600)
    assert durations.count == BUCKETS


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (UpstreamFigures(), UpstreamFigures(up=1), UpstreamFigures(up=1)),
        (
            UpstreamFigures(requests_total=1, active=2, up=1),
            UpstreamFigures(requests_total=3, failures_total=4, active=5, up=1),
            UpstreamFigures(requests_total=4, failures_total=4, active=7, up=1),
        ),
    ],
)
def test_readings_add_up(
    one: UpstreamFigures, other: UpstreamFigures, both: UpstreamFigures
) -> None:
    assert one + other == both
    left: Callable[[], UpstreamFigures] = both.without_gauges
    assert (left().active, left().up, left().requests_total) == (0, 0, both.requests_total)
