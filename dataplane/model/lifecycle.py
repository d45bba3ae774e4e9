"""The life of one worker slot: a table, and the rule of how long a restart waits.

A slot is one place in a generation; the process in it may die and be forked anew. This module
decides what follows from what and does nothing itself; it must never know a pid, a descriptor or
the time of day.
"""

from __future__ import annotations

import enum
from typing import Final

from dataplane.model.machine import Transitions


class Life(enum.Enum):
    """Values are the words that `ps` shows."""

    FORKING = "forking"  # asked of the zygote, for the first time
    BORN = "born"  # a process, not ready yet
    READY = "ready"  # sealed and proven, by its own word; accepts nothing yet
    OPENING = "opening"  # told to serve
    SERVING = "serving"
    DRAINING = "draining"  # accepts no more; moves or finishes what is open
    ENDING = "ending"  # told to cut what is left and go
    DYING = "dying"  # killed; nobody wants it back
    ABANDONED = "abandoned"  # a fork is under way that nobody wants any more
    CUT = "cut"  # killed because it hung; another takes its place
    PAUSING = "restarting"  # waits for its turn to be forked anew
    REFORKING = "reforking"  # asked of the zygote again
    REBORN = "reborn"  # a new process for a slot that served before: serves as soon as it is ready
    REOPENING = "reopening"  # told to serve (again)
    FAILING = "failing"  # killed before it was ever ready
    FAILED = "failed"  # gone before it ever served
    GONE = "gone"  # ended as wanted


class Event(enum.Enum):
    # from the zygote
    FORKED = "forked"
    FORK_FAILED = "fork failed"
    # from the worker
    TOLD_READY = "told ready"
    TOLD_FAILED = "told failed"
    TOLD_SERVING = "told serving"
    # from the kernel and the clock
    DIED = "died"
    HUNG = "hung"
    PAUSE_OVER = "pause over"
    # from a rollout
    SERVE = "serve"
    DRAIN = "drain"
    RECALL = "recall"  # it drained or went, and is wanted after all
    END = "end"
    KILL = "kill"


class Action(enum.Enum):
    FORK = "fork"
    SEND_SERVE = "send serve"
    SEND_DRAIN = "send drain"
    SEND_END = "send end"
    KILL_PROCESS = "kill process"
    START_PAUSE = "start pause"
    STOP_PAUSE = "stop pause"
    # To the rollouts that watch this slot's generation.
    TELL_READY = "tell ready"
    TELL_SERVING = "tell serving"
    TELL_DIED = "tell died"  # while it served; a restart follows unless somebody says otherwise
    TELL_FAILED = "tell failed"
    TELL_GONE = "tell gone"


START: Final = Life.FORKING
ENDS: Final = frozenset({Life.FAILED, Life.GONE})
# A slot in one of these has, or soon has, a process that the supervisor watches.
ALIVE: Final = frozenset(Life) - ENDS - {Life.FORKING, Life.ABANDONED, Life.PAUSING, Life.REFORKING}
# In these the process itself is expected to show a heartbeat.
BEATING: Final = frozenset({Life.SERVING, Life.DRAINING, Life.OPENING, Life.REOPENING, Life.REBORN})

_GO: Final = (Action.TELL_GONE,)
_LOST: Final = (Action.TELL_DIED, Action.START_PAUSE)

