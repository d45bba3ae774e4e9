"""What an orphaned worker lent, held against what its image says it must be. Nothing is kept here.

A descriptor may be anything until it was looked at: so each is asked of the kernel for what it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterable
from typing import Final

from dataplane.control.messages import Identity, Seal
from dataplane.control.stats import StatsPage
from dataplane.image.store import Image
from dataplane.model.adoption import Told
from dataplane.model.errors import ControlError, LaunchError
from dataplane.model.inputs import MAX_INPUTS_BYTES, NO_INPUTS, Inputs, InputsError, filled
from dataplane.model.names import AppName, Generation
from dataplane.model.spec import AppSpec, SpecError
from dataplane.supervisor.listeners import check_adopted
from dataplane.supervisor.orphans import Orphan
from dataplane.system.fds import close_fds
from dataplane.system.memfd import read_sealed
from dataplane.system.once import look_into

_WORDS: Final = {told.value: told for told in Told}


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """Mutable: what is left of what was lent. A worker that may be adopted, as far as it goes."""

    orphan: Orphan
    identity: Identity
    told: Told
    seal: Seal
    born: float  # of the monotonic clock
    spec_fd: int
    stats: StatsPage
    shared_fd: int
    sockets: list[tuple[str, socket.socket]]  # by listener, in the order they were lent
    log_fd: int | None
    inputs: Inputs

    @property
    def slot(self) -> int:
        return self.identity.slot

    def close(self) -> None:
        """Gives back all that was lent. Socket and pidfd stay the orphan's."""
        os.close(self.stats.fd)
        self.stats.close()
        close_fds(fd for fd in (self.spec_fd, self.shared_fd, self.log_fd) if fd is not None)
        for _, sock in self.sockets:
            sock.close()


def told_by(orphan: Orphan, app: AppName, generation: Generation, image: Image) -> Told:
    """How it stands, by its own word. Raises `ControlError` where that does not fit its image."""
    identity = orphan.identity
    assert identity is not None
    told = _WORDS.get(identity.state)
    if told is None:
        raise ControlError(f"it says to be {identity.state!r}")
    if orphan.path.name != f"{app}.{generation}.{identity.slot}.sock":
        raise ControlError(f"{orphan.path.name} is another worker's control socket")
    if not 0 <= identity.slot < image.spec.workers:
        raise ControlError(f"its image has no slot {identity.slot}")
    missing = {listener.name for listener in image.spec.listeners} ^ set(identity.listeners)
    if missing:
        raise ControlError(f"its listeners are not its image's: {', '.join(sorted(missing))}")
    return told


def take_held(orphan: Orphan, told: Told, image: Image) -> Held:
    """Sorts and checks what it lent. Raises `ControlError`; then all stays the orphan's."""
    identity, holdings = orphan.identity, orphan.holdings
    assert identity is not None
    assert holdings is not None
    count = len(identity.listeners)
    expected = 2 + holdings.shared + count + holdings.log + holdings.has_inputs
    if len(orphan.fds) != expected:
        raise ControlError(f"it lent {len(orphan.fds)} descriptors, expected {expected}")
    if not holdings.shared:
        raise ControlError("it has no memory file of its app")
    spec_fd, stats_fd, shared_fd = orphan.fds[:3]
    listener_fds, rest = orphan.fds[3 : 3 + count], list(orphan.fds[3 + count :])
    log_fd = rest.pop(0) if holdings.log else None
    with contextlib.ExitStack() as undo:
        try:
            _check_spec(spec_fd, image)
            if (log_fd is not None) != (image.spec.access_log.format != "none"):
                raise ControlError("its access log is not its image's")
            inputs = _inputs(rest[0] if rest else None, image.spec)
            sockets = _sockets(zip(identity.listeners, listener_fds, strict=True), undo)
            for name, sock in sockets:
                listener = next(one for one in image.spec.listeners if one.name == name)
                check_adopted(listener, sock)
            stats = StatsPage(
                "",
                upstreams=len(image.spec.upstreams),
                routes=len(image.spec.routes),
                lent=stats_fd,
            )
        except (LaunchError, SpecError, InputsError, OSError) as error:
            raise ControlError(str(error)) from error
        undo.pop_all()
    close_fds(rest)
    orphan.fds = ()
    return Held(
        orphan=orphan,
        identity=identity,
        told=told,
        seal=holdings.seal,
        born=holdings.born,
        spec_fd=spec_fd,
        stats=stats,
        shared_fd=shared_fd,
        sockets=sockets,
        log_fd=log_fd,
        inputs=inputs,
    )


def _check_spec(fd: int, image: Image) -> None:
    if AppSpec.from_json(read_sealed(fd)) != image.spec:
        raise ControlError("what it was given is not what its image says")


def _inputs(fd: int | None, spec: AppSpec) -> Inputs:
    inputs = NO_INPUTS
    if fd is not None:
        held = socket.socket(fileno=fd)
        try:
            inputs = Inputs.from_json(look_into(held, MAX_INPUTS_BYTES))
        finally:
            held.detach()
    filled(spec, inputs)
    return inputs


def _sockets(
    lent: Iterable[tuple[str, int]], undo: contextlib.ExitStack
) -> list[tuple[str, socket.socket]]:
    sockets = []
    for name, fd in lent:
        sock = socket.socket(fileno=fd)
        undo.callback(sock.detach)  # the descriptor stays whose it was
        sock.setblocking(False)
        sockets.append((name, sock))
    return sockets
