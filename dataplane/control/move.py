"""Moving connections from blue to green: the protocol between two workers, and its two sides.

One page. Over a SEQPACKET pair, in datagrams of a header and a payload. The header, little-endian:
version u16, type u8, more u8, batch u32, count u32, length u32. Blue gives, green takes, a batch at
a time (stop and wait):

    blue                                            green
    freezes a batch (out of epoll)
    OFFER batch, count, length + records + fds  ->
    MORE  batch                + records        ->  (while the records are longer than a datagram)
                                                    holds them still, out of epoll
                                                <-  ACK batch, count + verdicts
    COMMIT batch                                ->
    closes its copies                               starts them
    END                                         ->  (no batch is open: all done)

ABORT (from green, a reason as payload) undoes the open batch: green has closed its copies, blue
takes all of it back, and no more batches follow.

The commit decides. A connection runs in at most one process at any time, because
- blue takes a batch back only after green's ABORT, or after green's death, which its pidfd tells;
  an end-of-file alone is no proof of death;
- green starts a batch only at COMMIT; if the channel ends before that, only after blue's death.

A record may have several descriptors (a tunnel has two sockets, and pipes where bytes are in them):
`count` of an OFFER is its records, `more` its descriptors; 0: one each, as from code that knew no
other records. They are in the records' order, which say how many each has.

Verdicts: a bit for each record, set where it is declined, then for each that is a byte, the reason
(`dp.h`, DP_DECLINED_); older code sends the bits alone, and takes nothing else in.

Records have a version of their own. `more` of an ACK is the newest one that green takes; 0: 1, as
from code that knew no other. Until it knows, blue gives what version 1 can carry; then, with no
batch open, it asks by an OFFER of no records, which every green answers. What green cannot take
drains.

Version and type keep their place in every version. A frame of another version is answered by ABORT,
and ABORT and END are understood in every version: generations of different code can always part.

Nothing here may know of a supervisor: it holds with the supervisor dead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, Protocol

from dataplane.control.channel import send_packet
from dataplane.control.move_frames import (
    BATCH_BYTES,
    HEADER,
    PIECE_BYTES,
    VERSION,
    Frame,
    Kind,
    pack_verdicts,
    receive_frame,
    send_frame,
    unpack_verdicts,
)
from dataplane.model.errors import ControlError
from dataplane.system.fds import close_fds

# Below the kernel's 253 a message, and small enough that green's pause for a batch stays short.
BATCH_FDS: Final = 200
# Of the records of code that does not say which it takes.
FIRST_RECORDS: Final = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A frozen batch: records and, in the same order, descriptors, which stay the engine's."""

    records: bytes
    count: int  # of the records
    fds: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How many of a batch run now, and how long each had stood still."""

    count: int
    stall_us: tuple[int, ...]


class HoldFailed(Exception):
    """Raised by `TakingEngine.hold`: records of an unknown version, or no room; nothing is held."""


class GivingEngine(Protocol):
    """Blue's engine, as far as moving needs it."""

    @property
    def version(self) -> int:
        """The newest version of records that it writes."""

    def save(self, batch: int, max_fds: int, max_bytes: int, version: int) -> Saved:
        """Freezes what may be saved now in records of that version; no records: nothing may be."""

    def commit(self, batch: int, verdicts: bytes) -> None:
        """Forgets the batch and closes its copies; a byte a record tells what green said of it."""

    def take_back(self, batch: int) -> None:
        """All of the batch goes on here."""


class TakingEngine(Protocol):
    """Green's engine, as far as moving needs it."""

    @property
    def version(self) -> int:
        """The newest version of records that it takes."""

    def hold(self, batch: int, records: bytes, count: int, fds: Sequence[int]) -> bytes:
        """Takes the descriptors over, whatever the outcome; a byte a record, 0 where it is held."""

    def start(self, batch: int, count: int) -> Started:
        """The held batch, of `count` records, begins to run."""

    def drop(self, batch: int) -> None:
        """Closes the held copies without a word to the clients."""


class Gave(enum.Enum):
    """How blue's side ended."""

    ENDED = "ended"  # asked to stop, or nothing was left: END was sent
    REFUSED = "refused"  # green aborted and lives: whatever is left drains here
    PEER_GONE = "peer gone"  # green died: all that was not committed is back


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """How green's side ended."""

    started: int
    declined: int
    stall_us: tuple[int, ...]