TRANSITIONS: Final[Transitions[Life, Event, Action]] = {
    (Life.FORKING, Event.FORKED): (Life.BORN, ()),
    (Life.FORKING, Event.FORK_FAILED): (Life.FAILED, (Action.TELL_FAILED,)),
    (Life.FORKING, Event.END): (Life.ABANDONED, ()),
    (Life.FORKING, Event.KILL): (Life.ABANDONED, ()),
    #
    (Life.ABANDONED, Event.FORKED): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.ABANDONED, Event.FORK_FAILED): (Life.GONE, _GO),
    (Life.ABANDONED, Event.RECALL): (Life.REFORKING, ()),
    (Life.ABANDONED, Event.DRAIN): (Life.ABANDONED, ()),
    (Life.ABANDONED, Event.END): (Life.ABANDONED, ()),
    (Life.ABANDONED, Event.KILL): (Life.ABANDONED, ()),
    #
    (Life.BORN, Event.TOLD_READY): (Life.READY, (Action.TELL_READY,)),
    (Life.BORN, Event.TOLD_FAILED): (Life.FAILING, (Action.KILL_PROCESS,)),
    (Life.BORN, Event.DIED): (Life.FAILED, (Action.TELL_FAILED,)),
    (Life.BORN, Event.END): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.BORN, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    (Life.FAILING, Event.DIED): (Life.FAILED, (Action.TELL_FAILED,)),
    (Life.FAILING, Event.TOLD_READY): (Life.FAILING, ()),
    (Life.FAILING, Event.TOLD_SERVING): (Life.FAILING, ()),
    (Life.FAILING, Event.TOLD_FAILED): (Life.FAILING, ()),
    (Life.FAILING, Event.END): (Life.DYING, ()),
    (Life.FAILING, Event.KILL): (Life.DYING, ()),
    #
    (Life.READY, Event.SERVE): (Life.OPENING, (Action.SEND_SERVE,)),
    (Life.READY, Event.TOLD_FAILED): (Life.FAILING, (Action.KILL_PROCESS,)),
    (Life.READY, Event.DIED): (Life.FAILED, (Action.TELL_FAILED,)),
    (Life.READY, Event.END): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.READY, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    (Life.OPENING, Event.TOLD_SERVING): (Life.SERVING, (Action.TELL_SERVING,)),
    (Life.OPENING, Event.TOLD_FAILED): (Life.FAILING, (Action.KILL_PROCESS,)),
    (Life.OPENING, Event.HUNG): (Life.FAILING, (Action.KILL_PROCESS,)),
    (Life.OPENING, Event.DIED): (Life.FAILED, (Action.TELL_FAILED,)),
    (Life.OPENING, Event.END): (Life.ENDING, (Action.SEND_END,)),
    (Life.OPENING, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    (Life.SERVING, Event.DRAIN): (Life.DRAINING, (Action.SEND_DRAIN,)),
    (Life.SERVING, Event.DIED): (Life.PAUSING, _LOST),
    (Life.SERVING, Event.TOLD_SERVING): (Life.SERVING, ()),
    (Life.SERVING, Event.TOLD_FAILED): (Life.CUT, (Action.KILL_PROCESS,)),
    (Life.SERVING, Event.HUNG): (Life.CUT, (Action.KILL_PROCESS,)),
    (Life.SERVING, Event.RECALL): (Life.SERVING, (Action.TELL_SERVING,)),
    (Life.SERVING, Event.END): (Life.ENDING, (Action.SEND_END,)),
    (Life.SERVING, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    (Life.DRAINING, Event.DIED): (Life.GONE, _GO),
    (Life.DRAINING, Event.TOLD_SERVING): (Life.DRAINING, ()),  # from before the drain
    (Life.DRAINING, Event.TOLD_FAILED): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.DRAINING, Event.HUNG): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.DRAINING, Event.RECALL): (Life.REOPENING, (Action.SEND_SERVE,)),
    (Life.DRAINING, Event.DRAIN): (Life.DRAINING, ()),
    (Life.DRAINING, Event.END): (Life.ENDING, (Action.SEND_END,)),
    (Life.DRAINING, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    (Life.ENDING, Event.DIED): (Life.GONE, _GO),
    (Life.ENDING, Event.TOLD_SERVING): (Life.ENDING, ()),
    (Life.ENDING, Event.TOLD_FAILED): (Life.ENDING, ()),
    (Life.ENDING, Event.HUNG): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.ENDING, Event.RECALL): (Life.CUT, (Action.KILL_PROCESS,)),
    (Life.ENDING, Event.DRAIN): (Life.ENDING, ()),
    (Life.ENDING, Event.END): (Life.ENDING, ()),
    (Life.ENDING, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    (Life.DYING, Event.DIED): (Life.GONE, _GO),
    (Life.DYING, Event.TOLD_READY): (Life.DYING, ()),
    (Life.DYING, Event.TOLD_FAILED): (Life.DYING, ()),
    (Life.DYING, Event.TOLD_SERVING): (Life.DYING, ()),
    (Life.DYING, Event.RECALL): (Life.CUT, ()),
    (Life.DYING, Event.DRAIN): (Life.DYING, ()),
    (Life.DYING, Event.END): (Life.DYING, ()),
    (Life.DYING, Event.KILL): (Life.DYING, ()),
    #
    (Life.CUT, Event.DIED): (Life.PAUSING, _LOST),
    (Life.CUT, Event.TOLD_READY): (Life.CUT, ()),
    (Life.CUT, Event.TOLD_FAILED): (Life.CUT, ()),
    (Life.CUT, Event.TOLD_SERVING): (Life.CUT, ()),
    (Life.CUT, Event.RECALL): (Life.CUT, ()),
    (Life.CUT, Event.DRAIN): (Life.DYING, ()),
    (Life.CUT, Event.END): (Life.DYING, ()),
    (Life.CUT, Event.KILL): (Life.DYING, ()),
    #
    (Life.PAUSING, Event.PAUSE_OVER): (Life.REFORKING, (Action.FORK,)),
    (Life.PAUSING, Event.RECALL): (Life.PAUSING, ()),
    (Life.PAUSING, Event.DRAIN): (Life.GONE, (Action.STOP_PAUSE, Action.TELL_GONE)),
    (Life.PAUSING, Event.END): (Life.GONE, (Action.STOP_PAUSE, Action.TELL_GONE)),
    (Life.PAUSING, Event.KILL): (Life.GONE, (Action.STOP_PAUSE, Action.TELL_GONE)),
    #
    (Life.REFORKING, Event.FORKED): (Life.REBORN, ()),
    (Life.REFORKING, Event.FORK_FAILED): (Life.PAUSING, (Action.START_PAUSE,)),
    (Life.REFORKING, Event.RECALL): (Life.REFORKING, ()),
    (Life.REFORKING, Event.DRAIN): (Life.ABANDONED, ()),
    (Life.REFORKING, Event.END): (Life.ABANDONED, ()),
    (Life.REFORKING, Event.KILL): (Life.ABANDONED, ()),
    #
    (Life.REBORN, Event.TOLD_READY): (Life.REOPENING, (Action.SEND_SERVE,)),
    (Life.REBORN, Event.TOLD_FAILED): (Life.CUT, (Action.KILL_PROCESS,)),
    (Life.REBORN, Event.HUNG): (Life.CUT, (Action.KILL_PROCESS,)),
    (Life.REBORN, Event.DIED): (Life.PAUSING, _LOST),
    (Life.REBORN, Event.RECALL): (Life.REBORN, ()),
    (Life.REBORN, Event.DRAIN): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.REBORN, Event.END): (Life.DYING, (Action.KILL_PROCESS,)),
    (Life.REBORN, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    (Life.REOPENING, Event.TOLD_SERVING): (Life.SERVING, (Action.TELL_SERVING,)),
    (Life.REOPENING, Event.TOLD_FAILED): (Life.CUT, (Action.KILL_PROCESS,)),
    (Life.REOPENING, Event.HUNG): (Life.CUT, (Action.KILL_PROCESS,)),
    (Life.REOPENING, Event.DIED): (Life.PAUSING, _LOST),
    (Life.REOPENING, Event.RECALL): (Life.REOPENING, ()),
    (Life.REOPENING, Event.DRAIN): (Life.DRAINING, (Action.SEND_DRAIN,)),
    (Life.REOPENING, Event.END): (Life.ENDING, (Action.SEND_END,)),
    (Life.REOPENING, Event.KILL): (Life.DYING, (Action.KILL_PROCESS,)),
    #
    # Green died after blue had gone from some of its slots: they are filled anew.
    (Life.GONE, Event.RECALL): (Life.REFORKING, (Action.FORK,)),
    (Life.GONE, Event.DRAIN): (Life.GONE, ()),
    (Life.GONE, Event.END): (Life.GONE, ()),
    (Life.GONE, Event.KILL): (Life.GONE, ()),
    (Life.FAILED, Event.END): (Life.FAILED, ()),
    (Life.FAILED, Event.KILL): (Life.FAILED, ()),
}


FIRST_PAUSE: Final = 0.1  # seconds
LONGEST_PAUSE: Final = 10.0
CRASH_LOOP_DEATHS: Final = 5
CRASH_LOOP_SECONDS: Final = 30.0
# A process that lived this long starts the count of deaths anew: so five counted deaths are five
# within thirty seconds, and a loop stays a loop when its pauses have grown long.
STEADY_SECONDS: Final = CRASH_LOOP_SECONDS / CRASH_LOOP_DEATHS


def count_death(deaths: int, lived_seconds: float) -> int:
    """The number of this death, when `deaths` were counted before it."""
    return 1 if lived_seconds >= STEADY_SECONDS else deaths + 1


def pause_before_restart(deaths: int) -> float:
    """Seconds from the counted death number `deaths` to the next fork: at once, then doubling."""
    if deaths <= 1:
        return 0.0
    return min(FIRST_PAUSE * 2.0 ** min(deaths - 2, 30), LONGEST_PAUSE)


def is_crash_loop(deaths: int) -> bool:
    """Whether so many counted deaths are to be told as a crash loop."""
    return deaths >= CRASH_LOOP_DEATHS
