"""What a service manager is told: sd_notify(3)'s protocol, a datagram for each piece of news.

Nothing is told where no manager asked for it. A manager that does not listen stops nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Mapping
from typing import Final, Self

# Meant for one process: its children are not to speak for it.
SERVICE_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_FLAGS: Final = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotifySocket:
    """Where it listens, and how often it wants to hear that we live."""

    address: str | None  # of a datagram socket: a path, or "@" and an abstract name; None: nobody
    watchdog_seconds: float | None  # None: it does not watch

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pid: int) -> Self:
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say (sd_watchdog_enabled(3))."""
        address = environment.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            address = None  # another kind of socket: only AF_UNIX is spoken here
        return cls(address=address, watchdog_seconds=_watchdog(environment, pid))

    def tell(self, **news: str | int) -> None:
        """Words of sd_notify(3), such as READY=1. Never waits."""
        if self.address is None:
            return
        text = "\n".join(f"{name}={value}" for name, value in news.items())
        path = self.address
        if path.startswith("@"):
            path = "\0" + path[1:]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, _FLAGS) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), path)


NO_NOTIFY_SOCKET: Final = NotifySocket(address=None, watchdog_seconds=None)


def _watchdog(environment: Mapping[str, str], pid: int) -> float | None:
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        watched = int(environment.get("WATCHDOG_PID", pid))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and watched == pid else None
