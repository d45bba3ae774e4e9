"""What the workers of one app share: made by the supervisor, mapped by every worker.

The layout is native/src/dp_shared.h, which says what it is for and by which rules it is written;
this is its other half. The supervisor lays it out once, reads it for metrics, and writes a single
word: that a seat's process is dead, so that others give back what it counted.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any, Final

from dataplane.model.errors import ControlError
from dataplane.system.memfd import shared_memfd, shared_size

SHARED_MAGIC: Final = 0x64707368
SHARED_VERSION: Final = 1

# Both generations of an app with workers: 64, and some that are about to end.
SEATS: Final = 192
ENDPOINTS: Final = 8192

# Sources whose requests or connections are counted at once. Only what is used takes memory.
BUCKETS: Final = 131_072
SOURCES: Final = 32_768

NAMES, RECORDS, SEATED, COUNTS, RATES, OPEN, HELD = 1, 2, 3, 4, 5, 6, 7
RECORD_BYTES: Final = 320
COUNT_BYTES: Final = 12

_HEAD: Final = struct.Struct("=IIQ16sII")
_SECTION: Final = struct.Struct("=IIQII")
_SECTIONS_MAX: Final = 16
_SEAT: Final = struct.Struct("=II")
# state, key_len, key, open, waiting, failures, ejections, ejected_until, up_since, probe_at,
# health, streak, latency_us, latency_at, answers
_RECORD: Final = struct.Struct("=II208sIIIIQQQIIIII")
_READY: Final = 2
_FREE, _TAKEN, _DEAD = 0, 1, 2
_OF_ENDPOINTS: Final = (b"t", b"c")  # others count for the app itself
_HEALTH: Final = {0: None, 1: True, 2: False}

# Kind, entries, bytes of an entry. Another part of the app's state is another line.
SECTIONS: Final = (
    (NAMES, ENDPOINTS, 8),
    (RECORDS, ENDPOINTS, RECORD_BYTES),
    (SEATED, SEATS, _SEAT.size),
    (COUNTS, SEATS, COUNT_BYTES * ENDPOINTS),
    (RATES, BUCKETS, 16),
    (OPEN, SOURCES, 8),
    (HELD, SEATS, 4 * (16 + SOURCES)),  # each row has a head
)


def _places() -> tuple[dict[int, int], int]:
    places, at = {}, mmap.PAGESIZE
    for kind, count, stride in SECTIONS:
        places[kind] = at
        at += -(-count * stride // mmap.PAGESIZE) * mmap.PAGESIZE
    return places, at


_PLACES, SHARED_BYTES = _places()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointState:
    """One endpoint as the workers know it. `healthy` None: no check, or no probe yet."""

    upstream: str
    endpoint: str
    open: int
    waiting: int
    ejected_until_ms: int  # of the monotonic clock; 0: never was
    healthy: bool | None


class SharedPage:
    """The memory file of an app, and the supervisor's mapping of it. Mutable: it may be closed."""

    def __init__(self, name: str, key: bytes, *, lent: int | None = None) -> None:
        """`key` is 16 random bytes, of hashes that clients see.

        `lent` is a descriptor of a file that a former supervisor laid out, and which stays as it
        is: raises `ControlError` for one of another layout, and then leaves it open.
        """
        if lent is not None and shared_size(lent) != SHARED_BYTES:
            raise ControlError("the app's memory file has another size")
        self.fd = shared_memfd(name, SHARED_BYTES) if lent is None else lent
        try:
            self._page = mmap.mmap(self.fd, SHARED_BYTES, mmap.MAP_SHARED)
        except BaseException:
            if lent is None:
                os.close(self.fd)
            raise
        if lent is None:
            self._lay_out(key)
        elif not self._is_laid_out():
            self._page.close()
            raise ControlError("the app's memory file has another layout")

    def _is_laid_out(self) -> bool:
        told = _HEAD.unpack_from(self._page)
        is_ours = told[:3] == (SHARED_MAGIC, SHARED_VERSION, SHARED_BYTES)
        return (
            is_ours
            and told[5] == len(SECTIONS)
            and all(
                _SECTION.unpack_from(self._page, _HEAD.size + index * _SECTION.size)
                == (kind, 1, _PLACES[kind], count, stride)
                for index, (kind, count, stride) in enumerate(SECTIONS)
            )
        )

    def _lay_out(self, key: bytes) -> None:
        _HEAD.pack_into(
            self._page, 0, SHARED_MAGIC, SHARED_VERSION, SHARED_BYTES, key, 0, len(SECTIONS)
        )
        for index, (kind, count, stride) in enumerate(SECTIONS):
            at = _HEAD.size + index * _SECTION.size
            _SECTION.pack_into(self._page, at, kind, 1, _PLACES[kind], count, stride)

    def close(self) -> None:
        """Gives up the supervisor's copies. Neither may be used afterwards."""
        self._page.close()
        os.close(self.fd)

    def mark_dead(self, pid: int) -> None:
        """This process has ended: the next worker that looks gives back what it counted."""
        for seat in range(SEATS):
            at = _PLACES[SEATED] + seat * _SEAT.size
            if _SEAT.unpack_from(self._page, at) == (_TAKEN, pid):
                self._page[at : at + 4] = _DEAD.to_bytes(4, "little")
                return

    def seated(self) -> tuple[int, ...]:
        """The processes that count here."""
        return tuple(pid for _, pid in self._taken())

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Every endpoint that a living worker uses. What nobody uses any more is not told."""
        taken = [seat for seat, _ in self._taken()]
        found: dict[tuple[str, str], EndpointState] = {}
        health: dict[tuple[str, str], bool | None] = {}
        for index, record in self._records():
            state, length, key, opened, waiting, _, _, ejected, _, _, healthy = record[:11]
            if (
                state != _READY
                or key[:1] not in _OF_ENDPOINTS
                or not any(self._is_used(seat, index) for seat in taken)
            ):
                continue
            kind, (upstream, _, rest) = key[:1], key[1:length].partition(b"\0")
            endpoint = rest.partition(b"\0")[0].decode("ascii", "replace")
            name = (upstream.decode("ascii", "replace"), endpoint)
            if kind == b"c":
                health[name] = _HEALTH.get(healthy)
            else:
                found[name] = EndpointState(
                    upstream=name[0],
                    endpoint=endpoint,
                    open=opened,
                    waiting=waiting,
                    ejected_until_ms=ejected,
                    healthy=None,
                )
        return tuple(
            dataclasses.replace(found[name], healthy=health.get(name)) for name in sorted(found)
        )

    def _taken(self) -> Iterator[tuple[int, int]]:
        for seat in range(SEATS):
            state, pid = _SEAT.unpack_from(self._page, _PLACES[SEATED] + seat * _SEAT.size)
            if state == _TAKEN:
                yield seat, pid

    def _records(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        names, at = _PLACES[NAMES], _PLACES[RECORDS]
        for index in range(ENDPOINTS):
            if not any(self._page[names + 8 * index : names + 8 * index + 8]):
                return  # they are filled from the front
            yield index, _RECORD.unpack_from(self._page, at + RECORD_BYTES * index)

    def _is_used(self, seat: int, record: int) -> bool:
        at = _PLACES[COUNTS] + COUNT_BYTES * (ENDPOINTS * seat + record)
        return any(self._page[at : at + 4])
