"""Nothing here needs root: all of it runs as nobody, too, sealed in the same way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.dataplane import APP, ROOT, Dataplane, app_config, eventually
from tests.support.origin import Origin, answering
from tests.support.wire import Wire

NOBODY: Final = 65534
AS_NOBODY: Final = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=-all",
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")


# A person's own Python may lie where nobody else may look: then the host's, with our packages.
PYTHONS: Final = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}")
ENVIRONMENT: Final = {
    "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter that nobody can run, and that finds the package."""
    # From a child of its own: setpriv itself still has root's rights at its first exec.
    look = "import subprocess, sys; subprocess.check_call([sys.executable, '-c', sys.argv[1]])"
    for found in PYTHONS:
        command = [*AS_NOBODY, found, "-c", look, "import dataplane.cli.main, uvloop, yaml"]
        environment = {**os.environ, **ENVIRONMENT}
        tried = subprocess.run(command, env=environment, cwd="/", capture_output=True)
        if tried.returncode == 0:
            return found
    pytest.skip("nobody may not read this installation")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that nobody can reach: what the other tests use is root's alone."""
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="dp-"))
    os.chmod(made, 0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def nobody(folder: Path, python: str) -> Iterator[Dataplane]:
    home = folder / "home"
    home.mkdir()
    made = Dataplane(
        home,
        program=(*AS_NOBODY, python, "-m", "dataplane"),
        environment={**ENVIRONMENT, "HOME": str(home)},
    )
    for place in (home, made.config_dir, made.config_dir / "apps"):
        os.chown(place, NOBODY, NOBODY)
    try:
        yield made
    finally:
        made.close()


def test_nobody_runs_swaps_and_restarts_it_sealed(nobody: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        nobody.configure(app_config(origin.port, workers=2))
        nobody.start()
        for pid in (nobody.pid, *(worker["pid"] for worker in nobody.workers())):
            status = Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
            assert "CapEff:\t0000000000000000" in status
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Wire.connect(nobody.address())) for _ in range(20)]
            for client in clients:
                assert client.get().field("x-mark") == "blue"
            nobody.configure(app_config(origin.port, mark="green", workers=2))
            ledger = nobody.cli("swap", "--app", APP, "--json").fact()
            assert ledger["connections"]["moved_idle"] == 20
            for client in clients:
                assert client.get().field("x-mark") == "green"
        os.kill(nobody.workers()[0]["pid"], signal.SIGKILL)
        eventually(lambda: nobody.workers()[0]["restarts"] == 1)
        eventually(lambda: nobody.report()["state"] == "serving")
        (generation,) = nobody.report()["generations"]
        assert generation["seal"]["seccomp"] is True
        assert generation["seal"]["no_new_privs"] is True
        # The kernel counts a newborn's pages in batches for each CPU, and may show none at first.
        eventually(lambda: all(worker["memory_bytes"] > 0 for worker in nobody.workers()))
        assert "serving" in nobody.cli("ps").out


def test_folder_that_may_not_be_written_is_told(nobody: Dataplane, folder: Path) -> None:
    nobody.configure(app_config())
    locked = folder / "locked"
    locked.mkdir(mode=0o755)
    for name, flag in (("run_dir", "--run-dir"), ("state_dir", "--state-dir")):
        mine = getattr(nobody, name)
        setattr(nobody, name, locked)
        told = nobody.cli("run", "--app", APP, code=1)
        setattr(nobody, name, mine)
        assert str(locked) in told.err
        assert "permission denied" in told.err.lower()
        assert flag in told.err
        assert "Traceback" not in told.err
    assert list(locked.iterdir()) == []


def test_another_user_may_not_change_what_runs(folder: Path, nobody: Dataplane) -> None:
    """Root's supervisor, its folder open to all: its socket is not."""
    roots = Dataplane(folder / "root")
    os.chmod(folder / "root", 0o755)
    roots.configure(app_config())
    roots.start()
    try:
        nobody.run_dir, own = roots.run_dir, nobody.run_dir
        for words in (("ps",), ("stop", "--app", APP), ("down",)):
            told = nobody.cli(*words, code=1)
            assert "permission denied" in told.err.lower(), told
            assert "Traceback" not in told.err
        nobody.run_dir = own
        with Wire.connect(roots.address()) as client:
            assert client.get().body == b"blue"
    finally:
        roots.close()


def test_what_only_root_could_see_of_a_worker_is_told_with_the_reason(nobody: Dataplane) -> None:
    """The rest is proven all the same: its image, its code on disk, its command line, its seal."""
    nobody.configure(app_config())
    nobody.start()
    facts = nobody.cli("image", "verify", "--app", APP, "--json").fact()
    assert facts["proven"] is False
    (worker,) = facts["workers"]
    found = {one["what"]: one for one in worker["points"]}
    hidden = {what for what, one in found.items() if one["verdict"] == "unproven"}
    assert hidden == {"config", "code in memory"}
    assert all("root" in found[what]["detail"] for what in hidden)
    assert {one["verdict"] for what, one in found.items() if what not in hidden} == {"proven"}


def test_nobody_s_secret_is_nobody_s_alone(nobody: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        config = app_config(origin.port)
        config["routes"][0]["request_headers"] = {"set": {"authorization": "env:TOKEN"}}
        nobody.configure(config)
        nobody.start(environment={"TOKEN": "a-token"})
        for force in ((), ("--force",)):
            nobody.cli("swap", "--app", APP, *force)
            with Wire.connect(nobody.address()) as client:
                assert client.get().status == 200
            assert origin.requests[-1].values("authorization") == ["a-token"]
        os.kill(nobody.worker_pid(), signal.SIGKILL)
        eventually(lambda: nobody.workers()[0]["restarts"] == 1)
        # Who is not root may not look into the supervisor, though it is of the same user.
        look = [*AS_NOBODY, "cat", f"/proc/{nobody.pid}/environ"]
        assert subprocess.run(look, capture_output=True, check=False).returncode != 0
