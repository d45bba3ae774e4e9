"""Makes a generation's frame before any process of it is there, and clears it away at the end.

What a generation starts with (spec, sockets, stats pages) is made once, so that a restart after a
crash uses the same, whatever became of files meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

from dataplane.control.shared import SharedPage
from dataplane.control.stats import StatsPage
from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.supervisor.fleet import AppGeneration, Rollout, WorkerSlot
from dataplane.supervisor.listeners import Lent, Listeners
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.wanted import Wanted
from dataplane.system.clock import Clock
from dataplane.system.memfd import sealed_memfd
from dataplane.system.sockets import check_unix_path

# Room that is kept in a socket's path for generation and slot, so that it never becomes too long.
LARGEST_NUMBERS: Final = "9999999.999"


class Births:
    """The makings of generations."""

    def __init__(
        self,
        *,
        workers_dir: Path,
        secret: bytes,
        listeners: Listeners,
        logs: Logs,
        wanted: Wanted,
        clock: Clock,
    ) -> None:
        """`secret`: what each app's key of sticky cookies is made from."""
        self._secret = secret
        self._workers_dir = workers_dir
        self._listeners = listeners
        self._logs = logs
        self._wanted = wanted
        self._clock = clock

    def conceive(self, rolling: Rollout, tree: Path, identity: str) -> AppGeneration:
        """A generation of the rollout's image and inputs, no slot of it forked.

        `identity`: of the inputs. Raises `LaunchError`.
        """
        app, image = rolling.app, rolling.image
        assert image is not None
        check_control_path(self._workers_dir, app.name)
        lent = self._listeners.acquire(app.name, image.spec)
        with contextlib.ExitStack() as undo:
            undo.callback(self._listeners.release, lent)
            generation = self._generation(rolling, tree, identity, lent, undo)
            undo.pop_all()
        app.generations.append(generation)
        return generation

    def _generation(
        self, rolling: Rollout, tree: Path, identity: str, lent: Lent, undo: contextlib.ExitStack
    ) -> AppGeneration:
        """`undo` takes back what was made. Raises `LaunchError`."""
        app, image = rolling.app, rolling.image
        assert image is not None
        try:
            if app.shared is None:
                key = hashlib.blake2b(app.name.encode(), key=self._secret, digest_size=16)
                app.shared = SharedPage(f"shared-{app.name}", key.digest())
            spec_fd = sealed_memfd(f"spec-{app.name}", image.spec.to_json())
            undo.callback(os.close, spec_fd)
        except OSError as error:
            raise LaunchError(f"cannot make a memory file: {error.strerror}") from error
        log = self._logs.open(app.name, image.spec.access_log)
        if log is not None:
            undo.callback(self._logs.release, log)
        generation = AppGeneration(
            app=app,
            number=self._wanted.next_generation(app.name),
            image=image,
            tree=tree,
            spec_fd=spec_fd,
            inputs=rolling.inputs,
            identity=identity,
            since=self._clock.now(),
            lent=lent,
            log=log,
            seal_without=rolling.wish.seal_without,
            faults=rolling.wish.faults,
        )
        for number in range(image.spec.workers):
            slot = self._slot(generation, number)
            undo.callback(slot.stats.close)
            undo.callback(os.close, slot.stats.fd)
            generation.slots = (*generation.slots, slot)
        return generation

    def bury(self, generation: AppGeneration) -> None:
        """Gives back all that it held. Every slot must have ended."""
        self._listeners.release(generation.lent)
        if generation.log is not None:
            self._logs.release(generation.log)
        for slot in generation.slots:
            with contextlib.suppress(FileNotFoundError):
                slot.control_path.unlink()
        generation.close()

    def _slot(self, generation: AppGeneration, number: int) -> WorkerSlot:
        name = f"{generation.app.name}.{generation.number}.{number}"
        try:
            stats = StatsPage(
                f"stats-{name}",
                upstreams=len(generation.image.spec.upstreams),
                routes=len(generation.image.spec.routes),
            )
        except OSError as error:
            raise LaunchError(f"cannot make a memory file: {error.strerror}") from error
        return WorkerSlot(
            generation=generation,
            number=number,
            control_path=self._workers_dir / f"{name}.sock",
            stats=stats,
        )


def check_control_path(workers_dir: Path, app: AppName) -> None:
    """Raises `LaunchError` where no worker of this app could have a control socket."""
    try:
        check_unix_path(workers_dir / f"{app}.{LARGEST_NUMBERS}.sock")
    except LaunchError as error:
        raise LaunchError(f"{error}; name a shorter folder by --run-dir") from error
