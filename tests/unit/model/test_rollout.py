"""A rollout: the ways through the table that matter."""

from __future__ import annotations

import pytest

from dataplane.model.machine import step
from dataplane.model.rollout import (
    BEFORE_SWITCH,
    ENDS,
    START,
    TRANSITIONS,
    Action,
    Event,
    Phase,
)

SWITCHED = (Event.SWAP_ASKED, Event.BUILT, Event.GREEN_READY, Event.GREEN_SERVING)
END = (Action.STOP_DEADLINE, Action.TELL_ENDED)
GIVE_UP = (Action.KILL_GREEN, *END)


def roll(*events: Event) -> tuple[Phase, tuple[Action, ...]]:
    """Where the events lead from the start, and what the last one has done."""
    phase = START
    actions: tuple[Action, ...] = ()
    for event in events:
        phase, actions = step(TRANSITIONS, phase, event)
    return phase, actions


@pytest.mark.parametrize(
    ("events", "phase", "actions"),
    [
        ((*SWITCHED, Event.BLUE_GONE, Event.ALL_RECEIVED), Phase.DONE, END),
        ((*SWITCHED, Event.BLUE_GONE, Event.DEADLINE), Phase.DONE, END),
        ((Event.SWAP_ASKED, Event.SAME), Phase.UNCHANGED, END),
        ((Event.SWAP_ASKED, Event.BUILD_FAILED), Phase.FAILED, END),
        ((*SWITCHED[:2], Event.GREEN_DIED), Phase.FAILED, GIVE_UP),
        ((*SWITCHED[:2], Event.DEADLINE), Phase.FAILED, GIVE_UP),
        ((*SWITCHED[:3], Event.GREEN_DIED), Phase.FAILED, GIVE_UP),
        ((*SWITCHED[:3], Event.DEADLINE), Phase.FAILED, GIVE_UP),
        ((*SWITCHED, Event.DEADLINE), Phase.CUTTING, (Action.KILL_BLUE,)),
        ((*SWITCHED, Event.DEADLINE, Event.BLUE_GONE), Phase.DONE, END),
        ((*SWITCHED, Event.SUPERSEDED), Phase.LEAVING, (Action.END_BLUE,)),
        ((*SWITCHED, Event.SUPERSEDED, Event.GREEN_DIED), Phase.LEAVING, ()),
        ((Event.STOP_ASKED, Event.BLUE_GONE), Phase.DONE, END),
        ((Event.STOP_ASKED, Event.DEADLINE), Phase.CUTTING, (Action.KILL_BLUE,)),
    ],
)
def test_way_through_the_table(
    events: tuple[Event, ...], phase: Phase, actions: tuple[Action, ...]
) -> None:
    assert roll(*events) == (phase, actions)


def test_the_switch_ends_the_former_then_promotes_then_drains() -> None:
    phase, actions = roll(*SWITCHED)
    assert phase is Phase.DRAINING
    order = [Action.PASS_FORMER, Action.PROMOTE_GREEN, Action.DRAIN_BLUE]
    assert [action for action in actions if action in order] == order


def test_green_that_dies_while_blue_drains_has_blue_recalled_before_anything_is_killed() -> None:
    phase, actions = roll(*SWITCHED, Event.GREEN_DIED)
    assert phase is Phase.RECALLING
    assert Action.RECALL_BLUE in actions
    assert Action.KILL_GREEN not in actions
    phase, actions = roll(*SWITCHED, Event.GREEN_DIED, Event.BLUE_SERVING)
    assert phase is Phase.RETURNING
    assert Action.RETURN_GREEN in actions
    assert (
        roll(*SWITCHED, Event.GREEN_DIED, Event.BLUE_SERVING, Event.GREEN_GONE)[0] is Phase.FAILED
    )


def test_blue_is_touched_by_nothing_before_the_switch() -> None:
    of_blue = {Action.DRAIN_BLUE, Action.END_BLUE, Action.KILL_BLUE, Action.RECALL_BLUE}
    for (phase, event), (after, actions) in TRANSITIONS.items():
        if phase in BEFORE_SWITCH and after in (*BEFORE_SWITCH, *ENDS):
            assert not of_blue & set(actions), (phase, event)


def test_every_end_is_told() -> None:
    for (_, event), (after, actions) in TRANSITIONS.items():
        assert (after in ENDS) == (Action.TELL_ENDED in actions), event


def test_a_later_rollout_or_a_stop_reaches_every_phase() -> None:
    for phase in set(Phase) - ENDS - {Phase.ASKED}:
        assert (phase, Event.SUPERSEDED) in TRANSITIONS
