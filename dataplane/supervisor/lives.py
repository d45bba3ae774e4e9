"""Drives every slot by the table of `model.lifecycle`: events in, actions done, the rest told on.

Events are worked off one at a time, in the order they came, whoever raised them; so an action that
raises another event never finds a slot half-way through a step.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Final, Protocol

from dataplane.control.channel import Envelope, Heard, Line
from dataplane.control.messages import (
    Drain,
    Drained,
    End,
    Failed,
    Message,
    Ready,
    Received,
    Receiving,
    Serve,
    Serving,
    UpstreamChanged,
)
from dataplane.model import lifecycle
from dataplane.model.errors import ControlError
from dataplane.model.lifecycle import TRANSITIONS, Action, Event, Life
from dataplane.model.machine import step
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import Taker, WorkerSlot
from dataplane.system.clock import Clock
from dataplane.system.process import reap, signal_pidfd

# From a pidfd's word that a worker ended to its zygote's word how: the latter is only for telling.
STATUS_SECONDS: Final = 0.2
# A worker that closed its channel is about to end; if it is not, it is ended.
SILENCE_SECONDS: Final = 1.0


class Forks(Protocol):
    """Who makes processes for slots, and says so by `Lives.forked` or `Lives.fork_failed`."""

    def fork(self, slot: WorkerSlot) -> None: ...

    def knows_exit_of(self, slot: WorkerSlot) -> bool:
        """Whether an exit status of this slot's process is still to be told by its zygote."""


class Watcher(Protocol):
    """Who is told what the table says is to be told."""

    def told(self, slot: WorkerSlot, action: Action) -> None: ...

    def received(self, slot: WorkerSlot) -> None:
        """The slot said what came of one of blue's moves."""


