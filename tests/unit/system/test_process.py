"""Children: only the named descriptors, a session of their own, known by pidfd."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from dataplane.model.errors import LaunchError
from dataplane.system.fds import close_all_but
from dataplane.system.process import PIPE, ended, reap, run, set_name, signal_pidfd, spawn
from tests.support.rig import run as run_life

LIST_FDS = """
import fcntl
held = []
for fd in range(256):
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
        held.append(fd)
    except OSError:
        pass
print(held)
"""


def test_child_has_the_named_descriptors_alone() -> None:
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    given = os.open("/dev/null", os.O_RDONLY)

    async def life() -> None:
        child = spawn(
            [sys.executable, "-I", "-S", "-c", LIST_FDS], environment={}, fds=(given,), stdout=PIPE
        )
        assert await child.wait() == 0
        assert child.output is not None
        assert child.output.read().decode().strip() == str([0, 1, 2, given])
        child.close()

    run_life(life)
    os.close(leak)
    os.close(given)


def test_child_is_in_a_session_of_its_own_with_the_given_environment() -> None:
    script = "import os; print(os.getsid(0) == os.getpid(), sorted(os.environ))"

    async def life() -> None:
        done = await run(
            [sys.executable, "-I", "-c", script],
            environment={"ONLY": "this", "LC_ALL": "C"},
            folder=Path("/"),
            limit_seconds=20,
        )
        assert done.output.decode().strip() == "True ['LC_ALL', 'ONLY']"
        assert (done.status, done.errors) == (0, b"")

    run_life(life)


def test_long_output_is_read_whole() -> None:
    script = "import sys; sys.stdout.write('x' * 3_000_000); sys.stderr.write('y' * 3_000_000)"

    async def life() -> None:
        done = await run(
            [sys.executable, "-c", script], environment={}, folder=None, limit_seconds=20
        )
        assert (len(done.output), len(done.errors)) == (3_000_000, 3_000_000)

    run_life(life)


def test_child_that_takes_too_long_is_killed() -> None:
    async def life() -> None:
        with pytest.raises(LaunchError, match="took longer than"):
            await run(["sleep", "60"], environment={"PATH": "/bin"}, folder=None, limit_seconds=0.1)

    run_life(life)


def test_cancelled_run_leaves_no_child() -> None:
    def children() -> set[int]:
        return {child.pid for child in psutil.Process().children()}

    before = children()  # orphans of other tests may have come to this process

    async def life() -> None:
        task = asyncio.get_running_loop().create_task(
            run(["/bin/sleep", "60"], environment={}, folder=None, limit_seconds=60)
        )
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() <= before, "it is gone, and reaped"

    run_life(life)


def test_program_that_is_not_there_is_told() -> None:
    with pytest.raises(LaunchError, match="cannot start /no/such: No such file"):
        spawn(["/no/such"], environment={})


def test_death_is_told_by_the_pidfd_and_signals_to_the_dead_are_passed_over() -> None:
    async def life() -> None:
        child = spawn(["/bin/sleep", "60"], environment={})
        assert child.reap() is None
        child.signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            await ended(child.pidfd)
        assert await child.wait() == -signal.SIGKILL
        assert await child.wait() == -signal.SIGKILL
        assert not signal_pidfd(child.pidfd, signal.SIGKILL)
        assert reap(child.pid) is None, "it was reaped already"
        child.close()

    run_life(life)


def test_all_descriptors_but_the_named_ones_are_closed() -> None:
    reader, writer = os.pipe()
    high = os.open("/dev/null", os.O_RDONLY)
    os.dup2(high, 200)
    pid = os.fork()
    if pid == 0:
        try:
            close_all_but((writer, 200))
            os.write(writer, " ".join(sorted(os.listdir("/proc/self/fd"))).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    # the last one is that of the list itself: the lowest free number
    assert set(os.read(reader, 1000).decode().split()) == {"0", str(writer), "200"}
    for fd in (reader, writer, high, 200):
        os.close(fd)


def test_process_has_the_name_that_fits() -> None:
    before = Path("/proc/self/comm").read_text().strip()
    set_name("dp:a-rather-long-name/1.0")
    assert Path("/proc/self/comm").read_text().strip() == "dp:a-rather-lon"
    set_name(before)
