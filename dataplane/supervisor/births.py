"""Makes a generation's frame before any process of it is there, and clears it away at the end.

What a generation starts with (spec, sockets, stats pages) is made once, so that a restart after a
crash uses the same, whatever became of files meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from dataplane.control.shared import SharedPage
from dataplane.control.stats import StatsPage
from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.supervisor.fleet import AppGeneration, Rollout, WorkerSlot
from dataplane.supervisor.listeners import Listeners
from dataplane.supervisor.wanted import Wanted
from dataplane.system.clock import Clock
from dataplane.system.memfd import sealed_memfd
from dataplane.system.sockets import check_unix_path

# Room that is kept in a socket's path for generation and slot, so that it never becomes too long.
LARGEST_NUMBERS: Final = "9999999.999"


class Births:
    """The makings of generations."""

    def __init__(
        self, *, workers_dir: Path, listeners: Listeners, wanted: Wanted, clock: Clock
    ) -> None:
        self._workers_dir = workers_dir
        self._listeners = listeners
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
        try:
            if app.shared is None:
                app.shared = SharedPage(f"shared-{app.name}", os.getrandom(16))
            spec_fd = sealed_memfd(f"spec-{app.name}", image.spec.to_json())
        except OSError as error:
            self._listeners.release(lent)
            raise LaunchError(f"cannot make a memory file: {error.strerror}") from error
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
            seal_without=rolling.wish.seal_without,
            faults=rolling.wish.faults,
        )
        generation.slots = tuple(self._slot(generation, slot) for slot in range(image.spec.workers))
        app.generations.append(generation)
        return generation

    def bury(self, generation: AppGeneration) -> None:
        """Gives back all that it held. Every slot must have ended."""
        self._listeners.release(generation.lent)
        for slot in generation.slots:
            with contextlib.suppress(FileNotFoundError):
                slot.control_path.unlink()
        generation.close()

    def _slot(self, generation: AppGeneration, number: int) -> WorkerSlot:
        name = f"{generation.app.name}.{generation.number}.{number}"
        return WorkerSlot(
            generation=generation,
            number=number,
            control_path=self._workers_dir / f"{name}.sock",
            stats=StatsPage(f"stats-{name}"),
        )


def check_control_path(workers_dir: Path, app: AppName) -> None:
    """Raises `LaunchError` where no worker of this app could have a control socket."""
    try:
        check_unix_path(workers_dir / f"{app}.{LARGEST_NUMBERS}.sock")
    except LaunchError as error:
        raise LaunchError(f"{error}; name a shorter folder by --run-dir") from error
