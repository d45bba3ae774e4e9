"""The suite: every work, every proxy, in interleaved rounds of one run.

The proxy has CPU 0 to itself; the upstream and the load share CPU 1. All peers of a work run all
the time, and the load goes round: A B C A B C. A figure of one run is never compared with one of
another. Writes bench.json and bench.html into build/bench/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import curves
import page
import peers
import rig
import tables
from measure import Round, check, idle_bytes, measure
from pairs import Ratio, ratio
from peers import FLOOR, LOAD_CPU, OURS, NotBuilt, Peer, Setup
from works import WORKS, Protocol, Work

OUT: Final = rig.ROOT / "build" / "bench"
MEMORY: Final = "memory"
MEMORY_TARGET: Final = 300.0  # bytes
HELD: Final = 0.99  # of a rate: what is due at the very end of a round may be left
DISTURBED: Final = 0.1  # what the two counts of the CPU's use may differ by


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it: `tiny` is for the tests, and its figures mean nothing."""

    rounds: int
    seconds: float
    idle: int
    curve_rounds: int
    curve_limit: int  # no larger size than this


FULL: Final = Size(rounds=10, seconds=3, idle=5000, curve_rounds=5, curve_limit=15_000)
QUICK: Final = Size(rounds=3, seconds=1, idle=2000, curve_rounds=3, curve_limit=15_000)
TINY: Final = Size(rounds=1, seconds=0.1, idle=100, curve_rounds=1, curve_limit=100)


class Telling:
    """Mutable. How far it is, on stderr: one line that is written over, or one line a step."""

    def __init__(self, steps: int, *, quiet: bool) -> None:
        self._steps = steps
        self._done = 0
        self._began = time.monotonic()
        self._quiet = quiet
        self._over = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """The next step begins."""
        self._done += 1
        if self._quiet:
            return
        passed = time.monotonic() - self._began
        line = f"[{self._done}/{self._steps}, {passed:.0f} s] {text}"
        if self._over:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._over and not self._quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main() -> int:
    args = options().parse_args()
    size = {"full": FULL, "quick": QUICK, "tiny": TINY}[args.size]
    if args.rounds:
        size = Size(**{**asdict(size), "rounds": args.rounds})
    rig.take_precedence()
    try:
        names, sections = chosen(args.peers, peers.STARTS), chosen(args.works, SECTIONS)
        rig.build_tools()
        lacking = [] if args.no_install else peers.install()
        report = run(names, sections, size, args.json)
    except rig.RunFailed as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    report["lacking"] = lacking
    written = write(report, args.out)
    if args.json:
        print(json.dumps(report))
    else:
        print(tables.report_text(report))
        print(f"\nwritten: {', '.join(map(str, written))}")
    wrong = any(OURS in row["failed"] for row in report["rows"])
    return 1 if wrong or (args.check and report["missed"]) else 0


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Every work beside every proxy, in interleaved rounds.",
        epilog="example: python benchmarks/bench.py --quick --works small,16k",
    )
    size = parser.add_mutually_exclusive_group()
    for name, what in (("quick", "3 short rounds"), ("tiny", "one, for tests: no true figures")):
        size.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=what)
    parser.add_argument("--works", help=f"which, with commas: {', '.join(SECTIONS)}")
    parser.add_argument("--peers", help=f"which, with commas: {', '.join(peers.STARTS)}")
    parser.add_argument("--rounds", type=int, help="in place of the size's own")
    parser.add_argument("--no-install", action="store_true", help="take the peers that are here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--json", action="store_true", help="the report on stdout")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="build/bench")
    parser.set_defaults(size="full")
    return parser


SECTIONS: Final = (*WORKS, MEMORY, *curves.CURVES)


def chosen(told: str | None, known: Iterable[str]) -> list[str]:
    """The names that were asked for, or all. Raises `rig.RunFailed` for one that is not known."""
    names = list(known)
    if told is None:
        return names
    for name in told.split(","):
        if name not in names:
            raise rig.RunFailed(f"no {name!r}: there are {', '.join(names)}")
    return [name for name in names if name in told.split(",")]


# ---- the run -------------------------------------------------------------------------------------


