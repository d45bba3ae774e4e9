"""The real command, driven as a person or a script would: in folders of its own, sealed as always.

What is started here is ended here, and `close` is a test of its own: no process, no zombie and no
socket file may be left, and no process may have crashed or been found at fault by a sanitiser.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.conftest import command_line, descendants, socket_files
from tests.support.sanitised import PATIENCE, fault_told

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = (str(Path(sys.executable).parent / "dataplane"),)
APP: Final = "billing"
SECONDS: Final = 20.0 * PATIENCE

Json = dict[str, Any]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def fact(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.out)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer of the supervisor."""

    status: int
    kind: str
    body: Any


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the supervisor's socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("dataplane", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Dataplane:
    """Three folders and, once started, the supervisor on them. Mutable."""

    def __init__(
        self,
        folder: Path,
        *,
        program: Sequence[str] = PROGRAM,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.config_dir = folder / "configs"
        self.run_dir = folder / "run"
        self.state_dir = folder / "state"
        (self.config_dir / "apps").mkdir(parents=True)
        self._program = tuple(program)
        kept = {name: value for name, value in os.environ.items() if "DATAPLANE" not in name}
        self._environment = {**kept, **(environment or {})}
        self._child: subprocess.Popen[str] | None = None
        self._threads = concurrent.futures.ThreadPoolExecutor(8)

    # --- files --------------------------------------------------------------------------------

    def configure(self, config: Mapping[str, Any] | str) -> Path:
        """Writes an app's file: JSON is YAML, a text is taken as it is, for the app billing."""
        text = config if isinstance(config, str) else json.dumps(config, indent=1)
        app = APP if isinstance(config, str) else config["app"]
        path = self.config_dir / "apps" / f"{app}.yaml"
        path.write_text(text)
        return path

    def build(self, config: Mapping[str, Any] | None = None, app: str = APP) -> str:
        """Builds an image: its digest."""
        if config is not None:
            self.configure(config)
        digest = self.cli("build", "--app", app).out.strip()
        assert digest.startswith("sha256:"), digest
        return digest

    # --- commands -----------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """The command line, with the folders."""
        folders = ["--config", str(self.config_dir), "--run-dir", str(self.run_dir)]
        return [*self._program, *words, *folders, "--state-dir", str(self.state_dir)]

    def cli(
        self,
        *words: str,
        code: int = 0,
        folders: bool = True,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Finished:
        """Runs a command to its end, which must have this exit code."""
        command = self.command(*words) if folders else [*self._program, *words]
        # Files, not pipes: a detached supervisor must not keep us waiting for their end.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            ended = subprocess.run(
                command,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                timeout=SECONDS,
                env={**self._environment, **(environment or {})},
                cwd=self.folder,
                **options,
            )
            out.seek(0)
            err.seek(0)
            finished = Finished(code=ended.returncode, out=out.read(), err=err.read())
        fault = fault_told(finished.err)
        assert fault is None, f"{words}: {fault}"
        assert finished.code == code, (words, finished)
        return finished

    def start(
        self,
        *words: str,
        faults: bool = False,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> str:
        """Starts a supervisor in the foreground; returns its `ready` line once it is told.

        `faults`: whoever asks for a swap may have workers fail on purpose.
        """
        words = words or ("run", "--app", APP)
        if faults:
            words = (*words, "--allow-faults")
        assert self._child is None
        # The log is a file: nobody reads it while the test runs, and a full pipe would stop it.
        with (self.folder / "supervisor.err").open("a") as err:
            self._child = child = subprocess.Popen(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env={**self._environment, **(environment or {})},
                cwd=self.folder,
                **options,
            )
        line = self._line(child)
        assert line.startswith("ready"), (line, self.log())
        return line

    def _line(self, child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        assert select.select([child.stdout], [], [], SECONDS)[0], self.log()
        return child.stdout.readline()

    def log(self) -> str:
        """What the supervisor in the foreground, and its workers, wrote to stderr."""
        return (self.folder / "supervisor.err").read_text()

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return int((self.run_dir / "supervisor.pid").read_text())

    def signal(self, number: int) -> None:
        """To the supervisor in the foreground."""
        assert self._child is not None
        self._child.send_signal(number)

    def kill(self) -> None:
        """The supervisor in the foreground dies as no process can prevent; its workers serve on."""
        self.signal(signal.SIGKILL)
        assert self.wait_end() == -signal.SIGKILL

    def living(self, app: str = APP) -> dict[int, int]:
        """Its workers as the kernel has them, whoever knows of them: generation by process."""
        found = {}
        tree = os.fsencode(self.state_dir / "code")
        for entry in Path("/proc").iterdir():
            name = process_name(int(entry.name)) if entry.name.isdigit() else ""
            if not name.startswith(f"dp:{app}/") or process_state(int(entry.name)) == "Z":
                continue
            with contextlib.suppress(OSError):
                if tree in (entry / "cmdline").read_bytes():
                    found[int(entry.name)] = int(name.rpartition("/")[2].partition(".")[0])
        return found

    def wait_end(self, seconds: float = SECONDS) -> int:
        """Until the supervisor in the foreground has ended: its exit code."""
        assert self._child is not None
        code = self._child.wait(seconds)
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._child = None
        return code

    # --- the supervisor's socket --------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None) -> Told:
        """One call, on a connection of its own."""
        connection = _UnixConnection(self.run_dir / "supervisor.sock", 2 * SECONDS)
        with contextlib.closing(connection):
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"content-type": "application/json"})
            answer = connection.getresponse()
            raw = answer.read()
        kind = answer.getheader("content-type") or ""
        told = json.loads(raw) if kind.endswith("json") else raw.decode()
        return Told(status=answer.status, kind=kind, body=told)

    def report(self, app: str = APP) -> Json:
        """What `ps` shows of the app."""
        told = self.call("GET", f"/v1/apps/{app}")
        assert told.status == 200, told
        return told.body

    def address(self, listener: str = "web", app: str = APP) -> tuple[str, int]:
        """Where a listener is bound."""
        for known in self.report(app)["addresses"]:
            if known["listener"] == listener:
                host, _, port = known["bind"].rpartition(":")
                return host, int(port)
        raise AssertionError(f"no listener {listener}")

    def workers(self, app: str = APP, generation: int | None = None) -> list[Json]:
        """The app's workers (of one generation)."""
        return [
            worker
            for known in self.report(app)["generations"]
            if generation in (None, known["generation"])
            for worker in known["workers"]
        ]

    def worker_pid(self, app: str = APP) -> int:
        """The process of an app that has exactly one."""
        (worker,) = self.workers(app)
        return int(worker["pid"])

    def zygote_pids(self) -> list[int]:
        """The zygotes: workers are their children, named otherwise."""
        return [pid for pid in children(self.pid) if process_name(pid) == "dp:zygote"]

    def swap(self, image: str | None = None, *, code: int = 200, **wish: Any) -> Json:
        """A swap to its end: the ledger (of a failed one, too)."""
        told = self.ask_swap(image, **wish)
        assert told.status == code, (told, self.tail())
        ledger: Json = told.body if code == 200 else told.body["ledger"]
        return ledger

    def ask_swap(
        self, image: str | None = None, *, app: str = APP, wait: str = "gone", **wish: Any
    ) -> Told:
        """A swap to its end: the answer."""
        body = {**wish, **({"image": image} if image else {})}
        return self.call("POST", f"/v1/apps/{app}/swap?wait={wait}", body)

    def later(
        self, what: Callable[..., _T], *args: Any, **more: Any
    ) -> concurrent.futures.Future[_T]:
        """The same in a thread of its own."""
        return self._threads.submit(what, *args, **more)

    def event(self, name: str, /, **fields: Any) -> Json:
        """The first event of this name and fields, past or to come."""
        for event in self.events():
            if event["event"] == name and fields.items() <= event.items():
                return event
        raise AssertionError(f"no event {name} {fields} came: {self.tail()}")

    def events(self, quiet_seconds: float = SECONDS) -> Iterator[Json]:
        """What happened and happens, until nothing has for so long."""
        connection = _UnixConnection(self.run_dir / "supervisor.sock", quiet_seconds)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/events")
            with connection.getresponse() as stream, contextlib.suppress(TimeoutError):
                while line := stream.readline():
                    yield json.loads(line)

    def metric(self, name: str, app: str = APP) -> float:
        """The sum of a counter over the app's series."""
        text = self.call("GET", "/metrics").body
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if f'app="{app}"' in line]
        assert values, text
        return sum(values)

    def tail(self) -> str:
        """The end of the log, for a failed claim."""
        with contextlib.suppress(OSError):
            return self.log()[-3000:]
        return ""

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the supervisor if it runs, and claims that nothing is left of it."""
        tree: dict[int, int] = {}  # pidfd of each process
        complaints: list[str] = []
        try:
            with contextlib.suppress(OSError, ValueError):
                root = self.pid
                if os.fsencode(str(self.run_dir)) in Path(f"/proc/{root}/cmdline").read_bytes():
                    tree = self._tree(root)
                    complaints += self._zombies(root)
            complaints += self._end(tree)
        finally:
            for pid, pidfd in tree.items():
                if not select.select([pidfd], [], [], 2.0)[0]:
                    complaints.append(f"process {pid} was left: {command_line(pid)}")
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                os.close(pidfd)
            self._threads.shutdown(wait=False, cancel_futures=True)
        complaints += [f"socket file was left: {path}" for path in socket_files(self.folder)]
        complaints += self._faults()
        assert not complaints, ("\n".join(complaints), self.tail())

    def _faults(self) -> list[str]:
        """What supervisors, in the foreground or not, and all below them wrote of faults."""
        logs = (self.folder / "supervisor.err", self.state_dir / "logs" / "supervisor.log")
        texts = [log.read_text(errors="replace") for log in logs if log.exists()]
        return [fault for text in texts if (fault := fault_told(text)) is not None]

    def _end(self, tree: Mapping[int, int]) -> list[str]:
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                self._child.terminate()
            try:
                code = self.wait_end()
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self.wait_end()
                return ["the supervisor does not end when it is told to"]
            return [] if code == 0 else [f"the supervisor ended with {code}"]
        if tree or any((self.run_dir / "workers").glob("*.sock")):
            self.cli("down")
        return []

    def _tree(self, root: int) -> dict[int, int]:
        found = {}
        for pid in (root, *descendants(root)):
            with contextlib.suppress(ProcessLookupError):
                found[pid] = os.pidfd_open(pid)
        return found

    def _zombies(self, root: int) -> list[str]:
        """Whoever is dead below the supervisor and is not reaped in a while."""
        try:
            eventually(lambda: not _dead_below(root), 2.0)
        except AssertionError:
            return [f"zombies below the supervisor: {_dead_below(root)}"]
        return []


def _dead_below(root: int) -> list[int]:
    return [pid for pid in descendants(root) if process_state(pid) == "Z"]


def eventually(holds: Callable[[], _T | None], seconds: float = SECONDS) -> _T:
    """Waits for what nobody tells: looks again and again, and returns what is true at last."""
    pause = threading.Event()
    give_up = time.monotonic() + seconds
    while not (seen := holds()):
        assert time.monotonic() < give_up, f"did not come true within {seconds:g} s"
        pause.wait(0.005)
    return seen


def children(pid: int) -> list[int]:
    """The processes directly below."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def process_name(pid: int) -> str:
    """The name that the process gave itself; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def process_state(pid: int) -> str:
    """One letter, as in proc(5); X for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def wait_gone(pid: int) -> None:
    """Until the process is dead."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], SECONDS)[0], f"{pid} lives"
        finally:
            os.close(pidfd)


def app_config(
    *ports: int, mark: str = "blue", app: str = APP, bind: str = "127.0.0.1:0", **more: Any
) -> Json:
    """An http app before these upstream ports; its answers carry its mark. Without a port it
    answers by itself, with the mark as body."""
    edits = {"set": {"x-mark": mark}}
    route: Json = {"match": {"path": "/"}, "response_headers": edits}
    config: Json = {
        "version": 1,
        "app": app,
        "listeners": [{"name": "web", "bind": bind, "protocol": "http"}],
    }
    if ports:
        route["upstream"] = "api"
        config["upstreams"] = {"api": {"endpoints": [f"127.0.0.1:{port}" for port in ports]}}
    else:
        route["respond"] = {"status": 200, "body": mark}
    return {**config, "routes": [route], **more}


def tcp_config(port: int, *, app: str = APP, **more: Any) -> Json:
    """A tcp app before this upstream port."""
    return {
        "version": 1,
        "app": app,
        "listeners": [
            {"name": "web", "bind": "127.0.0.1:0", "protocol": "tcp", "upstream": "peer"}
        ],
        "upstreams": {"peer": {"endpoints": [f"127.0.0.1:{port}"]}},
        **more,
    }
