"""The strict load generator and its upstream, as contexts.

dp_load never opens a connection in place of one that broke, so what it calls "0 failed" and how
many connects it counts mean what they say (see tests/integration/test_load.py).
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
TOOLS: Final = ROOT / "benchmarks" / "build"
END_SECONDS: Final = 15.0

Json = dict[str, Any]


def build_tools() -> None:
    """Builds dp_load and dp_upstream if they are not up to date."""
    subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT / "benchmarks" / "load")],
        check=True,
        capture_output=True,
        timeout=50,
    )


@contextlib.contextmanager
def token_upstream(*options: str) -> Iterator[int]:
    """A dp_upstream, and its port. It sends a request's token back: answers cannot be mixed up."""
    child = subprocess.Popen(
        [TOOLS / "dp_upstream", "--end-with-parent", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        yield int(json.loads(child.stdout.readline())["port"])
    finally:
        child.terminate()
        child.communicate(timeout=END_SECONDS)


class Load:
    """A dp_load that runs until it is told to stop. A context."""

    def __init__(self, address: tuple[str, int], *options: str) -> None:
        host, port = address
        self._child = subprocess.Popen(
            [TOOLS / "dp_load", "--address", f"{host}:{port}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[Json | None] = queue.SimpleQueue()
        assert self._child.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._child.stdout,), daemon=True, name="dp_load"
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._reader.join(END_SECONDS)
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def ask(self, word: str, kind: str) -> Json:
        """Says the word and waits for the line that it brings."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended by itself: its report tells why
            self._child.stdin.write(f"{word}\n")
            self._child.stdin.flush()
        return self.event(kind)

    def wait_for(self, requests: int) -> Json:
        """Until so many more requests have been answered; how it stands then."""
        pause = threading.Event()  # asking takes time from the load itself
        first = status = self.ask("status", "status")
        give_up = time.monotonic() + END_SECONDS
        while status["ok"] - first["ok"] < requests:
            assert status["failed"] == 0, status
            assert time.monotonic() < give_up, status
            pause.wait(0.02)
            status = self.ask("status", "status")
        return status

    def stop(self) -> Json:
        """Ends it: its report."""
        return self.ask("stop", "report")

    def event(self, kind: str) -> Json:
        """The next line of this kind; others before it are dropped."""
        give_up = time.monotonic() + END_SECONDS
        while True:
            line = self._lines.get(timeout=max(0.0, give_up - time.monotonic()))
            assert line is not None, f"dp_load ended without {kind!r}"
            if line["event"] == kind:
                return line
            assert line["event"] != "report", line

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._lines.put(json.loads(line))
        self._lines.put(None)
