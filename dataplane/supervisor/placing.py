"""Puts adopted workers into their places in the fleet, as if this supervisor had made them.

Whatever a place is without (a worker that died meanwhile, the socket that only it had) is made
anew; whatever is there is never made twice.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from dataplane.control.shared import SharedPage
from dataplane.control.stats import StatsPage
from dataplane.image.store import Image
from dataplane.model import lifecycle
from dataplane.model.adoption import Told
from dataplane.model.errors import ControlError
from dataplane.model.lifecycle import Life
from dataplane.model.names import AppName, Generation
from dataplane.model.spec import ListenerSpec
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, AppGeneration, Fleet, WorkerSlot
from dataplane.supervisor.history import History
from dataplane.supervisor.holdings import Held
from dataplane.supervisor.kept import Kept, key_of
from dataplane.supervisor.listeners import Key, Listeners
from dataplane.supervisor.lives import Lives
from dataplane.supervisor.logs import LogPipe, Logs
from dataplane.supervisor.names import AppNames
from dataplane.supervisor.orphans import Orphan
from dataplane.supervisor.rollouts import Rollouts
from dataplane.supervisor.sources import Sources
from dataplane.supervisor.wanted import Wanted
from dataplane.supervisor.zygotes import Zygotes
from dataplane.system.clock import Clock

# Where a slot stands by its worker's word, and what has it serve, or has it go.
_LIVES: Final = {
    Told.READY: Life.READY,
    Told.SERVING: Life.SERVING,
    Told.DRAINING: Life.DRAINING,
    Told.GONE: Life.ENDING,
}
# A worker that never was told to serve: what replaces it serves as soon as it is ready, so it may.
_LIVES_THAT_SERVE: Final = {**_LIVES, Told.READY: Life.REBORN}
_TO_SERVE: Final = {
    Told.READY: lifecycle.Event.TOLD_READY,
    Told.DRAINING: lifecycle.Event.RECALL,
    Told.GONE: lifecycle.Event.RECALL,
}


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class LeftGeneration:
    """Mutable: what was taken of it. A generation as a former supervisor left it."""

    number: Generation
    image: Image  # proven
    tree: Path
    told: list[tuple[Orphan, Told]]
    held: list[Held] = dataclasses.field(default_factory=list)


class Placing:
    """Holds nothing: all is in the fleet, or closed."""

    def __init__(
        self,
        *,
        workers_dir: Path,
        fleet: Fleet,
        lives: Lives,
        rollouts: Rollouts,
        zygotes: Zygotes,
        sources: Sources,
        names: AppNames,
        listeners: Listeners,
        logs: Logs,
        kept: Kept,
        wanted: Wanted,
        history: History,
        clock: Clock,
        events: Events,
    ) -> None:
        self._workers_dir, self._fleet, self._lives = workers_dir, fleet, lives
        self._rollouts, self._zygotes = rollouts, zygotes
        self._sources, self._names = sources, names
        self._listeners, self._logs, self._kept = listeners, logs, kept
        self._wanted, self._history = wanted, history
        self._clock, self._events = clock, events

    def place(
        self, app_name: AppName, serving: LeftGeneration | None, leaving: Sequence[LeftGeneration]
    ) -> None:
        """All of an app. `serving` serves in all its slots then, `leaving` drain into it.

        Raises `ControlError` or `LaunchError`; nothing is in the fleet then, and all is closed.
        """
        every = [*(() if serving is None else (serving,)), *leaving]
        app = App(name=app_name)
        try:
            app.shared = _shared(every)
            self._adopt_sockets(app_name, every)
            made = {left.number: self._generation(app, left) for left in every}
            if serving is not None:
                made[serving.number].lent.start()
        except BaseException:
            self._undo(app)
            for left in every:
                for held in left.held:
                    held.close()
            raise
        self._enter(app, made, serving, every)
        for left in sorted(every, key=lambda one: one.number):
            self._take(made[left.number], left, serves=left is serving)
        self._forget_dead(app)
        if serving is None:
            for left in leaving:
                self._drain_alone(made[left.number])
        else:
            self._serve(app, made[serving.number], serving)
            for left in sorted(leaving, key=lambda one: one.number):
                self._leave(app, made[left.number])

    # --- frames -------------------------------------------------------------------------------

    def _adopt_sockets(self, app: AppName, every: Sequence[LeftGeneration]) -> None:
        groups: dict[Key, tuple[ListenerSpec, list[socket.socket | None]]] = {}
        for left in every:  # the one that serves says in which order they are
            slots = left.image.spec.workers
            for listener in left.image.spec.listeners:
                key = self._listeners.key(app, listener)
                _, known = groups.setdefault(key, (listener, []))
                _merge(known, _in_order(left, listener.name, slots))
        for listener, sockets in groups.values():
            self._listeners.adopt(app, listener, sockets)
            taken = {id(sock) for sock in sockets}
            for left in every:
                for held in left.held:
                    held.sockets = [one for one in held.sockets if id(one[1]) not in taken]

    def _generation(self, app: App, left: LeftGeneration) -> AppGeneration:
        """Its frame, with no process in it yet."""
        spec, first = left.image.spec, left.held[0]
        if any(held.inputs != first.inputs for held in left.held):
            raise ControlError(f"generation {left.number} was given more than one kind of inputs")
        self._sources.protect(first.inputs)
        identity = self._sources.identity(first.inputs)
        age = self._clock.monotonic() - min(held.born for held in left.held)
        generation = AppGeneration(
            app=app,
            number=left.number,
            image=left.image,
            tree=left.tree,
            spec_fd=os.dup(first.spec_fd),
            inputs=first.inputs,
            identity=identity,
            since=self._clock.now() - timedelta(seconds=max(0.0, age)),
            lent=self._listeners.acquire(app.name, spec),
        )
        app.generations.append(generation)
        generation.log = self._log(app.name, left)
        lent = {held.slot: held.stats for held in left.held}
        generation.slots = tuple(
            self._slot(generation, number, lent.get(number)) for number in range(spec.workers)
        )
        return generation

    def _slot(self, generation: AppGeneration, number: int, lent: StatsPage | None) -> WorkerSlot:
        name = f"{generation.app.name}.{generation.number}.{number}"
        spec = generation.image.spec
        return WorkerSlot(
            generation=generation,
            number=number,
            control_path=self._workers_dir / f"{name}.sock",
            stats=lent
            or StatsPage(f"stats-{name}", upstreams=len(spec.upstreams), routes=len(spec.routes)),
            life=Life.GONE,
        )

    def _log(self, app: AppName, left: LeftGeneration) -> LogPipe | None:
        fds = [held.log_fd for held in left.held if held.log_fd is not None]
        if not fds:
            return None
        if len({os.fstat(fd).st_ino for fd in fds}) > 1:
            raise ControlError(f"generation {left.number} writes to more than one pipe")
        own = os.dup(fds[0])
        try:
            return self._logs.adopt(app, left.image.spec.access_log, own)
        except BaseException:
            os.close(own)
            raise

    def _undo(self, app: App) -> None:
        """Of what was made before it could not go on. Stats pages are still the workers'."""
        for generation in app.generations:
            self._listeners.release(generation.lent)
            os.close(generation.spec_fd)
            if generation.log is not None:
                self._logs.release(generation.log)
        self._listeners.forget(app.name)
        if app.shared is not None:
            app.shared.close()

    # --- places -------------------------------------------------------------------------------

    def _enter(
        self,
        app: App,
        made: dict[Generation, AppGeneration],
        serving: LeftGeneration | None,
        every: Sequence[LeftGeneration],
    ) -> None:
        app.generations = [made[number] for number in sorted(made)]
        app.serving = None if serving is None else made[serving.number]
        self._fleet.apps[app.name] = app
        lent = {f"{left.number}.{held.slot}" for left in every for held in left.held}
        restarts = self._kept.recall(app, self._logs, lent)
        for generation in app.generations:
            for slot in generation.slots:
                slot.restarts = restarts.get(key_of(slot), 0)

    def _take(self, generation: AppGeneration, left: LeftGeneration, *, serves: bool) -> None:
        lives = _LIVES_THAT_SERVE if serves else _LIVES
        for held in left.held:
            slot, orphan = generation.slots[held.slot], held.orphan
            slot.seal, slot.born_at, slot.forked_at = held.seal, held.born, held.born
            self._lives.adopt(
                slot, lives[held.told], pid=orphan.pid, pidfd=orphan.pidfd, channel=orphan.sock
            )
            _close_rest(held)
            self._events.tell("worker.adopted", **slot.facts(), pid=orphan.pid, was=held.told.value)
        for held in left.held:
            for message in held.orphan.said:
                self._lives.hear(generation.slots[held.slot], message)

    def _forget_dead(self, app: App) -> None:
        """Whoever died while nobody looked: what it counted in the app's file is given back."""
        living = {slot.pid for one in app.generations for slot in one.slots}
        assert app.shared is not None
        for pid in app.shared.seated():
            if pid not in living:
                app.shared.mark_dead(pid)

    def _serve(self, app: App, generation: AppGeneration, left: LeftGeneration) -> None:
        entry = self._wanted.app(app.name)
        image, addresses = generation.image.digest, generation.inputs.addresses
        if entry.serving > generation.number and entry.before[-1:] == (image,):
            self._wanted.recalled(app.name, image, addresses, generation=generation.number)
        else:
            self._wanted.serves(app.name, image, addresses, generation=generation.number)
        self._names.serves(generation)
        self._history.adopted(generation)
        told = {held.slot: held.told for held in left.held}
        for slot in generation.slots:
            word = told.get(slot.number)
            if word is None:
                slot.restarts += 1
                generation.app.restarts += 1
                self._events.tell("worker.missing", **slot.facts())
                self._lives.happen(slot, lifecycle.Event.RECALL)
            elif word in _TO_SERVE:
                self._lives.happen(slot, _TO_SERVE[word])
        self._zygotes.keep_warm(generation.tree)

    def _leave(self, app: App, generation: AppGeneration) -> None:
        self._end_unready(generation)
        self._rollouts.adopt(app, generation)

    def _drain_alone(self, generation: AppGeneration) -> None:
        """Nothing serves: its workers finish what is open, by their own deadline."""
        self._end_unready(generation)
        for slot in generation.slots:
            self._lives.happen(slot, lifecycle.Event.DRAIN)

    def _end_unready(self, generation: AppGeneration) -> None:
        for slot in generation.slots:
            if slot.life is Life.READY:
                self._lives.happen(slot, lifecycle.Event.END)


