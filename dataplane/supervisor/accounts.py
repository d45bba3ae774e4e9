"""Makes a rollout's ledger of what was marked while it was driven. Decides nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter

from dataplane.control.messages import Received
from dataplane.model.ledger import NO_STALL, Durations, Ledger, MovedCounts, Outcome, Side, Stall
from dataplane.model.rollout import Phase
from dataplane.supervisor.fleet import App, AppGeneration, Rollout, WorkerSlot


def ledger_of(rolling: Rollout) -> Ledger:
    """How the rollout stands; to be asked once it has ended, or switched."""
    blue, green, serving = rolling.blue, rolling.green, rolling.app.serving
    if rolling.phase is Phase.UNCHANGED:
        assert serving is not None
        outcome: Outcome = "unchanged"
        before: Side | None = serving.side
        after: Side | None = serving.side
    elif rolling.undoes:
        assert blue is not None
        assert green is not None
        outcome, before, after = "failed", green.side, blue.side
    else:
        outcome = "failed" if rolling.phase is Phase.FAILED else "swapped"
        before = _before(rolling)
        after = green.side if green else None
    return Ledger(
        app=rolling.app.name,
        outcome=outcome,
        before=before,
        after=after,
        ms=durations(rolling.marks, _forked_at(green)),
        connections=_counts(blue),
        stall_ms=_stall(green),
        declined=_declined(blue),
        error=None if rolling.error is None or outcome != "failed" else str(rolling.error),
    )


def durations(marks: dict[str, float], forked_at: float | None) -> Durations:
    """The steps between the marks, in milliseconds; 0 where a step was not reached."""
    begin = marks["asked"]
    end = marks.get("gone", marks.get("ended", marks.get("serving")))
    steps = {
        "build": (begin, marks.get("built")),
        "spawn": (marks.get("built"), forked_at),
        "ready": (forked_at, marks.get("ready")),
        "switch": (marks.get("ready"), marks.get("serving")),
        "drain": (marks.get("serving"), end),
        "total": (begin, end),
    }
    return Durations(
        **{
            name: max(0.0, (until - since) * 1000)
            for name, (since, until) in steps.items()
            if since is not None and until is not None
        }
    )


def _before(rolling: Rollout) -> Side | None:
    if rolling.blue is not None:
        return rolling.blue.side
    serving = rolling.app.serving
    return serving.side if serving is not None and serving is not rolling.green else None


def _forked_at(green: AppGeneration | None) -> float | None:
    times = [slot.forked_at for slot in green.slots if slot.forked_at] if green else []
    return max(times, default=None)


def _counts(blue: AppGeneration | None) -> MovedCounts:
    total = MovedCounts()
    for slot in blue.slots if blue else ():
        total += _slot_counts(slot)
    return total


def _slot_counts(slot: WorkerSlot) -> MovedCounts:
    """Its own last word; of a worker that died without one, all it held counts as cut."""
    told = slot.drained
    if told is None:
        return MovedCounts(reset=slot.cut_connections)
    return MovedCounts(
        moved_idle=told.moved_idle,
        moved_after_request=told.moved_after_request,
        moved_streaming=told.moved_streaming,
        moved_tunnel=told.moved_tunnel,
        finished=told.finished,
        closed=told.closed,
        reset=told.reset + slot.cut_connections,
    )


def _declined(blue: AppGeneration | None) -> tuple[tuple[str, int], ...]:
    total: Counter[str] = Counter()
    for slot in blue.slots if blue else ():
        if slot.drained is not None:
            total.update(dict(slot.drained.declined))
    return tuple(sorted(total.items()))


def _stall(green: AppGeneration | None) -> Stall:
    worst = NO_STALL
    for slot in green.slots if green else ():
        for received in slot.received:
            worst = worst.worst(_in_ms(received))
    return worst


def _in_ms(received: Received) -> Stall:
    p50, p99, most = (figure / 1000 for figure in received.stall_us)
    return Stall(p50=p50, p99=p99, max=most)


def count_swap(app: App, ledger: Ledger) -> None:
    """Adds a rollout that has ended to the app's counters."""
    if ledger.outcome == "swapped":
        app.swaps.add(ledger.ms.total / 1000)
    moved = dataclasses.asdict(ledger.connections)
    for name, count in moved.items():
        if name.startswith("moved_"):
            kind = name.removeprefix("moved_")
            app.moved[kind] = app.moved.get(kind, 0) + count
