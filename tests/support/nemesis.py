"""A nemesis: it breaks things at random under checked load, and claims that nobody was let down.

Every answer carries the token of its request and the name of its app. A request may fail only where
a worker of its app was killed while its connection was open: that is what the worker was serving.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.support.dataplane import Dataplane, Json, app_config, children, eventually, process_name
from tests.support.wire import Ended, Wire, request

APPS: Final = ("one", "two", "three")
WORKERS: Final = {"one": 1, "two": 2, "three": 1}
KEPT: Final = 3  # clients of an app that keep their connection
FRESH: Final = 2  # that open one for each request
PAUSE_SECONDS: Final = 0.01  # of a client between two requests
HANG_SECONDS: Final = 1.5
STOP_SECONDS: Final = 0.3  # that a process of ours which is not a worker stands still
READY_DEADLINE: Final = "1500ms"
# When the last fault is over, every app serves within this, on a machine that does nothing else.
WHOLE_SECONDS: Final = 5.0
# A worker's death is known before its connections' ends arrive, but not before they are written.
CLOCK_SLACK: Final = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A worker that was killed, or stopped and so killed by its supervisor."""

    app: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request without its answer."""

    app: str
    opened: float  # its connection
    at: float
    what: str

    def is_owed_to(self, death: Death) -> bool:
        """The connection was open when the worker died, and it came out only afterwards."""
        return (
            self.app == death.app
            and self.opened <= death.at + CLOCK_SLACK
            and self.at >= death.at - CLOCK_SLACK
        )


class Client:
    """One that asks, and checks what it is told, until the end. A thread. Mutable."""

    def __init__(
        self, app: str, port: int, *, keeps: bool, seed: int, ends: threading.Event
    ) -> None:
        self.app, self.answered = app, 0
        self.failures: list[Failure] = []
        self.wrong: list[str] = []
        self._address, self._keeps, self._ends = ("127.0.0.1", port), keeps, ends
        self._tokens = random.Random(seed)
        self._opened = 0.0
        self._thread = threading.Thread(target=self._run, name=f"client of {app}")
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        wire: Wire | None = None  # no `with`: it outlives a turn, and does not outlive a failure
        while not self._ends.wait(PAUSE_SECONDS):
            try:
                if wire is None:
                    self._opened = time.monotonic()
                    wire = Wire.connect(self._address)
                self._ask(wire)
                self.answered += 1
            except (OSError, Ended) as error:
                at = time.monotonic()
                self.failures.append(
                    Failure(app=self.app, opened=self._opened, at=at, what=repr(error))
                )
                _closed(wire)
                wire = None
            if wire is not None and not self._keeps:
                _closed(wire)
                wire = None
        _closed(wire)

    def _ask(self, wire: Wire) -> None:
        token = f"{self._tokens.getrandbits(64):016x}"
        wire.send(request("/", f"x-token: {token}"))
        answer = wire.answer()
        told = (answer.status, answer.field("x-token"), answer.field("x-mark"))
        if told != (200, token, self.app):
            self.wrong.append(f"{self.app}: {told} for {token}")


def _closed(wire: Wire | None) -> None:
    """What becomes of it."""
    if wire is not None:
        wire.sock.close()


def _send(pids: list[int], number: signal.Signals) -> None:
    """To each that is still there: some of them are on their way out."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def limited(pid: int, kind: int, value: int) -> Iterator[None]:
    """That process alone, whose children keep what they have."""
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, (soft, hard))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """What a supervisor and all below it have. Compared before and after."""

    processes: dict[str, int]  # by name, without generations
    descriptors: int  # the supervisor's
    memory_mb: float  # of the supervisor


