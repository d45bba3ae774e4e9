"""The move protocol, both sides in one process, over engines that move pipes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest

from dataplane.control import move, move_frames
from dataplane.control.channel import receive_packet, send_packet
from dataplane.control.move import Gave, Giver, Taker, Took
from dataplane.control.move_frames import HEADER, VERSION, Kind
from dataplane.system.sockets import packet_pair
from tests.support.moving import PipeEngine
from tests.support.rig import run


class Side:
    """One worker as the other sees it: its end of the pair, and whether its process lives."""

    def __init__(self, engine: PipeEngine, sock: socket.socket) -> None:
        self.engine = engine
        self.sock = sock
        self.died = asyncio.Event()

    async def gone(self) -> None:
        await self.died.wait()

    def die(self) -> None:
        """As the kernel does it: the sockets end, then the pidfd tells."""
        self.sock.close()
        self.died.set()


@contextlib.contextmanager
def two_sides(blue: PipeEngine, green: PipeEngine) -> Iterator[tuple[Side, Side]]:
    blue_end, green_end = packet_pair()
    try:
        yield Side(blue, blue_end), Side(green, green_end)
    finally:
        blue_end.close()
        green_end.close()
        blue.close()
        green.close()


def giver(blue: Side, green: Side, step: move.Step = move.no_step) -> Giver:
    return Giver(blue.engine, blue.sock, green.gone, itertools.count(1), step)


def taker(blue: Side, green: Side, step: move.Step = move.no_step) -> Taker:
    return Taker(green.engine, green.sock, blue.gone, itertools.count(100), step)


def frame(
    kind: int, batch: int, *, count: int = 0, payload: bytes = b"", v: int = VERSION
) -> bytes:
    return HEADER.pack(v, kind, 0, batch, count, len(payload)) + payload


async def kind_of(sock: socket.socket) -> Kind:
    async with asyncio.timeout(5):
        packet = await receive_packet(sock, 65536)
    assert packet is not None
    packet.close_fds()
    return Kind(HEADER.unpack_from(packet.data)[1])


def together(
    life: Callable[[Side, Side], Awaitable[None]],
    blue: PipeEngine,
    green: PipeEngine | None = None,
) -> None:
    async def whole() -> None:
        with two_sides(blue, green or PipeEngine()) as (one, other):
            await life(one, other)

    run(whole)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"c{number}" for number in range(count))


async def give_all(blue: Side, green: Side) -> tuple[Gave, Took]:
    """Runs both sides until blue has nothing left."""

    async def stop_when_empty(name: str) -> None:
        if name == "committed" and not blue.engine.running:
            giving.stop()

    giving = giver(blue, green, stop_when_empty)
    async with asyncio.TaskGroup() as tasks:
        gave = tasks.create_task(giving.run())
        took = tasks.create_task(taker(blue, green).run())
    return gave.result(), took.result()


@pytest.mark.parametrize("count", [1, 8, 200, 450])
def test_all_connections_run_at_green_and_at_green_alone(count: int) -> None:
    async def life(blue: Side, green: Side) -> None:
        gave, took = await give_all(blue, green)
        assert gave is Gave.ENDED
        assert took.started == count
        assert took.declined == 0
        assert len(took.stall_us) == count
        assert sorted(green.engine.running) == sorted(names(count))
        assert not blue.engine.running
        assert not blue.engine.frozen

    together(life, PipeEngine(*names(count)))


def test_records_longer_than_a_datagram_go_in_pieces() -> None:
    async def life(blue: Side, green: Side) -> None:
        await give_all(blue, green)
        assert sorted(green.engine.running) == sorted(names(20))

    together(life, PipeEngine(*names(20), padding=40_000))


def test_declined_ones_are_counted_and_told_to_blue() -> None:
    async def life(blue: Side, green: Side) -> None:
        green.engine.decline = {"c0": 3, "c9": 2}
        _, took = await give_all(blue, green)
        assert (took.started, took.declined) == (8, 2)
        assert blue.engine.gone == [b"\3\0\0\0\0\0\0\0\0\2"]

    together(life, PipeEngine(*names(10)))


def test_records_of_many_descriptors_move_within_what_a_message_carries() -> None:
    """And in the order of their records: 254 descriptors would be refused by the kernel."""
    mixed = tuple(f"c{number}+{number % 6}" for number in range(150))

    async def life(blue: Side, green: Side) -> None:
        before = {
            name: [os.fstat(fd).st_ino for fd in fds] for name, fds in blue.engine.running.items()
        }
        gave, took = await give_all(blue, green)
        assert gave is Gave.ENDED
        assert took.started == len(mixed)
        after = {
            name: [os.fstat(fd).st_ino for fd in fds] for name, fds in green.engine.running.items()
        }
        assert after == before

    together(life, PipeEngine(*mixed))


@pytest.mark.parametrize("plain", [(), ("a", "b")])
def test_green_that_knows_no_such_records_is_given_none_and_takes_the_others(
    plain: tuple[str, ...],
) -> None:
    async def life(blue: Side, green: Side) -> None:
        seen: list[str] = []

        async def step(name: str) -> None:
            seen.append(name)

        giving = giver(blue, green, step)
        async with asyncio.TaskGroup() as tasks:
            gave = tasks.create_task(giving.run())
            took = tasks.create_task(taker(blue, green).run())
            for _ in range(50):
                await asyncio.sleep(0)
            giving.stop()
        assert gave.result() is Gave.ENDED, "it was not refused: the others go on moving"
        assert took.result().started == len(plain)
        assert sorted(blue.engine.running) == ["tunnel+1"]
        assert bool(seen) == bool(plain), "to ask is no step of a move"

    together(life, PipeEngine(*plain, "tunnel+1"), PipeEngine(version=1))


def test_giver_of_older_code_is_understood() -> None:
    async def life(blue: Side, green: Side) -> None:
        gave, took = await give_all(blue, green)
        assert (gave, took.started) == (Gave.ENDED, 3)

    together(life, PipeEngine(*names(3), version=1))


@pytest.mark.parametrize("ends", [b"", frame(Kind.ABORT, 0), frame(99, 0)])
def test_green_that_dies_or_says_no_when_it_is_asked_leaves_all_with_blue(ends: bytes) -> None:
    async def life(blue: Side, green: Side) -> None:
        async with asyncio.TaskGroup() as tasks:
            giving = tasks.create_task(giver(blue, green).run())
            assert await kind_of(green.sock) is Kind.OFFER
            if ends:
                await send_packet(green.sock, ends, ())
            green.die()
        refused = ends == frame(Kind.ABORT, 0)
        assert giving.result() is (Gave.REFUSED if refused else Gave.PEER_GONE)
        assert list(blue.engine.running) == ["tunnel+1"]

    together(life, PipeEngine("tunnel+1"))


@pytest.mark.parametrize(
    "verdicts", [b"", b"\0", b"\5", b"\0\1\2\0\0\0\0\4\3", bytes(200), b"\2" * 200]
)
def test_verdicts_are_what_they_were(verdicts: bytes) -> None:
    packed = move_frames.pack_verdicts(verdicts)
    assert move_frames.unpack_verdicts(packed, len(verdicts)) == verdicts
    bits = packed[: (len(verdicts) + 7) // 8]
    assert move_frames.unpack_verdicts(bits, len(verdicts)) == bytes(map(bool, verdicts)), (
        "older code"
    )


def test_connection_that_comes_later_moves_later() -> None:
    async def life(blue: Side, green: Side) -> None:
        giving = giver(blue, green)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(giving.run())
            taking = tasks.create_task(taker(blue, green).run())
            blue.engine.add("late")
            giving.more()
            giving.stop()
        assert taking.result().started in (0, 1)

    together(life, PipeEngine())


def test_giver_that_waits_takes_what_becomes_movable() -> None:
    async def life(blue: Side, green: Side) -> None:
        moved = asyncio.Event()

        async def step(name: str) -> None:
            if name == "committed":
                moved.set()

        giving = giver(blue, green, step)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(giving.run())
            taking = tasks.create_task(taker(blue, green).run())
            await asyncio.sleep(0)  # it found nothing, and waits
            blue.engine.add("late")
            giving.more()
            await moved.wait()
            giving.stop()
        assert taking.result().started == 1
        assert list(green.engine.running) == ["late"]

    together(life, PipeEngine())


# --- green dies ------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["offered", "held", "acknowledged"])
def test_green_dies_before_the_commit_and_blue_takes_all_back(when: str) -> None:
    async def life(blue: Side, green: Side) -> None:
        async def crash(name: str) -> None:
            if name == when:
                green.die()
                raise asyncio.CancelledError

        # The commit must not be sent yet when green dies of having acknowledged.
        async def hold_back(name: str) -> None:
            if name == "acknowledged":
                await green.died.wait()

        async with asyncio.TaskGroup() as tasks:
            giving = tasks.create_task(giver(blue, green, hold_back).run())
            tasks.create_task(taker(blue, green, crash).run())
        assert giving.result() is Gave.PEER_GONE
        assert sorted(blue.engine.running) == sorted(names(3))
        assert not blue.engine.frozen

    together(life, PipeEngine(*names(3)))


def test_end_of_file_alone_is_no_proof_of_greens_death() -> None:
    async def life(blue: Side, green: Side) -> None:
        async with asyncio.TaskGroup() as tasks:
            giving = tasks.create_task(giver(blue, green).run())
            assert await kind_of(green.sock) is Kind.OFFER
            green.sock.close()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not giving.done()
            assert not blue.engine.running, "it may still run at green"
            green.died.set()
        assert giving.result() is Gave.PEER_GONE
        assert sorted(blue.engine.running) == sorted(names(3))

    together(life, PipeEngine(*names(3)))


# --- blue dies -------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["offered", "acknowledged"])
def test_blue_dies_before_the_commit_and_green_starts_only_then(when: str) -> None:
    async def life(blue: Side, green: Side) -> None:
        async def crash(name: str) -> None:
            if name == when:
                if name == "offered":
                    assert await kind_of(blue.sock) is Kind.ACK
                blue.sock.close()
                raise asyncio.CancelledError

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(giver(blue, green, crash).run())
            taking = tasks.create_task(taker(blue, green).run())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not green.engine.running, "blue may live: its pidfd has not told"
            blue.died.set()
        assert taking.result().started == 3
        assert sorted(green.engine.running) == sorted(names(3))

    together(life, PipeEngine(*names(3)))


def test_blue_that_ends_without_a_batch_open_leaves_nothing_behind() -> None:
    async def life(blue: Side, green: Side) -> None:
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(taker(blue, green).run())
            blue.die()
        assert taking.result() == Took(started=0, declined=0, stall_us=())

    together(life, PipeEngine())


# --- green says no ---------------------------------------------------------------------------


def test_green_that_cannot_hold_aborts_and_blue_takes_all_back() -> None:
    async def life(blue: Side, green: Side) -> None:
        green.engine.fails = True
        gave, took = await give_all(blue, green)
        assert gave is Gave.REFUSED
        assert (took.started, took.declined) == (0, 3)
        assert sorted(blue.engine.running) == sorted(names(3))

    together(life, PipeEngine(*names(3)))


def test_green_without_room_for_descriptors_aborts() -> None:
    async def life(blue: Side, green: Side) -> None:
        _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)

        async def narrow(name: str) -> None:
            if name == "offered":
                lowest = os.dup(0)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 5, hard))

        try:
            async with asyncio.TaskGroup() as tasks:
                giving = tasks.create_task(giver(blue, green, narrow).run())
                await asyncio.sleep(0)
                taking = tasks.create_task(taker(blue, green).run())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert giving.result() is Gave.REFUSED
        assert taking.result().started == 0
        assert sorted(blue.engine.running) == sorted(names(100))
        assert not green.engine.held

    together(life, PipeEngine(*names(100)))


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"short",
        frame(99, 1),
        frame(Kind.OFFER, 1, v=VERSION + 1),
        frame(Kind.OFFER, 1, count=3, payload=b"a\nb\nc\n"),  # and no descriptors
        frame(Kind.COMMIT, 1),
        frame(Kind.ACK, 1),
        frame(Kind.MORE, 1, payload=b"x"),
        HEADER.pack(VERSION, Kind.OFFER, 0, 1, 1, move_frames.BATCH_BYTES + 1)
        + b"x" * move_frames.PIECE_BYTES,
        HEADER.pack(VERSION, Kind.COMMIT, 0, 1, 0, 5),
    ],
)
def test_nonsense_is_answered_by_abort(nonsense: bytes) -> None:
    async def life(blue: Side, green: Side) -> None:
        with open("/dev/null", "rb") as null:
            fds = () if nonsense else (null.fileno(),)
            await send_packet(blue.sock, nonsense, fds)
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(taker(blue, green).run())
            assert await kind_of(blue.sock) is Kind.ABORT
        assert taking.result().started == 0
        assert not green.engine.held

    together(life, PipeEngine())


def test_nonsense_where_the_commit_was_due_drops_what_was_held() -> None:
    async def life(blue: Side, green: Side) -> None:
        async def nonsense(name: str) -> None:
            if name == "acknowledged":
                await send_packet(blue.sock, frame(Kind.OFFER, 7, v=VERSION + 1), ())

        async with asyncio.TaskGroup() as tasks:
            saved = blue.engine.save(1, 10, 1000, 1)
            offer = HEADER.pack(VERSION, Kind.OFFER, 0, 1, 3, len(saved.records)) + saved.records
            await send_packet(blue.sock, offer, saved.fds)
            taking = tasks.create_task(taker(blue, green, nonsense).run())
            assert await kind_of(blue.sock) is Kind.ACK
            assert await kind_of(blue.sock) is Kind.ABORT
        assert taking.result().started == 0
        assert not green.engine.held
        assert not green.engine.running

    together(life, PipeEngine(*names(3)))


def test_abort_of_another_version_is_understood() -> None:
    async def life(blue: Side, green: Side) -> None:
        async with asyncio.TaskGroup() as tasks:
            giving = tasks.create_task(giver(blue, green).run())
            assert await kind_of(green.sock) is Kind.OFFER
            await send_packet(green.sock, frame(Kind.ABORT, 0, payload=b"new", v=VERSION + 1), ())
        assert giving.result() is Gave.REFUSED
        assert sorted(blue.engine.running) == sorted(names(2))

    together(life, PipeEngine(*names(2)))


def test_no_descriptor_is_left_open_by_any_end() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    test_green_that_cannot_hold_aborts_and_blue_takes_all_back()
    test_nonsense_where_the_commit_was_due_drops_what_was_held()
    test_green_dies_before_the_commit_and_blue_takes_all_back("held")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_percentiles_of_stalls() -> None:
    assert move.percentiles(()) == (0, 0, 0)
    assert move.percentiles((7,)) == (7, 7, 7)
    assert move.percentiles(range(1, 101)) == (50, 99, 100)
