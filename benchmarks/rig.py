"""What the benchmarks stand on: children that end with us, a dataplane in folders of its own, and
figures read from the kernel. Starts nothing that outlives the run, and touches no process that it
did not start.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, Final, Self, TypeVar

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
TOOLS: Final = HERE / "build"
APP: Final = "bench"
END_SECONDS: Final = 10.0
START_SECONDS: Final = 300.0  # of a hundred apps that were never built
DOWN_SECONDS: Final = 45.0  # the drain deadline of an app is 30 s

Json = dict[str, Any]


class RunFailed(Exception):
    """The run could not be made: nothing was measured."""


# ---- children ------------------------------------------------------------------------------------


def build_tools() -> None:
    """Builds dp_load, dp_upstream and dp_floor if they are not up to date."""
    made = subprocess.run(
        ["make", "--no-print-directory", "-C", str(HERE / "load")], capture_output=True, text=True
    )
    if made.returncode != 0:
        raise RunFailed(f"make -C benchmarks/load failed:\n{made.stdout}{made.stderr}")


def pinned(command: Sequence[str], cpu: int | None) -> list[str]:
    """The command held to one CPU, with all that it starts."""
    if cpu is None or cpu not in os.sched_getaffinity(0):
        return list(command)
    return ["taskset", "--cpu-list", str(cpu), *command]


def hold(pids: Sequence[int], cpu: int) -> None:
    """Holds processes that run, with all their threads and whatever they start, to one CPU."""
    if cpu not in os.sched_getaffinity(0):
        return
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(task), {cpu})


def end(child: subprocess.Popen[Any]) -> int:
    """Asks the child to end, and after a while makes it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    return child.returncode


def filled(template: str, **values: object) -> str:
    """A template of peers/ with its @NAMES@ replaced."""
    text = (HERE / "peers" / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _tool(name: str, *options: str, cpu: int | None) -> Iterator[Json]:
    """A program that serves and says where, in its first line."""
    command = pinned([str(TOOLS / name), "--end-with-parent", *options], cpu)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        first = child.stdout.readline()
        if not first:
            raise RunFailed(f"{name} did not start")
        told: Json = json.loads(first)
        yield told
    finally:
        end(child)


@contextlib.contextmanager
def upstream(*options: str, cpu: int | None = None) -> Iterator[int]:
    """A dp_upstream, and the port it serves on."""
    with _tool("dp_upstream", *options, cpu=cpu) as told:
        yield int(told["port"])


@contextlib.contextmanager
def floor(upstream_port: int, *options: str, cpu: int | None = None) -> Iterator[tuple[int, int]]:
    """A dp_floor before that upstream: its port and pid."""
    words = ("--upstream", f"127.0.0.1:{upstream_port}", *options)
    with _tool("dp_floor", *words, cpu=cpu) as told:
        yield int(told["port"]), int(told["pid"])


class Load:
    """A dp_load that runs; its lines are read as they come."""

    def __init__(self, port: int, *options: str, cpu: int | None = None) -> None:
        command = [str(TOOLS / "dp_load"), "--address", f"127.0.0.1:{port}", *options]
        self._child = subprocess.Popen(
            pinned(command, cpu), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lines: SimpleQueue[Json | None] = SimpleQueue()
        assert self._child.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._child.stdout,), daemon=True, name="dp_load"
        )
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_of = self._child
        if end_of.poll() is None:
            end_of.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                end_of.wait(END_SECONDS)
        if end_of.poll() is None:
            end_of.kill()
        self._reader.join(END_SECONDS)
        end(end_of)

    def say(self, word: str) -> None:
        """One line to its stdin."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{word}\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # it ended by itself: its report tells why

    def event(self, kind: str, seconds: float = 60.0) -> Json:
        """The next line of this kind; lines of other kinds before it are dropped."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise RunFailed(f"dp_load told no {kind!r} within {seconds:g} s") from None
            if line is None:
                raise RunFailed(f"dp_load ended without {kind!r}")
            if line["event"] == kind:
                return line
            if line["event"] == "report":
                raise RunFailed(
                    f"dp_load ended early: {line['failures']} {line['first_failures'][:1]}"
                )

    def ask(self, word: str, kind: str) -> Json:
        """Says the word and waits for what it brings."""
        self.say(word)
        return self.event(kind)

    def report(self, seconds: float = 60.0) -> Json:
        """Its last word, once it ends."""
        return self.event("report", seconds)


