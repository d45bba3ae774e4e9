"""Which of an app's generations serves, where a supervisor died and the next one finds workers.

The former supervisor may have died at any step of a swap. What is known is what each living worker
says of itself, and which generation was written down as the one that was switched to. This module
decides what follows and does nothing itself.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from dataplane.model.names import Generation


class Told(enum.Enum):
    """What a worker says of itself; values are the words of its `Identity`."""

    READY = "ready"  # never told to serve
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"  # about to end


class Fate(enum.Enum):
    """What is to become of a generation."""

    SERVE = "serve"  # in all its slots: who drains is called back, who is missing is started
    DRAIN = "drain"  # its connections go to the one that serves, if there is one
    END = "end"  # it never served anybody


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A generation of which workers live. `slots`: how many its image asks for."""

    number: Generation
    slots: int
    told: tuple[Told, ...]  # of each living worker

    def has(self, told: Told) -> bool:
        """Whether any of its workers says so."""
        return told in self.told

    @property
    def is_whole(self) -> bool:
        """Whether every slot serves."""
        return self.told.count(Told.SERVING) == self.slots


def decide_fates(found: Sequence[Found], *, promoted: int, stopped: bool) -> dict[Generation, Fate]:
    """The fate of each generation; at most one serves.

    `promoted` is the number of the one that was last written down as what the app runs, 0 where
    none was; `stopped` says that the app is not to run.
    """
    serving = None if stopped else _choose(found, promoted)
    return {one.number: _fate(one, serving) for one in found}


def _choose(found: Sequence[Found], promoted: int) -> Found | None:
    # Nobody is told to drain before another was switched to, or the app was to end.
    undrained = [one for one in found if one.has(Told.SERVING) and not one.has(Told.DRAINING)]
    if undrained:
        return _prefer(undrained, promoted, latest=False)
    serving = [one for one in found if one.has(Told.SERVING)]
    if serving:
        return _prefer(serving, promoted, latest=True)
    # All of it was about to end: an app that is wanted goes on with what is left of it.
    draining = [one for one in found if one.has(Told.DRAINING)]
    return _prefer(draining, promoted, latest=True) if draining else None


def _prefer(some: Sequence[Found], promoted: int, *, latest: bool) -> Found:
    """The one that was switched to; else one that is whole; else by age."""
    named = [one for one in some if one.number == promoted]
    whole = [one for one in some if one.is_whole]
    among = named or whole or some
    return (max if latest else min)(among, key=lambda one: one.number)


def _fate(one: Found, serving: Found | None) -> Fate:
    if one is serving:
        return Fate.SERVE
    is_used = one.has(Told.SERVING) or one.has(Told.DRAINING)
    return Fate.DRAIN if is_used else Fate.END
