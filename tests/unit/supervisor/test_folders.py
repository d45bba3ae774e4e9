"""The claim on the folders: one supervisor each, dead ones' leftovers replaced, reasons told."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.supervisor.births import check_control_path
from dataplane.supervisor.folders import Claim, clear_stale


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_claim_makes_the_folders_and_leaves_no_socket_and_no_pid_behind(folder: Path) -> None:
    with Claim(folder / "run", folder / "state") as claim:
        claim.listen()
        assert claim.run.pid.read_text().strip() == str(os.getpid())
        assert claim.run.socket.stat().st_mode & 0o777 == 0o660
        assert (folder / "state").stat().st_mode & 0o777 == 0o700
    assert not claim.run.socket.exists()
    assert not claim.run.pid.exists()


def test_second_supervisor_of_a_run_folder_is_refused_with_the_firsts_pid(folder: Path) -> None:
    with (
        Claim(folder / "run", folder / "state"),
        pytest.raises(LaunchError, match=rf"already runs on .*run, pid {os.getpid()}$"),
    ):
        Claim(folder / "run", folder / "other")


def test_second_supervisor_of_a_state_folder_is_refused(folder: Path) -> None:
    with (
        Claim(folder / "run", folder / "state") as first,
        pytest.raises(LaunchError, match=rf"already uses .*state, pid {os.getpid()}$"),
    ):
        Claim(folder / "other", folder / "state")
    assert not first.run.pid.exists()
    with Claim(folder / "other", folder / "state"):
        pass  # what the refused one had locked is free again


def test_socket_of_a_dead_supervisor_is_replaced(folder: Path) -> None:
    (folder / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "run" / "supervisor.sock"))
    with Claim(folder / "run", folder / "state") as claim:
        claim.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(claim.run.socket))


def test_path_that_no_socket_can_have_is_told_before_anything_is_made(folder: Path) -> None:
    long = folder / ("x" * 100)
    with pytest.raises(LaunchError, match=r"too long for a socket.*--run-dir"):
        Claim(long, folder / "state")
    assert not long.exists()
    with pytest.raises(LaunchError, match=r"too long for a socket.*--run-dir"):
        check_control_path(folder / ("x" * (80 - len(str(folder)))), AppName("a" * 40))


def test_folder_that_cannot_be_made_is_told(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(LaunchError, match=r"cannot write to the folder .*file/run.*--run-dir"):
        Claim(folder / "file" / "run", folder / "state")
    with pytest.raises(LaunchError, match=r"cannot write to the folder .*file.*--state-dir"):
        Claim(folder / "run", folder / "file")


def test_stale_files_are_cleared_and_a_living_supervisors_are_not(folder: Path) -> None:
    with Claim(folder / "run", folder / "state") as claim:
        claim.listen()
        clear_stale(folder / "run")
        assert claim.run.socket.exists()
    claim.run.pid.write_text("1")
    clear_stale(folder / "run")
    assert not claim.run.pid.exists()
    clear_stale(folder / "never")
    with claim.run.lock.open() as lock:  # and the lock is free
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