def run(names: Sequence[str], sections: Sequence[str], size: Size, quiet: bool) -> rig.Json:
    """All of it: the report."""
    telling = Telling(steps(names, sections, size), quiet=quiet)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(rig.upstream(cpu=LOAD_CPU))
        ours = Ours(stack)
        rows = [
            work_row(WORKS[section], names, size, telling, upstream, ours)
            for section in sections
            if section in WORKS
        ]
    report: rig.Json = {
        "machine": rig.machine(),
        "size": asdict(size),
        "rows": rows,
        "memory": memory_row(names, size, telling) if MEMORY in sections else None,
        "curves": [
            curves.take(
                curves.CURVES[section],
                [name for name in names if name in curves.PEERS],
                curve_sizes(section, size),
                size.curve_rounds,
                size.seconds,
                telling.step,
            )
            for section in sections
            if section in curves.CURVES
        ],
    }
    telling.end()
    report["missed"] = missed(report)
    return report


def steps(names: Sequence[str], sections: Sequence[str], size: Size) -> int:
    """How many there will be, if all peers are here."""
    count = 0
    for section in sections:
        if section in WORKS:
            count += len(names) * (size.rounds + 1)
        elif section == MEMORY:
            count += len([name for name in names if name != FLOOR])
        else:
            able = len([name for name in names if name in curves.PEERS])
            count += able * len(curve_sizes(section, size)) * size.curve_rounds
    return count


def curve_sizes(section: str, size: Size) -> list[int]:
    return [one for one in curves.CURVES[section].sizes if one <= size.curve_limit]


def setup_of(work: Work, upstream: int) -> Setup:
    return Setup(
        protocol=work.protocol,
        upstream=upstream,
        bulk=work.bulk,
        large=max(work.answer, work.upload) > 4096,
        per_request=work.per_request,
        logged=work.logged,
    )


class Ours:
    """Mutable. Nothing of ours is tuned for a work: one process serves all of a protocol."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._running: dict[tuple[Protocol, bool], Peer] = {}

    def start(self, setup: Setup) -> Peer:
        """The one that runs, or the first. Raises `NotBuilt` or `rig.RunFailed`."""
        key = (setup.protocol, setup.logged)
        if key not in self._running:
            self._running[key] = peers.start(self._stack, OURS, setup)
        return self._running[key]


def work_row(
    work: Work,
    names: Sequence[str],
    size: Size,
    telling: Telling,
    upstream: int,
    ours: Ours,
) -> rig.Json:
    """One work: starts all, checks all, goes round."""
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    rounds: dict[str, list[Round]] = {}
    with contextlib.ExitStack() as stack:
        setup = setup_of(work, upstream)
        running: list[Peer] = []
        for name in names:
            telling.step(f"{work.name}: start {name}")
            with told_failure(name, absent, failed):
                peer = ours.start(setup) if name == OURS else peers.start(stack, name, setup)
                if (wrong := check(peer, work)) is not None:
                    raise rig.RunFailed(f"wrong: {wrong}")
                running.append(peer)
        for number in range(size.rounds):
            for peer in list(running):
                telling.step(f"{work.name}: round {number + 1} of {size.rounds}, {peer.name}")
                with told_failure(peer.name, absent, failed):
                    taken = measure(peer, work, size.seconds)
                    rounds.setdefault(peer.name, []).append(taken)
                if peer.name in failed or peer.name in absent:
                    running.remove(peer)
                    rounds.pop(peer.name, None)
    return summary(work, {peer.name: peer.version for peer in running}, rounds, absent, failed)


@contextlib.contextmanager
def told_failure(name: str, absent: dict[str, str], failed: dict[str, str]) -> Iterator[None]:
    """A peer that cannot take part is told and left out; ours must take part."""
    try:
        yield
    except NotBuilt as problem:
        absent[name] = str(problem)
    except rig.RunFailed as problem:
        (failed if name in (OURS, FLOOR) else absent)[name] = str(problem)


def summary(
    work: Work,
    versions: Mapping[str, str],
    rounds: Mapping[str, list[Round]],
    absent: Mapping[str, str],
    failed: Mapping[str, str],
) -> rig.Json:
    """Medians of each, and ours against the best peer and the floor."""
    figures = [peer_figures(name, versions[name], taken) for name, taken in rounds.items()]
    fair = [one for one in figures if one["name"] not in (OURS, FLOOR) and one["held"]]
    best = min(fair, key=lambda one: one["cpu_us"], default=None)

    def against(other: str | None) -> Ratio | None:
        if other is None or OURS not in rounds or other not in rounds:
            return None
        return ratio([r.cpu_us for r in rounds[OURS]], [r.cpu_us for r in rounds[other]])

    best_name: str | None = best["name"] if best else None
    to_best, to_floor = against(best_name), against(FLOOR)
    row = {
        "name": work.name,
        "title": work.title,
        "connections": work.connections,
        "rate": work.rate,
        "peers": figures,
        "best": best_name,
        "ratio": to_best and asdict(to_best),
        "floor_ratio": to_floor and asdict(to_floor),
        "target": work.target,
        "floor_target": work.floor_target,
        "absent": dict(absent),
        "failed": dict(failed),
    }
    return row | {"misses": misses(row, fair)}


def misses(row: rig.Json, fair: Sequence[rig.Json]) -> list[str]:
    """Which of the row's targets are not met."""
    told = []
    for key, target in (("ratio", "target"), ("floor_ratio", "floor_target")):
        if row[key] and row[target] and row[key]["value"] > row[target]:
            told.append(f"{key.replace('_', ' ')} {row[key]['value']:.3f}, not {row[target]:.2f}")
    ours = next((one for one in row["peers"] if one["name"] == OURS), None)
    if row["rate"] and ours and fair:
        if not ours["held"]:
            told.append("the rate was not held")
        for name in ("p50_us", "p99_us"):
            best = min(one[name] for one in fair)
            if ours[name] > best:
                told.append(f"{name.removesuffix('_us')} {ours[name]:.0f} us, not {best:.0f}")
    return told