Step = Callable[[str], Awaitable[None]]
Gone = Callable[[], Awaitable[None]]


async def no_step(name: str) -> None:
    """The step that does nothing: only tests pass another."""


class Giver:
    """Blue's side. Mutable: the number of the last batch, and whether it was told to stop."""

    def __init__(
        self,
        engine: GivingEngine,
        sock: socket.socket,
        peer_gone: Gone,
        batches: Iterator[int],
        step: Step = no_step,
    ) -> None:
        """`peer_gone` returns when green's process has ended, and not before.

        `batches` numbers the engine's batches: one iterator for all that give to or take for it.
        """
        self._engine = engine
        self._sock = sock
        self._peer_gone = peer_gone
        self._step = step
        self._batches = batches
        self._batch = 0
        self._records = 0  # the newest version that green takes; 0: not known yet
        self._stopped = False
        self._news = asyncio.Event()

    def more(self) -> None:
        """A connection may be saved now."""
        self._news.set()

    def stop(self) -> None:
        """Nothing more is to be moved. The open batch is still settled."""
        self._stopped = True
        self._news.set()

    async def run(self) -> Gave:
        """Moves what may be saved, as it comes, until `stop`. The socket stays the caller's."""
        while not self._stopped:
            self._batch = next(self._batches)
            version = min(self._engine.version, max(self._records, FIRST_RECORDS))
            saved = self._engine.save(self._batch, BATCH_FDS, BATCH_BYTES, version)
            if saved.count:
                gave = await self._give(saved)
            elif not self._records and self._engine.version > FIRST_RECORDS:
                gave = await self._ask()
            else:
                gave = None
                self._news.clear()
                await self._news.wait()
            if gave is not None:
                return gave
        try:
            await send_frame(self._sock, Kind.END, self._batch)
        except OSError:
            pass  # green is gone, and holds nothing of ours
        return Gave.ENDED

    async def _give(self, saved: Saved) -> Gave | None:
        """One batch, from frozen to settled. None: committed, go on."""
        try:
            await self._offer(saved)
            await self._step("offered")
            reply = await receive_frame(self._sock)
            if reply is not None and reply.kind is Kind.ACK and reply.batch == self._batch:
                await self._step("acknowledged")
                self._records = reply.more or FIRST_RECORDS
                await send_frame(self._sock, Kind.COMMIT, self._batch)
                await self._step("committing")
                self._engine.commit(self._batch, unpack_verdicts(reply.payload, saved.count))
                await self._step("committed")
                return None
        except (OSError, ControlError):
            reply = None
        if reply is not None and reply.kind is Kind.ABORT:
            self._engine.take_back(self._batch)
            return Gave.REFUSED
        await self._lost()
        self._engine.take_back(self._batch)
        return Gave.PEER_GONE

    async def _ask(self) -> Gave | None:
        """An OFFER of nothing: its ACK tells which records green takes. None: go on."""
        try:
            await send_frame(self._sock, Kind.OFFER, self._batch)
            reply = await receive_frame(self._sock)
            if reply is not None and reply.kind is Kind.ACK and reply.batch == self._batch:
                self._records = reply.more or FIRST_RECORDS
                await send_frame(self._sock, Kind.COMMIT, self._batch)
                return None
        except (OSError, ControlError):
            reply = None
        if reply is not None and reply.kind is Kind.ABORT:
            return Gave.REFUSED
        await self._lost()
        return Gave.PEER_GONE

    async def _lost(self) -> None:
        """Waits for green's death."""
        # The channel is broken, or green talks nonsense: only its death says that it will not start
        # what it may hold. Our end is shut, so that a green that lives sees there is nobody.
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was already
        await self._peer_gone()

    async def _offer(self, saved: Saved) -> None:
        records, fds = saved.records, len(saved.fds)
        first = HEADER.pack(VERSION, Kind.OFFER, fds, self._batch, saved.count, len(records))
        await send_packet(self._sock, first + records[:PIECE_BYTES], saved.fds)
        for at in range(PIECE_BYTES, len(records), PIECE_BYTES):
            piece = records[at : at + PIECE_BYTES]
            await send_packet(
                self._sock,
                HEADER.pack(VERSION, Kind.MORE, 0, self._batch, 0, len(piece)) + piece,
                (),
            )


