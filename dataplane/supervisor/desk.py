"""What may be asked of the supervisor about apps, whoever asks: the API, its own start, its end."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from typing import Any

from dataplane.model.errors import ControlError
from dataplane.model.ledger import Ledger
from dataplane.model.names import AppName
from dataplane.supervisor.accounts import ledger_of
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, Caller, Fleet, Rollout, Wish
from dataplane.supervisor.former import Former
from dataplane.supervisor.history import Entry, History, served_before, under_way
from dataplane.supervisor.images import Images
from dataplane.supervisor.report import app_report
from dataplane.supervisor.rollouts import Rollouts
from dataplane.supervisor.staleness import Staleness
from dataplane.supervisor.stored import Stored
from dataplane.supervisor.wanted import Wanted


class Standing(enum.Enum):
    """The supervisor as a whole."""

    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"


class NoSuchApp(ControlError):
    """The app is not known here."""


class NotNow(ControlError):
    """It cannot be done as things stand."""


class Desk:
    """Mutable: how the supervisor stands."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        rollouts: Rollouts,
        wanted: Wanted,
        images: Images,
        history: History,
        events: Events,
    ) -> None:
        self._fleet, self._rollouts, self._wanted = fleet, rollouts, wanted
        self._images, self._history, self._events = images, history, events
        self._former: tuple[Former, ...] = ()
        self.standing = Standing.STARTING

    # --- changing -----------------------------------------------------------------------------

    def start(self, name: AppName, wish: Wish) -> Rollout:
        """Starts the app, or swaps it. Raises `SwapUnderWay` or `NotNow`."""
        self._may_begin(name)
        app = self._fleet.make(name)
        return self._rollouts.ask(app, wish)

    def swap(self, name: AppName, wish: Wish) -> Rollout:
        """Swaps an app that runs. Raises `NoSuchApp`, `NotNow` or `SwapUnderWay`."""
        app = self._known(name)
        if not app.generations and not app.rollouts:
            raise NotNow(f"{name} does not run; start it by: dataplane run --app {name}")
        return self.start(name, wish)

    async def rollback(self, name: AppName, image: str | None, wish: Wish) -> Rollout:
        """Swaps back to the image that served before, or to the one whose digest begins so.

        Raises as `swap`, and `ImageError` where no image or more than one is meant.
        """
        app = self._known(name)
        if image is not None:
            target = await self._images.named(name, image)
        else:
            entries = await self._history.entries(name, last_generation=0)
            serving = app.serving.image.digest if app.serving else self._wanted.app(name).image
            # Where the disk took no history, what is wanted knows the last ones as well.
            rest = [one for one in self._wanted.app(name).before if one != serving]
            before = served_before(entries, serving) or (rest[-1] if rest else None)
            if before is None:
                raise NotNow(f"no other image of {name} served before")
            target = before
        return self.start(name, dataclasses.replace(wish, image=target, verb="rollback"))

    async def stop(self, name: AppName, *, for_good: bool, caller: Caller | None = None) -> None:
        """Drains and stops the app. `for_good`: it stays stopped over restarts."""
        app = self._known(name)
        if for_good:
            self._wanted.stopped(name)
        verb = "stop" if for_good else "down"
        await self._stopped(app, Wish(stop=True, verb=verb, caller=caller))
        await self._saved()

    def expect(self, name: AppName) -> None:
        """The app is to run here, though it could not even be begun: `ps` shows it as down."""
        self._fleet.make(name)

    def forget(self, name: AppName) -> None:
        """Nothing is wanted of the app any more; what still runs of it is not forgotten."""
        app = self._fleet.apps.get(name)
        if app is not None and not app.generations and not app.rollouts:
            del self._fleet.apps[name]

    async def remove(self, name: AppName, caller: Caller | None) -> None:
        """Drains and stops an app that is not wanted any more, and forgets it but for its past."""
        app = self._known(name)
        self._wanted.removed(name)
        await self._stopped(app, Wish(stop=True, verb="apply", caller=caller))
        self.forget(name)
        self._events.tell("app.removed", app=name)
        await self._saved()

    async def stop_all(self) -> None:
        """Drains and stops every app, to be started again by the next supervisor."""
        async with asyncio.TaskGroup() as stops:
            for name in self._fleet.apps:
                stops.create_task(self.stop(name, for_good=False))

    def kill_all(self) -> None:
        """Ends every worker now."""
        for app in self._fleet.apps.values():
            self._rollouts.kill(app)

    async def ended(self, rolling: Rollout) -> Ledger:
        """How it went, once it has ended and is on disk."""
        await rolling.ended.wait()
        await self._saved()
        return ledger_of(rolling)

    async def switched(self, rolling: Rollout) -> Ledger:
        """How it stands once it has switched, or ended before that."""
        await rolling.switched.wait()
        return ledger_of(rolling)

    # --- asking -------------------------------------------------------------------------------

    def names(self) -> tuple[AppName, ...]:
        """Every app that runs here, is to, or was stopped."""
        wanted = self._wanted.apps().items()
        known = {name for name, entry in wanted if entry.image is not None or entry.stopped}
        return tuple(sorted({*self._fleet.apps, *known}))

    def report(self, name: AppName, staleness: Staleness | None = None) -> dict[str, Any]:
        """What `ps` shows of the app, after one look at the disk. Raises `NoSuchApp`."""
        return app_report(self._known(name), self._wanted.app(name), staleness or Staleness())

    async def history(self, name: AppName) -> list[Entry]:
        """Every generation of the app, oldest first. Raises `NoSuchApp`, `ControlError`."""
        app = self._known(name)
        rollings = [rolling for rolling in app.rollouts if rolling.green is not None]
        open_numbers = [rolling.green.number for rolling in rollings if rolling.green]
        last = min(open_numbers, default=self._wanted.app(name).generation + 1) - 1
        entries = await self._history.entries(name, last)
        return [*entries, *(under_way(rolling) for rolling in rollings)]

    def not_serving(self) -> tuple[AppName, ...]:
        """Apps that were started here and do not serve."""
        return tuple(
            app.name
            for app in self._fleet.apps.values()
            if app.serving is None and not self._wanted.app(app.name).stopped
        )

    def serving(self) -> tuple[AppName, ...]:
        """Apps that serve."""
        return tuple(app.name for app in self._fleet.apps.values() if app.serving is not None)

    def apps(self) -> tuple[App, ...]:
        """What is known here of each app."""
        return tuple(self._fleet.apps.values())

    def stored(self) -> Stored:
        """The images of this host."""
        return Stored(store=self._images.store, fleet=self._fleet)

    def leave_alone(self, former: tuple[Former, ...]) -> None:
        """Workers that a former supervisor left, and that this one cannot adopt."""
        self._former = former

    def former(self) -> tuple[Former, ...]:
        """Those workers."""
        return self._former

    async def _stopped(self, app: App, wish: Wish) -> None:
        """Until all that runs of it has ended: a green that is given up dies in its own time."""
        if not app.generations and not app.rollouts:
            return
        stopping = app.stopping or self._rollouts.ask(app, wish)
        leaving = tuple(app.generations)
        await stopping.ended.wait()
        for generation in leaving:
            await generation.gone.wait()

    def _known(self, name: AppName) -> App:
        app = self._fleet.apps.get(name)
        if app is None:
            if name not in self._wanted.apps():
                raise NoSuchApp(f"no app {name} here")
            app = App(name=name)
        return app

    async def _saved(self) -> None:
        """Side by side: each waits for the disk."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wanted.saved())
            tasks.create_task(self._history.saved())

    def _may_begin(self, name: AppName) -> None:
        if self.standing is Standing.STOPPING:
            raise NotNow("the supervisor is stopping")
        pids = [str(former.pid) for former in self._former if former.app == name]
        if pids:
            raise NotNow(
                f"{name} still runs from a former supervisor (pid {', '.join(pids)}), of code that "
                "cannot be adopted; "
                "end it by: dataplane down"
            )
