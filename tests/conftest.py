"""What holds for every test: whatever a test started is gone when the tests are over.

Processes are found by walking down from this one; it is made a child subreaper, so that an orphan
(a detached supervisor, a worker whose zygote was killed) comes back here and cannot hide. A dead
orphan therefore stays a zombie of this process until the end: a test that asks whether a process
is gone must not take a zombie for a living one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest

PR_SET_CHILD_SUBREAPER: Final = 36
GRACE_SECONDS: Final = 5.0  # for what was told to end and is about to

# The same examples in every run, so that a failure is the change's and not the day's; `make fuzz`
# searches with new ones.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("search", derandomize=False)
hypothesis.settings.load_profile("same")

_started_in = pytest.StashKey[dict[int, str]]()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_over(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """At the end of the session no process of ours runs and no socket file lies about."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    # Made here and short, since a socket's path may have 107 bytes only and tmp_path is long.
    short = Path(tempfile.mkdtemp(prefix="dp-", dir="/tmp"))
    tempfile.tempdir = str(short)
    before = set(descendants())
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    left = [
        pid
        for pid in descendants()
        if pid not in before and not is_gone(pid, max(0.0, deadline - time.monotonic()))
    ]
    seen = request.config.stash.get(_started_in, {})
    complaints = [
        f"process {pid} ({command_line(pid)}) was left by {seen.get(pid, 'an unknown test')}"
        for pid in left
    ]
    for pid in left:  # the next run must not meet them
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        is_gone(pid, GRACE_SECONDS)
    reap_orphans()
    for folder in (short, tmp_path_factory.getbasetemp()):
        complaints += [f"socket file was left: {path}" for path in socket_files(folder)]
    tempfile.tempdir = None
    shutil.rmtree(short, ignore_errors=True)
    assert not complaints, "\n".join(complaints)


@pytest.fixture(autouse=True)
def _remember_who_started_what(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    seen = request.config.stash.setdefault(_started_in, {})
    for pid in descendants():
        seen.setdefault(pid, request.node.nodeid)


def descendants(root: int | None = None) -> list[int]:
    """All processes below root (this one), the dead but unreaped included."""
    found: list[int] = []
    waiting = [os.getpid() if root is None else root]
    while waiting:
        tasks = Path(f"/proc/{waiting.pop()}/task")
        with contextlib.suppress(OSError):
            for task in list(tasks.iterdir()):
                with contextlib.suppress(OSError):
                    below = [int(pid) for pid in (task / "children").read_text().split()]
                    found += below
                    waiting += below
    return found


def is_gone(pid: int, wait_seconds: float = 0.0) -> bool:
    """Whether the process is dead (a zombie is), after at most wait_seconds."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], wait_seconds)[0])
    finally:
        os.close(pidfd)


def reap_orphans() -> None:
    """Takes the exit status of every dead child, whoever started it."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def command_line(pid: int) -> str:
    """What a person needs to recognise the process."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "?"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()[:200]


def socket_files(folder: Path) -> list[Path]:
    """Every UNIX socket's file below folder."""
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(path.lstat().st_mode):
                    found.append(path)
    return found
