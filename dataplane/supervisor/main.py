"""The supervisor's process: claims its folders, puts its parts together, runs until it is told.

Signals: TERM and INT drain all apps and end (twice: now), HUP is `apply`, USR1 opens the log files
anew. Nothing else may end it; killed, it takes nothing with it, since its workers serve on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import uvloop

from dataplane.control import http
from dataplane.image.apps import Batch, app_names
from dataplane.model.errors import ConfigError, DataplaneError, ImageError
from dataplane.model.names import AppName
from dataplane.supervisor.adoption import Adoption
from dataplane.supervisor.api import Api
from dataplane.supervisor.births import Births, check_control_path
from dataplane.supervisor.desk import Desk, Standing
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, Fleet, Rollout, Wish
from dataplane.supervisor.folders import Claim, RunFolder, check_socket_path
from dataplane.supervisor.heartbeat import HANG_SECONDS, Heartbeat
from dataplane.supervisor.history import History
from dataplane.supervisor.images import BUILD_COMMAND, Images
from dataplane.supervisor.kept import Kept
from dataplane.supervisor.listeners import Listeners
from dataplane.supervisor.lives import Lives
from dataplane.supervisor.log_watch import LogWatch
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.names import AppNames
from dataplane.supervisor.orphans import Orphan, end_strays, find_orphans
from dataplane.supervisor.placing import Placing
from dataplane.supervisor.planning import Planning
from dataplane.supervisor.probation import Probation
from dataplane.supervisor.report import ReadyApp, ready_app
from dataplane.supervisor.resolver import Resolver
from dataplane.supervisor.rollouts import Rollouts
from dataplane.supervisor.secrets import Secrets
from dataplane.supervisor.service import Service
from dataplane.supervisor.sources import Sources
from dataplane.supervisor.wanted import Wanted
from dataplane.supervisor.zygotes import Zygotes, zygote_command
from dataplane.system.clock import SystemClock
from dataplane.system.notify import NO_NOTIFY_SOCKET, NotifySocket
from dataplane.system.process import become_subreaper, set_name


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All that a supervisor is started with."""

    run_dir: Path
    state_dir: Path
    config_dir: Path
    environment: Mapping[str, str]
    apps: tuple[AppName, ...]  # empty: all
    build: bool  # from the config folder, also what served before
    tell_ready: Callable[[Sequence[ReadyApp]], None]  # of the apps that serve
    resolvers: tuple[tuple[str, int], ...] = ()  # address and port; none: the host's own
    hang_seconds: float = HANG_SECONDS
    notify: NotifySocket = NO_NOTIFY_SOCKET
    allow_faults: bool = False  # for tests: askers may have workers fail on purpose
    zygote_command: Callable[[Path, int], Sequence[str]] = zygote_command
    build_command: Sequence[str] = BUILD_COMMAND


def run_supervisor(options: Options) -> int:
    """Runs until it is told to end. Raises `DataplaneError` where it could not start.

    Of several apps, one that fails to start stops no other; if all fail, the first error is raised.
    """
    check_socket_path(options.run_dir)
    for app in options.apps:
        check_control_path(RunFolder(path=options.run_dir).workers, app)
    with Claim(options.run_dir, options.state_dir) as claim:
        set_name("dp:supervisor")
        become_subreaper()
        orphans = find_orphans(claim.run.workers)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Supervisor(options, claim, orphans).run())


