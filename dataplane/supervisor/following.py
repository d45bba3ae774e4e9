"""Follows host names by their TTL, and tells whose serving generation knows other addresses.

Each name is asked for once, however many apps have it. A failure changes nothing: the last
addresses stay until others are known. Nothing is rolled out here; who is told decides.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

from dataplane.model.names import AppName
from dataplane.supervisor.deadlines import Deadlines
from dataplane.supervisor.events import Events
from dataplane.supervisor.resolver import Answer, ResolveError
from dataplane.system.clock import Clock

Addresses: TypeAlias = tuple[str, ...]

PAUSE_SECONDS: Final = 5.0  # of an app between two tellings, unless its config says otherwise
MIN_SECONDS: Final = 1.0  # between two questions for one name
MAX_BACKOFF_SECONDS: Final = 60.0
JITTER: Final = 0.1  # of a wait: names that were learned together are not asked for together
QUESTIONS: Final = 16  # side by side
# An app that was told and still serves the old addresses (its rollout failed) is told again.
TOLD_AGAIN_SECONDS: Final = 60.0
MAX_TOLD_AGAIN_SECONDS: Final = 3600.0


class Resolves(Protocol):
    """What is asked: a `Resolver`."""

    async def resolve(self, name: str) -> Answer:
        """Raises `ResolveError`."""


@dataclasses.dataclass(slots=True, eq=False)
class _Name:
    """Mutable. One name that apps have, and its last good answer."""

    answer: Answer
    learned_at: float
    asked_at: float
    apps: set[AppName] = dataclasses.field(default_factory=set)
    failures: int = 0  # since the last good answer
    is_asked: bool = False  # now
    is_doubted: bool = False  # an app serves with other addresses, perhaps newer ones


@dataclasses.dataclass(slots=True, eq=False)
class _App:
    """Mutable. What an app's serving generation knows, and what was told of it."""

    serving: dict[str, Addresses]
    pause_seconds: float
    told_at: float | None = None
    told: dict[str, Addresses] = dataclasses.field(default_factory=dict)
    times_told: int = 0  # of the same addresses


