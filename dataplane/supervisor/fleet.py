"""What runs: apps, their generations, the slots of each. All mutable state of the fleet is here.

These classes hold facts and answer questions about them. Nothing here acts: slots are driven by
`lives`, rollouts by `rollouts`, each by its table.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from dataplane.control.channel import Line
from dataplane.control.figures import Figures
from dataplane.control.messages import DrainCounts, Received, Seal
from dataplane.control.shared import SharedPage
from dataplane.control.stats import Stats, StatsPage
from dataplane.image.store import Image
from dataplane.model import lifecycle, rollout
from dataplane.model.inputs import NO_INPUTS, Inputs
from dataplane.model.ledger import Side
from dataplane.model.lifecycle import Life
from dataplane.model.names import AppName, Digest, Generation
from dataplane.supervisor.listeners import Lent
from dataplane.supervisor.logs import LogPipe
from dataplane.supervisor.totals import Spans, Totals
from dataplane.system.mapped import MappedFiles


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Taker:
    """Mutable. What a draining worker is given to move its connections: closed once sent."""

    end: socket.socket
    pidfd: int  # of the worker that takes them; borrowed


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class WorkerSlot:
    """Mutable. One place in a generation and the process that is in it now, if any."""

    generation: AppGeneration
    number: int
    control_path: Path
    stats: StatsPage
    life: Life = lifecycle.START
    # Of the present process:
    pid: int | None = None
    pidfd: int | None = None
    line: Line | None = None
    seal: Seal | None = None
    mapped: MappedFiles | None = None  # by the zygote that forked it
    born_at: float = 0.0  # when its fork was asked for
    forked_at: float = 0.0
    error: str | None = None  # its own word for why it ends
    status: int | None = None  # as of waitpid(2), once reaped
    drained: DrainCounts | None = None
    taker: Taker | None = None  # for a drain that is about to be sent
    # Beats: when the heartbeat last changed, and what it was.
    beat_at: float = 0.0
    beat: int = 0
    # Over all processes of this slot:
    deaths: int = 0  # as `lifecycle.count_death` counts
    restarts: int = 0
    cut_connections: int = 0  # open when a process of it died
    lines_told: int = 0  # access log lines that it dropped, as an event told last
    lines_told_at: float = 0.0
    received: list[Received] = dataclasses.field(default_factory=list)
    # Workers whose drain waits for this slot to say `Receiving`, with the end they are to get.
    arrivals: dict[int, tuple[WorkerSlot, socket.socket]] = dataclasses.field(default_factory=dict)
    pause: asyncio.TimerHandle | None = None

    @property
    def state(self) -> str:
        """The word that `ps` shows."""
        if self.life is Life.PAUSING and lifecycle.is_crash_loop(self.deaths):
            return "crash-loop"
        return self.life.value

    def facts(self) -> dict[str, object]:
        """What names this slot in an event."""
        return {
            "app": self.generation.app.name,
            "generation": self.generation.number,
            "slot": self.number,
        }

    def figures(self) -> Stats:
        """Its stats page now; without what is only true while a process is there."""
        stats = self.stats.read()
        return stats if self.life in lifecycle.ALIVE else stats.without_gauges()

    def sections(self) -> Figures:
        """The same for what its page has beside that."""
        figures = self.stats.figures()
        return figures if self.life in lifecycle.ALIVE else figures.without_gauges()


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class AppGeneration:
    """Mutable. One generation: an image, the slots that run it, and the sockets it listens on."""

    app: App
    number: Generation
    image: Image
    tree: Path  # where its code lies, unpacked
    spec_fd: int  # sealed memfd
    inputs: Inputs
    identity: str  # of the inputs, as `Sources.identity`
    since: datetime
    lent: Lent
    log: LogPipe | None = None  # None: it writes no access log
    seal_without: tuple[str, ...] = ()  # for tests, as in `messages.Fork`
    faults: tuple[str, ...] = ()
    slots: tuple[WorkerSlot, ...] = ()
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)  # and forgotten

    @property
    def side(self) -> Side:
        return Side(generation=self.number, image=self.image.digest)

    def all_in(self, *lives: Life) -> bool:
        """Whether every slot is in one of these states."""
        return all(slot.life in lives for slot in self.slots)

    @property
    def ended(self) -> bool:
        return self.all_in(*lifecycle.ENDS)

    @property
    def state(self) -> str:
        """The word that `ps` shows: the least settled slot's."""
        states = {slot.state for slot in self.slots}
        for word in ("crash-loop", "restarting"):
            if word in states:
                return word
        for life in Life:  # in the order of a life, so that the one furthest back speaks
            if life.value in states:
                return life.value
        return Life.GONE.value

    def close(self) -> None:
        """Lets go of what the supervisor held for it. Every slot must have ended."""
        assert self.ended
        os.close(self.spec_fd)
        for slot in self.slots:
            os.close(slot.stats.fd)
            slot.stats.close()


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Rollout:
    """Mutable. One rollout under way; driven by `model.rollout`'s table alone."""

    app: App
    wish: Wish
    phase: rollout.Phase = rollout.START
    green: AppGeneration | None = None
    blue: AppGeneration | None = None
    image: Image | None = None
    inputs: Inputs = NO_INPUTS
    error: Exception | None = None
    undoes: bool = False  # a former supervisor's swap: blue is the green that it never switched to
    is_first: bool = False  # nothing of this app had ever served before green
    finding: asyncio.Task[None] | None = None
    deadline: asyncio.TimerHandle | None = None
    receives: int = 0  # how many `Received` are to come
    channels: list[tuple[socket.socket, socket.socket]] = dataclasses.field(default_factory=list)
    marks: dict[str, float] = dataclasses.field(default_factory=dict)
    switched: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asked, as the kernel knows the peer of the supervisor's socket."""

    uid: int
    pid: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a rollout was asked to do. image: None builds from the config folder."""

    stop: bool = False
    verb: str = "up"  # the word that history has for it
    caller: Caller | None = None  # None: the supervisor by itself
    because: str | None = None  # why, where it is by itself
    image: Digest | None = None
    force: bool = False
    config_dir: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)  # secrets
    inputs: Inputs | None = None  # None: as their sources say now
    seal_without: tuple[str, ...] = ()  # for tests, as in `messages.Fork`
    faults: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class App:
    """Mutable. One app: what it runs, and what is being done about it."""

    name: AppName
    serving: AppGeneration | None = None
    shared: SharedPage | None = None  # what all workers of all its generations learn and count
    generations: list[AppGeneration] = dataclasses.field(default_factory=list)
    rollouts: list[Rollout] = dataclasses.field(default_factory=list)
    error: str | None = None  # of the last rollout that ended
    configured: Digest | None = None  # what its file meant when it was last looked at
    pending: str | None = None  # what `apply` would do about it: replace or remove
    # Counters of generations that are gone: what the metrics show never goes back.
    folded: Totals = dataclasses.field(default_factory=Totals)
    restarts: int = 0
    rollouts_ended: dict[str, int] = dataclasses.field(default_factory=dict)
    swaps: Spans = dataclasses.field(default_factory=Spans)  # how long those took that succeeded
    moved: dict[str, int] = dataclasses.field(default_factory=dict)  # connections, by kind

    @property
    def before_switch(self) -> Rollout | None:
        """The rollout that keeps another from being asked."""
        for rolling in self.rollouts:
            if rolling.phase in rollout.BEFORE_SWITCH:
                return rolling
        return None

    @property
    def stopping(self) -> Rollout | None:
        """The rollout that ends this app, if it has been asked to stop."""
        for rolling in self.rollouts:
            if rolling.wish.stop:
                return rolling
        return None

    def totals(self) -> Totals:
        """Over all generations that are and were."""
        total = self.folded.copy()
        for generation in self.generations:
            for slot in generation.slots:
                total.add(generation.image.spec, slot.figures(), slot.sections())
        return total


class Fleet:
    """Mutable. All apps by name, in the order they came."""

    def __init__(self) -> None:
        self.apps: dict[AppName, App] = {}
        self.recall: Callable[[App], None] | None = None  # has a new app go on counting

    def make(self, name: AppName) -> App:
        """The app of this name, made if there is none."""
        app = self.apps.get(name)
        if app is None:
            app = self.apps[name] = App(name=name)
            if self.recall is not None:
                self.recall(app)
        return app

    def slots(self) -> list[WorkerSlot]:
        """Every slot of every generation."""
        return [
            slot
            for app in self.apps.values()
            for generation in app.generations
            for slot in generation.slots
        ]

    def of_tree(self, tree: Path) -> Iterator[AppGeneration]:
        """The generations that run from this code tree."""
        return (
            generation
            for app in self.apps.values()
            for generation in app.generations
            if generation.tree == tree
        )

    def runs(self, tree: Path) -> bool:
        """Whether some generation runs from this code tree. Asked often, mostly of what all run."""
        return any(True for _ in self.of_tree(tree))
