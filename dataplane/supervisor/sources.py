"""Where a generation's inputs come from: secrets from files and variables, addresses by name.

Gathered once, before a generation is made; whatever becomes of a file or a name afterwards, a
restart after a crash gets what its generation began with. A resolver that does not answer takes
nothing away: what was known last goes on being used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Final, Protocol

from dataplane.model.errors import DataplaneError, LaunchError
from dataplane.model.inputs import (
    MAX_INPUTS_BYTES,
    NO_INPUTS,
    VARIABLE_REFERENCE,
    Inputs,
    InputsError,
    filled,
    host_names,
    references,
)
from dataplane.model.names import AppName
from dataplane.model.spec import AppSpec
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, Wish
from dataplane.supervisor.secrets import Secrets
from dataplane.supervisor.wanted import Wanted

_NAMES_AT_ONCE: Final = 16


class Names(Protocol):
    """Who knows what a host name stands for now."""

    async def addresses(self, name: str) -> tuple[str, ...]:
        """Sorted, at least one. Raises `DataplaneError` where that is not known."""


class Sources:
    """Gathers inputs."""

    def __init__(
        self,
        *,
        secrets: Secrets,
        names: Names,
        wanted: Wanted,
        events: Events,
        variables: Mapping[str, str],
    ) -> None:
        """`variables`: the supervisor's own, for a secret that nobody else has given."""
        self._secrets, self._names = secrets, names
        self._wanted, self._events = wanted, events
        self._variables = variables

    async def gather(self, app: App, spec: AppSpec, wish: Wish) -> Inputs:
        """What a generation of this spec is to start with. Raises `LaunchError`.

        A variable that the asker does not give keeps the content that serves, a name that cannot be
        resolved the addresses that served last.
        """
        if not host_names(spec) and not references(spec):
            return NO_INPUTS
        former = app.serving.inputs if app.serving else self._wanted.app(app.name).inputs()
        if wish.inputs is not None:
            inputs = wish.inputs
        else:
            addresses = await self._addresses(app.name, host_names(spec), dict(former.addresses))
            secrets = await asyncio.to_thread(
                self._contents, references(spec), dict(wish.variables), dict(former.secrets)
            )
            inputs = Inputs(addresses=addresses, secrets=secrets)
        try:
            filled(spec, inputs)
        except InputsError as error:
            raise LaunchError(f"{app.name}: {error}") from error
        if len(inputs.to_json()) > MAX_INPUTS_BYTES:
            raise LaunchError(f"{app.name}: its secrets have more than {MAX_INPUTS_BYTES} bytes")
        return inputs

    def protect(self, inputs: Inputs) -> None:
        """To be called for inputs that came from elsewhere: secrets are in this process now."""
        if inputs.secrets:
            self._secrets.protect()

    def digests(self, inputs: Inputs) -> tuple[tuple[str, str], ...]:
        """The secrets' names with keyed digests of their contents. Raises `LaunchError`."""
        return self._secrets.digests(inputs.secrets)

    def identity(self, inputs: Inputs) -> str:
        """Equal for equal inputs on this host, and it tells nothing of them."""
        told = json.dumps([inputs.addresses, self.digests(inputs)])
        return f"sha256:{sha256(told.encode()).hexdigest()}"

    async def _addresses(
        self, app: AppName, names: tuple[str, ...], former: Mapping[str, tuple[str, ...]]
    ) -> tuple[tuple[str, tuple[str, ...]], ...]:
        turns = asyncio.Semaphore(_NAMES_AT_ONCE)

        async def one(name: str) -> tuple[str, ...] | LaunchError:
            async with turns:
                try:
                    return await self._names.addresses(name)
                except DataplaneError as error:
                    return self._kept(app, name, former.get(name), error)

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(one(name)) for name in names]
        found = []
        for name, task in zip(names, asked, strict=True):
            addresses = task.result()
            if isinstance(addresses, LaunchError):
                raise addresses
            found.append((name, addresses))
        return tuple(found)

    def _kept(
        self, app: AppName, name: str, addresses: tuple[str, ...] | None, error: DataplaneError
    ) -> tuple[str, ...] | LaunchError:
        if addresses is None:
            return LaunchError(f"{app}: {error}")
        self._events.tell("names.kept", app=app, name=name, addresses=addresses, error=str(error))
        return addresses

    def _contents(
        self, names: tuple[str, ...], given: Mapping[str, str], former: Mapping[str, str]
    ) -> tuple[tuple[str, str], ...]:
        """In a thread."""
        contents = []
        for reference in names:
            content = None
            if _variable(reference) is not None and _variable(reference) not in given:
                content = former.get(reference)
            if content is None:
                content = self._secrets.read(reference, {**self._variables, **given})
            contents.append((reference, content))
        return tuple(contents)


def _variable(reference: str) -> str | None:
    if not reference.startswith(VARIABLE_REFERENCE):
        return None
    return reference.removeprefix(VARIABLE_REFERENCE)
