"""What this host is to run, over restarts: STATE_DIR/apps.json, replaced atomically.

An app's entry names the image that was last applied, the images that served before it, the number
of its last generation, and whether it was stopped. Config files are not read here or anywhere else
in the supervisor.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from dataplane.image.files import write_atomically
from dataplane.image.store import disk_failure
from dataplane.model.errors import ControlError
from dataplane.model.inputs import Inputs
from dataplane.model.names import AppName, Digest, Generation
from dataplane.model.spec import SpecError, decode
from dataplane.supervisor.events import Events

VERSION: Final = 1
BEFORE_IMAGES: Final = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WantedApp:
    image: Digest | None = None  # None: it never served
    before: tuple[Digest, ...] = ()  # what served before, the latest last
    generation: int = 0  # the last number given
    stopped: bool = False
    serving: int = 0  # the number of the generation that was switched to last; 0: none was yet
    # What its host names stood for when it served last, for a start while no resolver answers.
    addresses: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def inputs(self) -> Inputs:
        """What is known of its last inputs. Secrets are never written down."""
        return Inputs(addresses=self.addresses)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    version: int
    apps: dict[str, WantedApp]


class Wanted:
    """Mutable: the entries. Written by `keep`, whenever they have changed."""

    def __init__(self, path: Path, events: Events) -> None:
        self._path = path
        self._events = events
        self._apps = read_wanted(path)
        # Each entry as the file has it: a change of one app is not to cost what all of them cost.
        self._lines = {name: _line(name, entry) for name, entry in self._apps.items()}
        self._version = 0
        self._written = 0
        self._is_behind = False  # the file, since it could not be written
        self._changed = asyncio.Event()
        self._saved = asyncio.Condition()

    def apps(self) -> dict[AppName, WantedApp]:
        """A copy of all entries."""
        return dict(self._apps)

    def app(self, name: AppName) -> WantedApp:
        """The app's entry; an empty one if it has none."""
        return self._apps.get(name, WantedApp())

    def next_generation(self, name: AppName) -> Generation:
        """A number that no generation of this app has had."""
        number = self.app(name).generation + 1
        self._set(name, generation=number)
        return Generation(number)

    def used_generation(self, name: AppName, number: int) -> None:
        """A generation of this number is known to have been."""
        if number > self.app(name).generation:
            self._set(name, generation=number)

    def serves(
        self,
        name: AppName,
        image: Digest,
        addresses: tuple[tuple[str, tuple[str, ...]], ...] = (),
        *,
        generation: int = 0,
    ) -> None:
        """This is what the app runs from now on."""
        entry = self.app(name)
        before = entry.before
        if entry.image is not None and entry.image != image:
            before = (*before, entry.image)[-BEFORE_IMAGES:]
        self._set(
            name,
            image=image,
            before=before,
            stopped=False,
            serving=generation,
            addresses=addresses,
        )

    def recalled(
        self,
        name: AppName,
        image: Digest,
        addresses: tuple[tuple[str, tuple[str, ...]], ...] = (),
        *,
        generation: int = 0,
    ) -> None:
        """The app went back to what it ran before, since what came after it failed."""
        entry = self.app(name)
        before = entry.before
        if entry.image != image and before[-1:] == (image,):
            before = before[:-1]
        self._set(name, image=image, before=before, serving=generation, addresses=addresses)

    def stopped(self, name: AppName) -> None:
        """The app is not to run until somebody starts it."""
        self._set(name, stopped=True)

    def removed(self, name: AppName) -> None:
        """The app is not to run any more: as if it had never been, but for what it was."""
        entry = self.app(name)
        before = entry.before
        if entry.image is not None:
            before = (*before, entry.image)[-BEFORE_IMAGES:]
        self._set(name, image=None, before=before, stopped=False)

    async def keep(self) -> None:
        """Writes what has changed, until it is cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            version, text = self._version, self._text()
            try:
                await asyncio.to_thread(write_atomically, self._path, text, 0o600)
            except OSError as error:
                self._is_behind = True
                self._events.tell("state.not_written", error=disk_failure(self._path, error))
            else:
                self._is_behind = False
            async with self._saved:
                self._written = version
                self._saved.notify_all()

    async def saved(self) -> None:
        """Returns when all changes up to now are on disk, or were told not to be."""
        version = self._version
        async with self._saved:
            await self._saved.wait_for(lambda: self._written >= version)

    def _set(self, name: AppName, **changes: Any) -> None:
        entry = dataclasses.replace(self.app(name), **changes)
        if self._apps.get(name) == entry and not self._is_behind:
            return
        self._apps[name] = entry
        self._lines[name] = _line(name, entry)
        self._version += 1
        self._changed.set()

    def _text(self) -> bytes:
        apps = ",\n".join(line for _, line in sorted(self._lines.items()))
        return f'{{"version": {VERSION}, "apps": {{\n{apps}\n}}}}\n'.encode()


def _line(name: AppName, entry: WantedApp) -> str:
    return f"{json.dumps(name)}: {json.dumps(dataclasses.asdict(entry))}"


def read_wanted(path: Path) -> dict[AppName, WantedApp]:
    """The entries as they were last written.

    Raises `ControlError` for a file that is there and cannot be understood.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ControlError(f"cannot read {path}: {error.strerror}") from error
    try:
        file = decode(_File, json.loads(content), "apps.json")
    except (ValueError, SpecError) as error:
        raise ControlError(f"{path} is damaged: {error}") from error
    if file.version != VERSION:
        raise ControlError(f"{path} is of version {file.version}, this supervisor knows {VERSION}")
    return {AppName(name): entry for name, entry in file.apps.items()}