def load(port: int, *options: str, cpu: int | None = None) -> Json:
    """A whole run of dp_load: its report."""
    with Load(port, *options, cpu=cpu) as running:
        return running.report(600.0)


# ---- dataplane -----------------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the supervisor's socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("dataplane", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The supervisor's answer."""

    status: int
    body: Json
    began_ns: int  # CLOCK_MONOTONIC, as dp_load's at_ns
    ended_ns: int

    @property
    def ms(self) -> float:
        """From the call to the whole answer."""
        return (self.ended_ns - self.began_ns) / 1e6


@dataclass(slots=True, kw_only=True)
class Dataplane:
    """The installed command and a supervisor of its own. Mutable: holds what it started."""

    folder: Path
    cpu: int | None = None
    _foreground: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def command(self, *words: str) -> list[str]:
        """The command with its folders."""
        installed = ROOT / ".venv" / "bin" / "dataplane"
        program = [str(installed)] if installed.exists() else [sys.executable, "-m", "dataplane"]
        folders = ["--config", str(self.folder / "configs"), "--run-dir", str(self.run_dir)]
        folders += ["--state-dir", str(self.folder / "state")]
        return pinned([*program, *words, *folders], self.cpu)

    def run(self, *words: str, seconds: float = 60.0) -> str:
        """Runs the command to its end: stdout."""
        # Files, not pipes: a detached supervisor must not keep us waiting for their end.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            try:
                code = subprocess.run(
                    self.command(*words), stdout=out, stderr=err, timeout=seconds, cwd=ROOT
                ).returncode
            except (OSError, subprocess.TimeoutExpired) as problem:
                raise RunFailed(f"dataplane {words[0]}: {problem}") from None
            out.seek(0)
            err.seek(0)
            if code != 0:
                raise RunFailed(f"dataplane {' '.join(words)} exits {code}: {err.read()[-2000:]}")
            return out.read()

    def foreground(self, *words: str) -> subprocess.Popen[str]:
        """Starts the command and leaves it running."""
        log = (self.folder / "foreground.log").open("w")
        with log:
            child = subprocess.Popen(
                self.command(*words), stdout=log, stderr=log, text=True, cwd=ROOT
            )
        self._foreground.append(child)
        return child

    def config(self, app: str, *, port: int, upstream_port: int, mark: str | None) -> None:
        """Writes the app's file: all requests to the upstream, answers marked where asked."""
        edits = "" if mark is None else f'response_headers: {{set: {{x-mark: "{mark}"}}}}'
        text = filled("dataplane.yaml", APP=app, PORT=port, UPSTREAM=upstream_port, EDITS=edits)
        self.write(app, text)

    def write(self, app: str, text: str) -> None:
        """Writes the app's file as it is given."""
        apps = self.folder / "configs" / "apps"
        apps.mkdir(parents=True, exist_ok=True)
        (apps / f"{app}.yaml").write_text(text)

    def build(self, app: str = APP) -> str:
        """Builds the app's image: its digest."""
        digest = self.run("build", "--app", app).strip()
        if not digest.startswith("sha256:"):
            raise RunFailed(f"build printed {digest!r}, not a digest")
        return digest

    def call(self, method: str, path: str, body: Json | None = None) -> Told:
        """One call of the control API, on a connection of its own."""
        connection = _UnixConnection(self.run_dir / "supervisor.sock", 60.0)
        began = time.monotonic_ns()
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"content-type": "application/json"})
            answer = connection.getresponse()
            raw = answer.read()
            ended = time.monotonic_ns()
        except OSError as problem:
            raise RunFailed(f"{method} {path}: {problem}") from problem
        finally:
            connection.close()
        is_json = "json" in (answer.getheader("content-type") or "")
        told = json.loads(raw) if is_json and raw else {"text": raw.decode(errors="replace")}
        return Told(status=answer.status, body=told, began_ns=began, ended_ns=ended)

    def swap(self, digest: str, app: str = APP) -> Told:
        """A swap to a built image, to its end; anything but "swapped" ends the run."""
        told = self.call("POST", f"/v1/apps/{app}/swap", {"image": digest})
        if told.status != 200 or told.body.get("outcome") != "swapped":
            raise RunFailed(f"a swap failed: {told.status} {told.body}")
        return told

    def workers(self, app: str = APP) -> list[int]:
        """The pids of the app's workers, whatever their generation."""
        told = self.call("GET", f"/v1/apps/{app}").body
        return [
            int(worker["pid"])
            for generation in told["generations"]
            for worker in generation["workers"]
            if worker.get("pid")
        ]

    def metric(self, name: str, app: str = APP) -> float | None:
        """The sum of a counter over the app's series; None if /metrics has no such."""
        told = self.call("GET", "/metrics")
        text = str(told.body.get("text", "")) if told.status == 200 else ""
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.split("{")[0].split(" ")[0] == name and f'app="{app}"' in line
        ]
        return sum(values) if values else None

    def supervisor_pid(self) -> int:
        return int((self.run_dir / "supervisor.pid").read_text())

    def close(self) -> None:
        """Ends all of it; processes that do not end by themselves are killed, by their ids."""
        pids: list[int] = []
        with contextlib.suppress(OSError, ValueError):
            pids = tree(self.supervisor_pid())
        if pids:
            with contextlib.suppress(RunFailed):
                self.run("down", seconds=DOWN_SECONDS)
        for child in self._foreground:
            end(child)
        for pid in pids:
            if str(self.folder) in command_of(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def command_of(pid: int) -> str:
    """Its command line: the folder in it tells that the process is ours, and not one that got the
    same pid since."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


@contextlib.contextmanager
def dataplane(cpu: int | None = None) -> Iterator[Dataplane]:
    """A dataplane in folders of its own, with a short path for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="dpb-"))
    made = Dataplane(folder=folder, cpu=cpu)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_answer(
    port: int, seconds: float = 30.0, child: subprocess.Popen[Any] | None = None
) -> int:
    """When the port first answered 200 (CLOCK_MONOTONIC, ns). `child`: whose port it is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if child is not None and child.poll() is not None:
            raise RunFailed(f"it exits {child.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
            s.sendall(b"GET /b/128 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            if s.recv(4096).startswith(b"HTTP/1.1 200 "):
                return time.monotonic_ns()
        time.sleep(0.001)
    raise RunFailed(f"nothing answers on port {port}")


# ---- what the kernel knows -----------------------------------------------------------------------


def wait_for_answers(ports: Sequence[int], seconds: float) -> int:
    """When the last of the ports first answered 200 (CLOCK_MONOTONIC, ns)."""
    deadline = time.monotonic() + seconds
    answered = 0
    for port in ports:  # in any order: what is asked is when the last does
        answered = max(answered, wait_for_answer(port, deadline - time.monotonic()))
    return answered


def start_times(
    plane: Dataplane, words: Sequence[str], ports: Sequence[int], starts: int
) -> list[float]:
    """How long each of n starts took until every port had answered, in ms; the first one builds."""
    took = []
    for _ in range(starts):
        began = time.monotonic_ns()
        child = plane.foreground(*words)
        try:
            took.append((wait_for_answers(ports, START_SECONDS) - began) / 1e6)
        finally:
            code = end(child)
        if code != 0:
            raise RunFailed(f"{words[0]} exits {code} after SIGTERM")
    return took


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for known in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{known}/task"):
                with contextlib.suppress(OSError):
                    below = Path(f"/proc/{known}/task/{task}/children").read_text()
                    found += [int(child) for child in below.split()]
    return found


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def cpu_ns(pids: Sequence[int]) -> int:
    """The time that all threads of the processes have spent on a CPU."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{pid}/task/{task}/schedstat").read_text()
                    total += int(text.split()[0])
    return total


