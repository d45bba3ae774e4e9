"""The sections of a stats mapping: how long requests took, and figures by upstream and by route.

The layout is that of dp_stats_layout in native/src/dp_meter.c; a test holds the two together. What
is read was written by a process that meets the network: every place is held against the reader's
own sizes, and a section that does not fit is passed over. A section's entries may have grown since
this code: what stands beyond the fields it knows is left alone.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

TABLE_AT: Final = 1024
TABLE_MAGIC: Final = 0x64707374
TABLE_VERSION: Final = 1

DURATION: Final = 1
UPSTREAMS: Final = 2
ROUTES: Final = 3

BUCKETS: Final = 641
CLASSES: Final = 6  # of answers: none could be sent, 1xx to 5xx

_LINE: Final = 64  # sections begin at their own cache line
_SECTIONS_MAX: Final = 8
_TABLE: Final = struct.Struct("=IIII")
_SECTION: Final = struct.Struct("=IIII")  # kind, count, stride, offset
_DURATION_ENTRY: Final = struct.Struct(f"={1 + BUCKETS}Q")
_UPSTREAM_ENTRY: Final = struct.Struct("=6Q")
_ROUTE_ENTRY: Final = struct.Struct(f"={CLASSES}Q")
# What an entry takes here; `_..._ENTRY` is what is known of it.
_STRIDES: Final = {DURATION: _DURATION_ENTRY.size, UPSTREAMS: 64, ROUTES: 64}


def _bounds() -> tuple[int, ...]:
    """The upper bound of each bucket but the last, in microseconds: to 9.9 x 10^n, 2 digits each"""
    bounds = list(range(1, 11))
    step = 1
    while len(bounds) < BUCKETS - 1:
        bounds += range(11 * step, 101 * step, step)
        step *= 10
    return tuple(bounds)


# Bucket i counts durations above BOUNDS_US[i - 1] and up to BOUNDS_US[i]; the last one all beyond.
BOUNDS_US: Final = _bounds()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long requests took, from the end of a head to the last byte of its answer."""

    sum_us: int = 0
    buckets: tuple[int, ...] = (0,) * BUCKETS

    def __add__(self, other: Durations) -> Durations:
        return Durations(
            sum_us=self.sum_us + other.sum_us,
            buckets=tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True)),
        )

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def up_to(self, bounds_us: Sequence[int]) -> tuple[int, ...]:
        """How many took at most so long, for ascending bounds that are bounds of buckets."""
        counts, total, index = [], 0, 0
        for bound in bounds_us:
            while index < len(BOUNDS_US) and BOUNDS_US[index] <= bound:
                total += self.buckets[index]
                index += 1
            counts.append(total)
        return tuple(counts)


NO_DURATIONS: Final = Durations()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamFigures:
    """Of one upstream. `active` and `up` are "now", the others only ever grow."""

    requests_total: int = 0  # attempts: a repeated request counts again
    connects_total: int = 0
    connect_failures_total: int = 0
    failures_total: int = 0
    active: int = 0
    up: int = 0

    def __add__(self, other: UpstreamFigures) -> UpstreamFigures:
        return UpstreamFigures(
            requests_total=self.requests_total + other.requests_total,
            connects_total=self.connects_total + other.connects_total,
            connect_failures_total=self.connect_failures_total + other.connect_failures_total,
            failures_total=self.failures_total + other.failures_total,
            active=self.active + other.active,
            up=max(self.up, other.up),
        )

    def without_gauges(self) -> UpstreamFigures:
        """What is left once its worker is gone."""
        return dataclasses.replace(self, active=0, up=0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One reading of all sections. Empty where no engine wrote them, or one of another layout."""

    durations: Durations = NO_DURATIONS
    upstreams: tuple[UpstreamFigures, ...] = ()
    routes: tuple[tuple[int, ...], ...] = ()  # answers by class; the last one: no route

    def without_gauges(self) -> Figures:
        """What is left once its worker is gone."""
        upstreams = tuple(upstream.without_gauges() for upstream in self.upstreams)
        return dataclasses.replace(self, upstreams=upstreams)


NO_FIGURES: Final = Figures()
Mapping: TypeAlias = mmap.mmap | bytes


def mapping_bytes(upstreams: int, routes: int) -> int:
    """How large a mapping for so many upstreams and routes is."""
    *_, last = _layout(upstreams, routes)
    _, count, stride, offset = last
    return offset + count * stride


def _layout(upstreams: int, routes: int) -> Iterator[tuple[int, int, int, int]]:
    """Kind, count, stride and offset of each section."""
    at = TABLE_AT + _TABLE.size + _SECTIONS_MAX * _SECTION.size
    for kind, count in ((DURATION, 1), (UPSTREAMS, upstreams), (ROUTES, routes + 1)):
        at = -(-at // _LINE) * _LINE
        yield kind, count, _STRIDES[kind], at
        at += count * _STRIDES[kind]


def read_figures(mapping: Mapping, size: int, upstreams: int, routes: int) -> Figures:
    """All sections of a mapping of `size` bytes, made for so many upstreams and routes."""
    if size < TABLE_AT + _TABLE.size + _SECTIONS_MAX * _SECTION.size:
        return NO_FIGURES
    magic, version, count, _ = _TABLE.unpack_from(mapping, TABLE_AT)
    if (magic, version) != (TABLE_MAGIC, TABLE_VERSION):
        return NO_FIGURES
    wanted = {DURATION: 1, UPSTREAMS: upstreams, ROUTES: routes + 1}
    entries = {DURATION: _DURATION_ENTRY, UPSTREAMS: _UPSTREAM_ENTRY, ROUTES: _ROUTE_ENTRY}
    read: dict[int, list[tuple[int, ...]]] = {}
    for place in range(min(count, _SECTIONS_MAX)):
        at = TABLE_AT + _TABLE.size + place * _SECTION.size
        kind, told, stride, offset = _SECTION.unpack_from(mapping, at)
        entry = entries.get(kind)
        if entry is None or told != wanted[kind] or stride < entry.size:
            continue
        if offset + told * stride > size:
            continue
        read[kind] = [entry.unpack_from(mapping, offset + i * stride) for i in range(told)]
    return Figures(
        durations=_durations(read.get(DURATION)),
        upstreams=tuple(
            UpstreamFigures(
                requests_total=requests,
                connects_total=connects,
                connect_failures_total=refused,
                failures_total=failures,
                active=active,
                up=min(up, 1),
            )
            for requests, connects, refused, failures, active, up in read.get(UPSTREAMS, ())
        ),
        routes=tuple(read.get(ROUTES, ())),
    )


def _durations(entries: list[tuple[int, ...]] | None) -> Durations:
    if not entries:
        return NO_DURATIONS
    return Durations(sum_us=entries[0][0], buckets=entries[0][1:])
