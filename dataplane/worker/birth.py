"""What a worker is born with: the order to fork it, its descriptors, and the moment of the fork."""

from __future__ import annotations

import dataclasses

from dataplane.control.messages import Fork, Holdings, Seal
from dataplane.model.errors import ControlError

FIXED_FDS = 4  # spec, stats, channel, control; then shared, where it is


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """All of it. The descriptors are the worker's own."""

    fork: Fork
    spec_fd: int
    stats_fd: int
    channel_fd: int
    control_fd: int
    shared_fd: int | None
    listener_fds: tuple[int, ...]  # as fork.listeners names them
    log_fd: int | None  # the writing end of the access log's pipe
    inputs_fd: int | None  # to be looked into, and kept
    born: float  # of the monotonic clock

    @property
    def fds(self) -> tuple[int, ...]:
        """Every descriptor that is named here."""
        return (
            self.spec_fd,
            self.stats_fd,
            self.channel_fd,
            self.control_fd,
            *(() if self.shared_fd is None else (self.shared_fd,)),
            *self.listener_fds,
            *(() if self.log_fd is None else (self.log_fd,)),
            *(() if self.inputs_fd is None else (self.inputs_fd,)),
        )

    def holdings(self, pid: int, seal: Seal) -> tuple[Holdings, tuple[int, ...]]:
        """What the next supervisor is lent of it, and the descriptors in their order."""
        message = Holdings(
            pid=pid,
            seal=seal,
            born=self.born,
            shared=self.shared_fd is not None,
            log=self.log_fd is not None,
            has_inputs=self.inputs_fd is not None,
        )
        own = (self.channel_fd, self.control_fd)
        return message, tuple(fd for fd in self.fds if fd not in own)


def birth(fork: Fork, fds: tuple[int, ...], born: float) -> Birth:
    """Sorts the descriptors that came with a `Fork`. Raises `ControlError` if they do not fit."""
    first_listener = FIXED_FDS + fork.shared
    listeners_end = first_listener + len(fork.listeners)
    expected = listeners_end + fork.log + fork.has_inputs
    if len(fds) != expected:
        raise ControlError(f"{len(fds)} descriptors came with a fork, expected {expected}")
    return Birth(
        fork=fork,
        spec_fd=fds[0],
        stats_fd=fds[1],
        channel_fd=fds[2],
        control_fd=fds[3],
        shared_fd=fds[FIXED_FDS] if fork.shared else None,
        listener_fds=fds[first_listener:listeners_end],
        log_fd=fds[listeners_end] if fork.log else None,
        inputs_fd=fds[-1] if fork.has_inputs else None,
        born=born,
    )
