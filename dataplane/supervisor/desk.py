"""What may be asked of the supervisor about apps, whoever asks: the API, its own start, its end."""

from __future__ import annotations

import asyncio
import enum
from typing import Any

from dataplane.model.errors import ControlError, DataplaneError
from dataplane.model.ledger import Ledger
from dataplane.model.names import AppName, Digest
from dataplane.supervisor.accounts import ledger_of
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, Fleet, Rollout, Wish
from dataplane.supervisor.former import Former
from dataplane.supervisor.images import Images
from dataplane.supervisor.report import app_report
from dataplane.supervisor.rollouts import Rollouts
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
        events: Events,
        former: tuple[Former, ...],
    ) -> None:
        self._fleet, self._rollouts, self._wanted = fleet, rollouts, wanted
        self._images, self._events = images, events
        self._former = former
        self.standing = Standing.STARTING

    # --- changing -----------------------------------------------------------------------------

    def start(self, name: AppName, wish: Wish) -> Rollout:
        """Starts the app, or swaps it. Raises `SwapUnderWay` or `NotNow`."""
        self._may_begin(name)
        app = self._fleet.apps.setdefault(name, App(name=name))
        return self._rollouts.ask(app, wish)

    def swap(self, name: AppName, wish: Wish) -> Rollout:
        """Swaps an app that runs. Raises `NoSuchApp`, `NotNow` or `SwapUnderWay`."""
        app = self._known(name)
        if not app.generations and not app.rollouts:
            raise NotNow(f"{name} does not run; start it by: dataplane run --app {name}")
        return self.start(name, wish)

    def rollback(self, name: AppName, image: Digest | None, wish: Wish) -> Rollout:
        """Swaps back to the image that served before, or the named one. Raises as `swap`."""
        self._known(name)
        before = self._wanted.app(name).before
        if image is None and not before:
            raise NotNow(f"no other image of {name} served before")
        target = image if image is not None else before[-1]
        return self.start(
            name,
            Wish(
                image=target, force=wish.force, faults=wish.faults, seal_without=wish.seal_without
            ),
        )

    async def stop(self, name: AppName, *, for_good: bool) -> None:
        """Drains and stops the app. `for_good`: it stays stopped over restarts."""
        app = self._known(name)
        if for_good:
            self._wanted.stopped(name)
        if app.generations or app.rollouts:
            stopping = app.stopping or self._rollouts.ask(app, Wish(stop=True))
            await stopping.ended.wait()
        await self._wanted.saved()

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
        await self._wanted.saved()
        return ledger_of(rolling)

    async def switched(self, rolling: Rollout) -> Ledger:
        """How it stands once it has switched, or ended before that."""
        await rolling.switched.wait()
        return ledger_of(rolling)

    async def compare(self, name: AppName, wish: Wish) -> None:
        """Finds out whether the config folder would build something else than what serves."""
        app = self._known(name)
        assert wish.config_dir is not None
        try:
            built = await self._images.build(name, wish.config_dir, dict(wish.environment))
        except DataplaneError as error:
            self._events.tell("app.config_broken", app=name, error=str(error))
            return
        if app.serving is not None and app.serving.image.digest != built:
            app.pending = built
            self._events.tell("app.pending", app=name, image=built)

    # --- asking -------------------------------------------------------------------------------

    def names(self) -> tuple[AppName, ...]:
        """Every app that runs here or is to."""
        return tuple(sorted({*self._fleet.apps, *self._wanted.apps()}))

    def report(self, name: AppName) -> dict[str, Any]:
        """What `ps` shows of the app. Raises `NoSuchApp`."""
        return app_report(self._known(name), self._wanted.app(name))

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

    def former(self) -> tuple[Former, ...]:
        """Workers that a former supervisor left."""
        return self._former

    def _known(self, name: AppName) -> App:
        app = self._fleet.apps.get(name)
        if app is None:
            if name not in self._wanted.apps():
                raise NoSuchApp(f"no app {name} here")
            app = App(name=name)
        return app

    def _may_begin(self, name: AppName) -> None:
        if self.standing is Standing.STOPPING:
            raise NotNow("the supervisor is stopping")
        pids = [str(former.pid) for former in self._former if former.app == name]
        if pids:
            raise NotNow(
                f"{name} still runs from a former supervisor (pid {', '.join(pids)}); "
                "end it by: dataplane down"
            )
