"""A worker as a real process: born from a zygote, serving, obeying, ended."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
from pathlib import Path

import pytest

from dataplane.control import messages
from dataplane.control.stats import Stats, StatsPage
from dataplane.system.process import signal_pidfd
from dataplane.system.sockets import connect_packet_socket
from dataplane.worker.faults import CRASH_STATUS
from tests.support.channel import Channel
from tests.support.rig import (
    IMAGE,
    HeldUpstream,
    Living,
    Rig,
    client,
    hear,
    next_of,
    request,
    run,
    unused_port,
)
from tests.support.specs import app_spec, route_to, upstream


def heartbeat(worker: Living) -> int:
    with mmap.mmap(worker.stats_fd, mmap.PAGESIZE, prot=mmap.PROT_READ) as page:
        return int.from_bytes(page[8:16], "little")


def test_worker_gets_ready_serves_and_ends_with_its_counts(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec())
            ready = await worker.ready()
            assert ready.pid == worker.pid
            assert 0 < ready.born_ms < 5000
            await worker.serve()
            async with client(rig.port) as one:
                assert await one.get() == b"ok"
                assert await one.get() == b"ok"
                await worker.channel.send(messages.Drain(deadline_ms=5000))
                assert await one.at_end()
            drained = await worker.hear(messages.Drained)
            assert drained.connections.closed == 1
            assert drained.connections.reset == 0
            assert await rig.exit_status(worker) == 0

    run(life)


def test_worker_accepts_nothing_before_it_is_told_to(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec())
            await worker.ready()
            async with client(rig.port) as one:
                one.send(request())
                assert await worker.state() == "ready"
                assert stats_of(worker).connections_total == 0
                await worker.serve()
                assert await one.answer() == b"ok"

    run(life)


def stats_of(worker: Living) -> Stats:
    page = StatsPage.__new__(StatsPage)
    page._page = mmap.mmap(worker.stats_fd, mmap.PAGESIZE, prot=mmap.PROT_READ)
    try:
        return page.read()
    finally:
        page.close()


def test_drain_without_a_successor_lets_the_request_in_flight_finish(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held:
            spec = app_spec(route_to("api"), upstreams=(upstream("api", held.port),))
            worker = await rig.serving(spec)
            async with client(rig.port) as one:
                one.send(request())
                await held.asked.wait()
                await worker.channel.send(messages.Drain(deadline_ms=5000))
                assert await worker.state() == "draining"
                held.released.set()
                assert await one.answer() == b"held"
            drained = await worker.hear(messages.Drained)
            assert drained.connections.reset == 0
            assert drained.connections.finished + drained.connections.closed == 1
            assert await rig.exit_status(worker) == 0

    run(life)


def test_drain_cuts_at_its_deadline_and_counts(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held:
            spec = app_spec(route_to("api"), upstreams=(upstream("api", held.port),))
            worker = await rig.serving(spec)
            async with client(rig.port) as one:
                one.send(request())
                await held.asked.wait()
                await worker.channel.send(messages.Drain(deadline_ms=100))
                assert await one.at_end()
            assert (await worker.hear(messages.Drained)).connections.reset == 1
            assert await rig.exit_status(worker) == 0
            held.released.set()

    run(life)


def test_end_cuts_at_once_and_counts(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.serving(app_spec())
            async with client(rig.port) as one:
                assert await one.get() == b"ok"
                await worker.channel.send(messages.End())
                assert await one.at_end()
            assert (await worker.hear(messages.Drained)).connections.reset == 1
            assert await rig.exit_status(worker) == 0

    run(life)


def test_serve_takes_a_drain_back(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held:
            spec = app_spec(route_to("api"), upstreams=(upstream("api", held.port),))
            worker = await rig.serving(spec)
            async with client(rig.port) as one:
                one.send(request())
                await held.asked.wait()
                await worker.channel.send(messages.Drain(deadline_ms=5000))
                await worker.serve()
                held.released.set()
                assert await one.answer() == b"held"
                assert await one.get() == b"held"
                async with client(rig.port) as other:
                    assert await other.get() == b"held"
            # and a second drain is as good as the first
            await worker.channel.send(messages.Drain(deadline_ms=5000))
            await worker.hear(messages.Drained)
            assert await rig.exit_status(worker) == 0

    run(life)


def test_upstream_that_is_down_stops_no_start(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            spec = app_spec(route_to("api"), upstreams=(upstream("api", unused_port()),))
            worker = await rig.serving(spec)
            async with client(rig.port) as one:
                one.send(request())
                assert (await one.head()).startswith(b"HTTP/1.1 502 ")
            await worker.channel.send(messages.End())
            await worker.hear(messages.Drained)

    run(life)


def test_worker_serves_on_without_supervisor_and_obeys_the_next_one(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.serving(app_spec(), generation=7)
            async with client(rig.port) as one:
                worker.channel.close()
                assert await one.get() == b"ok"
                channel = Channel(connect_packet_socket(worker.control_path))
                await channel.send(messages.Ask())
                assert await hear(channel, messages.Identity) == messages.Identity(
                    pid=worker.pid,
                    app="billing",
                    generation=7,
                    slot=0,
                    image=IMAGE,
                    state="serving",
                    listeners=("web",),
                )
                await channel.send(messages.Drain(deadline_ms=5000))
                assert await one.at_end()
                assert (await hear(channel, messages.Drained)).connections.closed == 1
                assert await rig.exit_status(worker) == 0
                channel.close()

    run(life)


def test_who_does_not_ask_at_the_control_socket_is_turned_away(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.serving(app_spec())
            stranger = Channel(connect_packet_socket(worker.control_path))
            await stranger.send(messages.End())
            assert await next_of(stranger) is None
            stranger.close()
            async with client(rig.port) as one:
                assert await one.get() == b"ok"
            await worker.serve()  # the old channel still counts

    run(life)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
def test_no_signal_changes_a_worker(tmp_path: Path, number: signal.Signals) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.serving(app_spec())
            signal_pidfd(worker.pidfd, number)
            async with client(rig.port) as one:
                assert await one.get() == b"ok"

    run(life)


def test_idle_worker_shows_that_it_lives(tmp_path: Path) -> None:
    """Within the deadline of another worker's drain, whose end tells that the time has passed."""

    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held:
            spec = app_spec(route_to("api"), upstreams=(upstream("api", held.port),))
            other = await rig.serving(spec)
            async with client(rig.port) as one:
                one.send(request())
                await held.asked.wait()
                worker = await rig.serving(app_spec(), slot=1)
                before = heartbeat(worker)
                await other.channel.send(messages.Drain(deadline_ms=1500))
                assert (await other.hear(messages.Drained)).connections.reset == 1
                assert heartbeat(worker) > before
            held.released.set()

    run(life)