class Following:
    """Mutable: the names, who has them, and when what is to be done."""

    def __init__(
        self,
        *,
        resolver: Resolves,
        clock: Clock,
        events: Events,
        changed: Callable[[AppName], None],
        rng: random.Random | None = None,
    ) -> None:
        self._resolver, self._clock, self._events = resolver, clock, events
        self._changed = changed
        self._rng = rng or random.SystemRandom()
        self._names: dict[str, _Name] = {}
        self._apps: dict[AppName, _App] = {}
        self._expiries: Deadlines[str] = Deadlines()
        self._tellings: Deadlines[AppName] = Deadlines()
        self._running = 0  # questions
        self._stirred = asyncio.Event()

    def watch(
        self, app: AppName, names: Mapping[str, Answer], pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        """An app's serving generation has these names, with these addresses: to be called at each
        switch. Whatever the app had before is forgotten, but not when it was last told.
        """
        now = self._clock.monotonic()
        before = self._apps.get(app)
        serving = {name: answer.addresses for name, answer in names.items()}
        self._leave(app, set(before.serving) - set(names) if before else set())
        self._apps[app] = _App(serving, pause_seconds, before.told_at if before else None)
        for name, answer in names.items():
            self._join(app, name, answer, now)
        self._judge(app, now)
        self._stirred.set()

    def forget(self, app: AppName) -> None:
        """An app serves no more."""
        known = self._apps.pop(app, None)
        if known is not None:
            self._leave(app, set(known.serving))
            self._tellings.drop(app)
            self._stirred.set()

    def latest(self, name: str) -> Answer | None:
        """The last good answer for a name that an app has, within its TTL."""
        known = self._names.get(name)
        if known is None or known.is_doubted:
            return None
        age = self._clock.monotonic() - known.learned_at
        return known.answer if age < known.answer.ttl_seconds else None

    def last_good(self, name: str) -> Answer | None:
        """The last good answer for a name that an app has, however old: for an outage."""
        known = self._names.get(name)
        return None if known is None else known.answer

    async def run(self) -> None:
        """Asks and tells, until it is cancelled. `changed` is called from here alone."""
        async with asyncio.TaskGroup() as questions:
            while True:
                self._stirred.clear()
                now = self._clock.monotonic()
                while (app := self._tellings.take(now)) is not None:
                    self._tell(app, now)
                while self._running < QUESTIONS and (name := self._expiries.take(now)) is not None:
                    known = self._names[name]
                    known.is_asked, known.asked_at = True, now
                    self._running += 1
                    questions.create_task(self._renew(name, known))
                try:
                    async with asyncio.timeout(self._idle_seconds()):
                        await self._stirred.wait()
                except TimeoutError:
                    pass

    def _idle_seconds(self) -> float | None:
        expiry = self._expiries.next() if self._running < QUESTIONS else None
        deadlines = [when for when in (expiry, self._tellings.next()) if when is not None]
        if not deadlines:
            return None
        # A loop's clock is coarser than ours: never so early that nothing is due yet.
        return max(0.001, min(deadlines) - self._clock.monotonic())

    # --- who has what -------------------------------------------------------------------------

    def _join(self, app: AppName, name: str, answer: Answer, now: float) -> None:
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = _Name(answer, learned_at=now, asked_at=now)
            self._expire_after(name, answer.ttl_seconds, now)
        elif known.answer.addresses != answer.addresses:
            # Which of the two is newer, nobody knows here; told is who differs from the next one.
            known.is_doubted = True
            if not known.is_asked:
                self._expiries.set(name, max(now, known.asked_at + MIN_SECONDS))
        known.apps.add(app)

    def _leave(self, app: AppName, names: set[str]) -> None:
        for name in names:
            known = self._names[name]
            known.apps.discard(app)
            if not known.apps:
                del self._names[name]
                self._expiries.drop(name)

    # --- what is asked ------------------------------------------------------------------------

    async def _renew(self, name: str, known: _Name) -> None:
        try:
            answer: Answer | ResolveError = await self._resolver.resolve(name)
        except ResolveError as error:
            answer = error
        finally:
            known.is_asked = False
            self._running -= 1
            self._stirred.set()
        if self._names.get(name) is not known:  # nobody has it any more
            return
        if isinstance(answer, ResolveError):
            self._failed(name, known, answer)
        else:
            self._learned(name, known, answer)

    def _failed(self, name: str, known: _Name, error: ResolveError) -> None:
        known.failures += 1
        if known.failures == 1:
            self._events.tell(
                "names.unresolved",
                name=name,
                error=str(error),
                addresses=known.answer.addresses,
                apps=len(known.apps),
            )
        # The exponent is held: an outage may last for months.
        backoff = min(MIN_SECONDS * 2.0 ** min(known.failures - 1, 16), MAX_BACKOFF_SECONDS)
        self._expire_after(name, backoff, self._clock.monotonic())

    def _learned(self, name: str, known: _Name, answer: Answer) -> None:
        now = self._clock.monotonic()
        if known.failures:
            self._events.tell("names.resolved_again", name=name, addresses=answer.addresses)
        known.answer, known.learned_at = answer, now
        known.failures, known.is_doubted = 0, False
        self._expire_after(name, answer.ttl_seconds, now)
        for app in known.apps:
            self._judge(app, now)

    def _expire_after(self, name: str, seconds: float, now: float) -> None:
        wait = max(seconds, MIN_SECONDS) * (1 + JITTER * self._rng.random())
        self._expiries.set(name, now + wait)

    # --- who is told --------------------------------------------------------------------------

    def _differing(self, app: _App) -> dict[str, Addresses]:
        """The names whose last good answer is not what the app serves with."""
        differing = {}
        for name, addresses in app.serving.items():
            known = self._names[name]
            if known.answer.addresses != addresses and not known.is_doubted:
                differing[name] = known.answer.addresses
        return differing

    def _judge(self, name: AppName, now: float) -> None:
        """Sets when the app is to be told, if it is."""
        app = self._apps[name]
        differing = self._differing(app)
        if not differing:
            self._tellings.drop(name)
        elif app.told_at is None:
            self._tellings.set(name, now)
        else:
            self._tellings.set(name, max(now, app.told_at + self._pause_seconds(app, differing)))

    def _pause_seconds(self, app: _App, differing: dict[str, Addresses]) -> float:
        if differing != app.told:
            return app.pause_seconds
        again = TOLD_AGAIN_SECONDS * 2.0 ** min(app.times_told - 1, 16)
        return max(app.pause_seconds, min(again, MAX_TOLD_AGAIN_SECONDS))

    def _tell(self, name: AppName, now: float) -> None:
        app = self._apps[name]
        differing = self._differing(app)
        if not differing:  # in doubt since: the next answer tells
            return
        app.times_told = app.times_told + 1 if differing == app.told else 1
        app.told_at, app.told = now, differing
        self._judge(name, now)
        self._events.tell("names.changed", app=name, names=differing)
        self._changed(name)
