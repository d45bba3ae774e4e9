"""One rollout, from the asking to the end, as a table: a first start, a swap, or a stop.

An app may have two at once: one that has switched and whose blue still drains, and one that has
not switched yet. "Blue" is the generation that served before, if any; "green" the one that comes.
This module decides what follows from what and does nothing itself.
"""

from __future__ import annotations

import enum
from typing import Final

from dataplane.model.machine import Transitions


class Phase(enum.Enum):
    ASKED = "asked"
    BUILDING = "building"  # the image is built, or looked up
    BOOTING = "booting"  # green is forked and not ready in all its slots
    SWITCHING = "switching"  # green was told to serve
    DRAINING = "draining"  # green serves; blue moves or finishes what it has
    SETTLING = "settling"  # blue is gone; green is to say what it received
    CUTTING = "cutting"  # blue outlived its deadline and was killed
    LEAVING = "leaving"  # blue was told to go without a taker, or another rollout passed by
    RECALLING = "recalling"  # green died while blue drained: blue is to serve again
    RETURNING = "returning"  # blue serves again; what is left of green gives its connections back
    UNCHANGED = "unchanged"
    FAILED = "failed"
    DONE = "done"


class Event(enum.Enum):
    SWAP_ASKED = "swap asked"
    STOP_ASKED = "stop asked"
    BUILT = "built"
    SAME = "same"  # what was built is what serves in every slot
    BUILD_FAILED = "build failed"
    GREEN_READY = "green ready"  # every slot
    GREEN_SERVING = "green serving"  # every slot
    GREEN_DIED = "green died"  # any slot
    GREEN_GONE = "green gone"  # every slot
    BLUE_SERVING = "blue serving"  # every slot
    BLUE_GONE = "blue gone"  # every slot, or there never was one
    ALL_RECEIVED = "all received"  # green said of each of blue's slots what came of its moves
    DEADLINE = "deadline"  # the one that the last START_ action set
    SUPERSEDED = "superseded"  # a later rollout switches, or the app is stopped


class Action(enum.Enum):
    FIND_IMAGE = "find image"
    FORK_GREEN = "fork green"
    START_READY_DEADLINE = "start ready deadline"
    PASS_FORMER = "pass former"  # end what an earlier rollout still drains
    SERVE_GREEN = "serve green"
    PROMOTE_GREEN = "promote green"  # from here on green is what the app runs
    DRAIN_BLUE = "drain blue"  # moving to green, if there is one
    START_DRAIN_DEADLINE = "start drain deadline"
    END_BLUE = "end blue"
    KILL_BLUE = "kill blue"
    KILL_GREEN = "kill green"
    RECALL_BLUE = "recall blue"  # and blue is what the app runs, again
    RETURN_GREEN = "return green"  # drain green, moving to blue
    CLEAR_GREEN = "clear green"  # give up those of its slots that died
    START_SETTLE_DEADLINE = "start settle deadline"
    STOP_DEADLINE = "stop deadline"
    TELL_SWITCHED = "tell switched"
    TELL_ENDED = "tell ended"


START: Final = Phase.ASKED
ENDS: Final = frozenset({Phase.UNCHANGED, Phase.FAILED, Phase.DONE})
# Until it has left these, another swap is refused.
BEFORE_SWITCH: Final = frozenset({Phase.ASKED, Phase.BUILDING, Phase.BOOTING, Phase.SWITCHING})

_END: Final = (Action.STOP_DEADLINE, Action.TELL_ENDED)
_GIVE_UP: Final = (Action.KILL_GREEN, *_END)

