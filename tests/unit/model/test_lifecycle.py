"""A slot's life: the ways through the table that matter, and how long restarts wait."""

from __future__ import annotations

import pytest

from dataplane.model.lifecycle import (
    ALIVE,
    BEATING,
    ENDS,
    START,
    TRANSITIONS,
    Action,
    Event,
    Life,
    count_death,
    is_crash_loop,
    pause_before_restart,
)
from dataplane.model.machine import step

BOOT = (Event.FORKED, Event.TOLD_READY, Event.SERVE, Event.TOLD_SERVING)


def live(*events: Event) -> tuple[Life, tuple[Action, ...]]:
    """Where the events lead from the start, and what the last one has done."""
    life = START
    actions: tuple[Action, ...] = ()
    for event in events:
        life, actions = step(TRANSITIONS, life, event)
    return life, actions


@pytest.mark.parametrize(
    ("events", "life", "actions"),
    [
        (BOOT, Life.SERVING, (Action.TELL_SERVING,)),
        ((Event.FORK_FAILED,), Life.FAILED, (Action.TELL_FAILED,)),
        ((Event.FORKED, Event.DIED), Life.FAILED, (Action.TELL_FAILED,)),
        ((Event.FORKED, Event.TOLD_READY, Event.DIED), Life.FAILED, (Action.TELL_FAILED,)),
        ((*BOOT, Event.DRAIN, Event.DIED), Life.GONE, (Action.TELL_GONE,)),
        ((*BOOT, Event.DRAIN, Event.END), Life.ENDING, (Action.SEND_END,)),
        ((*BOOT, Event.DRAIN, Event.RECALL), Life.REOPENING, (Action.SEND_SERVE,)),
        ((*BOOT, Event.DRAIN, Event.DIED, Event.RECALL), Life.REFORKING, (Action.FORK,)),
    ],
)
def test_way_through_the_table(
    events: tuple[Event, ...], life: Life, actions: tuple[Action, ...]
) -> None:
    assert live(*events) == (life, actions)


def test_who_dies_while_serving_is_forked_anew_and_serves_when_ready() -> None:
    dead = (*BOOT, Event.DIED)
    assert live(*dead) == (Life.PAUSING, (Action.TELL_DIED, Action.START_PAUSE))
    assert live(*dead, Event.PAUSE_OVER) == (Life.REFORKING, (Action.FORK,))
    reborn = (*dead, Event.PAUSE_OVER, Event.FORKED)
    assert live(*reborn, Event.TOLD_READY) == (Life.REOPENING, (Action.SEND_SERVE,))


def test_who_hangs_is_killed_and_replaced() -> None:
    assert live(*BOOT, Event.HUNG) == (Life.CUT, (Action.KILL_PROCESS,))
    assert live(*BOOT, Event.HUNG, Event.DIED)[0] is Life.PAUSING


def test_who_is_killed_before_its_fork_is_done_is_killed_after_it() -> None:
    assert live(Event.KILL) == (Life.ABANDONED, ())
    assert live(Event.KILL, Event.FORKED) == (Life.DYING, (Action.KILL_PROCESS,))


@pytest.mark.parametrize("life", [life for life in Life if life in ALIVE])
def test_every_process_may_die_break_the_protocol_and_be_killed(life: Life) -> None:
    for event in (Event.DIED, Event.TOLD_FAILED, Event.KILL):
        assert (life, event) in TRANSITIONS


@pytest.mark.parametrize("life", [life for life in Life if life in BEATING])
def test_whoever_must_beat_may_hang(life: Life) -> None:
    assert (life, Event.HUNG) in TRANSITIONS


def test_a_stop_reaches_every_state_of_a_slot_that_served() -> None:
    first_boot = {Life.FORKING, Life.BORN, Life.READY, Life.OPENING, Life.FAILING, Life.FAILED}
    assert [life for life in Life if (life, Event.DRAIN) not in TRANSITIONS] == [
        life for life in Life if life in first_boot
    ]
    assert all((life, Event.KILL) in TRANSITIONS for life in Life)


def test_nothing_is_done_to_who_has_ended_but_being_wanted_back() -> None:
    for (life, event), (after, actions) in TRANSITIONS.items():
        if life in ENDS and event is not Event.RECALL:
            assert (after, actions) == (life, ())


def test_the_first_restart_is_at_once_and_the_pauses_double_to_ten_seconds() -> None:
    pauses = [pause_before_restart(deaths) for deaths in range(1, 11)]
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert pause_before_restart(10_000) == 10.0


def test_five_quick_deaths_are_a_crash_loop_and_a_long_life_starts_the_count_anew() -> None:
    deaths = 0
    seen = []
    for lived in (100.0, 1.0, 1.0, 1.0, 1.0, 5.0, 6.0):
        deaths = count_death(deaths, lived)
        seen.append((deaths, is_crash_loop(deaths)))
    assert seen == [
        (1, False), (2, False), (3, False), (4, False), (5, True), (6, True), (1, False),
    ]  # fmt: skip
