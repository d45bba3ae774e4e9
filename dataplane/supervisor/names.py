"""Host names of apps: asked for when a generation is made, followed while it serves.

A changed answer starts a generation of the same image with the same secrets, as if somebody had
asked for a swap; where that fails, blue serves on with the addresses it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from dataplane.model.errors import DataplaneError
from dataplane.model.names import AppName
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import AppGeneration, Fleet, Rollout, Wish
from dataplane.supervisor.following import Following
from dataplane.supervisor.resolver import MIN_TTL_SECONDS, Answer, Resolver
from dataplane.system.clock import Clock

Start = Callable[[AppName, Wish], Rollout]

# Answers that no generation serves with yet: those of a plan, of a swap under way.
MAX_ANSWERS: Final = 4096


class AppNames:
    """Mutable: answers that are not followed yet."""

    def __init__(self, *, resolver: Resolver, fleet: Fleet, clock: Clock, events: Events) -> None:
        self._resolver, self._fleet, self._events = resolver, fleet, events
        self._following = Following(
            resolver=resolver, clock=clock, events=events, changed=self._changed
        )
        self._answers: dict[str, Answer] = {}
        self._start: Start

    def connect(self, start: Start) -> None:
        """Names who starts a generation. To be called once, before anything else."""
        self._start = start

    async def run(self) -> None:
        """Follows what serves, until it is cancelled."""
        await self._following.run()

    async def addresses(self, name: str) -> tuple[str, ...]:
        """What the name stands for now, sorted, at least one. Raises `ResolveError`."""
        answer = self._following.latest(name) or await self._resolver.resolve(name)
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.clear()  # whoever is watched without one is asked for soon
        self._answers[name] = answer
        return answer.addresses

    def serves(self, generation: AppGeneration) -> None:
        """From now on this is what serves its app."""
        names = {}
        for name, addresses in generation.inputs.addresses:
            answer = self._answers.pop(name, None)
            if answer is None or answer.addresses != addresses:
                answer = Answer(addresses=addresses, ttl_seconds=MIN_TTL_SECONDS)
            names[name] = answer
        if names:
            pause_seconds = generation.image.spec.resolve_pause_ms / 1000
            self._following.watch(generation.app.name, names, pause_seconds)
        else:
            self._following.forget(generation.app.name)

    def rests(self, app: AppName) -> None:
        """Nothing serves the app any more."""
        self._following.forget(app)

    def _changed(self, name: AppName) -> None:
        app = self._fleet.apps.get(name)
        if app is None or app.serving is None:
            return
        inputs = app.serving.inputs
        latest = []
        for host, addresses in inputs.addresses:
            answer = self._following.last_good(host)
            latest.append((host, answer.addresses if answer else addresses))
        wish = Wish(
            verb="names",
            image=app.serving.image.digest,
            inputs=dataclasses.replace(inputs, addresses=tuple(latest)),
        )
        try:
            self._start(name, wish)
        except DataplaneError as error:  # a swap is under way: this is told again after it
            self._events.tell("names.not_applied", app=name, error=str(error))
