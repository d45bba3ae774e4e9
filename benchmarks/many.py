"""A host full of apps, measured from outside: memory, start, swaps, a broken file among many.

Each figure is a subcommand; without one all are taken, of one supervisor as far as that goes. Every
app has a port and a config file of its own, made here; all of them share one upstream.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import rig
from rig import Figure, at_least, at_most, exactly

WORKER_MB: Final = 320 / 123  # the target of 123 idle workers and their zygotes, for any number
UP_SECONDS: Final = 2.0
PLAN_SECONDS: Final = 1.0
IDLE_SHARE: Final = 2.0  # percent of one CPU, all processes together
# What a median over 100 swaps differs by from one run of the very same thing to the next.
NOISE: Final = 1.25
BROKEN: Final = "app3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """`quick` is for the tests."""

    apps: int
    swaps: int
    starts: int
    idle_seconds: float
    trickle: int  # requests a second to each of the other apps


FULL: Final = Size(apps=123, swaps=100, starts=3, idle_seconds=5.0, trickle=2)
QUICK: Final = Size(apps=12, swaps=10, starts=1, idle_seconds=2.0, trickle=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Apps that are configured, and were built and run once."""

    plane: rig.Dataplane
    ports: dict[str, int]
    upstream_port: int

    def configure(self, app: str, mark: str) -> None:
        self.plane.config(app, port=self.ports[app], upstream_port=self.upstream_port, mark=mark)


# ---- many apps -----------------------------------------------------------------------------------


@contextlib.contextmanager
def configured(apps: int) -> Iterator[Scene]:
    """Config files alone: nothing is built."""
    with rig.upstream() as upstream_port, rig.dataplane() as plane:
        ports: dict[str, int] = {}
        while len(ports) < apps:
            port = rig.free_port()
            if port not in ports.values():  # a port may be given twice
                ports[f"app{len(ports) + 1}"] = port
        made = Scene(plane=plane, ports=ports, upstream_port=upstream_port)
        for app in ports:
            made.configure(app, "a")
        yield made


@contextlib.contextmanager
def running(apps: int) -> Iterator[Scene]:
    """All apps serve."""
    with configured(apps) as made:
        made.plane.run("up", "--detach", seconds=rig.START_SECONDS)
        rig.wait_for_answers(list(made.ports.values()), rig.START_SECONDS)
        yield made


# ---- figures -------------------------------------------------------------------------------------


def start(size: Size) -> Iterator[Figure]:
    """`up` where nothing was built yet, and where all was."""
    with configured(size.apps) as made:
        ports = list(made.ports.values())
        took = rig.start_times(made.plane, ["up"], ports, size.starts + 1)
    yield Figure(
        name=f"up with {size.apps} apps that never ran: every app answers",
        value=round(took[0], 1),
        unit="ms",
    )
    yield at_most(
        f"up with {size.apps} built images: every app answers, median",
        statistics.median(took[1:]),
        UP_SECONDS * 1000,
        "ms",
        **rig.spread(took[1:]),
    )


def memory(size: Size) -> Iterator[Figure]:
    """What all idle workers and their zygotes have, and what they do while nobody asks them."""
    with running(size.apps) as made:
        supervisor = made.plane.supervisor_pid()
        pids = settled(supervisor)
        zygotes = [pid for pid in pids if name_of(pid) == "dp:zygote"]
        workers = [pid for pid in pids if name_of(pid).startswith("dp:app")]
        yield exactly("processes: workers", len(workers), size.apps, zygotes=len(zygotes))
        taken = [rig.memory_kb(pid) for pid in workers]
        pss = [one["Pss"] / 1024 for one in taken]
        of_zygotes = sum(rig.memory_kb(pid)["Pss"] for pid in zygotes) / 1024
        dirty = statistics.median(one["Private_Dirty"] for one in taken) / 1024
        yield at_most(
            f"PSS of {size.apps} idle workers and their zygote",
            sum(pss) + of_zygotes,
            round(WORKER_MB * size.apps, 1),
            "MB",
            a_worker=round(statistics.median(pss), 2),
            private_dirty=round(dirty, 2),
            zygotes=round(of_zygotes, 2),
            supervisor=round(rig.memory_kb(supervisor)["Pss"] / 1024, 2),
        )
        before, of_supervisor = rig.cpu_ns(pids), rig.cpu_ns([supervisor])
        began = time.monotonic_ns()
        time.sleep(size.idle_seconds)
        passed = time.monotonic_ns() - began
        busy = rig.cpu_ns(pids) - before
        told = rig.cpu_ns([supervisor]) - of_supervisor
        yield at_most(
            f"CPU of all of them, idle for {size.idle_seconds:g} s",
            100 * busy / passed,
            IDLE_SHARE,
            "%",
            supervisor=round(100 * told / passed, 2),
            a_worker_us_per_second=round((busy - told) / 1000 / (passed / 1e9) / size.apps, 1),
        )
        looks = []
        for _ in range(5):
            asked = made.plane.call("GET", "/v1/apps")
            looks.append((asked.ended_ns - asked.began_ns) / 1e6)
        yield Figure(
            name=f"ps of {size.apps} apps: the supervisor's answer",
            value=round(statistics.median(looks), 2),
            unit="ms",
        )


def plan(size: Size) -> Iterator[Figure]:
    """`dataplane plan`, the command as a whole, where no file differs from what serves."""
    with running(size.apps) as made:
        settled(made.plane.supervisor_pid())
        took = []
        for _ in range(size.starts * 3):
            began = time.monotonic_ns()
            made.plane.run("plan")
            took.append((time.monotonic_ns() - began) / 1e6)
    yield at_most(
        f"plan of {size.apps} apps with nothing changed, median",
        statistics.median(took),
        PLAN_SECONDS * 1000,
        "ms",
        **rig.spread(took),
    )


