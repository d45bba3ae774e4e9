"""Zygotes: one for each code tree, started by exec, kept warm while a generation runs that code.

A zygote's death harms no worker: they become our children (we are the subreaper), and a fresh
zygote takes its place. Nothing here decides what a fork is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.control.channel import Heard, Line
from dataplane.control.messages import Exited, Fork, Forked, ForkFailed, Stale, ZygoteHello
from dataplane.model import lifecycle
from dataplane.model.errors import ControlError, DataplaneError, ImageError, LaunchError
from dataplane.model.inputs import NO_INPUTS
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import Fleet, WorkerSlot
from dataplane.supervisor.images import Images
from dataplane.supervisor.lives import Lives
from dataplane.system.clock import Clock
from dataplane.system.fds import close_fds
from dataplane.system.mapped import MappedFiles
from dataplane.system.once import one_shot
from dataplane.system.process import NULL, Child, bare_python, reap, spawn
from dataplane.system.sockets import bind_packet_socket, packet_pair

HELLO_SECONDS: Final = 10.0
END_SECONDS: Final = 2.0

ENVIRONMENT: Final = {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}


def zygote_command(tree: Path, channel_fd: int) -> Sequence[str]:
    """The program that becomes a zygote: the host's interpreter with the image's code, alone."""
    return bare_python(tree, "dataplane.worker.zygote", str(tree), str(channel_fd))


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Zygote:
    """Mutable. One zygote process; `hello` is set once it takes forks, or failed to."""

    tree: Path
    child: Child
    started_at: float
    deaths: int  # of the zygotes before it, as `lifecycle.count_death` counts
    hello: asyncio.Future[ZygoteHello]
    line: Line | None = None
    mapped: MappedFiles | None = None  # by a zygote that takes forks
    stale: bool = False  # the host's files have changed under it: another one takes its place
    waiting: list[WorkerSlot] = dataclasses.field(default_factory=list)  # until the hello
    asked: dict[int, tuple[WorkerSlot, socket.socket]] = dataclasses.field(default_factory=dict)
    workers: dict[int, WorkerSlot] = dataclasses.field(default_factory=dict)  # by pid, not reaped
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Zygotes:
    """Mutable: the zygotes by tree, and whose fork each request is."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        lives: Lives,
        images: Images,
        clock: Clock,
        events: Events,
        tasks: asyncio.TaskGroup,
        command: Callable[[Path, int], Sequence[str]] = zygote_command,
    ) -> None:
        self._fleet, self._lives, self._clock, self._events = fleet, lives, clock, events
        self._images, self._tasks = images, tasks
        self._command = command
        self._zygotes: dict[Path, Zygote] = {}
        self._stale: set[Zygote] = set()  # that still have to answer
        self._ending: set[Zygote] = set()
        self._request = 0
        self._is_closed = False

    async def warm(self, tree: Path) -> ZygoteHello:
        """Returns when a zygote for this tree takes forks. Raises `LaunchError`."""
        zygote = self._zygotes.get(tree) or self._start(tree, deaths=0)
        return await asyncio.shield(zygote.hello)

    def keep_warm(self, tree: Path) -> None:
        """Has a zygote for a tree whose workers were adopted, soon: what they need to be replaced
        is there before it is needed."""
        if tree not in self._zygotes:
            self._start_again(tree, deaths=0)

    def fork(self, slot: WorkerSlot) -> None:
        """Has a process made for the slot, of an image that is proven; `Lives` is told how it went.

        What was proven and is unchanged costs a few calls of stat; all else is read in a thread.
        """
        generation = slot.generation
        if generation.tree in self._zygotes and self._images.is_proven(generation.image):
            self._fork_proven(slot)
        else:
            self._tasks.create_task(self._prove_and_fork(slot))

    async def _prove_and_fork(self, slot: WorkerSlot) -> None:
        image = slot.generation.image
        try:
            await self._images.prove(image)
        except ImageError as error:
            self._events.tell("image.refused", **slot.facts(), image=image.digest, error=str(error))
            self._lives.fork_failed(slot, str(error))
            return
        self._fork_proven(slot)

    def _fork_proven(self, slot: WorkerSlot) -> None:
        tree = slot.generation.tree
        try:
            zygote = self._zygotes.get(tree) or self._start(tree, deaths=0)
        except LaunchError as error:
            asyncio.get_running_loop().call_soon(self._lives.fork_failed, slot, str(error))
            return
        if zygote.line is None or not zygote.hello.done():
            zygote.waiting.append(slot)
        else:
            self._ask(zygote, slot)

    def knows_exit_of(self, slot: WorkerSlot) -> bool:
        """Whether the zygote that forked this slot's process lives."""
        zygotes = (*self._zygotes.values(), *self._stale)
        return any(slot.pid in zygote.workers for zygote in zygotes)

    def pids(self) -> dict[Path, int]:
        """The running zygotes."""
        return {tree: zygote.child.pid for tree, zygote in self._zygotes.items()}

    def let_go(self) -> None:
        """Ends the zygotes whose code nothing runs any more."""
        for tree, zygote in list(self._zygotes.items()):
            if zygote.hello.done() and not zygote.asked and not self._fleet.runs(tree):
                self._end(zygote)

    async def close(self) -> None:
        """Ends all zygotes and waits for them; no other one is started after that."""
        self._is_closed = True
        for zygote in (*self._zygotes.values(), *self._stale):
            self._end(zygote)
        for zygote in list(self._ending):
            await zygote.gone.wait()

    # --- one zygote ---------------------------------------------------------------------------

    def _start(self, tree: Path, deaths: int) -> Zygote:
        if self._is_closed:
            raise LaunchError("no zygote is started any more: the supervisor ends")
        ours, theirs = packet_pair()
        theirs.setblocking(True)
        try:
            child = spawn(
                self._command(tree, theirs.fileno()),
                environment=ENVIRONMENT,
                fds=(theirs.fileno(),),
                stdout=NULL,
            )
        except DataplaneError:
            ours.close()
            raise
        finally:
            theirs.close()
        zygote = Zygote(
            tree=tree,
            child=child,
            started_at=self._clock.monotonic(),
            deaths=deaths,
            hello=asyncio.get_running_loop().create_future(),
        )
        # Whoever waits for it takes the failure; without a waiter it is told by an event.
        zygote.hello.add_done_callback(lambda hello: hello.exception())
        self._zygotes[tree] = zygote
        zygote.line = Line(
            ours, lambda heard: self._hear(zygote, heard), asyncio.get_running_loop()
        )
        self._tasks.create_task(self._watch(zygote))
        return zygote

    async def _watch(self, zygote: Zygote) -> None:
        """Until it has ended: by our word, by itself, or because it never got ready."""
        ended = self._tasks.create_task(zygote.child.wait())
        either: set[asyncio.Future[Any]] = {zygote.hello, ended}
        await asyncio.wait(either, timeout=HELLO_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not zygote.hello.done() and not ended.done():
            self._events.tell("zygote.late", pid=zygote.child.pid, seconds=HELLO_SECONDS)
            zygote.child.signal(signal.SIGKILL)
        status = await ended
        zygote.child.close()
        zygote.gone.set()
        if self._zygotes.get(zygote.tree) is zygote or zygote in self._stale:
            self._died(zygote, status)

    def _end(self, zygote: Zygote) -> None:
        """By closing its channel: it has nothing to do that could keep it."""
        self._forget(zygote)
        self._fail(zygote, "the zygote was ended")
        if zygote.line is not None:
            zygote.line.close()
        self._ending.add(zygote)
        self._tasks.create_task(self._see_off(zygote))

    async def _see_off(self, zygote: Zygote) -> None:
        try:
            async with asyncio.timeout(END_SECONDS):
                await zygote.gone.wait()
        except TimeoutError:
            zygote.child.signal(signal.SIGKILL)
            await zygote.gone.wait()
        self._ending.discard(zygote)
        if zygote.stale:  # its workers go on as our children
            self._lives.zygote_died()
            self._end_strays(zygote)

    def _forget(self, zygote: Zygote) -> None:
        self._stale.discard(zygote)
        if self._zygotes.get(zygote.tree) is zygote:
            del self._zygotes[zygote.tree]

    def _died(self, zygote: Zygote, status: int) -> None:
        text = f"exit {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        self._events.tell("zygote.died", pid=zygote.child.pid, status=text)
        if zygote.line is not None:
            zygote.line.read()  # its last words
            zygote.line.close()
        self._forget(zygote)
        was_ready = zygote.hello.done() and zygote.hello.exception() is None
        self._fail(zygote, f"the zygote ended: {text}")
        self._lives.zygote_died()
        self._end_strays(zygote)
        if was_ready and not zygote.stale and self._fleet.runs(zygote.tree):
            self._replace(zygote)

    def _replace(self, dead: Zygote) -> None:
        lived = self._clock.monotonic() - dead.started_at
        deaths = lifecycle.count_death(dead.deaths, lived)
        asyncio.get_running_loop().call_later(
            lifecycle.pause_before_restart(deaths), self._start_again, dead.tree, deaths
        )

    def _start_again(self, tree: Path, deaths: int) -> None:
        self._tasks.create_task(self._prove_and_start(tree, deaths))

    async def _prove_and_start(self, tree: Path, deaths: int) -> None:
        try:
            first = next(self._fleet.of_tree(tree), None)
            if first is not None:
                await self._images.prove_tree(first.image)
            if tree not in self._zygotes and self._fleet.runs(tree):
                self._start(tree, deaths)
        except (ImageError, LaunchError) as error:
            self._events.tell("zygote.failed", error=str(error))

    def _fail(self, zygote: Zygote, error: str) -> None:
        """Nothing that was asked of it will come any more."""
        if not zygote.hello.done():
            zygote.hello.set_exception(LaunchError(error))
        slots = [*zygote.waiting, *(slot for slot, _ in zygote.asked.values())]
        for _, channel in zygote.asked.values():
            channel.close()
        zygote.waiting.clear()
        zygote.asked.clear()
        for slot in slots:
            self._lives.fork_failed(slot, error)

    def _end_strays(self, zygote: Zygote) -> None:
        """Of its children, now ours, reaps the dead and ends one whose fork was never told."""
        for pid, slot in zygote.workers.items():
            if slot.pid != pid:
                reap(pid)
        known = {slot.pid for slot in self._fleet.slots()}
        others = (*self._zygotes.values(), *self._stale, *self._ending)
        known |= {other.child.pid for other in others}
        ours = Path(f"/proc/self/task/{os.getpid()}/children")
        with contextlib.suppress(OSError):
            for pid in (int(word) for word in ours.read_text().split()):
                if pid not in known and _runs_from(pid, zygote.tree):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    # --- what it says -------------------------------------------------------------------------

    def _hear(self, zygote: Zygote, heard: Heard) -> None:
        if heard is None:
            return  # its death is told by its pidfd
        if isinstance(heard, ControlError):
            self._events.tell("zygote.broken", pid=zygote.child.pid, error=str(heard))
            zygote.child.signal(signal.SIGKILL)
            return
        message, fds = heard.message, heard.fds
        match message:
            case ZygoteHello() if not zygote.hello.done():
                self._greeted(zygote, message)
            case Forked() if message.request in zygote.asked and len(fds) == 1:
                slot, channel = zygote.asked.pop(message.request)
                zygote.workers[message.pid] = slot
                slot.mapped = zygote.mapped
                self._lives.forked(slot, message.pid, fds[0], channel)
                return
            case ForkFailed() if message.request in zygote.asked:
                slot, channel = zygote.asked.pop(message.request)
                channel.close()
                self._lives.fork_failed(slot, message.error)
            case Stale() if message.request in zygote.asked:
                self._renew(zygote, message)
            case Exited() if message.pid in zygote.workers:
                reaped = zygote.workers.pop(message.pid)
                if reaped.pid == message.pid:
                    self._lives.exited(message.pid, message.status, reaped)
            case _:
                text = f"an unexpected {type(message).__name__}"
                self._events.tell("zygote.broken", pid=zygote.child.pid, error=text)
        close_fds(fds)

    def _renew(self, zygote: Zygote, told: Stale) -> None:
        """Another zygote, of the files as they are now, forks what this one was asked for."""
        slot, channel = zygote.asked.pop(told.request)
        channel.close()
        if not zygote.stale:
            zygote.stale = True
            self._events.tell("zygote.stale", pid=zygote.child.pid, files=list(told.files))
            self._forget(zygote)
            self._stale.add(zygote)
        self.fork(slot)
        if not zygote.asked:
            self._end(zygote)

    def _greeted(self, zygote: Zygote, hello: ZygoteHello) -> None:
        took = self._clock.monotonic() - zygote.started_at
        self._events.tell("zygote.ready", pid=hello.pid, code=hello.code, ms=round(took * 1000, 1))
        with contextlib.suppress(OSError):  # it has died since, which its pidfd tells
            zygote.mapped = MappedFiles(Path(f"/proc/{zygote.child.pid}/maps"))
        zygote.hello.set_result(hello)
        waiting, zygote.waiting = zygote.waiting, []
        for slot in waiting:
            self._ask(zygote, slot)

    def _ask(self, zygote: Zygote, slot: WorkerSlot) -> None:
        generation = slot.generation
        lent = generation.lent.to_slot(slot.number, len(generation.slots))
        shared = generation.app.shared
        log = generation.log
        self._request += 1
        request = Fork(
            request=self._request,
            app=generation.app.name,
            generation=generation.number,
            slot=slot.number,
            image=generation.image.digest,
            listeners=tuple(name for name, _ in lent),
            seal=generation.seal_without,
            # A failure on purpose is the first process's: its replacement is to be well.
            faults=generation.faults if slot.life is lifecycle.START else (),
            has_inputs=generation.inputs != NO_INPUTS,
            shared=shared is not None,
            log=log is not None,
        )
        try:
            ours, theirs = packet_pair()
        except LaunchError as error:
            asyncio.get_running_loop().call_soon(self._lives.fork_failed, slot, str(error))
            return
        once: tuple[int, ...] = ()
        try:
            if request.has_inputs:
                once = (one_shot(generation.inputs.to_json()),)
            with contextlib.suppress(FileNotFoundError):
                slot.control_path.unlink()
            control = bind_packet_socket(slot.control_path)
            with theirs, control:
                assert zygote.line is not None
                zygote.line.send(
                    request,
                    (
                        generation.spec_fd,
                        slot.stats.fd,
                        theirs.fileno(),
                        control.fileno(),
                        *(() if shared is None else (shared.fd,)),
                        *(fd for _, fd in lent),
                        *(() if log is None else (log.write_fd,)),
                        *once,
                    ),
                )
        except (DataplaneError, OSError) as error:
            ours.close()
            theirs.close()
            text = str(error)
            asyncio.get_running_loop().call_soon(self._lives.fork_failed, slot, text)
            return
        finally:
            close_fds(once)
        zygote.asked[self._request] = (slot, ours)


def _runs_from(pid: int, tree: Path) -> bool:
    """Whether this process is a fork of a zygote of `tree`, by its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(tree) in words
