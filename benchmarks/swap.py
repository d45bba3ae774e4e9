"""What a swap costs, measured from outside: the real command, the real socket, real connections.

Each figure is a subcommand; without one all are taken. Load comes from dp_load, which never opens a
connection in place of one that broke, so "0 failed" and "64 connects" mean what they say.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import rig
from rig import Figure, at_least, at_most, exactly

IDLE_MANY: Final = 1000
POLLS_PER_SECOND: Final = 4000  # how finely the first answer of green is seen: 0.25 ms
RUN_LIMIT_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How long each figure is taken; `quick` is for the tests."""

    swaps: int
    requests: int
    short_requests: int  # of the run with a connection per request
    idle: int
    idle_swaps: int
    latencies: int
    starts: int
    apps: int


FULL: Final = Size(
    swaps=300,
    requests=1_000_000,
    short_requests=200_000,
    idle=IDLE_MANY,
    idle_swaps=20,
    latencies=100,
    starts=5,
    apps=20,
)
QUICK: Final = Size(
    swaps=10,
    requests=20_000,
    short_requests=4_000,
    idle=100,
    idle_swaps=3,
    latencies=5,
    starts=2,
    apps=3,
)


# ---- a dataplane to swap -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A running app with two built images, one of which serves."""

    plane: rig.Dataplane
    port: int
    upstream_port: int
    images: dict[str, str]  # mark -> digest

    def build(self, mark: str) -> str:
        """The image that marks its answers so."""
        self.plane.config(rig.APP, port=self.port, upstream_port=self.upstream_port, mark=mark)
        return self.plane.build()

    def turns(self) -> Iterator[tuple[str, str]]:
        """The marks and images to swap to, for ever: each differs from the one that serves."""
        return itertools.cycle([("b", self.images["b"]), ("a", self.images["a"])])


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """The app, serving its image "a"; "b" is built."""
    with rig.upstream() as upstream_port, rig.dataplane() as plane:
        made = Bench(plane=plane, port=rig.free_port(), upstream_port=upstream_port, images={})
        made.images["b"] = made.build("b")
        made.images["a"] = made.build("a")
        plane.run("run", "--app", rig.APP, "--detach")
        rig.wait_for_answer(made.port)
        yield made


# ---- under load ----------------------------------------------------------------------------------


def under_load(size: Size) -> Iterator[Figure]:
    """64 keep-alive connections at full speed, swap after swap."""
    with bench() as made:
        before = made.plane.metric("dataplane_connections_total")
        words = ("--connections", "64", "--headers", "browser", "--verify-body", "--keep-going")
        report, ledgers = swap_under(made, size.swaps, size.requests, words)
        after = made.plane.metric("dataplane_connections_total")
    yield from judged("keep-alive", report, ledgers, size.swaps, size.requests)
    yield exactly("keep-alive: connects in the whole run", report["connects"], 64)
    yield exactly("keep-alive: connections open at the end", report["open_at_end"], 64)
    if before is not None and after is not None:
        yield exactly("keep-alive: accepts that the app counted", after - before, 64)


