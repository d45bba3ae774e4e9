"""The verb history: every generation of an app, who asked for it and how it went."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from dataplane.cli.folders import app_name, find_folders


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds history."""
    history = verbs.add_parser(
        "history",
        parents=[common],
        help="every generation of an app: when, who, image, outcome",
        description="Shows the last generations of an app, oldest first: when it began, who asked "
        "for it, its image, how it went. With --json each with its whole ledger.",
        epilog="example: dataplane history --app billing",
    )
    history.add_argument("--app", type=app_name, required=True, metavar="NAME")
    history.set_defaults(run=run_history)


def run_history(args: argparse.Namespace) -> int:
    """Prints it."""
    from dataplane.cli.ask import ask, fact

    told = fact(ask(find_folders(args), "GET", f"/v1/apps/{args.app}/history"))
    print(json.dumps(told) if args.json else history_text(told["history"]))
    return 0


def history_text(entries: Sequence[dict[str, Any]]) -> str:
    """A table, one line for each thing that happened."""
    head = ("TIME", "GEN", "OUTCOME", "WHO", "ASKED", "IMAGE", "CODE", "MS", "CONNECTIONS")
    rows: list[tuple[str, ...]] = [head, *map(_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, entry in zip(rows, (None, *entries), strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
        if entry is not None and entry["error"]:
            lines += [f"    {line}" for line in entry["error"].splitlines()]
    return "\n".join(lines)


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    by, ledger = entry["by"], entry["ledger"]
    counts = ledger["connections"].items() if ledger else ()
    return (
        entry["time"] or "-",
        _numbers(entry),
        entry["outcome"],
        f"{by['user']} (pid {by['pid']})" if by else "-",
        entry["asked"] or "-",
        entry["image"].removeprefix("sha256:")[:12] if entry["image"] else "-",
        entry["code"] or "-",
        f"{ledger['ms']['total']:g}" if ledger else "-",
        " ".join(f"{name}={count}" for name, count in counts if count) or "-",
    )


def _numbers(entry: dict[str, Any]) -> str:
    if entry.get("generations"):
        first, last = entry["generations"]
        return str(first) if first == last else f"{first}-{last}"
    return "-" if entry["generation"] is None else str(entry["generation"])