class Lives:
    """Mutable: the events still to be worked off. Slots keep their own state."""

    def __init__(self, clock: Clock, events: Events) -> None:
        self._clock = clock
        self._events = events
        self._waiting: collections.deque[tuple[WorkerSlot, Event]] = collections.deque()
        self._working: list[WorkerSlot] = []  # the one that is in a step now
        self._ending: dict[int, tuple[WorkerSlot, asyncio.TimerHandle]] = {}  # by pid
        self._forks: Forks
        self._watcher: Watcher
        self._actions: Final[dict[Action, Callable[[WorkerSlot], None]]] = {
            Action.FORK: self._fork,
            Action.SEND_SERVE: self._send_serve,
            Action.SEND_DRAIN: self._send_drain,
            Action.SEND_END: self._send_end,
            Action.KILL_PROCESS: self._kill,
            Action.START_PAUSE: self._start_pause,
            Action.STOP_PAUSE: self._stop_pause,
        }

    def connect(self, forks: Forks, watcher: Watcher) -> None:
        """Names the two that this one works with. To be called once, before anything else."""
        self._forks, self._watcher = forks, watcher

    def start(self, slot: WorkerSlot) -> None:
        """A slot's first fork."""
        assert slot.life is lifecycle.START
        self._fork(slot)

    def happen(self, slot: WorkerSlot, event: Event) -> None:
        """Raises `IllegalEvent` where the table has no step: a fault of ours."""
        self._waiting.append((slot, event))
        if self._working:
            return
        while self._waiting:
            slot, event = self._waiting.popleft()
            self._working.append(slot)
            try:
                slot.life, actions = step(TRANSITIONS, slot.life, event)
                for action in actions:
                    act = self._actions.get(action)
                    if act is None:
                        self._watcher.told(slot, action)
                    else:
                        act(slot)
            finally:
                self._working.clear()

    # --- from the zygotes ---------------------------------------------------------------------

    def forked(self, slot: WorkerSlot, pid: int, pidfd: int, channel: socket.socket) -> None:
        """A process was made. All descriptors are the slot's now."""
        slot.pid, slot.pidfd = pid, pidfd
        slot.seal = slot.error = slot.status = slot.drained = None
        slot.cut_connections = 0
        slot.forked_at = slot.beat_at = self._clock.monotonic()
        slot.beat = slot.stats.turns()
        asyncio.get_running_loop().add_reader(pidfd, self._process_ended, slot)
        self.happen(slot, Event.FORKED)
        # Only now: what it says must not come before that it is.
        slot.line = Line(channel, lambda heard: self._hear(slot, heard), asyncio.get_running_loop())
        slot.line.read()

    def adopt(
        self, slot: WorkerSlot, life: Life, *, pid: int, pidfd: int, channel: socket.socket
    ) -> None:
        """A process that a former supervisor had made, and that says to be in this state.

        It is no child of ours: its death is told by its pidfd, and how it ended by nobody. Both
        descriptors are the slot's now.
        """
        slot.life, slot.pid, slot.pidfd = life, pid, pidfd
        slot.beat_at, slot.beat = self._clock.monotonic(), slot.stats.turns()
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, self._process_ended, slot)
        slot.line = Line(channel, lambda heard: self._hear(slot, heard), loop)

    def hear(self, slot: WorkerSlot, message: Message) -> None:
        """What an adopted process had said before it was adopted."""
        self._hear(slot, Envelope(message=message, fds=()))

    def fork_failed(self, slot: WorkerSlot, error: str) -> None:
        """No process was made."""
        slot.error = error
        self._events.tell("worker.fork_failed", **slot.facts(), error=error)
        self.happen(slot, Event.FORK_FAILED)

    def exited(self, pid: int, status: int, slot: WorkerSlot) -> None:
        """The zygote reaped this slot's process."""
        slot.status = status
        if pid in self._ending:
            self._process_reaped(slot)

    def zygote_died(self) -> None:
        """Its workers are our children now: the dead among them are reaped here."""
        for pid, (slot, _) in list(self._ending.items()):
            slot.status = reap(pid)
            self._process_reaped(slot)

    # --- what a worker says -------------------------------------------------------------------

    def _hear(self, slot: WorkerSlot, heard: Heard) -> None:
        if heard is None:
            asyncio.get_running_loop().call_later(SILENCE_SECONDS, self._silent, slot, slot.pid)
            return
        if isinstance(heard, ControlError):
            self._broke_protocol(slot, str(heard))
            return
        heard.close_fds()  # a worker has nothing to give
        event = self._take(slot, heard.message)
        if event is None:
            return
        if (slot.life, event) not in TRANSITIONS:
            self._broke_protocol(slot, f"{type(heard.message).__name__} while {slot.life.value}")
            return
        self.happen(slot, event)

    def _take(self, slot: WorkerSlot, message: Message) -> Event | None:
        match message:
            case Ready():
                slot.seal = message.seal
                return Event.TOLD_READY
            case Failed():
                slot.error = message.error
                return Event.TOLD_FAILED
            case Serving():
                return Event.TOLD_SERVING
            case Receiving():
                self._arrival(slot, message.slot)
            case Received():
                slot.received.append(message)
                self._watcher.received(slot)
            case Drained():
                slot.drained = message.connections
            case UpstreamChanged():
                self._events.tell(
                    f"upstream.{message.kind}",
                    app=slot.generation.app.name,
                    upstream=message.upstream,
                    endpoint=message.endpoint,
                )
            case _:
                slot.error = f"an unexpected message: {type(message).__name__}"
                return Event.TOLD_FAILED
        return None

    def _arrival(self, taker: WorkerSlot, number: int) -> None:
        """The taker is prepared: the drain that waited for it begins."""
        giver, end = taker.arrivals.pop(number, (None, None))
        if giver is None or end is None:
            self._broke_protocol(taker, f"Receiving for slot {number}, which does not drain")
            return
        if end.fileno() < 0:
            return  # called off meanwhile
        assert taker.pidfd is not None
        giver.taker = Taker(end=end, pidfd=taker.pidfd)
        self.happen(giver, Event.DRAIN)
        self._drop_taker(giver)

    def _broke_protocol(self, slot: WorkerSlot, error: str) -> None:
        slot.error = f"broke the protocol: {error}"
        self.happen(slot, Event.TOLD_FAILED)

    def _silent(self, slot: WorkerSlot, pid: int | None) -> None:
        # By its pid: the next process in this slot may have a pidfd of the same number.
        if pid is not None and slot.pid == pid:
            slot.error = "closed its channel and went on"
            self.happen(slot, Event.TOLD_FAILED)

    # --- its death ----------------------------------------------------------------------------

    def _process_ended(self, slot: WorkerSlot) -> None:
        assert slot.pid is not None
        assert slot.pidfd is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(slot.pidfd)
        if slot.line is not None:
            slot.line.read()  # its last words
        if slot.status is None:
            slot.status = reap(slot.pid)
        timer = loop.call_later(STATUS_SECONDS, self._process_reaped, slot)
        self._ending[slot.pid] = (slot, timer)
        if slot.status is not None or not self._forks.knows_exit_of(slot):
            self._process_reaped(slot)

    def _process_reaped(self, slot: WorkerSlot) -> None:
        assert slot.pid is not None
        assert slot.pidfd is not None
        _, timer = self._ending.pop(slot.pid)
        timer.cancel()
        if slot.line is not None:
            slot.line.close()
        os.close(slot.pidfd)
        if slot.generation.app.shared is not None:
            slot.generation.app.shared.mark_dead(slot.pid)
        with contextlib.suppress(OSError):
            slot.control_path.unlink()
        for _, end in slot.arrivals.values():
            end.close()
        slot.arrivals.clear()
        if slot.drained is None:
            slot.cut_connections += slot.stats.read().connections
        self._events.tell(
            "worker.ended",
            **slot.facts(),
            pid=slot.pid,
            was=slot.life.value,
            status=status_text(slot.status),
            **({"error": slot.error} if slot.error else {}),
        )
        slot.pid = slot.pidfd = slot.line = None
        self.happen(slot, Event.DIED)

    # --- actions ------------------------------------------------------------------------------

    def _fork(self, slot: WorkerSlot) -> None:
        slot.born_at = self._clock.monotonic()
        self._forks.fork(slot)

    def _send_serve(self, slot: WorkerSlot) -> None:
        self._send(slot, Serve())

    def _send_drain(self, slot: WorkerSlot) -> None:
        message = Drain(deadline_ms=slot.generation.image.spec.drain_deadline_ms)
        taker = slot.taker
        self._send(slot, message, () if taker is None else (taker.end.fileno(), taker.pidfd))
        self._drop_taker(slot)

    def _send_end(self, slot: WorkerSlot) -> None:
        self._send(slot, End())

    def _send(self, slot: WorkerSlot, message: Message, fds: tuple[int, ...] = ()) -> None:
        try:
            if slot.line is None:
                raise ControlError("it has no channel")
            slot.line.send(message, fds)
        except ControlError as error:
            slot.error = str(error)
            self.happen(slot, Event.TOLD_FAILED)

    def _drop_taker(self, slot: WorkerSlot) -> None:
        if slot.taker is not None:
            slot.taker.end.close()
            slot.taker = None

    def _kill(self, slot: WorkerSlot) -> None:
        if slot.pidfd is not None:
            signal_pidfd(slot.pidfd, signal.SIGKILL)

    def _start_pause(self, slot: WorkerSlot) -> None:
        now = self._clock.monotonic()
        was_loop = lifecycle.is_crash_loop(slot.deaths)
        slot.deaths = lifecycle.count_death(slot.deaths, now - slot.born_at)
        seconds = lifecycle.pause_before_restart(slot.deaths)
        slot.pause = asyncio.get_running_loop().call_later(seconds, self._pause_over, slot)
        self._events.tell("worker.restarting", **slot.facts(), after_seconds=seconds)
        if lifecycle.is_crash_loop(slot.deaths) and not was_loop:
            self._events.tell("app.crash_loop", **slot.facts(), deaths=slot.deaths)

    def _pause_over(self, slot: WorkerSlot) -> None:
        slot.pause = None
        slot.restarts += 1
        slot.generation.app.restarts += 1
        self.happen(slot, Event.PAUSE_OVER)

    def _stop_pause(self, slot: WorkerSlot) -> None:
        if slot.pause is not None:
            slot.pause.cancel()
            slot.pause = None


def status_text(status: int | None) -> str:
    """How a process ended, in words; status is as of waitpid(2)."""
    if status is None:
        return "unknown"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exit {os.waitstatus_to_exitcode(status)}"


def is_accepting(slot: WorkerSlot) -> bool:
    """Whether its process could take connections over from another."""
    return slot.life is Life.SERVING and slot.line is not None and slot.pidfd is not None
