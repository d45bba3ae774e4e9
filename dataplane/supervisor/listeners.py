"""Listening sockets: one SO_REUSEPORT group for each address, held here and lent to workers.

A group only grows while its address is held, and is closed when no generation uses it any more; a
swap never closes or binds anew a socket that a generation which serves was lent.
"""

from __future__ import annotations

import dataclasses
import socket
from typing import TypeAlias

from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.model.spec import AppSpec, ListenerSpec
from dataplane.system.sockets import bind_another, bind_first, bound_address, start_listening

# A fixed address is what it is; a free port (0) belongs to the listener that took it.
_Key: TypeAlias = tuple[str, str, str]


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """Mutable. The sockets of one address, and how many of them each generation was lent."""

    app: AppName
    address: str
    sockets: list[socket.socket]
    lent: list[int] = dataclasses.field(default_factory=list)

    def grow(self, count: int) -> None:
        """Sockets for `count` slots at least. Raises `LaunchError`.

        New ones take no connections until somebody is ready to accept them.
        """
        while len(self.sockets) < count:
            self.sockets.append(bind_another(self.sockets[0], listen=False))

    def shrink(self) -> None:
        """Closes what was grown for a generation that failed: nobody who is left could read it."""
        keep = max(self.lent, default=0)
        for sock in self.sockets[keep:]:
            sock.close()
        del self.sockets[keep:]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """What one generation listens on. To be given back by `Listeners.release`."""

    shares: tuple[tuple[_Key, int], ...]
    sockets: tuple[tuple[str, socket.socket], ...]  # (listener, socket), in each group's order
    addresses: tuple[tuple[str, str], ...]  # (listener, where it is bound)

    def start(self) -> None:
        """From now on every socket takes connections. Raises `LaunchError`."""
        for _, sock in self.sockets:
            start_listening(sock)

    def to_slot(self, slot: int, slots: int) -> tuple[tuple[str, int], ...]:
        """(listener, descriptor) for one slot of so many: no socket is left without a reader."""
        lent: list[tuple[str, int]] = []
        seen: dict[str, int] = {}
        for name, sock in self.sockets:
            index = seen.get(name, 0)
            seen[name] = index + 1
            if index % slots == slot:
                lent.append((name, sock.fileno()))
        return tuple(lent)


class Listeners:
    """Mutable. All groups, by address."""

    def __init__(self) -> None:
        self._groups: dict[_Key, Group] = {}

    def acquire(self, app: AppName, spec: AppSpec) -> Lent:
        """The sockets of every address of `spec`. All or none: raises `LaunchError`."""
        shares: list[tuple[_Key, int]] = []
        sockets: list[tuple[str, socket.socket]] = []
        addresses: list[tuple[str, str]] = []
        try:
            for listener in spec.listeners:
                key, group = self._group(app, listener)
                try:
                    group.grow(spec.workers)
                finally:
                    group.lent.append(len(group.sockets))
                    shares.append((key, len(group.sockets)))
                sockets += [(listener.name, sock) for sock in group.sockets]
                addresses.append((listener.name, group.address))
        except LaunchError:
            self._give_back(tuple(shares))
            raise
        return Lent(shares=tuple(shares), sockets=tuple(sockets), addresses=tuple(addresses))

    def release(self, lent: Lent) -> None:
        """A generation is gone: addresses that nobody else uses are closed."""
        self._give_back(lent.shares)

    def close(self) -> None:
        """Closes all of them: the supervisor ends."""
        for group in self._groups.values():
            group.lent.clear()
            group.shrink()
        self._groups.clear()

    def _group(self, app: AppName, listener: ListenerSpec) -> tuple[_Key, Group]:
        free_port = listener.bind.endswith(":0")
        key = (listener.bind, app, listener.name) if free_port else (listener.bind, "", "")
        group = self._groups.get(key)
        if group is None:
            first = bind_first(listener.bind)
            group = Group(app=app, address=bound_address(first), sockets=[first])
            self._groups[key] = group
        elif group.app != app:
            raise LaunchError(f"cannot listen on {listener.bind}: the app {group.app} already does")
        return key, group

    def _give_back(self, shares: tuple[tuple[_Key, int], ...]) -> None:
        for key, count in shares:
            group = self._groups[key]
            group.lent.remove(count)
            group.shrink()
            if not group.lent:
                del self._groups[key]
