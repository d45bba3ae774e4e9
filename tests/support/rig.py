"""A zygote and workers without a supervisor: the test speaks the messages itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType, UnionType
from typing import Final, TypeVar

import _cffi_backend
import uvloop

import dataplane
from dataplane.control import messages
from dataplane.control.channel import Envelope
from dataplane.model.spec import AppSpec
from dataplane.system.memfd import sealed_memfd, shared_memfd
from dataplane.system.process import Child, ended, signal_pidfd, spawn
from dataplane.system.sockets import bind_first, bind_packet_socket, packet_pair
from tests.support.channel import Channel

SECONDS: Final = 10.0
IMAGE: Final = "sha256:" + "0" * 64

_M = TypeVar("_M", bound=messages.Message)
_T = TypeVar("_T")


def lay_out_tree(folder: Path) -> Path:
    """A folder with what an unpacked code layer holds, by links."""
    folder.mkdir()
    for package in (dataplane, uvloop):
        path = Path(package.__path__[0])
        (folder / path.name).symlink_to(path)
    backend = Path(_cffi_backend.__file__)
    (folder / backend.name).symlink_to(backend)
    return folder


@dataclasses.dataclass(slots=True, kw_only=True)
class Living:
    """A worker as its supervisor would hold it."""

    pid: int
    pidfd: int
    channel: Channel
    control_path: Path
    stats_fd: int
    aside: list[messages.Message] = dataclasses.field(default_factory=list)

    async def hear(self, kind: type[_M]) -> _M:
        """Its next message of this kind. `Receiving` and `Received` of several moves may cross."""
        for message in self.aside:
            if isinstance(message, kind):
                self.aside.remove(message)
                return message
        while True:
            message = await hear(self.channel, messages.Message)
            if isinstance(message, kind):
                return message
            assert isinstance(message, messages.Receiving | messages.Received), message
            self.aside.append(message)

    async def ready(self) -> messages.Ready:
        return await self.hear(messages.Ready)

    async def failed(self) -> messages.Failed:
        return await self.hear(messages.Failed)

    async def state(self) -> str:
        """What it says that it is doing."""
        await self.channel.send(messages.Ask())
        return (await self.hear(messages.Identity)).state

    async def serve(self) -> None:
        await self.channel.send(messages.Serve())
        await self.hear(messages.Serving)

    async def ended(self) -> None:
        async with asyncio.timeout(SECONDS):
            await ended(self.pidfd)

    def kill(self) -> None:
        signal_pidfd(self.pidfd, signal.SIGKILL)


async def hear(channel: Channel, kind: type[_M] | UnionType) -> _M:
    """The next message on a channel, which must be of this kind and bring no descriptor."""
    envelope = await next_of(channel)
    assert envelope is not None, f"end-of-file where {kind} was due"
    envelope.close_fds()
    assert isinstance(envelope.message, kind), envelope.message
    return typing.cast(_M, envelope.message)


async def next_of(channel: Channel) -> Envelope | None:
    async with asyncio.timeout(SECONDS):
        return await channel.receive()


class Rig:
    """A running zygote, the workers it made and a listening socket; all ended by leaving it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listener: Final = bind_first("127.0.0.1:0")
        self.port: Final[int] = self.listener.getsockname()[1]
        self._open = contextlib.ExitStack()
        self._open.callback(self.listener.close)
        self.living: list[Living] = []
        self.exits: dict[int, asyncio.Future[int]] = {}
        self._request = 0
        self._forked: asyncio.Queue[tuple[messages.Message, tuple[int, ...]]] = asyncio.Queue()

    async def __aenter__(self) -> Rig:
        tree = self._folder / "tree"
        if not tree.exists():
            lay_out_tree(tree)
        ours, theirs = packet_pair()
        self.tree = tree
        self.zygote: Child = spawn(
            zygote_command(tree, theirs.fileno()),
            environment={"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
            fds=(theirs.fileno(),),
        )
        theirs.close()
        self.channel = Channel(ours)
        self.hello = await hear(self.channel, messages.ZygoteHello)
        self._reader = asyncio.get_running_loop().create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.living:
            worker.kill()
        for worker in self.living:
            await worker.ended()
        await self.end_zygote()
        async with asyncio.timeout(SECONDS):
            await self.zygote.wait()
        self.zygote.close()
        for worker in self.living:
            worker.channel.close()
            os.close(worker.pidfd)
            os.close(worker.stats_fd)
            worker.control_path.unlink(missing_ok=True)
        self._open.close()

    async def fork(
        self,
        spec: AppSpec,
        *,
        generation: int = 1,
        slot: int = 0,
        faults: tuple[str, ...] = (),
        seal: tuple[str, ...] = (),
        listeners: tuple[str, ...] = ("web",),
        spec_fd: int | None = None,
    ) -> Living:
        """A new worker that has the rig's listening socket; it has said nothing yet."""
        self._request += 1
        order = messages.Fork(
            request=self._request,
            app=spec.app,
            generation=generation,
            slot=slot,
            image=IMAGE,
            listeners=listeners,
            seal=seal,
            faults=faults,
        )
        path = self._folder / f"{spec.app}.{generation}.{slot}.{self._request}.sock"
        ours, theirs = packet_pair()
        stats_fd = shared_memfd("stats", 4096)
        own_fd = sealed_memfd("spec", spec.to_json()) if spec_fd is None else spec_fd
        control = bind_packet_socket(path)
        with theirs, control:
            await self.channel.send(
                order,
                (
                    own_fd,
                    stats_fd,
                    theirs.fileno(),
                    control.fileno(),
                    *(self.listener.fileno() for _ in listeners),
                ),
            )
        os.close(own_fd)
        async with asyncio.timeout(SECONDS):
            answer, fds = await self._forked.get()
        assert isinstance(answer, messages.Forked), answer
        worker = Living(
            pid=answer.pid,
            pidfd=fds[0],
            channel=Channel(ours),
            control_path=path,
            stats_fd=stats_fd,
        )
        self.living.append(worker)
        self._exit_of(answer.pid)
        return worker

    async def serving(
        self, spec: AppSpec, *, generation: int = 1, slot: int = 0, faults: tuple[str, ...] = ()
    ) -> Living:
        """A new worker that serves."""
        worker = await self.fork(spec, generation=generation, slot=slot, faults=faults)
        await worker.ready()
        await worker.serve()
        return worker

    async def exit_status(self, worker: Living) -> int:
        """Its wait status, as the zygote tells it."""
        async with asyncio.timeout(SECONDS):
            return await asyncio.shield(self._exit_of(worker.pid))

    async def swap(
        self, blue: Living, green: Living, *, slot: int = 0, deadline_ms: int = 5000
    ) -> None:
        """Connects the two and tells blue to drain to green."""
        await green.channel.send(messages.Serve())
        await green.hear(messages.Serving)
        blue_end, green_end = packet_pair()
        with blue_end, green_end:
            await green.channel.send(messages.Receive(slot=slot), (green_end.fileno(), blue.pidfd))
            await green.hear(messages.Receiving)
            await blue.channel.send(
                messages.Drain(deadline_ms=deadline_ms), (blue_end.fileno(), green.pidfd)
            )

    async def answer(self) -> messages.Message:
        """What the zygote said last that is no exit; it brings no descriptor."""
        async with asyncio.timeout(SECONDS):
            message, fds = await self._forked.get()
        assert not fds
        return message

    async def end_zygote(self) -> None:
        """Closes the zygote's channel, as a supervisor's death does."""
        await self._stop_reading()
        self.channel.close()

    async def _stop_reading(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    def _exit_of(self, pid: int) -> asyncio.Future[int]:
        if pid not in self.exits:
            self.exits[pid] = asyncio.get_running_loop().create_future()
        return self.exits[pid]

    async def _read(self) -> None:
        while (envelope := await self.channel.receive()) is not None:
            if isinstance(envelope.message, messages.Exited):
                self._exit_of(envelope.message.pid).set_result(envelope.message.status)
            else:
                self._forked.put_nowait((envelope.message, envelope.fds))


def zygote_command(tree: Path, channel_fd: int) -> list[str]:
    start = (
        f"import sys; sys.path.insert(0, {str(tree)!r}); "
        "from dataplane.worker.zygote import main; main()"
    )
    python = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    return [python, "-I", "-S", "-B", "-c", start, str(tree), str(channel_fd)]


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    """A connection that is never made anew."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Client:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def get(self, path: str = "/") -> bytes:
        """The body of the answer to a GET, which must be a 200."""
        self.send(request(path))
        return await self.answer()

    async def answer(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            head = await self._reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            (length,) = (
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            return await self._reader.readexactly(length)

    async def head(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self._reader.readexactly(count)

    async def at_end(self) -> bool:
        """Whether the other side closes, or cuts, without another byte."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self._reader.read(1) == b""
            except ConnectionResetError:
                return True


def request(path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode()


class HeldUpstream:
    """An upstream that answers "held" to each request, but only when it is released."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.released = asyncio.Event()
        self.fields: list[bytes] = []  # of all heads that came

    async def __aenter__(self) -> HeldUpstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.fields += head.lower().split(b"\r\n")
                self.asked.set()
                await self.released.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nheld")
                await writer.drain()
        writer.close()


def run(life: Callable[[], Awaitable[_T]]) -> _T:
    """Runs a test's coroutine under uvloop, as our processes do."""

    async def whole() -> _T:
        async with asyncio.timeout(40):
            return await life()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())


def open_fds(pid: int) -> Iterator[tuple[int, str]]:
    """Number and target of each descriptor of a process."""
    folder = Path(f"/proc/{pid}/fd")
    for entry in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        yield int(entry.name), str(entry.readlink())


def unused_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
