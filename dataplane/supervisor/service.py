"""How the supervisor stands, told to the service manager that started it, if one did."""

from __future__ import annotations

import asyncio
from typing import Final

from dataplane.supervisor.fleet import Fleet
from dataplane.system.clock import Clock
from dataplane.system.notify import NotifySocket

SHARE: Final = 1 / 3  # of the time after which it would take us for dead, between two signs of life


class Service:
    """Frozen."""

    def __init__(self, notify: NotifySocket, fleet: Fleet, clock: Clock) -> None:
        self._notify, self._fleet, self._clock = notify, fleet, clock

    def ready(self) -> None:
        """All apps that could be started serve, or all that was to change has changed."""
        apps = self._fleet.apps.values()
        serving = sum(app.serving is not None for app in apps)
        self._notify.tell(READY=1, STATUS=f"{serving} of {len(apps)} apps serve")

    def reloading(self) -> None:
        """What the config folder says is being put into service."""
        now = int(self._clock.monotonic() * 1e6)
        self._notify.tell(RELOADING=1, MONOTONIC_USEC=now, STATUS="applying the config folder")

    def stopping(self) -> None:
        """No way back from here."""
        self._notify.tell(STOPPING=1, STATUS="draining all apps")

    async def watch(self) -> None:
        """Shows that this loop turns, until it is cancelled."""
        if self._notify.watchdog_seconds is None:
            return
        while True:
            self._notify.tell(WATCHDOG=1)
            await asyncio.sleep(self._notify.watchdog_seconds * SHARE)
