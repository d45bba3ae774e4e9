"""Drives every rollout by the table of `model.rollout`, and makes its ledger.

What a generation's slots did, as `lives` tells it, becomes an event of the rollouts that have to do
with that generation; their actions become events of slots. Nothing is decided here that the tables
do not say.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import Callable, Iterable
from typing import Final

from dataplane.control.messages import Receive
from dataplane.image.store import Image
from dataplane.model import lifecycle
from dataplane.model import rollout as table
from dataplane.model.errors import ControlError, DataplaneError, LaunchError
from dataplane.model.lifecycle import Life
from dataplane.model.machine import step
from dataplane.model.names import Digest
from dataplane.model.rollout import Action, Event, Phase
from dataplane.supervisor.accounts import count_swap, ledger_of
from dataplane.supervisor.births import Births
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, AppGeneration, Rollout, Wish, WorkerSlot
from dataplane.supervisor.history import History
from dataplane.supervisor.images import Images
from dataplane.supervisor.lives import Lives, is_accepting, status_text
from dataplane.supervisor.names import AppNames
from dataplane.supervisor.probation import Probation
from dataplane.supervisor.room import Room
from dataplane.supervisor.sources import Sources
from dataplane.supervisor.wanted import Wanted
from dataplane.supervisor.zygotes import Zygotes
from dataplane.system.clock import Clock
from dataplane.system.sockets import packet_pair

# Beyond blue's own deadline, at which it cuts what is left by itself.
DRAIN_GRACE_SECONDS: Final = 2.0
# Green says what it received at the same moment as blue goes; its word is not waited for longer.
SETTLE_SECONDS: Final = 0.5
UNDONE: Final = "the supervisor was killed before it had switched; the next one undid it"

# What a slot's word means to a rollout, where its generation is green, and where it is blue.
_OF_GREEN: Final[dict[lifecycle.Action, Event]] = {
    lifecycle.Action.TELL_READY: Event.GREEN_READY,
    lifecycle.Action.TELL_SERVING: Event.GREEN_SERVING,
    lifecycle.Action.TELL_DIED: Event.GREEN_DIED,
    lifecycle.Action.TELL_FAILED: Event.GREEN_DIED,
    lifecycle.Action.TELL_GONE: Event.GREEN_GONE,
}
_OF_BLUE: Final[dict[lifecycle.Action, Event]] = {
    lifecycle.Action.TELL_SERVING: Event.BLUE_SERVING,
    lifecycle.Action.TELL_GONE: Event.BLUE_GONE,
}
# The states that every slot must be in before a word of one of them is the generation's.
_ALL: Final[dict[Event, frozenset[Life]]] = {
    Event.GREEN_READY: frozenset({Life.READY}),
    Event.GREEN_SERVING: frozenset({Life.SERVING}),
    Event.GREEN_GONE: lifecycle.ENDS,
    Event.BLUE_SERVING: frozenset({Life.SERVING}),
    Event.BLUE_GONE: lifecycle.ENDS,
}


class SwapUnderWay(ControlError):
    """Another swap of this app has not switched yet."""


class Rollouts:
    """Mutable: the events still to be worked off. Apps and rollouts keep their own state."""

    def __init__(
        self,
        *,
        lives: Lives,
        zygotes: Zygotes,
        images: Images,
        sources: Sources,
        names: AppNames,
        births: Births,
        wanted: Wanted,
        history: History,
        probation: Probation,
        clock: Clock,
        events: Events,
        tasks: asyncio.TaskGroup,
        retired: Callable[[App], None],
    ) -> None:
        """`retired` is told once a generation has gone and its counters are its app's."""
        self._retired = retired
        self._lives, self._zygotes, self._images, self._births = lives, zygotes, images, births
        self._wanted, self._clock, self._events, self._tasks = wanted, clock, events, tasks
        self._history, self._sources, self._names = history, sources, names
        self._probation = probation
        self._room = Room(clock)
        self._waiting: collections.deque[tuple[Rollout, Event]] = collections.deque()
        self._working: list[Rollout] = []  # the one that is in a step now
        self._actions: Final[dict[Action, Callable[[Rollout], None]]] = {
            Action.FIND_IMAGE: self._find_image,
            Action.FORK_GREEN: self._fork_green,
            Action.START_READY_DEADLINE: self._start_ready_deadline,
            Action.START_DRAIN_DEADLINE: self._start_drain_deadline,
            Action.START_SETTLE_DEADLINE: self._start_settle_deadline,
            Action.STOP_DEADLINE: self._stop_deadline,
            Action.PASS_FORMER: self._pass_former,
            Action.SERVE_GREEN: self._serve_green,
            Action.PROMOTE_GREEN: self._promote_green,
            Action.DRAIN_BLUE: self._drain_blue,
            Action.END_BLUE: self._end_blue,
            Action.KILL_BLUE: self._kill_blue,
            Action.KILL_GREEN: self._kill_green,
            Action.CLEAR_GREEN: self._clear_green,
            Action.RECALL_BLUE: self._recall_blue,
            Action.RETURN_GREEN: self._return_green,
            Action.TELL_SWITCHED: self._tell_switched,
            Action.TELL_ENDED: self._tell_ended,
        }

    def ask(self, app: App, wish: Wish) -> Rollout:
        """Begins a rollout. Raises `SwapUnderWay` where another one has not switched yet."""
        if app.before_switch is not None:
            if not wish.stop:
                raise SwapUnderWay(f"another swap of {app.name} has not switched yet")
            self.happen(app.before_switch, Event.SUPERSEDED)
        rolling = Rollout(app=app, wish=wish)
        self._mark(rolling, "asked")
        app.rollouts.append(rolling)
        self.happen(rolling, Event.STOP_ASKED if wish.stop else Event.SWAP_ASKED)
        return rolling

    def adopt(self, app: App, leaving: AppGeneration) -> None:
        """Ends what a former supervisor began: `leaving` gives its connections to what serves."""
        serving = app.serving
        assert serving is not None
        undoes = leaving.number > serving.number
        wish = Wish(verb="adopt", image=serving.image.digest)
        rolling = Rollout(
            app=app,
            wish=wish,
            phase=Phase.DRAINING,
            green=serving,
            blue=leaving,
            image=serving.image,
            inputs=serving.inputs,
            undoes=undoes,
            error=ControlError(UNDONE) if undoes else None,
        )
        for name in ("asked", "serving"):
            self._mark(rolling, name)
        app.rollouts.append(rolling)
        self._start_drain_deadline(rolling)
        self._drain_blue(rolling)

    def happen(self, rolling: Rollout, event: Event) -> None:
        """Raises `IllegalEvent` where the table has no step: a fault of ours."""
        self._waiting.append((rolling, event))
        if self._working:
            return
        while self._waiting:
            rolling, event = self._waiting.popleft()
            if rolling.phase in table.ENDS:
                continue  # raised in the same step that ended it
            self._working.append(rolling)
            try:
                rolling.phase, actions = step(table.TRANSITIONS, rolling.phase, event)
                for action in actions:
                    self._actions[action](rolling)
            finally:
                self._working.clear()
            if rolling.phase not in (Phase.BUILDING, Phase.BOOTING):
                self._room.leave(rolling)

    def kill(self, app: App) -> None:
        """Ends everything of the app at once: the supervisor was told so, twice."""
        for rolling in tuple(app.rollouts):
            self.happen(rolling, Event.SUPERSEDED)
        for generation in tuple(app.generations):
            self._slots_happen(generation, lifecycle.Event.KILL)

    # --- what slots tell ----------------------------------------------------------------------

    def told(self, slot: WorkerSlot, action: lifecycle.Action) -> None:
        """A slot's word, as the lifecycle's table has it told."""
        generation = slot.generation
        self._tell_event(slot, action)
        if action is lifecycle.Action.TELL_DIED:
            self._record_restart(slot)
        for rolling in tuple(generation.app.rollouts):
            if generation is rolling.green:
                self._blame(rolling, slot, action)
                self._raise(rolling, generation, _OF_GREEN[action])
            elif generation is rolling.blue and action in _OF_BLUE:
                self._raise(rolling, generation, _OF_BLUE[action])
        self._retire(generation)

    def received(self, slot: WorkerSlot) -> None:
        """A slot of some green said what came of one of blue's moves."""
        for rolling in tuple(slot.generation.app.rollouts):
            if slot.generation is rolling.green and _all_received(rolling):
                self.happen(rolling, Event.ALL_RECEIVED)

    def _raise(self, rolling: Rollout, generation: AppGeneration, event: Event) -> None:
        needed = _ALL.get(event)
        if needed is None or generation.all_in(*needed):
            self.happen(rolling, event)

    def _blame(self, rolling: Rollout, slot: WorkerSlot, action: lifecycle.Action) -> None:
        """Keeps the first reason why green failed, in case this rollout does."""
        if rolling.error is not None:
            return
        reason = slot.error or status_text(slot.status)
        if action is lifecycle.Action.TELL_FAILED:
            text = f"green never got ready: slot {slot.number}: {reason}"
            rolling.error = ControlError(text)
        elif action is lifecycle.Action.TELL_DIED and rolling.phase is Phase.DRAINING:
            text = f"green died while draining: slot {slot.number}: {reason}; blue serves on"
            rolling.error = ControlError(text)

    def _tell_event(self, slot: WorkerSlot, action: lifecycle.Action) -> None:
        if action is lifecycle.Action.TELL_READY:
            self._events.tell("worker.ready", **slot.facts(), pid=slot.pid)
        elif action is lifecycle.Action.TELL_SERVING:
            self._events.tell("worker.serving", **slot.facts(), pid=slot.pid)

    def _record_restart(self, slot: WorkerSlot) -> None:
        """A death of what serves, and is to go on serving; in a crash loop only the first few."""
        generation = slot.generation
        app = generation.app
        lived = self._clock.monotonic() - slot.born_at
        deaths = lifecycle.count_death(slot.deaths, lived)
        loops = deaths > lifecycle.CRASH_LOOP_DEATHS
        if generation is app.serving and not app.rollouts and not loops:
            reason = slot.error or status_text(slot.status)
            self._history.restarted(generation, f"slot {slot.number}: {reason}")

    def _retire(self, generation: AppGeneration) -> None:
        """Forgets a generation that has ended, unless a rollout may still want it back."""
        app = generation.app
        if generation not in app.generations or not generation.ended:
            return
        if any(generation in (rolling.blue, rolling.green) for rolling in app.rollouts):
            return
        app.generations.remove(generation)
        generation.gone.set()
        if app.serving is generation:
            app.serving = None
            self._names.rests(app.name)
        for slot in generation.slots:
            figures = slot.figures().without_gauges(), slot.sections().without_gauges()
            app.folded.add(generation.image.spec, *figures)
        self._births.bury(generation)
        self._retired(app)
        self._zygotes.let_go()

    # --- finding and forking ------------------------------------------------------------------

    def _find_image(self, rolling: Rollout) -> None:
        rolling.finding = self._tasks.create_task(self._find(rolling))

    async def _find(self, rolling: Rollout) -> None:
        app, wish = rolling.app, rolling.wish
        try:
            digest = wish.image
            if digest is None:
                assert wish.config_dir is not None
                digest = await self._images.build(app.name, wish.config_dir, dict(wish.environment))
            rolling.image = await self._images.image_for_here(app.name, digest)
            if rolling.image.digest != digest:
                self._tell_rebuilt(rolling.image, digest)
            tree = await self._images.unpack(rolling.image)
            await self._zygotes.warm(tree)
            rolling.inputs = await self._sources.gather(app, rolling.image.spec, wish)
            identity = self._sources.identity(rolling.inputs)
            if not self._is_unchanged(rolling, identity):
                await self._room.enter(rolling)
            if rolling.phase is not Phase.BUILDING:
                self._room.leave(rolling)
                return  # superseded meanwhile
            if self._is_unchanged(rolling, identity):
                self.happen(rolling, Event.SAME)
                return
            rolling.green = self._births.conceive(rolling, tree, identity)
        except (DataplaneError, OSError) as error:
            rolling.error = error if isinstance(error, DataplaneError) else ControlError(str(error))
            if rolling.phase is Phase.BUILDING:
                self.happen(rolling, Event.BUILD_FAILED)
            return
        self._mark(rolling, "built")
        self.happen(rolling, Event.BUILT)

    def _tell_rebuilt(self, image: Image, former: Digest) -> None:
        """Of an image that an interpreter of another ABI was to run: made anew for this one."""
        self._events.tell("image.rebuilt", app=image.app, former=former, image=image.digest)

    def _is_unchanged(self, rolling: Rollout, identity: str) -> bool:
        """Image, secrets and addresses are those that serve, and every slot does."""
        serving = rolling.app.serving
        if rolling.wish.force or serving is None or rolling.image is None:
            return False
        is_same = serving.image.digest == rolling.image.digest and serving.identity == identity
        return is_same and serving.all_in(Life.SERVING)

    def _fork_green(self, rolling: Rollout) -> None:
        assert rolling.green is not None
        for slot in rolling.green.slots:
            self._lives.start(slot)

    # --- deadlines ----------------------------------------------------------------------------

    def _start_ready_deadline(self, rolling: Rollout) -> None:
        assert rolling.green is not None
        self._start_deadline(rolling, rolling.green.image.spec.ready_deadline_ms / 1000)

    def _start_drain_deadline(self, rolling: Rollout) -> None:
        leaving = rolling.green if rolling.phase is Phase.RETURNING else self._blue(rolling)
        seconds = leaving.image.spec.drain_deadline_ms / 1000 if leaving else 0.0
        self._start_deadline(rolling, seconds + DRAIN_GRACE_SECONDS)

    def _start_settle_deadline(self, rolling: Rollout) -> None:
        self._mark(rolling, "gone")
        self._start_deadline(rolling, SETTLE_SECONDS)
        if _all_received(rolling):
            self.happen(rolling, Event.ALL_RECEIVED)

    def _start_deadline(self, rolling: Rollout, seconds: float) -> None:
        self._stop_deadline(rolling)
        loop = asyncio.get_running_loop()
        rolling.deadline = loop.call_later(seconds, self._deadline, rolling)

    def _stop_deadline(self, rolling: Rollout) -> None:
        if rolling.deadline is not None:
            rolling.deadline.cancel()
            rolling.deadline = None

    def _deadline(self, rolling: Rollout) -> None:
        rolling.deadline = None
        if rolling.phase in (Phase.BOOTING, Phase.SWITCHING):
            rolling.error = ControlError(_late(rolling))
        self.happen(rolling, Event.DEADLINE)

    # --- switching ----------------------------------------------------------------------------

    def _pass_former(self, rolling: Rollout) -> None:
        for other in tuple(rolling.app.rollouts):
            if other is not rolling:
                self.happen(other, Event.SUPERSEDED)

    def _serve_green(self, rolling: Rollout) -> None:
        green = rolling.green
        assert green is not None
        self._mark(rolling, "ready")
        try:
            self._reserve_channels(rolling)
            green.lent.start()
        except DataplaneError as error:
            rolling.error = error
            self.happen(rolling, Event.GREEN_DIED)
            return
        self._slots_happen(green, lifecycle.Event.SERVE)

    def _reserve_channels(self, rolling: Rollout) -> None:
        """Makes what blue will need to give its connections away, while the swap can still fail."""
        blue = rolling.app.serving
        for slot in blue.slots if blue is not None else ():
            if is_accepting(slot):
                rolling.channels.append(packet_pair())

    def _promote_green(self, rolling: Rollout) -> None:
        app, green = rolling.app, rolling.green
        assert green is not None
        self._mark(rolling, "serving")
        rolling.blue, app.serving = app.serving, green
        if rolling.wish.image is None:  # built from its file just now
            app.configured = green.image.digest
        is_other = app.configured not in (None, green.image.digest)
        app.pending = "replace" if is_other else None
        green.since = self._clock.now()
        rolling.is_first = self._wanted.app(app.name).image is None
        self._wanted.serves(
            app.name, green.image.digest, green.inputs.addresses, generation=green.number
        )
        self._names.serves(green)

    def _blue(self, rolling: Rollout) -> AppGeneration | None:
        """Whom this rollout sends away: for a stop that is whatever serves."""
        if rolling.wish.stop and rolling.blue is None:
            rolling.blue, rolling.app.serving = rolling.app.serving, None
            self._names.rests(rolling.app.name)
        return rolling.blue

    def _drain_blue(self, rolling: Rollout) -> None:
        blue = self._blue(rolling)
        if blue is None or blue.ended:
            self.happen(rolling, Event.BLUE_GONE)
        else:
            self._hand_over(rolling, blue, rolling.green)

    def _return_green(self, rolling: Rollout) -> None:
        green, blue = rolling.green, rolling.blue
        assert green is not None
        if green.ended:
            self.happen(rolling, Event.GREEN_GONE)
        else:
            self._hand_over(rolling, green, blue)

    def _hand_over(
        self, rolling: Rollout, giver: AppGeneration, taker: AppGeneration | None
    ) -> None:
        """Drains each slot of one generation, moving its connections to the other's."""
        takers = [slot for slot in taker.slots if is_accepting(slot)] if taker else []
        for slot in giver.slots:
            if not is_accepting(slot) or not takers:
                self._lives.happen(slot, lifecycle.Event.DRAIN)
            else:
                self._offer(rolling, slot, takers[slot.number % len(takers)])

    def _offer(self, rolling: Rollout, giver: WorkerSlot, taker: WorkerSlot) -> None:
        """The giver's drain begins when the taker says that it is prepared."""
        assert giver.pidfd is not None
        assert taker.line is not None
        try:
            channels = rolling.channels
            givers_end, takers_end = channels.pop() if channels else packet_pair()
        except LaunchError as error:  # what it holds ends by itself, or at the drain's deadline
            self._events.tell("worker.cannot_move", **giver.facts(), error=str(error))
            self._lives.happen(giver, lifecycle.Event.DRAIN)
            return
        try:
            with takers_end:
                taker.line.send(Receive(slot=giver.number), (takers_end.fileno(), giver.pidfd))
        except ControlError:
            # The taker is about to be found dead; until then the giver serves on.
            givers_end.close()
            return
        taker.arrivals[giver.number] = (giver, givers_end)
        if taker.generation is rolling.green:
            rolling.receives += 1

    def _end_blue(self, rolling: Rollout) -> None:
        if rolling.blue is not None:
            self._slots_happen(rolling.blue, lifecycle.Event.END)

    def _kill_blue(self, rolling: Rollout) -> None:
        blue = rolling.blue
        if blue is not None:
            self._slots_happen(blue, lifecycle.Event.KILL)

    def _kill_green(self, rolling: Rollout) -> None:
        if rolling.green is not None:
            self._slots_happen(rolling.green, lifecycle.Event.KILL)

    # --- going back ---------------------------------------------------------------------------

    def _clear_green(self, rolling: Rollout) -> None:
        """Only the slots that died: what the others hold is still to be given back."""
        assert rolling.green is not None
        dead = [slot for slot in rolling.green.slots if slot.life is not Life.SERVING]
        for slot in dead:
            self._lives.happen(slot, lifecycle.Event.KILL)
        for slot in rolling.green.slots:
            for _, end in slot.arrivals.values():
                end.close()  # what was offered and not begun will not be

    def _recall_blue(self, rolling: Rollout) -> None:
        blue = rolling.blue
        assert blue is not None
        rolling.app.serving = blue
        self._wanted.recalled(
            rolling.app.name, blue.image.digest, blue.inputs.addresses, generation=blue.number
        )
        self._names.serves(blue)
        self._slots_happen(blue, lifecycle.Event.RECALL)

    # --- telling ------------------------------------------------------------------------------

    def _tell_switched(self, rolling: Rollout) -> None:
        green = rolling.green
        assert green is not None
        self._events.tell(
            "rollout.switched",
            app=rolling.app.name,
            generation=green.number,
            image=green.image.digest,
        )
        rolling.switched.set()

    def _tell_ended(self, rolling: Rollout) -> None:
        self._mark(rolling, "ended")
        app = rolling.app
        app.rollouts.remove(rolling)
        if rolling.finding is not None and rolling.finding is not asyncio.current_task():
            rolling.finding.cancel()  # superseded: nobody waits for that build any more
        for end in itertools.chain.from_iterable(rolling.channels):
            end.close()
        if rolling.wish.stop:
            app.error = None
            self._events.tell("app.stopped", app=app.name)
            self._history.stopped(rolling)
        else:
            ledger = ledger_of(rolling)
            outcome, app.error = ledger.outcome, ledger.error or rolling.wish.because
            app.rollouts_ended[outcome] = app.rollouts_ended.get(outcome, 0) + 1
            count_swap(app, ledger)
            self._events.tell("rollout.ended", **ledger.to_json())
            self._history.ended(rolling, ledger)
            if outcome == "swapped":
                self._probation.begin(rolling)
        rolling.switched.set()
        rolling.ended.set()
        for generation in (rolling.blue, rolling.green):
            if generation is not None:
                self._retire(generation)
        self._zygotes.let_go()

    def _mark(self, rolling: Rollout, name: str) -> None:
        rolling.marks[name] = self._clock.monotonic()

    def _slots_happen(self, generation: AppGeneration, event: lifecycle.Event) -> None:
        for slot in generation.slots:
            self._lives.happen(slot, event)


def _all_received(rolling: Rollout) -> bool:
    green: Iterable[WorkerSlot] = rolling.green.slots if rolling.green else ()
    return sum(len(slot.received) for slot in green) >= rolling.receives


def _late(rolling: Rollout) -> str:
    assert rolling.green is not None
    spec = rolling.green.image.spec
    waiting = [str(slot.number) for slot in rolling.green.slots if slot.life is not Life.READY]
    return (
        f"green was not ready within {spec.ready_deadline_ms} ms "
        f"(slot {', '.join(waiting) or '0'}, phase {rolling.phase.value})"
    )
