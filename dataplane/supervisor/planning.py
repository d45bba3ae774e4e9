"""What would change on this host, and doing just that: `plan` and `apply`.

One builder child judges all files of a config folder; what it would run is held against what runs.
Apps are independent: a broken file or a failed swap of one is told, and stops no other. Nothing
is done for an app whose image is the one that serves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from dataplane.image.apps import Batch, BuiltApp
from dataplane.image.store import Image
from dataplane.model.diff import Change, Version, differences
from dataplane.model.errors import ConfigError, DataplaneError, Finding, ImageError
from dataplane.model.inputs import NO_INPUTS, Inputs, host_names, references
from dataplane.model.ledger import Ledger
from dataplane.model.names import AppName, Digest
from dataplane.supervisor.desk import Desk, NotNow
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, Fleet, Wish
from dataplane.supervisor.images import Images
from dataplane.supervisor.sources import Sources
from dataplane.supervisor.wanted import Wanted, WantedApp

# Swaps of an apply that are before their switch at one time: more would only make each slower.
SIDE_BY_SIDE: Final = 8

Action: TypeAlias = Literal["nothing", "replace", "add", "remove", "broken"]
ACTIONS: Final[tuple[Action, ...]] = ("nothing", "replace", "add", "remove", "broken")
CHANGING: Final = frozenset({"replace", "add", "remove"})
Result: TypeAlias = Literal["nothing", "swapped", "started", "removed", "failed", "broken"]
RESULTS: Final[tuple[Result, ...]] = (
    "nothing", "swapped", "started", "removed", "failed", "broken",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What would be done about one app. `broken`: nothing, and why."""

    app: AppName
    action: Action
    before: Digest | None = None  # what serves, or served last
    after: Digest | None = None  # what the config folder means
    changes: tuple[Change, ...] = ()
    findings: tuple[Finding, ...] = ()
    error: str | None = None
    note: str | None = None
    inputs: Inputs | None = None  # what it would start with, where something would start
    identity: str | None = None  # of these
    takes: frozenset[str] = frozenset()  # addresses that it needs, and has not now
    frees: frozenset[str] = frozenset()  # and those that it has, and needs no more

    def to_json(self) -> dict[str, Any]:
        return {
            "app": self.app,
            "action": self.action,
            "from": self.before,
            "to": self.after,
            "changes": [change.to_json() for change in self.changes],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "error": self.error,
            "note": self.note,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A step for every app, and what is wrong with the config folder itself."""

    config_dir: Path
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        """Equal for plans that would do the same."""
        doing = [
            (step.app, step.action, step.before, step.after, step.identity)
            for step in self.steps
            if step.action in CHANGING
        ]
        return f"sha256:{hashlib.sha256(json.dumps(doing).encode()).hexdigest()}"

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.name,
            "config_dir": str(self.config_dir),
            "apps": [step.to_json() for step in self.steps],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "counts": _counted(ACTIONS, (step.action for step in self.steps)),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of one step."""

    step: Step
    result: Result
    ledger: Ledger | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "app": self.step.app,
            "action": self.step.action,
            "result": self.result,
            "image": self.step.after,
            "ledger": self.ledger.to_json() if self.ledger else None,
            "findings": [dataclasses.asdict(finding) for finding in self.step.findings],
            "error": self.error,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of a plan."""

    plan: Plan
    apps: tuple[Done, ...]

    def counts(self) -> dict[str, int]:
        return _counted(RESULTS, (done.result for done in self.apps))

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan.name,
            "apps": [done.to_json() for done in self.apps],
            "findings": [dataclasses.asdict(finding) for finding in self.plan.findings],
            "counts": self.counts(),
        }


class PlanChanged(NotNow):
    """What would be done is not what the plan showed."""


class Planning:
    """Mutable: who applies now. One apply at a time; plans are made whenever they are asked."""

    def __init__(
        self,
        *,
        desk: Desk,
        fleet: Fleet,
        wanted: Wanted,
        images: Images,
        sources: Sources,
        events: Events,
        default_wish: Wish,
    ) -> None:
        self._desk, self._fleet, self._wanted = desk, fleet, wanted
        self._images, self._sources, self._events = images, sources, events
        self._default_wish = default_wish
        self._applying = asyncio.Lock()
        self._building = asyncio.Lock()

    # --- planning -----------------------------------------------------------------------------

    async def check(self, wish: Wish) -> Batch:
        """What all files of the folder mean. Raises `ConfigError`, `ImageError`, `LaunchError`."""
        assert wish.config_dir is not None
        async with self._building:
            return await self._images.build_all(wish.config_dir, dict(wish.environment))

    async def plan(self, wish: Wish) -> Plan:
        """Raises as `check`; what is wrong with one app's file is in its step."""
        return await self.plan_of(await self.check(wish), wish)

    async def plan_of(self, batch: Batch, wish: Wish) -> Plan:
        """The plan of what `check` found."""
        assert wish.config_dir is not None
        built = {one.app: one for one in batch.apps}
        names = sorted({*built, *self._fleet.apps, *self._wanted.apps()})
        is_ours = wish.config_dir == self._default_wish.config_dir
        steps = [
            decide(
                name,
                self._fleet.apps.get(name),
                self._wanted.app(name),
                built.get(name),
                may_remove=is_ours,
            )
            for name in names
        ]
        told = [
            await self._with_changes(await self._with_inputs(step, wish), wish)
            for step in steps
            if step is not None
        ]
        plan = Plan(config_dir=wish.config_dir, steps=tuple(told), findings=batch.findings)
        if is_ours:
            self._keep_pending(plan)
        return plan

    async def _with_inputs(self, step: Step, wish: Wish) -> Step:
        """Of an app whose image serves: to be replaced where its inputs are others by now."""
        app = self._fleet.apps.get(step.app)
        serving = app.serving if app is not None else None
        if step.action != "nothing" or serving is None or step.after != serving.image.digest:
            return step
        if not host_names(serving.image.spec) and not references(serving.image.spec):
            return step
        try:
            step = await self._gathered(step, serving.image, wish)
        except DataplaneError as error:
            return dataclasses.replace(step, action="broken", after=None, error=str(error))
        if step.identity == serving.identity:
            return step
        return dataclasses.replace(step, action="replace")

    async def _gathered(self, step: Step, image: Image, wish: Wish) -> Step:
        """The step with what a generation of the image would start with. Raises `LaunchError`."""
        app = self._fleet.apps.get(step.app, App(name=step.app))
        inputs = await self._sources.gather(app, image.spec, wish)
        return dataclasses.replace(step, inputs=inputs, identity=self._sources.identity(inputs))

    async def _with_changes(self, step: Step, wish: Wish) -> Step:
        """The step with what it changes, key by key; broken where its image is not to be had."""
        if step.action not in CHANGING:
            return step
        try:
            before = await self._version(step.app, step.before)
        except DataplaneError:
            before = None  # it is replaced or goes: what it was need not be known
        held = self._addresses(step.app)
        if step.action == "remove":
            return dataclasses.replace(step, changes=differences(before, None), frees=held)
        assert step.after is not None
        try:
            image = await self.sound_image(step.app, step.after, wish)
            if step.inputs is None:
                step = await self._gathered(step, image, wish)
            assert step.inputs is not None
            after = version_of(image, step.inputs, self._sources.digests(step.inputs))
        except ConfigError as error:  # it was changed since it was checked
            return dataclasses.replace(step, action="broken", after=None, findings=error.findings)
        except DataplaneError as error:
            return dataclasses.replace(step, action="broken", after=None, error=str(error))
        wanted = frozenset(listener.bind for listener in after.spec.listeners)
        return dataclasses.replace(
            step,
            changes=differences(before, after),
            takes=wanted - held,
            frees=held - wanted,
        )

    def _addresses(self, app: AppName) -> frozenset[str]:
        """Where the app listens now."""
        running = self._fleet.apps.get(app)
        if running is None or running.serving is None:
            return frozenset()
        return frozenset(bind for _, bind in running.serving.lent.addresses)

    async def sound_image(self, app: AppName, digest: Digest, wish: Wish) -> Image:
        """One that may start; where it may not, it is built, and so mended, once.

        Raises as `Images.build`.
        """
        try:
            return await self._proven(app, digest)
        except ImageError as error:
            assert wish.config_dir is not None
            async with self._building:
                built = await self._images.build(app, wish.config_dir, dict(wish.environment))
            if built != digest:
                raise ImageError(f"{error}; and its file has changed meanwhile") from error
            return await self._proven(app, digest)

    async def _version(self, app: AppName, digest: Digest | None) -> Version | None:
        if digest is None:
            return None
        running = self._fleet.apps.get(app)
        if running is not None and running.serving and running.serving.image.digest == digest:
            inputs = running.serving.inputs
            return version_of(running.serving.image, inputs, self._sources.digests(inputs))
        return version_of(await self._image(app, digest))

    async def _image(self, app: AppName, digest: Digest) -> Image:
        return await asyncio.to_thread(self._images.image, app, digest)

    async def _proven(self, app: AppName, digest: Digest) -> Image:
        return await asyncio.to_thread(self._images.proven_image, app, digest)

    def _keep_pending(self, plan: Plan) -> None:
        """What `ps` shows, and an event for each difference that is new."""
        for step in plan.steps:
            app = self._fleet.apps.get(step.app)
            if app is None or app.serving is None:
                continue
            pending = step.action if step.action in ("replace", "remove") else None
            if pending is not None and app.pending is None:
                self._events.tell("app.pending", app=step.app, action=pending, image=step.after)
            app.pending = pending
            app.configured = step.after

    async def refresh(self, batch: Batch | None = None) -> None:
        """Tells what differs between the supervisor's own config folder and what runs."""
        wish = self._default_wish
        try:
            plan = await (self.plan(wish) if batch is None else self.plan_of(batch, wish))
        except DataplaneError as error:
            self._events.tell("config.broken", error=str(error))
            return
        self._tell_broken(plan)

    # --- applying -----------------------------------------------------------------------------

    async def apply(self, wish: Wish, expected: str | None = None) -> Applied:
        """Plans, and does what the plan says. `expected`: the name of the plan to be done.

        Raises `PlanChanged` where another one would be, or as `plan`; then nothing was done.
        """
        async with self._applying:
            plan = await self.plan(wish)
            if expected is not None and plan.name != expected:
                raise PlanChanged(
                    "what would be done is not what the plan showed; look at a new one first: "
                    "dataplane plan"
                )
            if wish.config_dir == self._default_wish.config_dir:
                for name in {*self._fleet.apps} - {step.app for step in plan.steps}:
                    self._desk.forget(name)  # it never ran, and has no file any more
            counts = _counted(ACTIONS, (step.action for step in plan.steps))
            self._events.tell("apply.started", **counts)
            self._tell_broken(plan)
            turns = asyncio.Semaphore(SIDE_BY_SIDE)
            doing: dict[AppName, asyncio.Task[Done]] = {}
            async with asyncio.TaskGroup() as tasks:
                for step, apps in in_turn(plan.steps):
                    former = [doing[app] for app in apps]
                    doing[step.app] = tasks.create_task(self._do(step, wish, turns, former))
            results = tuple(doing[step.app].result() for step in plan.steps)
            applied = Applied(plan=plan, apps=results)
            self._events.tell("apply.ended", **applied.counts())
            return applied

    async def _do(
        self,
        step: Step,
        wish: Wish,
        turns: asyncio.Semaphore,
        former: Sequence[asyncio.Task[Done]],
    ) -> Done:
        if former:
            await asyncio.wait(former)
        if step.action == "nothing":
            return Done(step=step, result="nothing")
        if step.action == "broken":
            findings = "\n".join(str(finding) for finding in step.findings)
            return Done(step=step, result="broken", error=step.error or findings)
        try:
            if step.action == "remove":
                async with turns:
                    await self._desk.remove(step.app, wish.caller)
                return Done(step=step, result="removed")
            return await self._swap(step, wish, turns)
        except DataplaneError as error:
            self._events.tell("apply.failed", app=step.app, error=str(error))
            return Done(step=step, result="failed", error=str(error))

    async def _swap(self, step: Step, wish: Wish, turns: asyncio.Semaphore) -> Done:
        async with turns:
            app = self._fleet.apps.get(step.app)
            serving = app.serving.image.digest if app and app.serving else None
            if serving != (step.before if step.action == "replace" else None):
                raise PlanChanged(f"{step.app} was swapped by somebody else meanwhile")
            asked = Wish(image=step.after, inputs=step.inputs, verb=wish.verb, caller=wish.caller)
            rolling = self._desk.start(step.app, asked)
            await self._desk.switched(rolling)
        # Draining takes nothing from the others, and may take long.
        ledger = await self._desk.ended(rolling)
        if ledger.outcome == "failed":
            return Done(step=step, result="failed", ledger=ledger, error=ledger.error)
        result: Result = "swapped" if ledger.before else "started"
        return Done(step=step, result=result, ledger=ledger)

    def _tell_broken(self, plan: Plan) -> None:
        for finding in plan.findings:
            self._events.tell("config.broken", error=str(finding))
        for step in plan.steps:
            if step.action == "broken":
                texts = [str(finding) for finding in step.findings]
                error = step.error or "\n".join(texts)
                self._events.tell("app.config_broken", app=step.app, error=error)


def decide(
    name: AppName,
    app: App | None,
    entry: WantedApp,
    built: BuiltApp | None,
    *,
    may_remove: bool,
) -> Step | None:
    """What to do about one app, from what runs, what is wanted and what its file means.

    None: there is nothing to say of it. `built`: None where it has no file any more. `may_remove`:
    the folder is the supervisor's own; that another one lacks an app says nothing.
    """
    serving = app.serving.image.digest if app is not None and app.serving is not None else None
    before = serving or entry.image
    if entry.stopped and serving is None:
        if built is None:
            return None
        note = f"stopped; start it by: dataplane run --app {name}"
        return Step(app=name, action="nothing", before=before, note=note)
    if built is None:
        if before is None:
            return None
        if not may_remove:
            note = "it has no file in this folder, and the supervisor was started with another"
            return Step(app=name, action="nothing", before=before, note=note)
        return Step(app=name, action="remove", before=before, note="it has no config file")
    if built.image is None:
        return Step(
            app=name, action="broken", before=before, findings=built.findings, error=built.error
        )
    if serving is None:
        return Step(app=name, action="add", before=before, after=built.image)
    action: Action = "nothing" if serving == built.image else "replace"
    return Step(app=name, action=action, before=before, after=built.image)


def in_turn(steps: Sequence[Step]) -> list[tuple[Step, tuple[AppName, ...]]]:
    """All steps, each behind those whose addresses it takes, and these.

    Of steps in a circle the first goes without its address: it fails, and says so.
    """
    frees = {step.app: step.frees for step in steps if step.frees}
    waiting = {
        step.app: {app for app, freed in frees.items() if app != step.app and freed & step.takes}
        for step in steps
    }
    by_name = {step.app: step for step in steps}
    ordered: list[tuple[Step, tuple[AppName, ...]]] = []
    gone: set[AppName] = set()
    while waiting:
        ready = [app for app, needs in waiting.items() if needs <= gone] or [next(iter(waiting))]
        for app in ready:
            ordered.append((by_name[app], tuple(sorted(waiting.pop(app) & gone))))
        gone.update(ready)
    return ordered


def version_of(
    image: Image, inputs: Inputs = NO_INPUTS, digests: tuple[tuple[str, str], ...] = ()
) -> Version:
    """What is compared of an image and its inputs. `digests`: of the secrets."""
    return Version(
        spec=image.spec,
        code=image.code_version,
        code_layer=image.code_layer,
        abi=str(image.abi),
        addresses=inputs.addresses,
        secrets=digests,
    )


def _counted(names: Sequence[str], seen: Iterable[str]) -> dict[str, int]:
    found = list(seen)
    return {name: found.count(name) for name in names}
