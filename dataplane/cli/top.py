"""The verb top: what each app does now, from two looks at the supervisor's metrics."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from dataplane.cli.folders import Folders, find_folders
from dataplane.model.errors import ControlError

SECONDS: Final = 1.0
# A line of the exposition format, as our own supervisor writes it.
_LINE: Final = re.compile(r"(\w+)\{(.*)\} (\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# By app: by metric, the sum of its series; of histograms by upper bound.
Look: TypeAlias = dict[str, "AppLook"]


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds top."""
    top = verbs.add_parser(
        "top",
        parents=[common],
        help="what each app does now",
        description="Shows each app's requests, errors, times, connections, CPU and memory, again "
        "and again; on no terminal, and with --json, a block or an object each time.",
        epilog="example: dataplane top --interval 5",
    )
    top.add_argument(
        "--interval", type=_seconds, default=SECONDS, metavar="SECONDS", help="between looks (1)"
    )
    top.add_argument(
        "-n", "--count", type=int, default=0, metavar="N", help="end after so many (0: never)"
    )
    top.set_defaults(run=run_top)


@dataclasses.dataclass(slots=True, kw_only=True)
class AppLook:
    """Mutable while it is read. One app's figures at one time."""

    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    errors: float = 0.0  # answers of class 5xx, and requests that got none
    buckets: dict[float, float] = dataclasses.field(default_factory=dict)  # by upper bound


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AppRow:
    """What is shown of an app. None: nothing was answered meanwhile."""

    app: str
    requests_per_second: float
    errors_per_second: float
    p50_seconds: float | None
    p99_seconds: float | None
    connections: int
    cpu_percent: float
    memory_bytes: int
    received_bytes_per_second: float
    sent_bytes_per_second: float


def run_top(args: argparse.Namespace) -> int:
    """Looks again and again, until it is interrupted or the supervisor is gone."""
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb")
    looks = enumerate(_looks(find_folders(args), args.interval), 1)
    for shown, (seconds, before, after) in looks:
        rows = rows_of(before, after, seconds)
        if args.json:
            print(json.dumps({"apps": [dataclasses.asdict(row) for row in rows]}), flush=True)
        elif on_terminal:
            height = shutil.get_terminal_size().lines
            print(f"\x1b[H\x1b[2J{_cut(top_text(rows), height - 1)}", flush=True)
        else:
            print(top_text(rows), flush=True)
        if shown == args.count:
            break
    return 0


def _looks(folders: Folders, interval: float) -> Iterator[tuple[float, Look, Look]]:
    from dataplane.cli.ask import ask

    def look() -> Look:
        answer = ask(folders, "GET", "/metrics")
        if answer.status != 200:
            raise ControlError(f"the supervisor answered {answer.status}")
        return read_look(answer.body.decode())

    pause = threading.Event()
    at, before = time.monotonic(), look()
    while True:
        pause.wait(interval)
        now, after = time.monotonic(), look()
        yield now - at, before, after
        at, before = now, after


def read_look(text: str) -> Look:
    """The figures of each app in a text of metrics."""
    look: Look = {}
    for line in text.splitlines():
        matched = _LINE.fullmatch(line)
        if matched is None:
            continue
        name, written, value = matched.groups()
        labels = dict(_LABEL.findall(written))
        app = look.setdefault(labels.get("app", ""), AppLook())
        if name == "dataplane_request_duration_seconds_bucket":
            app.buckets[float(labels["le"])] = float(value)
            continue
        app.figures[name] = app.figures.get(name, 0.0) + float(value)
        if name == "dataplane_requests_total" and labels.get("code") in ("5xx", "none"):
            app.errors += float(value)
    return look


def rows_of(before: Look, after: Look, seconds: float) -> list[AppRow]:
    """One row for each app that both looks know, the busiest first."""
    rows = [_row(app, before[app], after[app], seconds) for app in after if app in before]
    return sorted(rows, key=lambda row: (-row.requests_per_second, row.app))


def _row(app: str, before: AppLook, after: AppLook, seconds: float) -> AppRow:
    def rate(name: str) -> float:
        key = f"dataplane_{name}"
        return (after.figures.get(key, 0.0) - before.figures.get(key, 0.0)) / seconds

    buckets = {
        bound: after.buckets[bound] - before.buckets.get(bound, 0) for bound in after.buckets
    }
    return AppRow(
        app=app,
        requests_per_second=round(rate("requests_total"), 1),
        errors_per_second=round((after.errors - before.errors) / seconds, 1),
        p50_seconds=quantile(buckets, 0.5),
        p99_seconds=quantile(buckets, 0.99),
        connections=int(after.figures.get("dataplane_connections", 0)),
        cpu_percent=round(100 * rate("worker_cpu_seconds_total"), 1),
        memory_bytes=int(after.figures.get("dataplane_worker_memory_bytes", 0)),
        received_bytes_per_second=round(rate("received_bytes_total"), 1),
        sent_bytes_per_second=round(rate("sent_bytes_total"), 1),
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Of cumulative counts by upper bound, evenly spread within each; None: there are none.

    What lies beyond the last finite bound is told as that bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if total <= 0:
        return None
    wanted, lower, below = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted:
            if bound == float("inf"):
                return lower
            inside = (wanted - below) / (count - below) if count > below else 1.0
            return lower + (bound - lower) * inside
        lower, below = bound, count
    return lower


def top_text(rows: Sequence[AppRow]) -> str:
    """A table, one line an app."""
    head = ("APP", "REQ/S", "ERR/S", "P50", "P99", "CONNS", "CPU", "MEMORY", "IN/S", "OUT/S")
    table: list[Sequence[Any]] = [head]
    for row in rows:
        table.append(
            (
                row.app,
                f"{row.requests_per_second:.1f}",
                f"{row.errors_per_second:.1f}",
                _time_text(row.p50_seconds),
                _time_text(row.p99_seconds),
                str(row.connections),
                f"{row.cpu_percent:.0f}%",
                _bytes_text(row.memory_bytes),
                _bytes_text(row.received_bytes_per_second),
                _bytes_text(row.sent_bytes_per_second),
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def _time_text(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.2f}ms" if seconds < 1 else f"{seconds:.1f}s"


def _bytes_text(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"


def _cut(text: str, height: int) -> str:
    return "\n".join(text.splitlines()[: max(1, height)])


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("from 0.1 to 3600")
    return seconds
