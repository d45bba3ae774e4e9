"""The stats page: what an engine writes is what is read, and nothing else is believed."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from dataplane.control.stats import (
    FIELDS,
    NO_STATS,
    PAGE_BYTES,
    STATS_MAGIC,
    STATS_VERSION,
    Stats,
    StatsPage,
    offset_of,
)
from dataplane.model.errors import ControlError
from dataplane.system.memfd import sealed_memfd, shared_memfd


@pytest.fixture
def page() -> Iterator[StatsPage]:
    made = StatsPage("test")
    yield made
    made.close()


def write(page: StatsPage, version: int = STATS_VERSION) -> None:
    """As an engine would: each figure is its own place, counted from 1."""
    figures = range(1, 1 + sum(count for _, count in FIELDS))
    with mmap.mmap(page.fd, PAGE_BYTES) as writable:
        struct.pack_into("=II", writable, 0, STATS_MAGIC, version)
        struct.pack_into(f"={len(figures)}Q", writable, 8, *figures)


def test_page_that_nobody_wrote_yet_is_all_zero(page: StatsPage) -> None:
    assert page.read() == NO_STATS
    assert page.turns() == 0


def test_every_field_is_read_from_its_place(page: StatsPage) -> None:
    write(page)
    stats = page.read()
    assert (stats.turns, stats.connections, stats.tunnels) == (1, 2, 31)
    assert stats.answers_total == (11, 12, 13, 14, 15, 16)
    assert page.turns() == 1
    for name, count in FIELDS:
        place = (offset_of(name) - 8) // 8 + 1
        value = getattr(stats, name)
        assert value == (place if count == 1 else tuple(range(place, place + count)))


def test_page_of_another_layout_is_not_believed(page: StatsPage) -> None:
    write(page, version=STATS_VERSION + 1)
    assert page.read() == NO_STATS


def test_readings_add_up_and_the_dead_keep_their_counters_alone() -> None:
    one = Stats(connections=3, connections_total=10, answers_total=(0, 1, 2, 3, 4, 5))
    both = one + one
    assert (both.connections, both.connections_total) == (6, 20)
    assert both.answers_total == (0, 2, 4, 6, 8, 10)
    assert Stats(log_dropped_total=1, log_pending=2).without_gauges() == Stats(log_dropped_total=3)
    assert both.without_gauges() == Stats(connections_total=20, answers_total=(0, 2, 4, 6, 8, 10))


def test_page_that_a_worker_lent_is_read_on(page: StatsPage) -> None:
    write(page)
    lent = StatsPage("", lent=os.dup(page.fd))
    assert lent.read() == page.read()
    os.close(lent.fd)
    lent.close()


def test_lent_descriptor_that_is_no_page_is_refused_and_left_open() -> None:
    for fd in (shared_memfd("small", PAGE_BYTES - 1), sealed_memfd("spec", b"x" * PAGE_BYTES)):
        with pytest.raises(ControlError):
            StatsPage("", lent=fd)
        os.close(fd)