def peer_figures(name: str, version: str, taken: Sequence[Round]) -> rig.Json:
    def median(field: str, digits: int) -> float:
        return float(round(statistics.median(getattr(one, field) for one in taken), digits))

    own, busy = median("own_share", 3), median("busy_share", 3)
    return {
        "name": name,
        "version": version,
        "cpu_us": median("cpu_us", 2),
        "cpu_us_rounds": [round(one.cpu_us, 2) for one in taken],
        "per_second": median("per_second", 0),
        "bytes_per_second": median("bytes_per_second", 0),
        "p50_us": median("p50_us", 1),
        "p99_us": median("p99_us", 1),
        "p999_us": median("p999_us", 1),
        "held": median("held", 4) >= HELD,
        "own_share": own,
        "busy_share": busy,
        "disturbed": abs(own - busy) > DISTURBED,
    }


def memory_row(names: Sequence[str], size: Size, telling: Telling) -> rig.Json:
    """Bytes of user-space memory for one idle kept-alive connection."""
    told: dict[str, float] = {}
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    with rig.upstream(cpu=LOAD_CPU) as upstream:
        for name in names:
            if name == FLOOR:
                continue
            telling.step(f"{MEMORY}: {name}")
            with told_failure(name, absent, failed), contextlib.ExitStack() as stack:
                setup = Setup(protocol=Protocol.HTTP, upstream=upstream)
                peer = peers.start(stack, name, setup)
                told[name] = round(idle_bytes(peer, size.idle))
    missed = [] if told.get(OURS, 0) <= MEMORY_TARGET else [f"{told[OURS]:.0f} bytes, not 300"]
    return {
        "title": "user-space memory of an idle kept-alive connection",
        "connections": size.idle,
        "bytes": told,
        "target": MEMORY_TARGET,
        "absent": absent | failed,
        "misses": missed,
    }


def missed(report: rig.Json) -> list[str]:
    """All targets that are not met, with their work."""
    told = [f"{row['name']}: {one}" for row in report["rows"] for one in row["misses"]]
    memory = report["memory"]
    return told + [f"{MEMORY}: {one}" for one in (memory["misses"] if memory else ())]


def write(report: rig.Json, folder: Path) -> list[Path]:
    """The report, for programs and for people."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "bench.json", folder / "bench.html"]
    written[0].write_text(json.dumps(report, indent=1) + "\n")
    written[1].write_text(page.html(report))
    return written


if __name__ == "__main__":
    sys.exit(main())