def ksoftirqd(cpu: int) -> list[int]:
    """The kernel's thread that ends a proxy's network work for it; none where it is not shown."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if (folder / "comm").read_text().strip() == f"ksoftirqd/{cpu}":
                    return [int(folder.name)]
    return []


def busy_seconds(cpu: int) -> float:
    """How long the CPU has not been idle, as the kernel's own clock ticks count it."""
    for line in Path("/proc/stat").read_text().splitlines():
        words = line.split()
        if words[0] == f"cpu{cpu}":
            ticks = [int(word) for word in words[1:9]]
            return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def memory_kb(pid: int) -> dict[str, int]:
    """smaps_rollup of a process, in KB; a sealed worker's is shown to root alone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError as problem:
        raise RunFailed(f"cannot read the memory of {pid}: {problem} (run as root)") from None
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def take_precedence(pids: Sequence[int] = ()) -> None:
    """Puts this session, or those of the processes, before others on the machine, where that is
    allowed: `nice` does not hold between sessions while the scheduler groups by session."""
    for name in map(str, pids) if pids else ("self",):
        with contextlib.suppress(OSError):
            Path(f"/proc/{name}/autogroup").write_text("-20")


def machine() -> Json:
    """Where and with what a figure was taken."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "commit": commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit() -> str:
    """The tree's commit, and whether it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            " and changes" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure beside what it should be. A promise holds on any machine, however
    loaded; a target is a speed, and may be missed by a machine that is slow or busy."""

    name: str
    value: float | None
    unit: str = ""
    target: str = ""
    ok: bool = True
    promise: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """For people."""
        value = "-" if self.value is None else f"{self.value:,.10g}"
        judged = "" if not self.target else "ok" if self.ok else "NOT MET"
        more = ", ".join(f"{name} {shown(value)}" for name, value in self.more.items())
        return f"{self.name:<58} {value:>10} {self.unit:<5} {self.target:<12} {judged:<8} {more}"

    def as_json(self) -> Json:
        """For programs."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "ok": self.ok,
            "promise": self.promise,
            **self.more,
        }


def shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def exactly(name: str, value: float, wanted: float, **more: object) -> Figure:
    """A promise: the value is the wanted one."""
    return Figure(
        name=name, value=value, target=f"= {wanted:g}", ok=value == wanted, promise=True, more=more
    )


def at_least(name: str, value: float, least: float, **more: object) -> Figure:
    """The run was as long as it had to be."""
    return Figure(
        name=name, value=value, target=f">= {least:g}", ok=value >= least, promise=True, more=more
    )


def at_most(name: str, value: float, most: float, unit: str, **more: object) -> Figure:
    """A target: the value, rounded for reading, is at most so much."""
    return Figure(
        name=name,
        value=round(value, 2),
        unit=unit,
        target=f"<= {most:g}",
        ok=value <= most,
        more=more,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> Json:
    """How a figure lay over its rounds."""
    return {
        "median": round(statistics.median(values), 2),
        "p99": round(percentile(values, 0.99), 2),
        "max": round(max(values), 2),
        "n": len(values),
    }


# ---- a program of figures ------------------------------------------------------------------------

_Size = TypeVar("_Size")


def take_figures(
    program: str,
    about: str,
    figures: Mapping[str, Callable[[_Size], Iterator[Figure]]],
    sizes: tuple[_Size, _Size],
    quick: str,
) -> int:
    """All of a benchmark whose figures are subcommands: its exit code.

    `sizes`: the one that counts, and one for the tests, which `quick` says in words.
    """
    parser = argparse.ArgumentParser(
        description=about, epilog=f"example: python benchmarks/{program}.py {next(iter(figures))}"
    )
    parser.add_argument("figure", nargs="?", choices=list(figures), help="one of them; else all")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    take_precedence()
    taken: list[Figure] = []
    problem: str | None = None
    names = [args.figure] if args.figure else list(figures)
    try:
        build_tools()
        for name in names:
            for figure in figures[name](sizes[args.quick]):
                taken.append(figure)
                if not args.json:
                    print(figure.line(), flush=True)
    except RunFailed as failure:
        problem = str(failure)
        print(f"{program}: {name}: {problem}", file=sys.stderr)
    if args.json:
        told = {"machine": machine(), "figures": [one.as_json() for one in taken]}
        print(json.dumps(told | {"error": problem}))
    # A promise must hold anywhere; a target of speed is held only where that is asked.
    broken = [one for one in taken if not one.ok and (one.promise or args.check)]
    return 1 if broken or problem else 0