def test_workers_have_seeds_of_their_own(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig, HeldUpstream() as held:
            held.released.set()
            spec = app_spec(route_to("api"), upstreams=(upstream("api", held.port),))
            for slot in range(2):
                worker = await rig.serving(spec, slot=slot)
                async with client(rig.port) as one:
                    await one.get()
                await worker.channel.send(messages.End())
                await worker.hear(messages.Drained)
            ids = [field for field in held.fields if field.startswith(b"x-request-id:")]
            assert len(set(ids)) == 2

    run(life)


# --- failures on purpose ---------------------------------------------------------------------


def test_crash_before_ready(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec(), faults=("crash-before-ready",))
            assert os.waitstatus_to_exitcode(await rig.exit_status(worker)) == CRASH_STATUS
            assert await next_of(worker.channel) is None

    run(life)


def test_hang_before_ready(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec(), faults=("hang-before-ready",))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await worker.channel.receive()
            worker.kill()
            assert os.waitstatus_to_exitcode(await rig.exit_status(worker)) == -signal.SIGKILL

    run(life)


def test_exit_after_ready(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec(), faults=("exit-after-ready",))
            await worker.ready()
            assert os.waitstatus_to_exitcode(await rig.exit_status(worker)) == CRASH_STATUS

    run(life)


def test_worker_that_stops_turning_has_no_heartbeat(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec(), faults=("stop-turning",))
            await worker.ready()
            await worker.serve()
            before = heartbeat(worker)
            async with client(rig.port) as one:
                one.send(request())
                # Its loop goes round for each question: an engine that turned would have answered.
                for _ in range(3):
                    assert await worker.state() == "serving"
                assert heartbeat(worker) == before

    run(life)


def test_unknown_fault_is_told(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec(), faults=("crash-befor-ready",))
            assert "unknown fault" in (await worker.failed()).error
            assert os.waitstatus_to_exitcode(await rig.exit_status(worker)) == 1

    run(life)


# --- the zygote ------------------------------------------------------------------------------


def test_zygote_says_what_it_is(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            assert rig.hello.pid == rig.zygote.pid
            assert rig.hello.tree == str(rig.tree)
            assert rig.hello.abi == 1

    run(life)


def test_zygotes_end_leaves_workers_alone(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.serving(app_spec())
            rig.zygote.signal(signal.SIGKILL)
            await rig.zygote.wait()
            async with client(rig.port) as one:
                assert await one.get() == b"ok"
            await worker.channel.send(messages.Drain(deadline_ms=1000))
            await worker.hear(messages.Drained)
            await worker.ended()
            os.waitpid(worker.pid, 0)  # tests are their orphans' parent

    run(life)


def test_zygote_ends_with_its_channel_and_without_a_word(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            await rig.end_zygote()
            assert await rig.zygote.wait() == 0

    run(life)


def test_fork_that_lacks_descriptors_is_refused_and_the_zygote_goes_on(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            order = messages.Fork(
                request=77,
                app="billing",
                generation=1,
                slot=0,
                image=IMAGE,
                listeners=("web",),
                seal=(),
                faults=(),
            )
            await rig.channel.send(order, (0, 0))
            answer = await rig.answer()
            assert isinstance(answer, messages.ForkFailed)
            assert answer.request == 77
            await rig.serving(app_spec())

    run(life)


def test_zygote_is_not_stopped_by_a_terminals_signals(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            rig.zygote.signal(signal.SIGINT)
            rig.zygote.signal(signal.SIGHUP)
            await rig.serving(app_spec())

    run(life)


def test_idle_workers_share_most_of_their_memory(tmp_path: Path) -> None:
    """The bound is 4 MB a worker; see the benchmarks for the figure itself."""

    async def life() -> None:
        async with Rig(tmp_path) as rig:
            workers = [await rig.serving(app_spec(), slot=slot) for slot in range(20)]
            assert pss_kilobytes(workers[10].pid) <= 4096

    run(life)


def pss_kilobytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")