TRANSITIONS: Final[Transitions[Phase, Event, Action]] = {
    (Phase.ASKED, Event.SWAP_ASKED): (Phase.BUILDING, (Action.FIND_IMAGE,)),
    (Phase.ASKED, Event.STOP_ASKED): (
        Phase.LEAVING,
        (Action.PASS_FORMER, Action.START_DRAIN_DEADLINE, Action.DRAIN_BLUE),
    ),
    #
    (Phase.BUILDING, Event.BUILT): (
        Phase.BOOTING,
        (Action.START_READY_DEADLINE, Action.FORK_GREEN),
    ),
    (Phase.BUILDING, Event.SAME): (Phase.UNCHANGED, _END),
    (Phase.BUILDING, Event.BUILD_FAILED): (Phase.FAILED, _END),
    (Phase.BUILDING, Event.SUPERSEDED): (Phase.FAILED, _END),
    #
    (Phase.BOOTING, Event.GREEN_READY): (
        Phase.SWITCHING,
        (Action.START_READY_DEADLINE, Action.SERVE_GREEN),
    ),
    (Phase.BOOTING, Event.GREEN_DIED): (Phase.FAILED, _GIVE_UP),
    (Phase.BOOTING, Event.DEADLINE): (Phase.FAILED, _GIVE_UP),
    (Phase.BOOTING, Event.SUPERSEDED): (Phase.FAILED, _GIVE_UP),
    #
    (Phase.SWITCHING, Event.GREEN_SERVING): (
        Phase.DRAINING,
        (
            Action.PASS_FORMER,
            Action.PROMOTE_GREEN,
            Action.START_DRAIN_DEADLINE,
            Action.TELL_SWITCHED,
            Action.DRAIN_BLUE,
        ),
    ),
    (Phase.SWITCHING, Event.GREEN_DIED): (Phase.FAILED, _GIVE_UP),
    (Phase.SWITCHING, Event.DEADLINE): (Phase.FAILED, _GIVE_UP),
    (Phase.SWITCHING, Event.SUPERSEDED): (Phase.FAILED, _GIVE_UP),
    #
    (Phase.DRAINING, Event.BLUE_GONE): (Phase.SETTLING, (Action.START_SETTLE_DEADLINE,)),
    (Phase.DRAINING, Event.ALL_RECEIVED): (Phase.DRAINING, ()),
    (Phase.DRAINING, Event.DEADLINE): (Phase.CUTTING, (Action.KILL_BLUE,)),
    (Phase.DRAINING, Event.GREEN_DIED): (
        Phase.RECALLING,
        (Action.START_READY_DEADLINE, Action.CLEAR_GREEN, Action.RECALL_BLUE),
    ),
    (Phase.DRAINING, Event.SUPERSEDED): (Phase.LEAVING, (Action.END_BLUE,)),
    #
    # Blue is gone: from here on green's death is an ordinary crash, and it is restarted.
    (Phase.SETTLING, Event.ALL_RECEIVED): (Phase.DONE, _END),
    (Phase.SETTLING, Event.DEADLINE): (Phase.DONE, _END),
    (Phase.SETTLING, Event.GREEN_DIED): (Phase.DONE, _END),
    (Phase.SETTLING, Event.SUPERSEDED): (Phase.DONE, _END),
    #
    (Phase.CUTTING, Event.BLUE_GONE): (Phase.DONE, _END),
    (Phase.CUTTING, Event.ALL_RECEIVED): (Phase.CUTTING, ()),
    (Phase.CUTTING, Event.GREEN_DIED): (Phase.CUTTING, ()),
    (Phase.CUTTING, Event.GREEN_SERVING): (Phase.CUTTING, ()),
    (Phase.CUTTING, Event.GREEN_GONE): (Phase.CUTTING, ()),
    (Phase.CUTTING, Event.SUPERSEDED): (Phase.CUTTING, ()),
    #
    (Phase.LEAVING, Event.BLUE_GONE): (Phase.DONE, _END),
    (Phase.LEAVING, Event.DEADLINE): (Phase.CUTTING, (Action.KILL_BLUE,)),
    # Green is now the later rollout's blue: what becomes of it is that one's business.
    (Phase.LEAVING, Event.ALL_RECEIVED): (Phase.LEAVING, ()),
    (Phase.LEAVING, Event.GREEN_DIED): (Phase.LEAVING, ()),
    (Phase.LEAVING, Event.GREEN_SERVING): (Phase.LEAVING, ()),
    (Phase.LEAVING, Event.GREEN_GONE): (Phase.LEAVING, ()),
    (Phase.LEAVING, Event.SUPERSEDED): (Phase.LEAVING, (Action.END_BLUE,)),
    #
    (Phase.RECALLING, Event.BLUE_SERVING): (
        Phase.RETURNING,
        (Action.START_DRAIN_DEADLINE, Action.RETURN_GREEN),
    ),
    (Phase.RECALLING, Event.ALL_RECEIVED): (Phase.RECALLING, ()),
    (Phase.RECALLING, Event.BLUE_GONE): (Phase.RECALLING, ()),
    (Phase.RECALLING, Event.GREEN_DIED): (Phase.RECALLING, ()),
    (Phase.RECALLING, Event.GREEN_GONE): (Phase.RECALLING, ()),
    # Blue cannot be had back in time: its slots go on being restarted, green has to go.
    (Phase.RECALLING, Event.DEADLINE): (Phase.FAILED, _GIVE_UP),
    (Phase.RECALLING, Event.SUPERSEDED): (Phase.FAILED, _GIVE_UP),
    #
    (Phase.RETURNING, Event.GREEN_GONE): (Phase.FAILED, _END),
    (Phase.RETURNING, Event.GREEN_DIED): (Phase.RETURNING, ()),
    (Phase.RETURNING, Event.ALL_RECEIVED): (Phase.RETURNING, ()),
    (Phase.RETURNING, Event.BLUE_SERVING): (Phase.RETURNING, ()),
    (Phase.RETURNING, Event.DEADLINE): (Phase.FAILED, _GIVE_UP),
    (Phase.RETURNING, Event.SUPERSEDED): (Phase.FAILED, _GIVE_UP),
}
