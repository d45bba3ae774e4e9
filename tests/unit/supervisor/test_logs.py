"""The supervisor's side of access logs: pipes that outlive whoever reads and writes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.model.spec import AccessLogSpec
from dataplane.supervisor.events import Events
from dataplane.supervisor.logs import PIPE_BYTES, Logs, writer_command
from dataplane.system.clock import SystemClock

APP = AppName("billing")
JSON = AccessLogSpec(format="json")
SECONDS = 10.0


class Told(Events):
    """Events that can be waited for."""

    def __init__(self) -> None:
        super().__init__(SystemClock(), lambda line: None)
        self.changed = asyncio.Event()

    def tell(self, name: str, /, **fields: Any) -> None:
        super().tell(name, **fields)
        self.changed.set()

    async def first(self, name: str, *, after: int = 0) -> dict[str, Any]:
        """The event of that name that comes after so many of them."""
        async with asyncio.timeout(SECONDS):
            while True:
                found = [event for event in self.recent() if event["event"] == name]
                if len(found) > after:
                    return found[after]
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def logs_in(folder: Path, **more: Any) -> AsyncIterator[tuple[Logs, Told]]:
    told = Told()
    async with asyncio.TaskGroup() as tasks:
        logs = Logs(folder, clock=SystemClock(), events=told, tasks=tasks, **more)
        try:
            yield logs, told
        finally:
            await logs.close()


def read(folder: Path) -> bytes:
    path = folder / APP / "access.log"
    return path.read_bytes() if path.exists() else b""


def test_what_is_in_a_released_pipe_is_written_before_the_end(tmp_path: Path) -> None:
    async def life() -> None:
        async with logs_in(tmp_path) as (logs, _):
            pipes = [logs.open(APP, JSON) for _ in range(5)]
            for number, pipe in enumerate(pipes):
                assert pipe is not None
                os.write(pipe.write_fd, b"%d\n" % number)
                logs.release(pipe)
        assert sorted(read(tmp_path).split()) == [b"0", b"1", b"2", b"3", b"4"]

    asyncio.run(life())


def test_an_app_without_a_log_has_no_pipe_and_starts_nothing(tmp_path: Path) -> None:
    async def life() -> None:
        async with logs_in(tmp_path) as (logs, told):
            assert logs.open(APP, AccessLogSpec()) is None
            assert not told.recent()

    asyncio.run(life())


def test_a_killed_writer_is_followed_by_one_that_has_every_pipe(tmp_path: Path) -> None:
    async def life() -> None:
        async with logs_in(tmp_path) as (logs, told):
            one, other = logs.open(APP, JSON), logs.open(APP, JSON)
            assert one is not None
            assert other is not None
            for round_of in range(3):
                started = await told.first("log.writer_started", after=round_of)
                os.kill(started["pid"], signal.SIGKILL)
                await told.first("log.writer_ended", after=round_of)
                os.write(one.write_fd, b"one\n")
                os.write(other.write_fd, b"other\n")
            logs.release(one)
            logs.release(other)
        assert sorted(read(tmp_path).split()) == [b"one"] * 3 + [b"other"] * 3

    asyncio.run(life())


def test_pipe_is_large_and_never_makes_its_writer_wait(tmp_path: Path) -> None:
    async def life() -> None:
        async with logs_in(tmp_path, command=_idle) as (logs, _):
            pipe = logs.open(APP, JSON)
            assert pipe is not None
            for _ in range(PIPE_BYTES // 4096):
                assert os.write(pipe.write_fd, b"x" * 4096) == 4096
            with pytest.raises(BlockingIOError):
                os.write(pipe.write_fd, b"x")
            os.read(pipe.read_fd, PIPE_BYTES)
            logs.release(pipe)

    asyncio.run(life())


def test_many_pipes_are_more_than_a_queue_takes_at_once(tmp_path: Path) -> None:
    async def life() -> None:
        async with logs_in(tmp_path) as (logs, _):
            pipes = [logs.open(APP, JSON) for _ in range(400)]
            for pipe in pipes:
                assert pipe is not None
                os.write(pipe.write_fd, b"x\n")
                logs.release(pipe)
        assert read(tmp_path) == b"x\n" * 400

    asyncio.run(life())


def test_writer_that_says_what_nobody_understands_is_replaced(tmp_path: Path) -> None:
    commands = iter((_babbling, writer_command))

    def command(folder: Path, channel_fd: int) -> Sequence[str]:
        return next(commands)(folder, channel_fd)

    async def life() -> None:
        async with logs_in(tmp_path, command=command) as (logs, told):
            pipe = logs.open(APP, JSON)
            assert pipe is not None
            await told.first("log.writer_started", after=1)
            os.write(pipe.write_fd, b"x\n")
            logs.release(pipe)
        assert read(tmp_path) == b"x\n"

    asyncio.run(life())


def test_no_descriptors_left_is_a_launch_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    async def life() -> None:
        async with logs_in(tmp_path) as (logs, _):
            monkeypatch.setattr(os, "pipe2", none_left)
            with pytest.raises(LaunchError, match="Too many open files"):
                logs.open(APP, JSON)

    asyncio.run(life())


def _babbling(folder: Path, channel_fd: int) -> Sequence[str]:
    words = f"import os; os.write({channel_fd}, b'what?'); os.read({channel_fd}, 1)"
    return (*writer_command(folder, channel_fd)[:5], words)


def _idle(folder: Path, channel_fd: int) -> Sequence[str]:
    """Reads no pipe until its channel ends, then reads what it was given."""
    words = f"import socket; s = socket.socket(fileno={channel_fd}); s.recv(9)"
    return (*writer_command(folder, channel_fd)[:5], words)
