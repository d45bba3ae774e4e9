"""Connections move between two real workers, and survive the death of either."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane.control import messages
from dataplane.model.spec import MatchSpec
from dataplane.worker.faults import BLUE_STEPS, GREEN_STEPS
from tests.support.rig import Client, HeldUpstream, Living, Rig, client, request, run
from tests.support.specs import app_spec, route_answering, route_to, upstream

BLUE = app_spec(route_answering("blue"))
GREEN = app_spec(route_answering("green"))


async def clients(stack: contextlib.AsyncExitStack, rig: Rig, count: int) -> list[Client]:
    """Connections that had an answer of blue's."""
    made = [await stack.enter_async_context(client(rig.port)) for _ in range(count)]
    for one in made:
        assert await one.get() == b"blue"
    return made


@pytest.mark.parametrize("count", [1, 500])
def test_idle_connections_move_and_are_answered_by_green(tmp_path: Path, count: int) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
            blue = await rig.serving(BLUE)
            green = await rig.fork(GREEN, generation=2)
            await green.ready()
            idle = await clients(stack, rig, count)
            await rig.swap(blue, green)
            drained = await blue.hear(messages.Drained)
            assert drained.connections == messages.DrainCounts(
                moved_idle=count, moved_after_request=0, finished=0, closed=0, reset=0
            )
            assert await rig.exit_status(blue) == 0
            received = await green.hear(messages.Received)
            assert (received.slot, received.started, received.declined) == (0, count, 0)
            p50, p99, longest = received.stall_us
            assert 0 < p50 <= p99 <= longest < 2_000_000
            for one in idle:
                assert await one.get() == b"green"

    run(life)


