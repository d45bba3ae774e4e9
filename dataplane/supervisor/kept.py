"""Counters that outlive the supervisor: RUN_DIR/totals/APP.json, so that no counter ever goes back.

What living workers count stands in their own pages, which they lend to the next supervisor. What is
kept here is the rest: what generations counted that are gone, what the supervisor itself counts,
and each worker's figures as they were last shown, for one that dies while nobody looks. Written
whenever figures were shown or a generation has gone, and not synced: a host that goes down takes
all counters with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, TypeAlias

from dataplane.control.figures import BUCKETS, CLASSES, Durations, UpstreamFigures
from dataplane.control.stats import FIELDS, Stats
from dataplane.image.store import disk_failure
from dataplane.model.names import AppName
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, Fleet, WorkerSlot
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.totals import SPAN_BOUNDS, Totals

VERSION: Final = 1

Json: TypeAlias = dict[str, Any]


class Kept:
    """Mutable: whether the last write failed."""

    def __init__(self, folder: Path, *, events: Events) -> None:
        self._folder, self._events = folder, events
        self._failing = False

    def save_all(self, fleet: Fleet, logs: Logs) -> None:
        """Everything that was shown just now."""
        for app in fleet.apps.values():
            self.save(app, logs)

    def save(self, app: App, logs: Logs) -> None:
        """One app's."""
        slots = [slot for generation in app.generations for slot in generation.slots]
        self._write(
            app.name,
            {
                "version": VERSION,
                "folded": _told(app.folded),
                "slots": {key_of(slot): _slot(slot) for slot in slots},
                "restarts": app.restarts,
                "rollouts_ended": app.rollouts_ended,
                "swaps": {"seconds": app.swaps.seconds, "counts": app.swaps.counts},
                "moved": app.moved,
                "log_dropped": logs.dropped(app.name),
            },
        )

    def recall(self, app: App, logs: Logs, living: Collection[str]) -> dict[str, int]:
        """Has the app go on counting. `living` are the keys of slots whose pages go on by
        themselves. Returns the restarts of each slot that was known."""
        try:
            kept = json.loads(self._path(app.name).read_bytes())
            if kept["version"] != VERSION:
                return {}
            restarts = _recall(app, kept, living)
            logs.go_on(app.name, _count(kept["log_dropped"]))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._events.tell("totals.not_read", app=app.name, error=str(error))
            return {}
        kept["folded"] = _told(app.folded)
        kept["slots"] = {key: told for key, told in kept["slots"].items() if key in living}
        self._write(app.name, kept)
        return restarts

    def forget(self) -> None:
        """The supervisor ends as it was told to: the next one begins to count anew."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _path(self, app: AppName) -> Path:
        return self._folder / f"{app}.json"

    def _write(self, app: AppName, told: Json) -> None:
        path = self._path(app)
        half = path.with_suffix(".new")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(half, flags, 0o600), "w") as file:
                json.dump(told, file, separators=(",", ":"))
            half.replace(path)
        except OSError as error:
            if not self._failing:
                self._events.tell("totals.not_written", error=disk_failure(path, error))
            self._failing = True
        else:
            self._failing = False


def key_of(slot: WorkerSlot) -> str:
    """What names a slot's figures."""
    return f"{slot.generation.number}.{slot.number}"


def _slot(slot: WorkerSlot) -> Json:
    totals = Totals()
    figures = slot.figures().without_gauges(), slot.sections().without_gauges()
    totals.add(slot.generation.image.spec, *figures)
    return {"restarts": slot.restarts, "totals": _told(totals)}


def _recall(app: App, kept: Json, living: Collection[str]) -> dict[str, int]:
    """Nothing of the app is changed where it raises."""
    gone = [_totals(kept["folded"])]
    gone += [_totals(told["totals"]) for key, told in kept["slots"].items() if key not in living]
    ended, moved = _counts(kept["rollouts_ended"]), _counts(kept["moved"])
    spans = [_count(count) for count in kept["swaps"]["counts"]]
    seconds, restarts = float(kept["swaps"]["seconds"]), _count(kept["restarts"])
    of_slots = {key: _count(told["restarts"]) for key, told in kept["slots"].items()}
    if len(spans) != len(SPAN_BOUNDS) + 1:
        raise ValueError("other bounds of swaps")
    for totals in gone:
        app.folded.merge(totals)
    app.restarts, app.rollouts_ended, app.moved = restarts, ended, moved
    app.swaps.seconds, app.swaps.counts = seconds, spans
    return of_slots


# --- JSON ---------------------------------------------------------------------------------------


def _told(totals: Totals) -> Json:
    buckets = enumerate(totals.durations.buckets)
    return {
        "stats": dataclasses.asdict(totals.stats),
        "sum_us": totals.durations.sum_us,
        "buckets": {str(index): count for index, count in buckets if count},
        "upstreams": {name: dataclasses.asdict(one) for name, one in totals.upstreams.items()},
        "routes": [[*key, list(answers)] for key, answers in totals.routes.items()],
    }


def _totals(told: Json) -> Totals:
    """Raises ValueError, LookupError, TypeError or AttributeError for what is none."""
    buckets = [0] * BUCKETS
    for index, count in told["buckets"].items():
        buckets[int(index)] = _count(count)
    return Totals(
        stats=_stats(told["stats"]),
        durations=Durations(sum_us=_count(told["sum_us"]), buckets=tuple(buckets)),
        upstreams={
            str(name): UpstreamFigures(**_counts(one)) for name, one in told["upstreams"].items()
        },
        routes={
            (str(match), str(upstream)): _row(answers, CLASSES)
            for match, upstream, answers in told["routes"]
        },
    )


def _stats(told: Json) -> Stats:
    """What other code counted beside what this one knows is left out."""
    known: Json = {}
    for name, count in FIELDS:
        if name in told:
            known[name] = _count(told[name]) if count == 1 else _row(told[name], count)
    return Stats(**known)


def _row(told: Any, length: int) -> tuple[int, ...]:
    row = tuple(_count(count) for count in told)
    if len(row) != length:
        raise ValueError(f"{len(row)} figures, expected {length}")
    return row


def _counts(told: Any) -> dict[str, int]:
    return {str(name): _count(count) for name, count in told.items()}


def _count(told: Any) -> int:
    if type(told) is not int or told < 0:
        raise ValueError(f"{told!r} is no count")
    return told