def a_connection_each(size: Size) -> Iterator[Figure]:
    """The same with a new connection for each request."""
    with bench() as made:
        words = ("--mode", "per-request", "--headers", "browser", "--verify-body")
        swaps = max(1, size.swaps // 3)
        report, ledgers = swap_under(made, swaps, size.short_requests, words)
    yield from judged("per request", report, ledgers, swaps, size.short_requests)


def swap_under(
    made: Bench, swaps: int, requests: int, words: tuple[str, ...]
) -> tuple[rig.Json, list[rig.Json]]:
    """Swaps until both counts are reached: the load's report, and the ledgers."""
    ledgers = []
    give_up = time.monotonic() + RUN_LIMIT_SECONDS
    with rig.Load(made.port, "--control", "--mark-header", "x-mark", *words) as running:
        for _, digest in made.turns():
            ledgers.append(made.plane.swap(digest).body)
            if len(ledgers) >= swaps:
                status = running.ask("status", "status")
                if status["ok"] >= requests or status["failed"]:
                    break
            if time.monotonic() > give_up:
                raise rig.RunFailed(f"{len(ledgers)} swaps in {RUN_LIMIT_SECONDS:g} s: too slow")
        running.say("stop")
        return running.report(), ledgers


def judged(
    name: str, report: rig.Json, ledgers: list[rig.Json], swaps: int, requests: int
) -> Iterator[Figure]:
    """What holds for any load under swaps."""
    yield at_least(f"{name}: swaps", len(ledgers), swaps)
    yield at_least(f"{name}: requests", report["ok"], requests)
    yield exactly(
        f"{name}: failed",
        report["failed"],
        0,
        **report["failures"],
        **({"first": report["first_failures"][:3]} if report["failed"] else {}),
    )
    counts: Counter[str] = Counter()
    for ledger in ledgers:
        counts.update(ledger["connections"])
    lost = counts["closed"] + counts["reset"]
    yield exactly(f"{name}: connections the ledgers call lost", lost, 0, **counts)
    latency = report["latency_us"]
    yield Figure(
        name=f"{name}: longest time without any answer",
        value=report["longest_gap_ms"],
        unit="ms",
        more={
            "latency_p50_us": latency["p50"],
            "p99_us": latency["p99"],
            "p999_us": latency["p999"],
            "max_us": latency["max"],
            "requests_per_second": report["requests_per_second"],
        },
    )
    totals = [float(ledger["ms"]["total"]) for ledger in ledgers]
    more = rig.spread(totals)
    yield Figure(
        name=f"{name}: a swap, call to blue gone", value=more["median"], unit="ms", more=more
    )


# ---- idle connections ----------------------------------------------------------------------------


def idle(size: Size) -> Iterator[Figure]:
    """Idle connections go through swaps unasked, and answer with the last image's mark."""
    mark = "a"
    with bench() as made, idle_load(made.port, size.idle) as running:
        ledgers = []
        for number in range(1, size.idle_swaps + 1):
            mark = f"g{number}"
            ledgers.append(made.plane.swap(made.build(mark)).body)
        told = running.ask("round", "round")
        running.say("stop")
        report = running.report()
    moved = sum(ledger["connections"]["moved_idle"] for ledger in ledgers)
    name = f"{size.idle} idle, {size.idle_swaps} swaps"
    yield exactly(f"{name}: answer with the last mark", told["marks"].get(mark, 0), size.idle)
    yield exactly(f"{name}: failed", report["failed"], 0, **report["failures"])
    yield exactly(f"{name}: connects in the whole run", report["connects"], size.idle)
    yield exactly(f"{name}: moved idle, of all swaps", moved, size.idle * size.idle_swaps)


@contextlib.contextmanager
def idle_load(port: int, connections: int) -> Iterator[rig.Load]:
    """Connections that were used once and now are idle."""
    words = ("--mode", "idle", "--connections", str(connections), "--mark-header", "x-mark")
    with rig.Load(port, *words, "--keep-going") as running:
        first = running.event("round")
        if first["ok"] != connections:
            raise rig.RunFailed(f"{first['ok']} of {connections} connections answer before a swap")
        yield running


# ---- how long ------------------------------------------------------------------------------------


def latency(size: Size) -> Iterator[Figure]:
    """From the call to the first answer that carries green's mark, on one kept connection."""
    to_answer, to_end, ready = [], [], []
    words: tuple[str, ...] = ("--connections", "1", "--rate", str(POLLS_PER_SECOND), "--control")
    words += ("--mark-header", "x-mark", "--mark-events")
    with bench() as made, rig.Load(made.port, *words) as running:
        running.event("mark")
        for mark, digest in itertools.islice(made.turns(), size.latencies):
            told = made.plane.swap(digest)
            first = running.event("mark")
            if first["mark"] != mark:
                raise rig.RunFailed(f"the mark {first['mark']!r} came, not {mark!r}")
            to_answer.append((first["at_ns"] - told.began_ns) / 1e6)
            to_end.append(told.ms)
            ready.append(float(told.body["ms"]["ready"]))
        running.say("stop")
        report = running.report()
    name = "swap of a built image"
    yield at_most(
        f"{name}: call to green's first answer, median",
        statistics.median(to_answer),
        30,
        "ms",
        **rig.spread(to_answer),
    )
    yield Figure(
        name=f"{name}: call to blue gone, median",
        value=round(statistics.median(to_end), 2),
        unit="ms",
        more={**rig.spread(to_end), "ready_ms": round(statistics.median(ready), 2)},
    )
    yield exactly(f"{name}: failed polls", report["failed"], 0, **report["failures"])


def gone(size: Size) -> Iterator[Figure]:
    """From the call until blue's process has ended, with idle connections to move."""
    took = []
    with bench() as made, idle_load(made.port, size.idle) as running:
        for _, digest in itertools.islice(made.turns(), max(3, size.latencies // 3)):
            blues = [os.pidfd_open(pid) for pid in made.plane.workers() if rig.lives(pid)]
            try:
                told = made.plane.swap(digest)
                for blue in blues:
                    if not select.select([blue], [], [], 10.0)[0]:
                        raise rig.RunFailed("blue lives 10 s after its swap was told as done")
                took.append(max(told.ms, (time.monotonic_ns() - told.began_ns) / 1e6))
            finally:
                for blue in blues:
                    os.close(blue)
        told_round = running.ask("round", "round")
        running.say("stop")
        running.report()
    yield at_most(
        f"swap with {size.idle} idle connections: call to blue gone, median",
        statistics.median(took),
        60,
        "ms",
        **rig.spread(took),
    )
    yield exactly("the same: connections that answer after it", told_round["ok"], size.idle)


def start(size: Size) -> Iterator[Figure]:
    """`run` in the foreground with a warm store, to the first answer."""
    with rig.upstream() as upstream_port, rig.dataplane() as plane:
        port = rig.free_port()
        plane.config(rig.APP, port=port, upstream_port=upstream_port, mark="a")
        took = rig.start_times(plane, ["run", "--app", rig.APP], [port], size.starts + 1)
    yield at_most(
        "run with a warm store: to the first answer, median",
        statistics.median(took[1:]),
        1000,
        "ms",
        **rig.spread(took[1:]),
        cold=round(took[0], 1),
    )


def memory(size: Size) -> Iterator[Figure]:
    """What one idle worker among many costs, its share of shared pages included (PSS)."""
    with rig.upstream() as upstream_port, rig.dataplane() as plane:
        ports = {f"{rig.APP}{number}": rig.free_port() for number in range(size.apps)}
        for app, port in ports.items():
            plane.config(app, port=port, upstream_port=upstream_port, mark="a")
        plane.run("up", "--detach", seconds=120.0)
        for port in ports.values():
            rig.wait_for_answer(port)
        workers = [pid for app in ports for pid in plane.workers(app)]
        if len(workers) != size.apps:
            raise rig.RunFailed(f"{len(workers)} workers of {size.apps} apps")
        taken = [rig.memory_kb(pid) for pid in workers]
        supervisor = plane.supervisor_pid()
        rest = {"supervisor": 0, "zygote": 0, "others": 0}
        for pid in rig.tree(supervisor):
            kind = "zygote" if "zygote" in rig.command_of(pid) else "others"
            if pid not in workers and rig.lives(pid):
                rest["supervisor" if pid == supervisor else kind] += rig.memory_kb(pid)["Pss"]
    pss = [one["Pss"] / 1024 for one in taken]
    private = [(one["Private_Dirty"] + one["Private_Clean"]) / 1024 for one in taken]
    yield at_most(
        f"an idle worker among {size.apps}: PSS, median",
        statistics.median(pss),
        4,
        "MB",
        max=round(max(pss), 2),
        private=round(statistics.median(private), 2),
        **{name: round(kb / 1024, 2) for name, kb in rest.items()},
    )


FIGURES: Final[dict[str, Callable[[Size], Iterator[Figure]]]] = {
    "load": under_load,
    "per-request": a_connection_each,
    "idle": idle,
    "latency": latency,
    "gone": gone,
    "start": start,
    "memory": memory,
}


if __name__ == "__main__":
    about = "What a swap costs, measured from outside."
    sys.exit(rig.take_figures("swap", about, FIGURES, (FULL, QUICK), quick="seconds, not minutes"))