def test_partly_read_head_moves_with_its_bytes(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, client(rig.port) as one:
            blue = await rig.serving(BLUE)
            green = await rig.fork(GREEN, generation=2)
            await green.ready()
            assert await one.get() == b"blue"
            whole = request()
            one.send(whole[:9])
            async with client(rig.port) as other:  # by now blue has read it
                assert await other.get() == b"blue"
                await rig.swap(blue, green)
                drained = await blue.hear(messages.Drained)
                assert drained.connections.moved_idle == 2
                one.send(whole[9:])
                assert await one.answer() == b"green"
                assert await other.get() == b"green"

    run(life)


def test_bytes_that_blue_never_read_are_read_by_green(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
            blue = await rig.serving(BLUE)
            green = await rig.fork(GREEN, generation=2)
            await green.ready()
            busy = await clients(stack, rig, 50)
            swap = asyncio.get_running_loop().create_task(rig.swap(blue, green))
            seen = set()
            for _ in range(40):
                for one in busy:
                    one.send(request())
                seen |= {await one.answer() for one in busy}
            await swap
            assert seen == {b"blue", b"green"}
            drained = (await blue.hear(messages.Drained)).connections
            assert drained.moved_idle + drained.moved_after_request == 50
            assert drained.finished + drained.closed + drained.reset == 0

    run(life)


def test_request_in_flight_finishes_on_blue_and_then_moves(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held, client(rig.port) as one:
            spec = app_spec(route_to("api"), upstreams=(upstream("api", held.port),))
            blue = await rig.serving(spec)
            green = await rig.fork(GREEN, generation=2)
            await green.ready()
            one.send(request())
            await held.asked.wait()
            await rig.swap(blue, green)
            assert await blue.state() == "draining"
            held.released.set()
            assert await one.answer() == b"held"
            drained = await blue.hear(messages.Drained)
            assert drained.connections.moved_after_request == 1
            assert await one.get() == b"green"
            assert (await green.hear(messages.Received)).started == 1

    run(life)


def test_listener_that_green_lacks_is_declined_and_counted(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, client(rig.port) as one:
            blue = await rig.serving(BLUE)
            other = app_spec(route_answering("green"), listener="other")
            green = await rig.fork(other, generation=2, listeners=("other",))
            await green.ready()
            assert await one.get() == b"blue"
            await rig.swap(blue, green)
            assert (await blue.hear(messages.Drained)).connections.closed == 1
            assert (await green.hear(messages.Received)).declined == 1
            assert await one.at_end()

    run(life)


def test_several_slots_of_blue_move_to_one_green(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
            blues = [await rig.serving(BLUE, slot=slot) for slot in range(3)]
            green = await rig.fork(GREEN, generation=2)
            await green.ready()
            idle = await clients(stack, rig, 30)
            for slot, blue in enumerate(blues):
                await rig.swap(blue, green, slot=slot)
            moved = [(await blue.hear(messages.Drained)).connections.moved_idle for blue in blues]
            assert sum(moved) == 30
            for one in idle:
                assert await one.get() == b"green"

    run(life)


def test_thirty_swaps_keep_every_connection(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
            blue = await rig.serving(BLUE)
            idle = await clients(stack, rig, 8)
            for generation in range(2, 32):
                mark = f"generation {generation}"
                green = await rig.fork(app_spec(route_answering(mark)), generation=generation)
                await green.ready()
                await rig.swap(blue, green)
                await blue.hear(messages.Drained)
                assert (await green.hear(messages.Received)).started == len(idle)
                for one in idle:
                    assert await one.get() == mark.encode()
                blue = green

    run(life)


# --- green dies ------------------------------------------------------------------------------

# From the commit on, a connection is green's: what green has started dies with it. Once it has
# acknowledged, its death and blue's commit race; the protocol's own tests hold both orders.
BEFORE_COMMIT = GREEN_STEPS[: GREEN_STEPS.index("green:acknowledged")]


@pytest.mark.parametrize("step", BEFORE_COMMIT)
def test_green_dies_before_the_commit_and_blue_keeps_every_connection(
    tmp_path: Path, step: str
) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
            blue = await rig.serving(BLUE)
            green = await rig.fork(GREEN, generation=2, faults=(f"crash-at:{step}",))
            await green.ready()
            idle = await clients(stack, rig, 20)
            await rig.swap(blue, green)
            await green.ended()
            await blue.serve()
            for one in idle:
                assert await one.get() == b"blue"

    run(life)


@pytest.mark.parametrize("step", ["green:starting", "green:started"])
def test_green_dies_after_the_commit_and_blue_serves_whoever_comes(
    tmp_path: Path, step: str
) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held, client(rig.port) as busy:
            own = route_answering("own", MatchSpec(host=None, path="/own", methods=(), headers=()))
            spec = app_spec(own, route_to("api"), upstreams=(upstream("api", held.port),))
            blue = await rig.serving(spec)
            green = await rig.fork(GREEN, generation=2, faults=(f"crash-at:{step}",))
            await green.ready()
            async with client(rig.port) as idle:
                assert await idle.get("/own") == b"own"
                busy.send(request())
                await held.asked.wait()
                await rig.swap(blue, green)
                await green.ended()
                await blue.serve()
                held.released.set()
                assert await busy.answer() == b"held"
                async with client(rig.port) as late:
                    assert await late.get() == b"held"

    run(life)


def test_green_dies_without_a_supervisor_and_blue_serves_by_itself(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
            blue = await rig.serving(BLUE)
            green = await rig.fork(GREEN, generation=2, faults=("hang-at:green:held",))
            await green.ready()
            idle = await clients(stack, rig, 5)
            await rig.swap(blue, green)
            blue.channel.close()
            green.kill()
            for one in idle:
                assert await one.get() == b"blue"
            late = await stack.enter_async_context(client(rig.port))
            assert await late.get() == b"blue"

    run(life)


# --- blue dies -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", BLUE_STEPS)
def test_blue_dies_in_any_step_and_green_serves_every_connection(tmp_path: Path, step: str) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, contextlib.AsyncExitStack() as stack:
            blue = await rig.serving(BLUE, faults=(f"crash-at:{step}",))
            green = await rig.fork(GREEN, generation=2)
            await green.ready()
            idle = await clients(stack, rig, 20)
            await rig.swap(blue, green)
            await blue.ended()
            assert (await green.hear(messages.Received)).started == 20
            for one in idle:
                assert await one.get() == b"green"

    run(life)


def test_what_did_not_move_is_cut_at_the_deadline_and_counted(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held, client(rig.port) as one:
            spec = app_spec(route_to("api"), upstreams=(upstream("api", held.port),))
            blue = await rig.serving(spec)
            green = await rig.fork(GREEN, generation=2)
            await green.ready()
            one.send(request())
            await held.asked.wait()
            await rig.swap(blue, green, deadline_ms=100)
            assert (await blue.hear(messages.Drained)).connections.reset == 1
            assert await one.at_end()
            assert (await green.hear(messages.Received)).started == 0
            held.released.set()

    run(life)


# --- what flows ------------------------------------------------------------------------------

UPGRADE = b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream whose every request becomes a tunnel that gives back what it got."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def tunnels(
    faults: tuple[str, ...], green_faults: tuple[str, ...]
) -> AsyncIterator[tuple[Rig, Living, Living, list[Client]]]:
    """Blue with as many tunnels as fill two batches and more, and green."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=256)
    spec = app_spec(
        route_to("api"), upstreams=(upstream("api", server.sockets[0].getsockname()[1]),)
    )
    with tempfile.TemporaryDirectory() as folder:
        async with server, Rig(Path(folder)) as rig:
            blue = await rig.serving(spec, faults=faults)
            green = await rig.fork(spec, generation=2, faults=green_faults)
            await green.ready()
            async with contextlib.AsyncExitStack() as stack:
                open_ = [await stack.enter_async_context(client(rig.port)) for _ in range(120)]
                for one in open_:
                    one.send(UPGRADE)
                    await one.head()
                yield rig, blue, green, open_


async def speaks(open_: list[Client], word: bytes) -> None:
    """Each tunnel gives back what goes in."""
    for one in open_:
        one.send(word)
    for one in open_:
        assert await one.exactly(len(word)) == word


def test_tunnels_move_in_batches_and_say_what_was_sent_meanwhile() -> None:
    async def life() -> None:
        async with tunnels((), ()) as (rig, blue, green, open_):
            for one in open_:
                one.send(b"early")
            await rig.swap(blue, green)
            drained = (await blue.hear(messages.Drained)).connections
            assert (drained.moved_tunnel, drained.closed, drained.reset) == (120, 0, 0)
            received = await green.hear(messages.Received)
            assert (received.started, received.declined) == (120, 0)
            for one in open_:
                assert await one.exactly(5) == b"early"
            await speaks(open_, b"there")

    run(life)


@pytest.mark.parametrize("step", BEFORE_COMMIT)
def test_green_dies_before_the_commit_and_blue_keeps_every_tunnel(step: str) -> None:
    async def life() -> None:
        async with tunnels((), (f"crash-at:{step}",)) as (rig, blue, green, open_):
            await rig.swap(blue, green)
            await green.ended()
            await blue.serve()
            await speaks(open_, b"here")

    run(life)


@pytest.mark.parametrize("step", BLUE_STEPS)
def test_blue_dies_in_any_step_and_green_has_every_tunnel_that_was_offered(step: str) -> None:
    """The others are lost with it: nobody else had them."""

    async def life() -> None:
        async with tunnels((f"crash-at:{step}",), ()) as (rig, blue, green, open_):
            await rig.swap(blue, green)
            await blue.ended()
            started = (await green.hear(messages.Received)).started
            assert 0 < started < len(open_)
            living = 0
            for one in open_:
                one.send(b"here")
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    living += await one.exactly(4) == b"here"
            assert living == started

    run(life)