class Taker:
    """Green's side. Mutable: what was started and declined so far."""

    def __init__(
        self,
        engine: TakingEngine,
        sock: socket.socket,
        peer_gone: Gone,
        batches: Iterator[int],
        step: Step = no_step,
    ) -> None:
        """`peer_gone` returns when blue's process has ended, and not before.

        `batches` numbers the engine's batches. Blue's own numbers stay on the wire: two blues may
        give to one green.
        """
        self._engine = engine
        self._sock = sock
        self._peer_gone = peer_gone
        self._step = step
        self._batches = batches
        self._started = 0
        self._declined = 0
        self._stall_us: list[int] = []

    async def run(self) -> Took:
        """Takes batches until blue ends its side. The socket stays the caller's."""
        try:
            while True:
                frame = await receive_frame(self._sock)
                if frame is None or frame.kind is Kind.END:
                    break
                if frame.kind is not Kind.OFFER:
                    close_fds(frame.fds)
                    raise ControlError(f"{frame.kind.name} where no batch is open")
                # One of no records only asks: no step of a move.
                if not await self._take(frame, self._step if frame.count else no_step):
                    break
        except ControlError as error:
            # Whatever was held is dropped by now: blue may take it back.
            await self._abort(str(error))
        return Took(started=self._started, declined=self._declined, stall_us=tuple(self._stall_us))

    async def _take(self, offer: Frame, step: Step) -> bool:
        """One batch, from offered to settled. False: blue is dead, nothing more can come.

        Raises `ControlError` where the batch is refused; nothing of it is held then.
        """
        await step("offered")
        batch, count = next(self._batches), offer.count
        verdicts = await self._hold(batch, offer)
        await step("held")
        try:
            await send_frame(
                self._sock,
                Kind.ACK,
                offer.batch,
                more=self._engine.version,
                count=count,
                payload=pack_verdicts(verdicts),
            )
            await step("acknowledged")
            frame = await receive_frame(self._sock)
        except OSError:
            frame = None  # blue has closed its end
        except ControlError:
            self._engine.drop(batch)
            raise
        if frame is not None and frame.kind is Kind.COMMIT and frame.batch == offer.batch:
            await step("starting")
            self._start(batch, count)
            await step("started")
            return True
        if frame is not None and frame.kind is not Kind.END:
            self._engine.drop(batch)
            close_fds(frame.fds)
            raise ControlError(f"{frame.kind.name} where {Kind.COMMIT.name} was due")
        # No commit came and none will. While blue lives, these may still be its own.
        await self._peer_gone()
        self._start(batch, count)
        return False

    async def _hold(self, batch: int, offer: Frame) -> bytes:
        """Has the engine hold the batch; returns its verdicts. Raises `ControlError`."""
        try:
            records = await self._records(offer)
            due = offer.more or offer.count
            if len(offer.fds) != due:
                raise ControlError(f"{len(offer.fds)} of {due} descriptors came")
        except BaseException:
            close_fds(offer.fds)
            raise
        try:
            verdicts = self._engine.hold(batch, records, offer.count, offer.fds)
        except HoldFailed as error:
            self._declined += offer.count
            raise ControlError(str(error)) from error
        self._declined += sum(1 for verdict in verdicts if verdict)
        return verdicts

    async def _records(self, offer: Frame) -> bytes:
        records = offer.payload
        while len(records) < offer.length:
            frame = await receive_frame(self._sock)
            if frame is None or frame.kind is not Kind.MORE or frame.batch != offer.batch:
                raise ControlError("the records are not complete")
            records += frame.payload
        return records

    def _start(self, batch: int, count: int) -> None:
        started = self._engine.start(batch, count)
        self._started += started.count
        self._stall_us.extend(started.stall_us)

    async def _abort(self, reason: str) -> None:
        try:
            await send_frame(self._sock, Kind.ABORT, 0, payload=reason.encode()[:PIECE_BYTES])
        except OSError:
            pass  # blue is gone: nobody is left to tell


def percentiles(stall_us: Sequence[int]) -> tuple[int, int, int]:
    """p50, p99 and max; zeros for none."""
    if not stall_us:
        return (0, 0, 0)
    ordered = sorted(stall_us)
    last = len(ordered) - 1
    return (ordered[last // 2], ordered[last * 99 // 100], ordered[last])