def _shared(every: Sequence[LeftGeneration]) -> SharedPage:
    fds = [held.shared_fd for left in every for held in left.held]
    if len({os.fstat(fd).st_ino for fd in fds}) > 1:
        raise ControlError("its workers do not share one memory file")
    fd = os.dup(fds[0])
    try:
        return SharedPage("", b"", lent=fd)
    except BaseException:
        os.close(fd)
        raise


def _in_order(left: LeftGeneration, listener: str, slots: int) -> list[socket.socket | None]:
    """As `Lent.to_slot` had dealt them out: the slot's first has its number, and so on in turns."""
    found: dict[int, socket.socket] = {}
    for held in left.held:
        own = [sock for name, sock in held.sockets if name == listener]
        for turn, sock in enumerate(own):
            found[held.slot + turn * slots] = sock
    return [found.get(index) for index in range(max(found, default=-1) + 1)]


def _merge(known: list[socket.socket | None], more: Iterable[socket.socket | None]) -> None:
    """Adds sockets that are not among the known ones: where one is missing, or behind them."""
    inodes = {_inode(sock) for sock in known if sock is not None}
    is_first = not known
    for sock in more:
        if sock is None and is_first:
            known.append(None)
        elif sock is not None and _inode(sock) not in inodes:
            inodes.add(_inode(sock))
            if None in known and not is_first:
                known[known.index(None)] = sock
            else:
                known.append(sock)


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _close_rest(held: Held) -> None:
    """What others had lent as well."""
    for _, sock in held.sockets:
        sock.close()
    held.sockets = []
    for fd in (held.spec_fd, held.shared_fd, held.log_fd):
        if fd is not None:
            os.close(fd)
