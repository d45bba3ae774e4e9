"""Children and pidfds: the only importer of subprocess.

A child is started by exec with the named descriptors and nothing else, in a session of its own, so
that a terminal's signals reach only who was meant. A process is named by its pidfd, never by its
number alone: a number may be given to a stranger.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import select
import signal
import subprocess
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from dataplane.model.errors import LaunchError
from dataplane.system.libc import prctl
from dataplane.system.readiness import readable

# The installed dataplane, as a child. -P: a folder of that name where the asker stands is not run.
OWN_COMMAND: Final = (sys.executable, "-P", "-m", "dataplane")

_PR_SET_NAME: Final = 15
_NAME_BYTES: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36


class Child:
    """A child that was started by exec. Mutable: it is running until `wait` returned."""

    def __init__(self, popen: subprocess.Popen[bytes], pidfd: int) -> None:
        self._popen = popen
        self.pid: Final = popen.pid
        self.pidfd: Final = pidfd

    @property
    def output(self) -> IO[bytes] | None:
        """The reading end of its stdout, where `spawn` was given `PIPE`."""
        return self._popen.stdout

    @property
    def errors(self) -> IO[bytes] | None:
        """The reading end of its stderr, where `spawn` was given `PIPE`."""
        return self._popen.stderr

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; one that has ended is passed over."""
        signal_pidfd(self.pidfd, number)

    async def wait(self) -> int:
        """Its exit status, negative for a signal. May be called again."""
        if self._popen.returncode is None:
            await ended(self.pidfd)
            self._popen.wait()
        return int(self._popen.returncode)

    def reap(self) -> int | None:
        """As `wait`, for who has no loop: None while it runs."""
        return self._popen.poll()

    def close(self) -> None:
        """Closes pidfd and pipes. The process itself is left alone."""
        os.close(self.pidfd)
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()


PIPE: Final = subprocess.PIPE
STDOUT: Final = subprocess.STDOUT
NULL: Final = subprocess.DEVNULL


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a child that was run to its end went."""

    status: int  # negative: the signal that ended it
    output: bytes
    errors: bytes


def bare_python(root: Path, module: str, *words: str) -> tuple[str, ...]:
    """The command that runs `main` of a module below `root`, and loads nothing else of the host's
    but its interpreter and standard library. `words` are its arguments.
    """
    start = f"import sys; sys.path.insert(0, {str(root)!r}); from {module} import main; main()"
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return (python, "-I", "-S", "-B", "-c", start, *words)


def spawn(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    fds: Sequence[int] = (),
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    folder: Path | None = None,
) -> Child:
    """Starts a program with these descriptors (under their numbers), stdin from /dev/null.

    Raises `LaunchError` where it cannot be started. stdout and stderr: None inherits, `PIPE`,
    `NULL`, a descriptor or a file.
    """
    try:
        popen = subprocess.Popen(
            list(argv),
            env=dict(environment),
            pass_fds=tuple(fds),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(f"cannot start {argv[0]}: {error.strerror}") from error
    # A child that was not reaped keeps its number: the pidfd names this one for sure.
    return Child(popen, os.pidfd_open(popen.pid))


async def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path | None,
    limit_seconds: float,
) -> Finished:
    """Runs a program to its end and returns what it wrote. Past the limit it is killed.

    Raises `LaunchError` where it cannot be started or took too long. Cancellation kills it, too.
    """
    child = spawn(argv, environment=environment, stdout=PIPE, stderr=PIPE, folder=folder)
    try:
        assert child.output is not None
        assert child.errors is not None
        async with asyncio.timeout(limit_seconds):
            async with asyncio.TaskGroup() as readers:
                output = readers.create_task(_read_to_end(child.output))
                errors = readers.create_task(_read_to_end(child.errors))
            status = await child.wait()
    except TimeoutError as error:
        raise LaunchError(f"{argv[0]} took longer than {limit_seconds:g} s") from error
    finally:
        if child.reap() is None:
            child.signal(signal.SIGKILL)
            await child.wait()
        child.close()
    return Finished(status=status, output=output.result(), errors=errors.result())


async def ended(pidfd: int) -> None:
    """Returns when the process that `pidfd` names has ended."""
    await readable(pidfd)


def has_ended(pidfd: int) -> bool:
    """Whether the process that `pidfd` names has ended by now."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def signal_pidfd(pidfd: int, number: signal.Signals) -> bool:
    """Sends a signal to exactly this process. False: it has ended."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def become_subreaper() -> None:
    """From now on, orphans among this process's descendants become its children."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reap(pid: int) -> int | None:
    """The wait status of a child (as of waitpid(2)) that has ended, else None.

    None as well for a process that is not, or no longer, a child of this one.
    """
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if reaped == pid else None


def set_name(name: str) -> None:
    """What ps and top call this process; the kernel keeps 15 bytes."""
    given = array("B", name.encode()[:_NAME_BYTES] + b"\0")
    prctl(_PR_SET_NAME, given.buffer_info()[0])


def worker_name(app: str, generation: str, slot: str) -> str:
    """What ps calls a worker. The app's name is cut where it does not fit, numbers never are."""
    tail = f"/{generation}.{slot}"
    return f"dp:{app[: max(0, _NAME_BYTES - len('dp:') - len(tail))]}{tail}"


async def _read_to_end(pipe: IO[bytes]) -> bytes:
    fd = pipe.fileno()
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    while True:
        await readable(fd)
        try:
            part = os.read(fd, 65536)
        except BlockingIOError:
            continue
        if not part:
            return b"".join(parts)
        parts.append(part)
