"""Both state tables: nothing in them is unreachable, nothing gets stuck, and they can be drawn."""

from __future__ import annotations

from typing import Any, Final

import pytest

from dataplane.model import lifecycle, rollout
from dataplane.model.machine import IllegalEvent, draw, reachable, step

TABLES: Final[list[Any]] = [
    pytest.param(
        lifecycle.TRANSITIONS, lifecycle.START, lifecycle.ENDS,
        (lifecycle.Life, lifecycle.Event, lifecycle.Action), id="lifecycle",
    ),
    pytest.param(
        rollout.TRANSITIONS, rollout.START, rollout.ENDS,
        (rollout.Phase, rollout.Event, rollout.Action), id="rollout",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("table", "start", "ends", "kinds"), TABLES)
def test_each_state_can_be_reached(table: Any, start: Any, ends: Any, kinds: Any) -> None:
    assert reachable(table, start) == frozenset(kinds[0])


@pytest.mark.parametrize(("table", "start", "ends", "kinds"), TABLES)
def test_each_state_leads_to_an_end(table: Any, start: Any, ends: Any, kinds: Any) -> None:
    stuck = [state for state in kinds[0] if not reachable(table, state) & ends]
    assert not stuck


@pytest.mark.parametrize(("table", "start", "ends", "kinds"), TABLES)
def test_each_event_and_each_action_is_used(table: Any, start: Any, ends: Any, kinds: Any) -> None:
    assert {event for _, event in table} == set(kinds[1])
    assert {action for _, actions in table.values() for action in actions} == set(kinds[2])


@pytest.mark.parametrize(("table", "start", "ends", "kinds"), TABLES)
def test_what_the_table_lacks_is_illegal(table: Any, start: Any, ends: Any, kinds: Any) -> None:
    lacking = [
        (state, event) for state in kinds[0] for event in kinds[1] if (state, event) not in table
    ]
    assert lacking
    for state, event in lacking:
        with pytest.raises(IllegalEvent, match=event.name):
            step(table, state, event)


@pytest.mark.parametrize(("table", "start", "ends", "kinds"), TABLES)
def test_the_diagram_shows_every_state_and_move(
    table: Any, start: Any, ends: Any, kinds: Any
) -> None:
    picture = draw(table, start, ends)
    assert picture.startswith(f"stateDiagram-v2\n    [*] --> {start.name}\n")
    for (before, event), (after, _) in table.items():
        if before is not after:
            arrows = [
                line
                for line in picture.splitlines()
                if line.startswith(f"    {before.name} --> {after.name}:")
            ]
            assert len(arrows) == 1
            assert event.name in arrows[0]
    for end in ends:
        assert f"{end.name} --> [*]" in picture
