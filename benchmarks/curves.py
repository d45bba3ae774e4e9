"""Does an event cost more where much else is there? Idle connections, routes, endpoints."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import rig
from measure import measure
from peers import LOAD_CPU, NotBuilt, Peer, Setup, start
from works import WORKS, Protocol, Work

# Those that can be given thousands of each in a file of their own.
PEERS: Final = ("dataplane", "haproxy", "nginx")
MOST_CONNECTIONS: Final = 19_000  # nginx lets idle ones go where few are left


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The sizes are in ascending order."""

    name: str
    title: str
    sizes: tuple[int, ...]


CURVES: Final = {
    curve.name: curve
    for curve in (
        Curve(
            name="idle",
            title="idle connections beside the load",
            sizes=(0, 100, 1000, 5000, 15_000),
        ),
        Curve(name="routes", title="routes of the app", sizes=(1, 100, 1000)),
        Curve(name="endpoints", title="endpoints of the upstream", sizes=(1, 100, 1000)),
    )
}

Say = Callable[[str], None]
Point = rig.Json


def take(
    curve: Curve, names: Sequence[str], sizes: Sequence[int], rounds: int, seconds: float, say: Say
) -> rig.Json:
    """CPU per request at each size, of each peer that can: rounds go over the sizes, again and
    again, so that drift bends no curve. A size that one cannot have is told and left out."""
    told: dict[str, list[Point]] = {}
    absent: dict[str, str] = {}
    with rig.upstream("--listen", "0.0.0.0:0", cpu=LOAD_CPU) as upstream:
        for name in names:
            with contextlib.ExitStack() as stack:
                started = _started(stack, curve, name, sizes, upstream, absent)
                points = _points(curve, started, rounds, seconds, say, absent)
                if points:
                    told[name] = points
    return {"name": curve.name, "title": curve.title, "peers": told, "absent": absent}


def _points(
    curve: Curve,
    peers: dict[int, Peer],
    rounds: int,
    seconds: float,
    say: Say,
    absent: dict[str, str],
) -> list[Point]:
    taken: dict[int, list[float]] = {size: [] for size in peers}
    for number in range(rounds):
        for size, peer in peers.items():
            say(f"curve {curve.name}: {peer.name} at {size:,}, round {number + 1} of {rounds}")
            try:
                with _beside(curve, peer, size):
                    taken[size].append(measure(peer, _work(curve, size), seconds).cpu_us)
            except rig.RunFailed as problem:
                absent[f"{peer.name} at {size:,}"] = str(problem)
    return [
        {
            "size": size,
            "cpu_us": round(statistics.median(values), 2),
            "rounds": [round(value, 2) for value in values],
        }
        for size, values in taken.items()
        if len(values) == rounds
    ]


def _started(
    stack: contextlib.ExitStack,
    curve: Curve,
    name: str,
    sizes: Sequence[int],
    upstream: int,
    absent: dict[str, str],
) -> dict[int, Peer]:
    """One process for each size; for idle connections one for all."""
    running: dict[int, Peer] = {}
    for size in sizes:
        setup = Setup(
            protocol=Protocol.HTTP,
            upstream=upstream,
            routes=size if curve.name == "routes" else 1,
            endpoints=size if curve.name == "endpoints" else 1,
            connections=MOST_CONNECTIONS,
        )
        try:
            is_one = curve.name == "idle" and running
            running[size] = next(iter(running.values())) if is_one else start(stack, name, setup)
        except (rig.RunFailed, NotBuilt) as problem:
            absent[f"{name} at {size:,}"] = str(problem)
    return running


@contextlib.contextmanager
def _beside(curve: Curve, peer: Peer, size: int) -> Iterator[None]:
    """Idle clients, each with an address of its own in 127.0.0.0/8."""
    if curve.name != "idle" or size == 0:
        yield
        return
    words = ("--mode", "idle", "--connections", str(size), "--sources", str(size))
    with rig.Load(peer.port, *words, cpu=LOAD_CPU) as load:
        told = load.event("round")
        if told["failed"] or told["open"] != size:
            raise rig.RunFailed(f"keeps {told['open']} of {size} idle connections")
        yield
        load.say("stop")
        report = load.report()
        if report["failed"]:
            raise rig.RunFailed(f"lost idle connections: {report['failures']}")


def _work(curve: Curve, size: int) -> Work:
    """As small, where the path is matched by the last of the routes that are not for all."""
    if curve.name != "routes" or size == 1:
        return WORKS["small"]
    return Work(name="routed", title="", path=f"/r{size - 2}/b/128")
