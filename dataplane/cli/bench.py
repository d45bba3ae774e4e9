"""The verb bench: load on one app that runs here, from the load generator that ships with us.

It asks the supervisor where the app listens and goes nowhere else: this is no tool to press on
somebody else's server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.cli.folders import app_name, find_folders
from dataplane.model.errors import ControlError, LaunchError
from dataplane.system.process import PIPE, Child, spawn

EX_OK: Final = 0
EX_FAILED: Final = 1

PROGRAM: Final = Path(__file__).with_name("dp_load")

CONNECTIONS: Final = 64
SECONDS: Final = 10
MOST_CONNECTIONS: Final = 10_000
MOST_SECONDS: Final = 3600
MOST_RATE: Final = 1_000_000

_CATCH_ALL: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

Json = dict[str, Any]


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds bench."""
    bench = verbs.add_parser(
        "bench",
        parents=[common],
        help="load-test an app that runs here",
        description="Puts load on an app that runs here, over HTTP/1.1, and tells what came of "
        "it. Without --rate each connection asks again as soon as it is answered; with it requests "
        "are sent when they are due, however late the answers are, and timed from then.",
        epilog="example: dataplane bench --app billing --rate 5000",
    )
    bench.add_argument("--app", type=app_name, required=True, metavar="NAME", help="the app")
    bench.add_argument("--listener", metavar="NAME", help="which of its listeners; else the first")
    bench.add_argument("--address", metavar="HOST:PORT", help="the same by its address")
    _add_count(bench, "--connections", CONNECTIONS, MOST_CONNECTIONS, "kept open at a time")
    _add_count(bench, "--seconds", SECONDS, MOST_SECONDS, "how long")
    _add_count(bench, "--rate", None, MOST_RATE, "requests a second in all")
    bench.add_argument("--per-request", action="store_true", help="a new connection for each")
    bench.add_argument("--path", default="/", help="what is asked for (/)")
    bench.add_argument("--host", help="the host field; else the address")
    bench.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'")
    bench.set_defaults(run=run_bench)


def _add_count(
    parser: argparse.ArgumentParser, flag: str, usual: int | None, most: int, what: str
) -> None:
    shown = f"{what} (at most {most:,})" if usual is None else f"{what} ({usual}; at most {most:,})"
    parser.add_argument(flag, type=_count(most), default=usual, metavar="N", help=shown)