def swaps(size: Size) -> Iterator[Figure]:
    """A swap of one of many against a swap of the only one; then with requests to the others."""
    with ready_to_swap(1) as alone:
        one = rig.spread(alone.swaps(size.swaps))
    with ready_to_swap(size.apps) as among:
        many = rig.spread(among.swaps(size.swaps))
        busy, reports = swaps_under_trickle(among, size)
    for name, figures in (
        ("the only app", one),
        (f"one of {size.apps}", many),
        (f"one of {size.apps}, {size.trickle} requests a second to each other", rig.spread(busy)),
    ):
        yield Figure(
            name=f"swap of {name}: call to blue gone, median",
            value=figures["median"],
            unit="ms",
            more=figures,
        )
    yield at_most(
        "one of many beside the only one, median",
        many["median"] / one["median"],
        NOISE,
        "times",
        p99=round(many["p99"] / one["p99"], 2),
    )
    yield at_least(
        f"the other {size.apps - 1} meanwhile: requests to each",
        min(report["ok"] for report in reports),
        1,
        requests=sum(report["ok"] for report in reports),
    )
    yield exactly(
        f"requests to the other {size.apps - 1} meanwhile: failed",
        sum(report["failed"] for report in reports),
        0,
    )
    yield exactly(
        f"the other {size.apps - 1} meanwhile: connects",
        sum(report["connects"] for report in reports),
        size.apps - 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapping:
    """Apps that serve, and two images for the first of them."""

    scene: Scene
    images: tuple[str, str]

    def swaps(self, count: int) -> list[float]:
        """How long each of so many swaps in a row took, in ms."""
        app, *_ = self.scene.ports
        turns = itertools.islice(itertools.cycle(self.images), count)
        return [self.scene.plane.swap(image, app).ms for image in turns]


@contextlib.contextmanager
def ready_to_swap(apps: int) -> Iterator[Swapping]:
    """So many apps that serve; nothing is built or compared any more."""
    with running(apps) as made:
        app, *_ = made.ports
        images = []
        for mark in ("b", "a"):
            made.configure(app, mark)
            images.append(made.plane.build(app))
        settled(made.plane.supervisor_pid())
        yield Swapping(scene=made, images=(images[0], images[1]))


def swaps_under_trickle(among: Swapping, size: Size) -> tuple[list[float], list[rig.Json]]:
    """How long each swap of the first app took, in ms, and the load's reports of the others."""
    with contextlib.ExitStack() as stack:
        _, *others = among.scene.ports.values()
        words = ("--connections", "1", "--verify-body", "--keep-going", "--control")
        loads = [
            stack.enter_context(rig.Load(port, *words, "--rate", str(size.trickle)))
            for port in others
        ]
        for running_load in loads:
            running_load.ask("status", "status")
        took = among.swaps(size.swaps)
        for running_load in loads:
            while running_load.ask("status", "status")["ok"] < 1:
                time.sleep(0.01)
        for running_load in loads:
            running_load.say("stop")
        return took, [running_load.report() for running_load in loads]


def broken(size: Size) -> Iterator[Figure]:
    """One file of many is wrong: all others start, and the message names file and line."""
    with configured(size.apps) as made:
        path = made.plane.folder / "configs" / "apps" / f"{BROKEN}.yaml"
        lines = path.read_text().splitlines()
        wrong = next(number for number, line in enumerate(lines, 1) if "keepalive" in line)
        lines[wrong - 1] = "    keepalives: 128"
        path.write_text("\n".join(lines) + "\n")
        child = made.plane.foreground("up")
        try:
            ports = [port for app, port in made.ports.items() if app != BROKEN]
            rig.wait_for_answers(ports, rig.START_SECONDS)
            told = wait_for_text(made, rf"apps/{BROKEN}\.yaml:{wrong}:\d+: ", 60.0)
        finally:
            code = rig.end(child)
    yield exactly(
        f"apps that start beside a broken file, of {size.apps}", len(ports), size.apps - 1
    )
    yield exactly("the message names file and line", int(told), 1)
    yield exactly("exit code at the end", code, 0)


def wait_for_text(made: Scene, pattern: str, seconds: float) -> bool:
    """Whether the supervisor in the foreground says so in the end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if re.search(pattern, (made.plane.folder / "foreground.log").read_text()):
            return True
        time.sleep(0.01)
    return False


def settled(supervisor: int) -> list[int]:
    """All processes, once it has compared every file with what serves: no builder is left."""
    deadline = time.monotonic() + 300.0
    quiet_since = time.monotonic()
    while time.monotonic() < deadline:
        pids = rig.tree(supervisor)
        if not all(name_of(pid).startswith("dp:") for pid in pids):
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > 0.5:
            return pids
        time.sleep(0.02)
    raise rig.RunFailed("a builder still runs 300 s after all apps answered")


def name_of(pid: int) -> str:
    """The name that the process gave itself."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
    return ""


FIGURES: Final[dict[str, Callable[[Size], Iterator[Figure]]]] = {
    "start": start,
    "memory": memory,
    "plan": plan,
    "swaps": swaps,
    "broken": broken,
}


if __name__ == "__main__":
    about = "A host full of apps, measured from outside."
    sys.exit(rig.take_figures("many", about, FIGURES, (FULL, QUICK), quick="12 apps, not 123"))
