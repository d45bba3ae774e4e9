"""What all state tables share: looking a step up, and drawing the table.

A machine is a table `{(state, event): (state, actions)}`. The caller keeps the state and does the
actions in their order; a pair that the table lacks is a fault of ours, never to be passed over.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import TypeAlias, TypeVar

S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)
A = TypeVar("A", bound=enum.Enum)

Transitions: TypeAlias = Mapping[tuple[S, E], tuple[S, tuple[A, ...]]]


class IllegalEvent(Exception):
    """An event that the state has no step for: a broken invariant, not an outcome."""


def step(table: Transitions[S, E, A], state: S, event: E) -> tuple[S, tuple[A, ...]]:
    """Where `event` leads from `state`, and what is to be done. Raises `IllegalEvent`."""
    try:
        return table[state, event]
    except KeyError:
        raise IllegalEvent(f"{event.name} in state {state.name}") from None


def reachable(table: Transitions[S, E, A], start: S) -> frozenset[S]:
    """Every state that some order of events leads to from `start`."""
    seen = {start}
    waiting = [start]
    while waiting:
        state = waiting.pop()
        for (before, _), (after, _) in table.items():
            if before is state and after not in seen:
                seen.add(after)
                waiting.append(after)
    return frozenset(seen)


def draw(table: Transitions[S, E, A], start: S, ends: Iterable[S]) -> str:
    """The table as a mermaid state diagram; events that lead nowhere new share one arrow."""
    arrows: dict[tuple[S, S], list[str]] = {}
    for (before, event), (after, actions) in table.items():
        if before is after and not actions:
            continue  # heard, and nothing to be done: it would only blur the picture
        doing = f" / {', '.join(action.name for action in actions)}" if actions else ""
        arrows.setdefault((before, after), []).append(f"{event.name}{doing}")
    lines = ["stateDiagram-v2", f"    [*] --> {start.name}"]
    lines += [
        f"    {before.name} --> {after.name}: {'; '.join(labels)}"
        for (before, after), labels in arrows.items()
    ]
    lines += [f"    {end.name} --> [*]" for end in ends]
    return "\n".join(lines) + "\n"
