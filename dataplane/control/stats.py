"""The stats page of a worker: written by the engine, read by the supervisor with this layout.

The layout is dp_stats in native/include/dp.h; a test holds the two together. A page is made by the
supervisor and kept over restarts of its slot, so its counters never go back; it is one memory page,
and more where sections follow (`figures.py`). Reading costs the worker nothing. Nothing here ever
writes to a page.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from typing import Any, Final

from dataplane.control.figures import Figures, mapping_bytes, read_figures
from dataplane.model.errors import ControlError
from dataplane.system.memfd import shared_memfd, shared_size

PAGE_BYTES: Final = 4096
STATS_MAGIC: Final = 0x64707374
STATS_VERSION: Final = 1

# Every field after magic and version, in order: its name and how many uint64 it has.
FIELDS: Final[tuple[tuple[str, int], ...]] = (
    ("turns", 1),
    ("connections", 1),
    ("connections_total", 1),
    ("moved_in_total", 1),
    ("moved_out_total", 1),
    ("refused_total", 1),
    ("requests_total", 1),
    ("requests_active", 1),
    ("received_bytes_total", 1),
    ("sent_bytes_total", 1),
    ("answers_total", 6),
    ("own_answers_total", 8),
    ("upstream_connects_total", 1),
    ("upstream_connect_failures_total", 1),
    ("upstream_failures_total", 1),
    ("upstream_connections", 1),
    ("upstream_idle", 1),
    ("buffer_bytes", 1),
    ("tunnels", 1),
    ("retries_total", 1),
    ("retries_refused_total", 1),
    ("ejections_total", 1),
    ("waiting", 1),
    ("waited_total", 1),
    ("probes_total", 1),
    ("probe_failures_total", 1),
    ("cpu_us_total", 1),
    ("log_lines_total", 1),
    ("log_dropped_total", 1),
    ("log_pending", 1),
    ("pipes", 1),
    ("spliced_bytes_total", 1),
    ("denied_total", 1),
    ("limited_total", 1),
)
_HEAD: Final = struct.Struct("=II")
_FIGURES: Final = struct.Struct(f"={sum(count for _, count in FIELDS)}Q")


def _places() -> dict[str, tuple[int, int]]:
    places, place = {}, 0
    for name, count in FIELDS:
        places[name] = (place, count)
        place += count
    return places


_PLACES: Final = _places()


def offset_of(name: str) -> int:
    """Where a field begins in the page, in bytes."""
    return _HEAD.size + 8 * _PLACES[name][0]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """One reading. Names that end in `_total` only ever grow; the others are "now"."""

    turns: int = 0
    connections: int = 0
    connections_total: int = 0
    moved_in_total: int = 0
    moved_out_total: int = 0
    refused_total: int = 0
    requests_total: int = 0
    requests_active: int = 0
    received_bytes_total: int = 0
    sent_bytes_total: int = 0
    answers_total: tuple[int, ...] = (0,) * 6
    own_answers_total: tuple[int, ...] = (0,) * 8
    upstream_connects_total: int = 0
    upstream_connect_failures_total: int = 0
    upstream_failures_total: int = 0
    upstream_connections: int = 0
    upstream_idle: int = 0
    buffer_bytes: int = 0
    tunnels: int = 0
    retries_total: int = 0
    retries_refused_total: int = 0
    ejections_total: int = 0
    waiting: int = 0
    waited_total: int = 0
    probes_total: int = 0
    probe_failures_total: int = 0
    cpu_us_total: int = 0
    log_lines_total: int = 0
    log_dropped_total: int = 0
    log_pending: int = 0
    pipes: int = 0
    spliced_bytes_total: int = 0
    denied_total: int = 0
    limited_total: int = 0

    def __add__(self, other: Stats) -> Stats:
        return _stats({name: _sum(getattr(self, name), getattr(other, name)) for name, _ in FIELDS})

    def without_gauges(self) -> Stats:
        """What is left of a reading once its worker is gone: the counters."""
        left = {name: getattr(self, name) for name, _ in FIELDS if name.endswith("_total")}
        left["log_dropped_total"] += self.log_pending  # lines that it took with it
        return _stats(left)


def _stats(figures: dict[str, Any]) -> Stats:
    return Stats(**figures)


NO_STATS: Final = Stats()


class StatsPage:
    """A page and the supervisor's own mapping of it, read-only. Mutable: it may be closed."""

    def __init__(
        self, name: str, *, upstreams: int = 0, routes: int = 0, lent: int | None = None
    ) -> None:
        """For an app with so many upstreams and routes.

        `lent` is a descriptor of a page that a former supervisor made: raises `ControlError` for
        one that is none, and then leaves it open.
        """
        self._upstreams, self._routes = upstreams, routes
        self._size = -(-mapping_bytes(upstreams, routes) // PAGE_BYTES) * PAGE_BYTES
        if lent is not None:
            self._size = shared_size(lent)  # other code may have made it, with other sections
            if self._size < PAGE_BYTES:
                raise ControlError(f"a stats page of {self._size} bytes")
        self.fd = shared_memfd(name, self._size) if lent is None else lent
        try:
            self._page = mmap.mmap(self.fd, self._size, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError:
            if lent is None:
                os.close(self.fd)
            raise

    def read(self) -> Stats:
        """All figures; zeros where no engine has written yet, or one with another layout."""
        if _HEAD.unpack_from(self._page) != (STATS_MAGIC, STATS_VERSION):
            return NO_STATS
        figures = _FIGURES.unpack_from(self._page, _HEAD.size)
        return _stats(
            {
                name: figures[place] if count == 1 else figures[place : place + count]
                for name, (place, count) in _PLACES.items()
            }
        )

    def figures(self) -> Figures:
        """All sections; empty where no engine has written them, or one with another layout."""
        return read_figures(self._page, self._size, self._upstreams, self._routes)

    def turns(self) -> int:
        """The heartbeat alone."""
        return int.from_bytes(self._page[8:16], "little")

    def close(self) -> None:
        """Unmaps the page. It must not be read afterwards."""
        self._page.close()


def _sum(one: int | tuple[int, ...], other: int | tuple[int, ...]) -> int | tuple[int, ...]:
    if isinstance(one, tuple):
        assert isinstance(other, tuple)
        return tuple(a + b for a, b in zip(one, other, strict=True))
    assert isinstance(other, int)
    return one + other
