"""The verbs that only tell: ps, events, version."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import dataplane
from dataplane.cli.folders import Folders, app_name, find_folders

WATCH_SECONDS: Final = 1.0
STALE_SHOWN: Final = 3  # files

_COLOURS: Final = {"serving": "32", "crash-loop": "31", "restarting": "31", "failed": "31"}
_DRAINING_COLOUR: Final = "33"


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds ps, events and version."""
    ps = verbs.add_parser(
        "ps",
        parents=[common],
        help="what runs: apps, generations, workers",
        description="Shows apps, their generations and workers.",
        epilog="example: dataplane ps --watch",
    )
    ps.add_argument("--app", type=app_name, metavar="NAME", help="this app alone")
    ps.add_argument("--watch", action="store_true", help="again each second, with requests/s")
    ps.set_defaults(run=run_ps)

    events = verbs.add_parser(
        "events",
        parents=[common],
        help="what happened",
        description="Prints what happened lately, one line each.",
        epilog="example: dataplane events -f",
    )
    events.add_argument("-f", "--follow", action="store_true", help="and all that happens")
    events.set_defaults(run=run_events)

    version = verbs.add_parser(
        "version",
        parents=[common],
        help="the version of this command",
        description="Prints the version of this command.",
        epilog="example: dataplane version",
    )
    version.set_defaults(run=run_version)


def run_ps(args: argparse.Namespace) -> int:
    """What runs, once or again and again."""
    folders = find_folders(args)
    before: dict[tuple[str, int, int], int] = {}
    for apps in _reports(folders, args.app, again=args.watch):
        if args.json:
            print(json.dumps({"apps": apps}), flush=True)
            continue
        rates = requests_per_second(apps, before) if before else {}
        if args.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(ps_text(apps, rates, colour=_may_colour()), flush=True)
        before = _requests(apps)
    return 0


def run_events(args: argparse.Namespace) -> int:
    """The ring of events, and with -f all that come until the supervisor ends."""
    from dataplane.cli.ask import supervisor_socket
    from dataplane.control.client import Client
    from dataplane.supervisor.events import line_of

    follow = "true" if args.follow else "false"
    with Client(supervisor_socket(find_folders(args))) as client:
        for line in client.lines(f"/v1/events?follow={follow}"):
            print(line.decode() if args.json else line_of(json.loads(line)), flush=True)
    return 0


def run_version(args: argparse.Namespace) -> int:
    """This command's own version; the supervisor's is at its socket."""
    version = dataplane.__version__
    print(json.dumps({"version": version}) if args.json else f"dataplane {version}")
    return 0


def _reports(folders: Folders, app: str | None, *, again: bool) -> Iterator[list[dict[str, Any]]]:
    from dataplane.cli.ask import ask, fact

    pause = threading.Event()
    while True:
        if app is None:
            yield fact(ask(folders, "GET", "/v1/apps"))["apps"]
        else:
            yield [fact(ask(folders, "GET", f"/v1/apps/{app}"))]
        if not again:
            return
        pause.wait(WATCH_SECONDS)


def _workers(apps: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for app in apps:
        for generation in app["generations"]:
            for worker in generation["workers"]:
                yield app["app"], generation["generation"], worker


def _requests(apps: Sequence[dict[str, Any]]) -> dict[tuple[str, int, int], int]:
    return {
        (app, generation, worker["slot"]): worker["requests"]
        for app, generation, worker in _workers(apps)
    }


def requests_per_second(
    apps: Sequence[dict[str, Any]], before: dict[tuple[str, int, int], int]
) -> dict[tuple[str, int, int], float]:
    """By worker, from two looks `WATCH_SECONDS` apart."""
    return {
        worker: (count - before.get(worker, 0)) / WATCH_SECONDS
        for worker, count in _requests(apps).items()
    }


def ps_text(
    apps: Sequence[dict[str, Any]],
    rates: dict[tuple[str, int, int], float],
    *,
    colour: bool,
) -> str:
    """A table, one line a worker; an app without any has a line, too."""
    head = ("APP", "STATE", "GEN", "IMAGE", "CODE", "SLOT", "PID", "WORKER", "CONNS", "REQUESTS",
            "REQ/S", "CPU", "MEMORY", "RESTARTS", "SINCE", "ADDRESSES")  # fmt: skip
    rows = [head]
    for app in apps:
        state = app["state"] + (" (pending)" if app["pending"] else "")
        addresses = " ".join(address["bind"] for address in app["addresses"])
        if not app["generations"]:
            rows.append((app["app"], state, *["-"] * 13, addresses))
        for generation in app["generations"]:
            for worker in generation["workers"]:
                key = (app["app"], generation["generation"], worker["slot"])
                rows.append(
                    (
                        app["app"],
                        state,
                        str(generation["generation"]),
                        generation["image"].removeprefix("sha256:")[:12],
                        _code(generation),
                        str(worker["slot"]),
                        str(worker["pid"] or "-"),
                        worker["state"] + (" (stale)" if worker["stale"] else ""),
                        str(worker["connections"]),
                        str(worker["requests"]),
                        f"{rates[key]:.0f}" if key in rates else "-",
                        f"{worker['cpu_seconds']:.1f}s",
                        f"{worker['memory_bytes'] / 1e6:.1f}M",
                        str(worker["restarts"]),
                        generation["since"],
                        addresses,
                    )
                )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colour and row is not head:
            for column in (1, 7):
                code = _COLOURS.get(row[column].split(" ")[0], _DRAINING_COLOUR)
                cells[column] = f"\x1b[{code}m{cells[column]}\x1b[0m"
        lines.append("  ".join(cells).rstrip())
    lines += [f"{app['app']}: {app['error']}" for app in apps if app.get("error")]
    lines += _stale_lines(apps)
    return "\n".join(lines)


def _stale_lines(apps: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What to do about workers that run from files the host has replaced."""
    files: dict[str, dict[str, None]] = {}  # by app, in order
    for app, _, worker in _workers(apps):
        if worker["stale"]:
            files.setdefault(app, {}).update(dict.fromkeys(worker["stale"]))
    for app, named in files.items():
        shown = ", ".join(list(named)[:STALE_SHOWN]) + (" ..." if len(named) > STALE_SHOWN else "")
        yield f"{app}: stale, since {shown} changed on disk: dataplane swap --force --app {app}"


def _code(generation: dict[str, Any]) -> str:
    """The version, and the digest's beginning: a hot fix may have left the version as it was."""
    return f"{generation['code']}/{generation['code_layer'].removeprefix('sha256:')[:8]}"


def _may_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