class _Supervisor:
    """Mutable: how often it was told to end."""

    def __init__(self, options: Options, claim: Claim, orphans: tuple[Orphan, ...]) -> None:
        self._options = options
        self._claim = claim
        self._clock = SystemClock()
        self._events = Events(self._clock, _log_line)
        self._wanted = Wanted(options.state_dir / "apps.json", self._events)
        self._images = Images(
            state_dir=options.state_dir,
            environment=options.environment,
            build_command=options.build_command,
        )
        self._history = History(
            options.state_dir / "history",
            clock=self._clock,
            events=self._events,
            provenance=self._images.provenance,
        )
        self._orphans = orphans
        self._ends_asked = 0
        self._failure: Exception | None = None
        self._checked: Batch | None = None  # what the start found the config folder to mean

    async def run(self) -> int:
        self._told_to_end = asyncio.Event()
        self._told_twice = asyncio.Event()
        self._told_to_apply = asyncio.Event()
        listening = self._claim.listen()
        async with asyncio.TaskGroup() as tasks:
            self._assemble(tasks)
            self._take_signals()
            self._tell_start()
            await self._adopt()
            lasting = [
                tasks.create_task(self._wanted.keep()),
                tasks.create_task(self._history.keep()),
                tasks.create_task(self._heartbeat.watch()),
                tasks.create_task(self._names.run()),
                tasks.create_task(self._log_watch.watch()),
                tasks.create_task(self._service.watch()),
                tasks.create_task(self._probation.watch()),
                tasks.create_task(http.serve(listening, self._api.respond)),
            ]
            await self._serve(tasks, lasting)
            # Not where a fault of our own ends us: then the workers serve on by themselves.
            await self._end()
            for task in lasting:
                task.cancel()
        if self._failure is not None:
            raise self._failure
        return 0

    def _assemble(self, tasks: asyncio.TaskGroup) -> None:
        options, clock, events = self._options, self._clock, self._events
        fleet, self._listeners = Fleet(), Listeners()
        lives = Lives(clock, events)
        self._names = AppNames(
            resolver=Resolver(servers=options.resolvers), fleet=fleet, clock=clock, events=events
        )
        self._zygotes = Zygotes(
            fleet=fleet,
            lives=lives,
            images=self._images,
            clock=clock,
            events=events,
            tasks=tasks,
            command=options.zygote_command,
        )
        self._logs = Logs(options.state_dir / "logs", clock=clock, events=events, tasks=tasks)
        self._kept = Kept(self._claim.run.totals, events=events)
        fleet.recall = self._recall_counters
        births = Births(
            workers_dir=self._claim.run.workers,
            secret=self._claim.secret,
            listeners=self._listeners,
            logs=self._logs,
            wanted=self._wanted,
            clock=clock,
        )
        sources = Sources(
            secrets=Secrets(options.state_dir),
            names=self._names,
            wanted=self._wanted,
            events=events,
            variables=options.environment,
        )
        self._probation = Probation(clock=clock, events=events)
        rollouts = Rollouts(
            lives=lives,
            zygotes=self._zygotes,
            images=self._images,
            sources=sources,
            names=self._names,
            births=births,
            wanted=self._wanted,
            history=self._history,
            probation=self._probation,
            clock=clock,
            events=events,
            tasks=tasks,
            retired=lambda app: self._kept.save(app, self._logs),
        )
        self._probation.connect(rollouts.ask)
        lives.connect(self._zygotes, rollouts)
        self._desk = Desk(
            fleet=fleet,
            rollouts=rollouts,
            wanted=self._wanted,
            images=self._images,
            history=self._history,
            events=events,
        )
        self._names.connect(self._desk.start)
        self._adoption = Adoption(
            placing=Placing(
                workers_dir=self._claim.run.workers,
                fleet=fleet,
                lives=lives,
                rollouts=rollouts,
                zygotes=self._zygotes,
                sources=sources,
                names=self._names,
                listeners=self._listeners,
                logs=self._logs,
                kept=self._kept,
                wanted=self._wanted,
                history=self._history,
                clock=clock,
                events=events,
            ),
            images=self._images,
            logs=self._logs,
            wanted=self._wanted,
            history=self._history,
            events=events,
        )
        self._planning = Planning(
            desk=self._desk,
            fleet=fleet,
            wanted=self._wanted,
            images=self._images,
            sources=sources,
            events=events,
            default_wish=self._config_wish(),
        )
        self._api = Api(
            desk=self._desk,
            planning=self._planning,
            fleet=fleet,
            logs=self._logs,
            events=events,
            default_wish=self._config_wish(),
            allow_faults=options.allow_faults,
            shown=lambda: self._kept.save_all(fleet, self._logs),
        )
        self._service = Service(options.notify, fleet, clock)
        self._log_watch = LogWatch(fleet=fleet, clock=clock, events=events)
        self._heartbeat = Heartbeat(
            fleet=fleet,
            lives=lives,
            clock=clock,
            events=events,
            hang_seconds=options.hang_seconds,
        )

    def _recall_counters(self, app: App) -> None:
        self._kept.recall(app, self._logs, ())

    def _config_wish(self) -> Wish:
        return Wish(
            config_dir=self._options.config_dir,
            environment=tuple(self._options.environment.items()),
        )

    def _tell_start(self) -> None:
        self._events.tell(
            "supervisor.started",
            pid=os.getpid(),
            run_dir=str(self._options.run_dir),
            state_dir=str(self._options.state_dir),
        )
        self._history.repair()

    async def _adopt(self) -> None:
        """Before anybody may ask for anything: what runs is ours then, or is known not to be."""
        code_dir = self._options.state_dir / "code"
        known = {orphan.pid for orphan in self._orphans}
        elsewhere = self._claim.others
        for pid in () if elsewhere else end_strays(code_dir, known):
            self._events.tell("worker.stray", pid=pid)
        for folder in elsewhere:
            self._events.tell("worker.elsewhere", run_dir=str(folder))
        self._desk.leave_alone(await self._adoption.adopt(self._orphans))
        self._orphans = ()

    # --- starting -----------------------------------------------------------------------------

    async def _serve(self, tasks: asyncio.TaskGroup, lasting: list[asyncio.Task[None]]) -> None:
        """From the start of the apps until somebody says to end."""
        starting = tasks.create_task(self._start_apps())
        ending = tasks.create_task(self._told_to_end.wait())
        lasting.append(starting)
        try:
            await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and self._failure is None:
                lasting.append(tasks.create_task(self._follow_config()))
                await ending
        finally:
            ending.cancel()

    async def _start_apps(self) -> None:
        adopted = self._desk.serving()
        names = [name for name in self._apps_to_start() if not self._serves_already(name)]
        new = [name for name in names if self._is_new(name)]
        errors: list[Exception] = []
        rollings = self._begin(
            {name: self._first_wish(name) for name in names if name not in new}, errors
        )
        if new:  # beside what served before, which waits for no builder
            rollings += self._begin(await self._build_new(new, errors), errors)
        for rolling in rollings:
            await self._desk.ended(rolling)
            if rolling.app.serving is None and rolling.error is not None:
                errors.append(rolling.error)
        if names and len(errors) == len(names) and not adopted:
            self._failure = errors[0]
            return
        for failed in errors:
            print(f"dataplane: {failed}", file=sys.stderr)
        self._desk.standing = Standing.UP
        ready = [ready_app(app) for app in self._desk.apps()]
        serving = [told for told in ready if told is not None]
        self._options.tell_ready(sorted(serving, key=lambda told: told.app))
        self._service.ready()

    def _begin(self, wishes: Mapping[AppName, Wish], errors: list[Exception]) -> list[Rollout]:
        rollings = []
        for name, wish in wishes.items():
            try:
                rollings.append(self._desk.start(name, wish))
            except DataplaneError as error:
                self._tell_not_started(name, error, errors)
        return rollings

    async def _build_new(
        self, names: Sequence[AppName], errors: list[Exception]
    ) -> dict[AppName, Wish]:
        """The apps that never ran, all built by one child; whoever cannot be is told of."""
        wish = self._config_wish()
        try:
            self._checked = await self._planning.check(wish)
        except DataplaneError as error:
            for name in names:
                self._tell_not_started(name, error, errors)
            return {}
        wishes = {}
        for built in self._checked.apps:
            if built.app not in names:
                continue
            if built.image is not None:
                try:
                    await self._planning.sound_image(built.app, built.image, wish)
                except DataplaneError as error:
                    self._tell_not_started(built.app, error, errors)
                else:
                    wishes[built.app] = Wish(image=built.image)
            elif built.findings:
                self._tell_not_started(built.app, ConfigError(built.findings), errors)
            else:
                text = f"{built.app}: {built.error}"
                self._tell_not_started(built.app, ImageError(text), errors)
        return wishes

    def _tell_not_started(self, name: AppName, error: Exception, errors: list[Exception]) -> None:
        errors.append(error)
        self._desk.expect(name)
        self._events.tell("app.not_started", app=name, error=str(error))

    def _apps_to_start(self) -> tuple[AppName, ...]:
        if self._options.apps:
            return self._options.apps
        wanted = self._wanted.apps().items()
        names = {name for name, entry in wanted if entry.image is not None}
        names.update(app_names(self._options.config_dir))
        return tuple(sorted(name for name in names if not self._wanted.app(name).stopped))

    def _is_new(self, name: AppName) -> bool:
        """Whether its image comes from the build of all: nobody named it, and it never ran."""
        return not self._options.apps and self._wanted.app(name).image is None

    def _serves_already(self, name: AppName) -> bool:
        """Whether it was adopted, and is to go on with what it serves."""
        return name in self._desk.serving() and not self._options.build

    def _first_wish(self, name: AppName) -> Wish:
        served = self._wanted.app(name).image
        if served is not None and not self._options.build:
            return Wish(image=served)
        return self._config_wish()

    async def _follow_config(self) -> None:
        """Tells what differs from the config folder, then does what it says whenever it is told."""
        if not self._options.build:  # what was started as it served may differ
            await self._planning.refresh(self._checked)
        wish = dataclasses.replace(self._config_wish(), verb="SIGHUP")
        while True:
            await self._told_to_apply.wait()
            self._told_to_apply.clear()
            self._service.reloading()
            try:
                await self._planning.apply(wish)
            except DataplaneError as error:
                self._events.tell("apply.failed", error=str(error))
            self._service.ready()

    # --- ending -------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Drains what serves; at a second word, ends it at once."""
        self._desk.standing = Standing.STOPPING
        self._events.tell("supervisor.stopping")
        self._service.stopping()
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(self._desk.stop_all())
            hurry = tasks.create_task(self._told_twice.wait())
            await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                self._desk.kill_all()
            await stopping
            hurry.cancel()
        await self._history.saved()
        await self._zygotes.close()
        self._listeners.close()
        await self._logs.close()
        self._kept.forget()
        self._events.tell("supervisor.ended")

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_end)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_apply.set)
        loop.add_signal_handler(signal.SIGUSR1, self._logs.reopen)
        loop.add_signal_handler(signal.SIGUSR2, self._not_yet, signal.SIGUSR2)

    def _asked_to_end(self) -> None:
        self._ends_asked += 1
        self._told_to_end.set()
        if self._ends_asked > 1:
            self._told_twice.set()

    def _not_yet(self, number: signal.Signals) -> None:
        self._events.tell("signal.passed_over", signal=number.name, reason="not supported yet")


def _log_line(line: str) -> None:
    # A log whose disk is full must stop nobody; the ring and its streams have the event as well.
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
