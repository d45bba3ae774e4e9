"""Which workers still run from files that the host has replaced since their zygote loaded them.

Such a worker serves on, with the hole that the host has closed: an operator has to see it. Looked
at when somebody asks, so nothing is done while nobody does.
"""

from __future__ import annotations

from dataplane.supervisor.fleet import App, WorkerSlot
from dataplane.system.mapped import MappedFiles


class Staleness:
    """One look at the disk: the workers of one zygote have one answer. Mutable: the answers."""

    def __init__(self) -> None:
        self._changed: dict[MappedFiles, tuple[str, ...]] = {}

    def files(self, slot: WorkerSlot) -> tuple[str, ...]:
        """What was replaced under the slot's process; nothing where there is no process."""
        mapped = slot.mapped
        if mapped is None or slot.pid is None:
            return ()
        if mapped not in self._changed:
            self._changed[mapped] = mapped.changed()
        return self._changed[mapped]

    def workers(self, app: App) -> int:
        """How many of the app's workers run from replaced files."""
        slots = (slot for generation in app.generations for slot in generation.slots)
        return sum(1 for slot in slots if self.files(slot))