class Nemesis:
    """Three apps, their clients and the one who breaks things. Mutable."""

    def __init__(
        self, plane: Dataplane, upstream_port: int, ports: dict[str, int], seed: int
    ) -> None:
        self._plane, self._upstream, self._ports = plane, upstream_port, ports
        self._random = random.Random(seed)
        self._deaths: list[Death] = []
        self._images: dict[str, list[str]] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: Final[dict[str, Callable[[], None]]] = {
            "worker killed": self._kill_worker,
            "worker stopped": self._stop_worker,
            "zygote killed": self._kill_zygote,
            "zygote stopped": lambda: self._stand_still("dp:zygote"),
            "log writer killed": self._kill_log_writer,
            "log writer stopped": lambda: self._stand_still("dp:log"),
            "supervisor killed": self._kill_supervisor,
            "supervisor killed in a swap": self._kill_supervisor_in_swap,
            "supervisor stopped": self._stop_supervisor,
            "swap": self._swap,
            "swap while a worker is killed": self._swap_and_kill,
            "two swaps at once": self._two_swaps,
            "rollback": self._rollback,
            "bad image": self._bad_image,
            "crashing green": lambda: self._failing_green("crash-before-ready"),
            "hanging green": lambda: self._failing_green("hang-before-ready"),
            "green that dies once ready": lambda: self._failing_green("exit-after-ready"),
            "full disk": self._full_disk,
            "no descriptors left": self._no_descriptors,
        }

    # --- the run ------------------------------------------------------------------------------

    def start(self) -> None:
        """Two images for each app; all serve."""
        for app in APPS:
            self._images[app] = [
                self._plane.build(self._config(app, timeout), app) for timeout in (60, 61)
            ]
        self._start_supervisor()
        self._settle()
        for app in APPS:  # so that there is something to go back to
            assert self._try_swap(app).status == 200

    def run(self, seconds: float, least: int) -> None:
        """Breaks things for so long, each at least so often. Claims as it goes."""
        ends, began = threading.Event(), time.monotonic()
        clients = list(self._clients(ends))
        before = self._belongings()
        try:
            while (
                time.monotonic() - began < seconds
                or min(self.counts[one] for one in self.faults) < least
            ):
                for name in self._random.sample(sorted(self.faults), len(self.faults)):
                    self.faults[name]()
                    self.counts[name] += 1
            self._settle()
            served = {client: client.answered for client in clients}
            eventually(
                lambda: all(client.answered > served[client] for client in clients), WHOLE_SECONDS
            )
        finally:
            ends.set()
            for client in clients:
                client.join()
        self._claim(clients)
        self._claim_nothing_grew(before)
        self.counts["requests"] = sum(client.answered for client in clients)
        self.counts["requests that a killed worker was serving"] = sum(
            len(client.failures) for client in clients
        )

    def _clients(self, ends: threading.Event) -> Iterator[Client]:
        for app in APPS:
            for number in range(KEPT + FRESH):
                seed = self._random.getrandbits(32)
                keeps = number < KEPT
                yield Client(app, self._ports[app], keeps=keeps, seed=seed, ends=ends)

    def _claim(self, clients: list[Client]) -> None:
        wrong = [text for client in clients for text in client.wrong]
        assert not wrong, wrong[:10]
        for client in clients:
            owed = list(self._deaths)
            for failure in client.failures:
                # A connection ends once: each death accounts for one of a client's at most.
                death = next((one for one in owed if failure.is_owed_to(one)), None)
                assert death is not None, (failure, self._deaths, self._plane.tail())
                owed.remove(death)

    # --- what it breaks -----------------------------------------------------------------------

    def _kill_worker(self) -> None:
        app, pid = self._a_worker()
        self._deaths.append(Death(app=app, at=time.monotonic()))
        os.kill(pid, signal.SIGKILL)
        self._settle()

    def _stop_worker(self) -> None:
        app, pid = self._a_worker()
        self._deaths.append(Death(app=app, at=time.monotonic()))
        os.kill(pid, signal.SIGSTOP)  # its supervisor finds that it hangs, and kills it
        self._until(lambda: pid not in self._worker_pids(app))
        self._deaths.append(Death(app=app, at=time.monotonic()))
        self._settle()

    def _kill_zygote(self) -> None:
        killed = self._plane.zygote_pids()
        _send(killed, signal.SIGKILL)
        # Known to be dead: one that was ready has a successor by now, else the next fork makes one.
        self._until(lambda: set(self._plane.zygote_pids()).isdisjoint(killed))
        self._settle()

    def _kill_log_writer(self) -> None:
        _send(self._named("dp:log"), signal.SIGKILL)
        self._settle()

    def _stand_still(self, name: str) -> None:
        pids = self._named(name)
        _send(pids, signal.SIGSTOP)
        try:
            threading.Event().wait(STOP_SECONDS)
        finally:
            _send(pids, signal.SIGCONT)
        self._settle()

    def _stop_supervisor(self) -> None:
        pid = self._plane.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            threading.Event().wait(STOP_SECONDS)
        finally:
            os.kill(pid, signal.SIGCONT)
        self._settle()

    def _kill_supervisor(self) -> None:
        self._plane.kill()
        self._start_supervisor()
        self._settle()

    def _kill_supervisor_in_swap(self) -> None:
        app = self._random.choice(APPS)
        swap = self._plane.later(self._try_swap, app)
        threading.Event().wait(self._random.uniform(0, 0.05))
        self._plane.kill()
        with contextlib.suppress(Exception):
            swap.result()
        self._start_supervisor()
        self._settle()

    def _swap(self) -> None:
        app = self._random.choice(APPS)
        told = self._plane.ask_swap(self._other_image(app), app=app)
        assert told.status == 200, told

    def _swap_and_kill(self) -> None:
        app = self._random.choice(APPS)
        swap = self._plane.later(self._try_swap, app)
        _, pid = self._a_worker(app)
        self._deaths.append(Death(app=app, at=time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        swap.result()
        # Whoever it was may have given its connections away meanwhile, or may have got others.
        self._deaths.append(Death(app=app, at=time.monotonic()))
        self._settle()

    def _two_swaps(self) -> None:
        app = self._random.choice(APPS)
        both = [
            self._plane.later(self._plane.ask_swap, image, app=app) for image in self._images[app]
        ]
        statuses = sorted(one.result().status for one in both)
        assert statuses in ([200, 200], [200, 409]), statuses
        self._settle()

    def _rollback(self) -> None:
        app = self._random.choice(APPS)
        told = self._plane.call("POST", f"/v1/apps/{app}/rollback", {})
        assert told.status == 200, told

    def _bad_image(self) -> None:
        app = self._random.choice(APPS)
        image = self._other_image(app)
        blob = self._plane.state_dir / "images" / "blobs" / "sha256" / image.removeprefix("sha256:")
        whole, mode = blob.read_bytes(), blob.stat().st_mode
        blob.chmod(0o600)
        blob.write_bytes(whole[:-1] + b" ")
        try:
            told = self._plane.ask_swap(image, app=app)
            assert told.status >= 400, told
        finally:
            blob.write_bytes(whole)
            blob.chmod(mode)
        self._settle()

    def _failing_green(self, fault: str) -> None:
        app = self._random.choice(APPS)
        told = self._plane.ask_swap(self._other_image(app), app=app, faults=[fault])
        assert told.status == 502, told
        self._settle()

    def _full_disk(self) -> None:
        with limited(self._plane.pid, resource.RLIMIT_FSIZE, 0):
            self._try_swap(self._random.choice(APPS))
        self._settle()

    def _no_descriptors(self) -> None:
        pid = self._plane.pid
        with limited(pid, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{pid}/fd")) + 2):
            self._try_swap(self._random.choice(APPS))
        self._settle()

    # --- what it knows ------------------------------------------------------------------------

    def _config(self, app: str, seconds: int) -> Json:
        return app_config(
            self._upstream,
            app=app,
            mark=app,
            bind=f"127.0.0.1:{self._ports[app]}",
            workers=WORKERS[app],
            timeouts={"idle": f"{seconds}s"},
            access_log={"format": "json"},
            rollout={"ready_deadline": READY_DEADLINE, "probation": "0s"},
        )

    def _start_supervisor(self) -> None:
        self._plane.start("up", "--hang-seconds", str(HANG_SECONDS), faults=True)

    def _settle(self) -> None:
        """Until every app serves by one generation, with all its workers."""
        self._until(lambda: all(self._is_whole(app) for app in APPS))

    def _until(self, holds: Callable[[], object]) -> None:
        try:
            eventually(holds)
        except AssertionError as error:
            told = [self._plane.report(app) for app in APPS]
            raise AssertionError(f"{error}: {told}\n{self._plane.tail()}") from error

    def _is_whole(self, app: str) -> bool:
        told = self._plane.report(app)
        (*_, last) = told["generations"] or [{"workers": []}]
        states = [worker["state"] for worker in last["workers"]]
        return len(told["generations"]) == 1 and states == ["serving"] * WORKERS[app]

    def _worker_pids(self, app: str) -> list[int]:
        return [int(one["pid"]) for one in self._plane.workers(app) if one["pid"]]

    def _a_worker(self, app: str | None = None) -> tuple[str, int]:
        app = app or self._random.choice(APPS)
        return app, self._random.choice(eventually(lambda: self._worker_pids(app)))

    def _other_image(self, app: str) -> str:
        serving = self._plane.report(app)["generations"][-1]["image"]
        return next(image for image in self._images[app] if image != serving)

    def _try_swap(self, app: str) -> Any:
        return self._plane.ask_swap(self._other_image(app), app=app)

    def _named(self, name: str) -> list[int]:
        return [pid for pid in children(self._plane.pid) if process_name(pid) == name]

    def _belongings(self) -> Belongings:
        pid = self._plane.pid
        names = collections.Counter(
            process_name(one).partition("/")[0] for one in [pid, *self._everyone()]
        )
        status = Path(f"/proc/{pid}/status").read_text()
        memory = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
        return Belongings(
            processes=dict(names),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            memory_mb=int(memory.split()[1]) / 1024,
        )

    def _everyone(self) -> list[int]:
        workers = [pid for app in APPS for pid in self._worker_pids(app)]
        return [*workers, *self._plane.zygote_pids(), *self._named("dp:log")]

    def _claim_nothing_grew(self, before: Belongings) -> None:
        def is_back() -> bool:
            now = self._belongings()
            return now.processes == before.processes and now.descriptors <= before.descriptors + 4

        with contextlib.suppress(AssertionError):
            eventually(is_back)
        after = self._belongings()
        assert after.processes == before.processes
        # A few more: a thread of the disk's, a cache of file identities.
        assert after.descriptors <= before.descriptors + 4
        assert after.memory_mb <= before.memory_mb + 24
