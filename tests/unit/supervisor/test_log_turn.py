"""One log writer at a time: the former goes when it is asked, and is waited for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.supervisor.log_turn import NAME, take_turn

Ends = tuple[socket.socket, socket.socket]

# Takes its turn, says so, and goes a line later than it is asked to.
HOLDER = """
import signal, socket, sys
from dataplane.supervisor.log_turn import GO, take_turn
signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
take_turn(sys.argv[1], ours)
print("holds", flush=True)
signal.sigwait({GO})
print("asked", flush=True)
"""


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Of a writer's channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def holder(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    return child


@pytest.mark.slow
def test_next_writer_asks_the_former_to_go_and_waits_for_it(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        with holder(tmp_path) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "holds\n"
            assert first.stdout.readline() == "asked\n"
            assert first.wait(10) == 0
            second.send_signal(signal.SIGUSR2)
            assert second.stdout.readline() == "asked\n"


@pytest.mark.slow
def test_writer_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        first.kill()
    with holder(tmp_path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "holds\n"
        second.kill()


@pytest.mark.slow
def test_writer_whose_supervisor_is_gone_leaves_the_turn_to_who_has_it(
    tmp_path: Path, ends: Ends
) -> None:
    ours, theirs = ends
    with holder(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        theirs.send(b"an order")
        theirs.close()
        assert not take_turn(str(tmp_path), ours)
        assert first.poll() is None
        first.send_signal(signal.SIGUSR2)
        assert first.stdout.readline() == "asked\n"


def test_disk_that_takes_no_file_stops_no_writer(tmp_path: Path, ends: Ends) -> None:
    ours, _ = ends
    (tmp_path / "logs").write_text("in the way")
    assert take_turn(str(tmp_path / "logs"), ours)


def test_lock_is_nobody_elses_to_read(tmp_path: Path, ends: Ends) -> None:
    ours, _ = ends
    child = os.fork()
    if child == 0:
        take_turn(str(tmp_path), ours)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
