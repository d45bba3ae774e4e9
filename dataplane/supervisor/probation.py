"""A swap is on probation for a while: what it makes worse is taken back while nobody is awake.

It is taken back where green crash-loops, or answers a larger share of requests with 500 and above
than blue did (`model.probation`). A rollback has no probation: it goes to what served before.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Final

from dataplane.model import lifecycle
from dataplane.model.errors import DataplaneError
from dataplane.model.names import AppName, Digest
from dataplane.model.probation import Answers, in_words, is_worse
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, AppGeneration, Rollout, Wish
from dataplane.system.clock import Clock

LOOK_SECONDS: Final = 1.0
SERVER_ERRORS: Final = 5  # in `answers_total`: 500 to 599
ROLLBACK: Final = "rollback"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    generation: AppGeneration
    former: Digest
    before: Answers
    until: float  # of the monotonic clock


class Probation:
    """Mutable: the generations that are on probation."""

    def __init__(self, *, clock: Clock, events: Events) -> None:
        self._clock, self._events = clock, events
        self._trials: dict[AppName, _Trial] = {}
        self._ask: Callable[[App, Wish], Rollout]

    def connect(self, ask: Callable[[App, Wish], Rollout]) -> None:
        """Names who carries a rollback out. To be called once, before anything else."""
        self._ask = ask

    def begin(self, rolling: Rollout) -> None:
        """Of a rollout that has swapped; blue's figures are still there."""
        green, blue = rolling.green, rolling.blue
        assert green is not None
        self._trials.pop(rolling.app.name, None)
        seconds = green.image.spec.probation_ms / 1000
        if blue is None or not seconds or rolling.wish.verb == ROLLBACK:
            return
        self._trials[rolling.app.name] = _Trial(
            generation=green,
            former=blue.image.digest,
            before=_answers(blue),
            until=self._clock.monotonic() + seconds,
        )

    async def watch(self) -> None:
        """Looks, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """One round over all that is on probation."""
        for name, trial in list(self._trials.items()):
            app = trial.generation.app
            if app.serving is not trial.generation:
                del self._trials[name]
            elif not app.rollouts:  # else another one is under way, and may end it
                self._judge(app, trial)

    def _judge(self, app: App, trial: _Trial) -> None:
        reason = _fault(trial)
        if reason is not None:
            del self._trials[app.name]
            self._take_back(app, trial, reason)
        elif self._clock.monotonic() >= trial.until:
            del self._trials[app.name]
            self._events.tell("rollout.proven", **_facts(app, trial))

    def _take_back(self, app: App, trial: _Trial, reason: str) -> None:
        self._events.tell("rollout.taken_back", **_facts(app, trial), reason=reason)
        because = f"taken back: {reason}"
        try:
            self._ask(app, Wish(image=trial.former, verb=ROLLBACK, because=because))
        except DataplaneError as error:
            self._events.tell("rollout.not_taken_back", **_facts(app, trial), error=str(error))


def _fault(trial: _Trial) -> str | None:
    for slot in trial.generation.slots:
        if lifecycle.is_crash_loop(slot.deaths):
            return f"slot {slot.number} died {slot.deaths} times"
    after = _answers(trial.generation)
    return in_words(after, trial.before) if is_worse(after, trial.before) else None


def _answers(generation: AppGeneration) -> Answers:
    classes = [slot.figures().answers_total for slot in generation.slots]
    return Answers(
        all=sum(sum(one) for one in classes), failed=sum(one[SERVER_ERRORS] for one in classes)
    )


def _facts(app: App, trial: _Trial) -> dict[str, object]:
    return {
        "app": app.name,
        "generation": trial.generation.number,
        "image": trial.generation.image.digest,
        "former": trial.former,
    }
