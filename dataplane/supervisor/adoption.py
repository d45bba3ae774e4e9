"""Adopts the workers of a supervisor that died: they serve on, and nobody notices.

Whoever is adopted has been asked who it is, was held against the kernel's word, its image and what
was written down, and lent all that its supervisor had had. Of an app's generations the table of
`model.adoption` says which serves. Who does not fit is ended, and its app started anew; who cannot
be asked, since it is of older code, is left alone and told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dataplane.control.messages import Drain, encode_message
from dataplane.image.store import Image
from dataplane.model.adoption import Fate, Found, Told, decide_fates
from dataplane.model.errors import ControlError, DataplaneError
from dataplane.model.names import APP_NAME, AppName, Digest, Generation
from dataplane.supervisor.events import Events
from dataplane.supervisor.former import Former
from dataplane.supervisor.history import NOT_RECORDED, History
from dataplane.supervisor.holdings import take_held, told_by
from dataplane.supervisor.images import Images
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.orphans import Orphan, is_worker
from dataplane.supervisor.placing import LeftGeneration, Placing
from dataplane.supervisor.rollouts import UNDONE
from dataplane.supervisor.wanted import Wanted
from dataplane.system.fds import send_with_fds
from dataplane.system.process import ended, signal_pidfd

# For a worker that cannot be adopted: its app waits for its end, since it holds the address.
REFUSED_DRAIN_SECONDS: Final = 5.0
KILL_SECONDS: Final = 2.0


class Adoption:
    """Done once, before anything is started or may be asked for. Mutable: who is to be ended."""

    def __init__(
        self,
        *,
        placing: Placing,
        images: Images,
        logs: Logs,
        wanted: Wanted,
        history: History,
        events: Events,
    ) -> None:
        self._placing, self._images, self._logs = placing, images, logs
        self._wanted, self._history, self._events = wanted, history, events
        self._refused: list[Orphan] = []

    async def adopt(self, orphans: Sequence[Orphan]) -> tuple[Former, ...]:
        """Returns those that are only to be told of. All others are settled then."""
        told_of: list[Former] = []
        apps: dict[str, list[Orphan]] = {}
        for orphan in orphans:
            if orphan.error is not None or orphan.identity is None:
                await self._turn_away(orphan)
            else:
                apps.setdefault(orphan.app, []).append(orphan)
        for name, some in apps.items():
            if any(orphan.holdings is None for orphan in some):
                told_of += [self._leave_alone(orphan) for orphan in some]
            elif APP_NAME.fullmatch(name) is None:
                for orphan in some:
                    self._refuse(orphan, "no app has such a name")
            else:
                await self._adopt_app(AppName(name), some)
        self._logs.take_over()
        await self._end_refused()
        return tuple(told_of)

    # --- one app ------------------------------------------------------------------------------

    async def _adopt_app(self, app: AppName, orphans: Sequence[Orphan]) -> None:
        found: list[LeftGeneration] = []
        numbers = sorted({orphan.generation for orphan in orphans})
        for number in numbers:
            some = [orphan for orphan in orphans if orphan.generation == number]
            left = await self._look_at(app, Generation(number), some)
            if left is not None:
                found.append(left)
        self._wanted.used_generation(app, numbers[-1])
        entry = self._wanted.app(app)
        fates = decide_fates(
            [
                Found(
                    number=left.number,
                    slots=left.image.spec.workers,
                    told=tuple(told for _, told in left.told),
                )
                for left in found
            ],
            promoted=entry.serving,
            stopped=entry.stopped or (entry.image is None and bool(entry.before)),
        )
        kept = []
        for left in found:
            if fates[left.number] is Fate.END:
                await self._end_unused(app, left)
            elif self._hold(left):
                kept.append(left)
        if not kept:
            return
        everyone = [held.orphan for left in kept for held in left.held]
        serving = [left for left in kept if fates[left.number] is Fate.SERVE]
        leaving = [left for left in kept if fates[left.number] is Fate.DRAIN]
        try:
            self._placing.place(app, serving[0] if serving else None, leaving)
        except DataplaneError as error:
            for orphan in everyone:
                self._refuse(orphan, str(error))
            return
        await self._record_cut_off(app, numbers)
        self._events.tell(
            "app.adopted",
            app=app,
            generation=serving[0].number if serving else None,
            workers=[held.orphan.pid for left in serving for held in left.held],
            draining=[left.number for left in leaving],
        )

    async def _record_cut_off(self, app: AppName, found: Sequence[int]) -> None:
        """Of generations that were begun and of which nothing is left: why they have no line."""
        entries = await self._history.entries(app, self._wanted.app(app).generation)
        for entry in entries:
            if entry["outcome"] == NOT_RECORDED and entry["time"] is None:  # at the end
                first, last = entry["generations"]
                for number in range(first, last + 1):
                    if number not in found:
                        self._history.undone(app, Generation(number), None, UNDONE)

    async def _look_at(
        self, app: AppName, number: Generation, orphans: Sequence[Orphan]
    ) -> LeftGeneration | None:
        """A generation's workers, as far as they fit; None where there is none."""
        identities = [orphan.identity for orphan in orphans if orphan.identity is not None]
        try:
            if len({identity.image for identity in identities}) > 1:
                raise ControlError(f"generation {number} runs more than one image")
            image, tree = await self._image(app, Digest(identities[0].image))
        except DataplaneError as error:
            for orphan in orphans:
                self._refuse(orphan, str(error))
            return None
        told: dict[int, tuple[Orphan, Told]] = {}
        for orphan in orphans:
            assert orphan.identity is not None
            try:
                if orphan.identity.slot in told:
                    raise ControlError(f"another one is in slot {orphan.identity.slot}")
                word = told_by(orphan, app, number, image)
            except DataplaneError as error:
                self._refuse(orphan, str(error))
            else:
                told[orphan.identity.slot] = (orphan, word)
        if not told:
            return None
        return LeftGeneration(number=number, image=image, tree=tree, told=list(told.values()))

    async def _image(self, app: AppName, digest: Digest) -> tuple[Image, Path]:
        """Proven as before any start. Raises `ImageError`."""
        image = self._images.image(app, digest)
        return image, await self._images.unpack(image)

    def _hold(self, left: LeftGeneration) -> bool:
        """Takes what its workers lent; those that do not fit are refused."""
        for orphan, told in left.told:
            try:
                left.held.append(take_held(orphan, told, left.image))
            except DataplaneError as error:
                self._refuse(orphan, str(error))
        return bool(left.held)

    # --- who is not adopted -------------------------------------------------------------------

    async def _end_unused(self, app: AppName, left: LeftGeneration) -> None:
        """It never served: a green whose supervisor died before the switch, or one that ends."""
        for orphan, told in left.told:
            with contextlib.suppress(OSError):
                orphan.path.unlink()
            await self._kill(orphan)
            self._events.tell(
                "worker.ended", app=app, generation=left.number, pid=orphan.pid, was=told.value
            )
        if any(told is Told.READY for _, told in left.told):
            self._history.undone(app, left.number, left.image, UNDONE)

    async def _turn_away(self, orphan: Orphan) -> None:
        """It gave no answer. A worker that hangs is killed, and another takes its place; whatever
        is no worker is left alone."""
        if is_worker(orphan):
            reason = orphan.error or "it does not answer"
            self._events.tell("worker.hung", app=orphan.app, pid=orphan.pid, error=reason)
            with contextlib.suppress(OSError):
                orphan.path.unlink()
            await self._kill(orphan)
            return
        reason = orphan.error or "it gave no answer, and is no worker of ours"
        self._events.tell("worker.refused", app=orphan.app, pid=orphan.pid, error=reason)
        orphan.close()

    def _leave_alone(self, orphan: Orphan) -> Former:
        self._events.tell(
            "worker.former", app=orphan.app, generation=orphan.generation, pid=orphan.pid
        )
        self._wanted.used_generation(AppName(orphan.app), orphan.generation)
        orphan.close()
        return Former(
            path=orphan.path,
            pid=orphan.pid,
            app=orphan.app,
            generation=orphan.generation,
            identity=orphan.identity,
        )

    def _refuse(self, orphan: Orphan, reason: str) -> None:
        self._events.tell(
            "worker.refused",
            app=orphan.app,
            generation=orphan.generation,
            pid=orphan.pid,
            error=reason,
        )
        with contextlib.suppress(OSError):  # whoever is next in its slot makes it anew
            orphan.path.unlink()
        self._refused.append(orphan)

    async def _end_refused(self) -> None:
        """All at once, and waited for: their apps cannot be started while they hold an address."""
        async with asyncio.TaskGroup() as tasks:
            for orphan in self._refused:
                tasks.create_task(self._see_off(orphan))
        self._refused.clear()

    async def _see_off(self, orphan: Orphan) -> None:
        """Drains and ends it, if it is a worker at all; nobody else is to reach it meanwhile."""
        if not is_worker(orphan):
            orphan.close()
            return
        drain = Drain(deadline_ms=round(REFUSED_DRAIN_SECONDS * 1000))
        with contextlib.suppress(OSError, TimeoutError):
            send_with_fds(orphan.sock, encode_message(drain), ())
            async with asyncio.timeout(REFUSED_DRAIN_SECONDS + KILL_SECONDS):
                await ended(orphan.pidfd)
        await self._kill(orphan)

    async def _kill(self, orphan: Orphan) -> None:
        signal_pidfd(orphan.pidfd, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS):
                await ended(orphan.pidfd)
        orphan.close()