def _count(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {most}")
        return int(text)

    return parse


def run_bench(args: argparse.Namespace) -> int:
    """Load on the app, told each second on stderr; the report is on stdout."""
    from dataplane.cli.ask import ask, fact

    folders = find_folders(args)

    def look() -> Json:
        told: Json = fact(ask(folders, "GET", f"/v1/apps/{args.app}"))
        return told

    before = look()
    address = choose_address(args.app, before["addresses"], args.listener, args.address)
    report = _load(address, args)
    told = _told(args.app, report, before, look())
    print(json.dumps(told) if args.json else report_text(told))
    bad = report["failed"] or report["statuses"]["5xx"] or not report["ok"]
    return EX_FAILED if bad else EX_OK


def choose_address(app: str, own: Sequence[Json], listener: str | None, address: str | None) -> str:
    """One of the app's own addresses, as it can be reached from here. Raises `ControlError`."""
    reachable = {one["listener"]: reachable_address(one["bind"]) for one in own}
    if not reachable:
        raise ControlError(f"the app {app} listens nowhere: it does not run")
    listed = ", ".join(f"{name} {bind}" for name, bind in reachable.items())
    if listener is not None and listener not in reachable:
        raise ControlError(f"the app {app} has no listener {listener!r}; it has {listed}")
    chosen = reachable[listener] if listener is not None else next(iter(reachable.values()))
    if address is None:
        return chosen
    wanted = reachable_address(address)
    if wanted not in reachable.values() or (listener is not None and wanted != chosen):
        raise ControlError(f"{address} is no address of the app {app}; it has {listed}")
    return wanted


def reachable_address(bind: str) -> str:
    """Where a listener on all addresses is reached on this host."""
    host, colon, port = bind.rpartition(":")
    return f"{_CATCH_ALL.get(host, host)}{colon}{port}"


def load_words(address: str, args: argparse.Namespace) -> list[str]:
    """The generator's command line."""
    host = args.host or ("localhost" if address.startswith("unix:") else address)
    words = ["--address", address, "--host", host, "--path", args.path, "--no-token"]
    words += ["--connections", str(args.connections), "--seconds", str(args.seconds)]
    words += ["--expect-status", "0", "--progress", "--reopen", "--end-with-parent"]
    if args.rate is not None:
        words += ["--rate", str(args.rate)]
    if args.per_request:
        words += ["--mode", "per-request"]
    for header in args.header:
        words += ["--header", header]
    return words


def _load(address: str, args: argparse.Namespace) -> Json:
    """Runs the generator to its end, or to ours: its report. Raises `LaunchError`."""
    if not PROGRAM.is_file():
        hint = "run `make setup`, or install the package again with a C compiler at hand"
        raise LaunchError(f"the load generator {PROGRAM} was not built; {hint}")
    if not args.json:
        load = f"{args.rate} requests/s" if args.rate else "as fast as it answers"
        print(
            f"{args.app} at {address}: {args.connections} connections, {load}, {args.seconds} s",
            file=sys.stderr,
        )
    child = spawn([str(PROGRAM), *load_words(address, args)], environment=os.environ, stdout=PIPE)
    progress = Progress(args.seconds)
    report: Json | None = None
    try:
        for line in _lines(child):
            if line["event"] == "report":
                report = line
            elif not args.json:
                progress.tell(line)
    finally:
        child.signal(signal.SIGTERM)
        asyncio.run(child.wait())
        child.close()
    progress.end()
    if report is None:
        raise LaunchError("the load generator ended without a report: see above")
    return report


def _lines(child: Child) -> Iterator[Json]:
    """What it tells. The first Ctrl-C ends the load and not us: its report still comes."""
    assert child.output is not None
    asked = False
    while True:
        try:
            line = child.output.readline()
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True
            child.signal(signal.SIGTERM)
            continue
        if not line:
            return
        yield json.loads(line)


class Progress:
    """Mutable. On a terminal one line that is written over, elsewhere a line each second."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._over = sys.stderr.isatty()
        self._told = False

    def tell(self, line: Json) -> None:
        """One second of the run."""
        text = progress_text(line, self._seconds)
        end = "" if self._over else "\n"
        print(f"\r{text}\x1b[K" if self._over else text, end=end, file=sys.stderr, flush=True)
        self._told = True

    def end(self) -> None:
        """The report follows."""
        if self._over and self._told:
            print(file=sys.stderr)


def progress_text(line: Json, seconds: int) -> str:
    """For people, in one line."""
    failed = f"  {line['failed']} failed" if line["failed"] else ""
    return (
        f"{line['seconds']:4.0f} of {seconds} s  {line['requests_per_second']:9,.0f} requests/s  "
        f"p50 {line['p50_us'] / 1e3:.2f} ms  p99 {line['p99_us'] / 1e3:.2f} ms  "
        f"max {line['max_us'] / 1e3:.2f} ms  {line['open']} open{failed}"
    )


def _told(app: str, report: Json, before: Json, after: Json) -> Json:
    """The report, and which generations served while it was made."""
    told = {name: value for name, value in report.items() if name not in _INTERNAL}
    served = {one["generation"] for told_app in (before, after) for one in told_app["generations"]}
    return {"app": app, **told, "generations": sorted(served)}


_INTERNAL: Final = frozenset({"event", "marks", "without_mark", "requests"})


def report_text(told: Json) -> str:
    """For people."""
    latency = told["latency_us"]
    statuses = [f"{count:,} {name}" for name, count in told["statuses"].items() if count]
    lines = [
        f"{told['ok']:,} answers in {told['seconds']:.1f} s: "
        f"{told['requests_per_second']:,.0f} a second, {_bytes(told)}",
        f"answers    {', '.join(statuses) or 'none'}",
        "latency    "
        + "  ".join(f"{name} {latency[name] / 1e3:.2f} ms" for name in ("p50", "p90", "p99"))
        + f"  p99.9 {latency['p999'] / 1e3:.2f} ms  max {latency['max'] / 1e3:.2f} ms",
        f"connects   {told['connects']:,} for {told['connections']:,} connections",
    ]
    if told["unsent"]:
        lines.append(f"not held   {told['unsent']:,} requests were due and could not be sent")
    if len(told["generations"]) > 1:
        lines.append(f"served by  generations {', '.join(map(str, told['generations']))}")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in told["failures"].items())
    lines.append(f"failed     {told['failed']:,}" + (f": {kinds}" if kinds else ""))
    lines += [
        f"           connection {one['connection']}: {one['kind']} at {one['at_ms'] / 1e3:.3f} s: "
        f"{one['detail']}"
        for one in told["first_failures"][:3]
    ]
    return "\n".join(lines)


def _bytes(told: Json) -> str:
    rate = told["bytes_in"] / told["seconds"] if told["seconds"] else 0.0
    return f"{rate / 1e6:,.1f} MB/s of bodies"
