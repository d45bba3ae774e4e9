"""Listening sockets: one SO_REUSEPORT group for each address, held here and lent to workers.

A group only grows while its address is held, and is closed when no generation uses it any more; a
swap never closes or binds anew a socket that a generation which serves was lent. A UNIX socket has
no such group: all slots accept from the one that there is.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.model.spec import AppSpec, ListenerSpec
from dataplane.system.sockets import (
    bind_another,
    bind_first,
    bound_address,
    is_dual_stack,
    parse_bind,
    start_listening,
)
from dataplane.system.unix_listener import UNIX, SocketAccess, SocketFile, bind_unix, known_file

# A fixed address is what it is; a free port (0) belongs to the listener that took it.
Key: TypeAlias = tuple[str, str, str]


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """Mutable. The sockets of one address, and how many of them each generation was lent."""

    app: AppName
    address: str
    sockets: list[socket.socket]
    file: SocketFile | None = None  # of a UNIX socket
    lent: list[int] = dataclasses.field(default_factory=list)

    def grow(self, count: int) -> None:
        """Sockets for `count` slots at least. Raises `LaunchError`.

        New ones take no connections until somebody is ready to accept them.
        """
        while self.file is None and len(self.sockets) < count:
            self.sockets.append(bind_another(self.sockets[0], listen=False))

    def shrink(self) -> None:
        """Closes what was grown for a generation that failed: nobody who is left could read it."""
        keep = max(self.lent, default=0)
        if self.file is not None and not keep:
            self.file.remove()
        for sock in self.sockets[keep:]:
            sock.close()
        del self.sockets[keep:]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """What one generation listens on. To be given back by `Listeners.release`."""

    shares: tuple[tuple[Key, int], ...]
    sockets: tuple[tuple[str, socket.socket], ...]  # (listener, socket), in each group's order
    addresses: tuple[tuple[str, str], ...]  # (listener, where it is bound)
    files: tuple[tuple[str, SocketFile, SocketAccess], ...] = ()  # of the listeners of UNIX sockets

    def start(self) -> None:
        """From now on every socket takes connections, of whom it is to. Raises `LaunchError`."""
        for _, file, access in self.files:
            file.grant(access)
        for _, sock in self.sockets:
            start_listening(sock)

    def to_slot(self, slot: int, slots: int) -> tuple[tuple[str, int], ...]:
        """(listener, descriptor) for one slot of so many: no socket is left without a reader."""
        lent: list[tuple[str, int]] = []
        seen: dict[str, int] = {}
        shared = {name for name, _, _ in self.files}
        for name, sock in self.sockets:
            index = seen.get(name, 0)
            seen[name] = index + 1
            if index % slots == slot or name in shared:
                lent.append((name, sock.fileno()))
        return tuple(lent)


class Listeners:
    """Mutable. All groups, by address."""

    def __init__(self) -> None:
        self._groups: dict[Key, Group] = {}

    def acquire(self, app: AppName, spec: AppSpec) -> Lent:
        """The sockets of every address of `spec`. All or none: raises `LaunchError`."""
        shares: list[tuple[Key, int]] = []
        sockets: list[tuple[str, socket.socket]] = []
        addresses: list[tuple[str, str]] = []
        files: list[tuple[str, SocketFile, SocketAccess]] = []
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
                if group.file is not None:
                    files.append((listener.name, group.file, _access(listener)))
        except LaunchError:
            self._give_back(tuple(shares))
            raise
        return Lent(
            shares=tuple(shares),
            sockets=tuple(sockets),
            addresses=tuple(addresses),
            files=tuple(files),
        )

    def adopt(
        self, app: AppName, listener: ListenerSpec, found: Sequence[socket.socket | None]
    ) -> None:
        """The sockets of an address that a former supervisor bound: nothing is bound that is there
        already. Whoever uses them is to `acquire` them next.

        They are in their group's order, None where one was lost with its process: another takes its
        place. Raises `LaunchError`, and then they stay the caller's.
        """
        key = self.key(app, listener)
        if key in self._groups:
            raise LaunchError(f"cannot listen on {listener.bind}: it is held already")
        self._groups[key] = _adopted(app, listener, found)

    def forget(self, app: AppName) -> None:
        """Lets go of what was adopted for an app and is used by none of its generations."""
        for key, group in list(self._groups.items()):
            if group.app == app and not group.lent:
                for sock in group.sockets:
                    sock.close()
                del self._groups[key]

    @staticmethod
    def key(app: AppName, listener: ListenerSpec) -> Key:
        """What an address is known by: listeners of one key share their sockets."""
        free_port = listener.bind.endswith(":0") and not listener.bind.startswith(UNIX)
        stacks = "dual stack" if listener.dual_stack else ""
        return (listener.bind, app, listener.name) if free_port else (listener.bind, stacks, "")

    def release(self, lent: Lent) -> None:
        """A generation is gone: addresses that nobody else uses are closed.

        One whose end is told after `close`, as that of a fork which failed so late, holds none.
        """
        self._give_back(lent.shares)

    def close(self) -> None:
        """Closes all of them: the supervisor ends."""
        for group in self._groups.values():
            group.lent.clear()
            group.shrink()
        self._groups.clear()

    def _group(self, app: AppName, listener: ListenerSpec) -> tuple[Key, Group]:
        key = self.key(app, listener)
        group = self._groups.get(key)
        if group is None:
            is_unix = listener.bind.startswith(UNIX)
            group = _bound(app, listener) if not is_unix else _bound_file(app, listener)
            self._groups[key] = group
        elif group.app != app:
            raise LaunchError(f"cannot listen on {listener.bind}: the app {group.app} already does")
        return key, group

    def _give_back(self, shares: tuple[tuple[Key, int], ...]) -> None:
        for key, count in shares:
            group = self._groups.get(key)
            if group is None or count not in group.lent:
                continue
            group.lent.remove(count)
            group.shrink()
            if not group.lent:
                del self._groups[key]


def check_adopted(listener: ListenerSpec, sock: socket.socket) -> None:
    """Raises `LaunchError` for a socket that is not what this listener would have bound."""
    if sock.type != socket.SOCK_STREAM:
        raise LaunchError(f"the socket of {listener.bind} is no stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise LaunchError(f"the socket of {listener.bind} does not listen")
    bound = bound_address(sock)
    if listener.bind.startswith(UNIX):
        if bound != listener.bind:
            raise LaunchError(f"the socket of {listener.bind} is bound to {bound}")
        return
    host, port = parse_bind(listener.bind)
    if sock.family == socket.AF_UNIX:
        raise LaunchError(f"the socket of {listener.bind} is bound to {bound}")
    bound_host, bound_port = sock.getsockname()[:2]
    if ip_address(bound_host) != ip_address(host) or port not in (0, bound_port):
        raise LaunchError(f"the socket of {listener.bind} is bound to {bound}")
    if is_dual_stack(sock) != listener.dual_stack:
        raise LaunchError(f"the socket of {listener.bind} takes other addresses than it says")


def _adopted(app: AppName, listener: ListenerSpec, found: Sequence[socket.socket | None]) -> Group:
    known = [sock for sock in found if sock is not None]
    if len({bound_address(sock) for sock in known}) != 1:
        raise LaunchError(f"the sockets of {listener.bind} are not bound to one address")
    first = known[0]
    if listener.bind.startswith(UNIX):
        path = Path(listener.bind.removeprefix(UNIX))
        file = known_file(path)
        return Group(app=app, address=listener.bind, sockets=[first], file=file)
    made: list[socket.socket] = []
    try:
        for sock in found:
            if sock is None:
                made.append(bind_another(first, listen=False))
    except LaunchError:
        for sock in made:
            sock.close()
        raise
    fresh = iter(made)
    sockets = [next(fresh) if sock is None else sock for sock in found]
    return Group(app=app, address=bound_address(first), sockets=sockets)


def _bound(app: AppName, listener: ListenerSpec) -> Group:
    first = bind_first(listener.bind, dual_stack=listener.dual_stack)
    return Group(app=app, address=bound_address(first), sockets=[first])


def _bound_file(app: AppName, listener: ListenerSpec) -> Group:
    sock, file = bind_unix(Path(listener.bind.removeprefix(UNIX)), _access(listener))
    return Group(app=app, address=listener.bind, sockets=[sock], file=file)


def _access(listener: ListenerSpec) -> SocketAccess:
    return SocketAccess(mode=int(listener.mode, 8), owner=listener.owner, group=listener.group)
