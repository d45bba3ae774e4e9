"""What an operator can get wrong, or the host lack: a clear word, the right exit code, no harm."""

from __future__ import annotations

import contextlib
import copy
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.dataplane import APP, PROGRAM, Dataplane, app_config, eventually, wait_gone
from tests.support.wire import Wire

BROKEN: Final = """\
version: 1
app: billing
listeners:
  - {name: web, bind: "127.0.0.1:0", protocol: htp}
routes:
  - match: {path: /}
    upstream: apo
  - match: {path: /x}
    respond: {status: 200}
    respond: {status: 201}
upstreams:
  api: {endpoints: [127.0.0.1:99999]}
colour: red
limits: {cpu: 1.0}
"""
# Each finding: where, and a word of it.
FINDINGS: Final = (
    ("4:48", "'htp'"),
    ("7:15", "'apo'"),
    ("10:5", "twice"),
    ("12:21", "'99999'"),
    ("13:1", "unknown key 'colour'"),
    ("14:10", "not supported yet"),
)


def claim_serves(plane: Dataplane, body: bytes = b"blue") -> None:
    with Wire.connect(plane.address()) as client:
        assert client.get().body == body


@pytest.fixture
def other() -> Iterator[Dataplane]:
    """A second one of the same user, in folders of its own."""
    folder = Path(tempfile.mkdtemp())
    made = Dataplane(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


def in_a_mount(folder: Path, size: str) -> tuple[str, ...]:
    """The words before a command that is to have a small disk of its own at the folder."""
    mount = f'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, "sh")


@pytest.fixture
def small_disk() -> Iterator[Dataplane]:
    """Each command has a state folder on a disk of its own; it ends with the command."""
    folder = Path(tempfile.mkdtemp())
    state = folder / "state"
    state.mkdir()
    tried = subprocess.run([*in_a_mount(state, "1m"), "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no mount here: {tried.stderr.strip()}")
    made = Dataplane(folder, program=(*in_a_mount(state, "60m"), *PROGRAM))
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


# --- config files -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["validate", "build", "run", "swap"])
def test_all_findings_are_told_at_once_with_their_places(plane: Dataplane, verb: str) -> None:
    plane.configure(app_config())
    if verb == "swap":
        plane.start()
    path = plane.configure(BROKEN)
    words = () if verb == "validate" else ("--app", APP)
    told = plane.cli(verb, *words, code=78)
    for place, word in FINDINGS:
        assert any(
            line.startswith(f"{path}:{place}: ") and word in line for line in told.err.splitlines()
        ), (place, word, told.err)
    hints = [line for line in told.err.splitlines() if line.startswith("    hint: ")]
    assert len(hints) == len(FINDINGS)
    assert told.out == ""
    if verb == "swap":
        claim_serves(plane)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("version: 1\napp: billing\nlisteners: [\n", "billing.yaml:"),
        ("version: 1\napp: billing\n\tlisteners: []\n", "billing.yaml:3:"),
        ("- a\n- list\n", "billing.yaml:1:1"),
        ("", "billing.yaml"),
        ("version: 1\n---\nversion: 2\n", "billing.yaml:"),
    ],
)
def test_what_is_no_config_is_told_with_its_place(plane: Dataplane, text: str, place: str) -> None:
    plane.configure(text)
    told = plane.cli("run", "--app", APP, code=78)
    assert place in told.err
    assert "Traceback" not in told.err
    assert not (plane.run_dir / "supervisor.sock").exists()


def test_missing_file_is_told_and_nothing_is_disturbed(plane: Dataplane) -> None:
    told = plane.cli("run", "--app", APP, code=78)
    assert "billing.yaml: no such file" in told.err
    path = plane.configure(app_config())
    plane.start()
    path.unlink()
    assert "billing.yaml: no such file" in plane.cli("swap", "--app", APP, code=78).err
    assert "shop.yaml: no such file" in plane.cli("run", "--app", "shop", code=78).err
    claim_serves(plane)
    assert plane.call("POST", f"/v1/apps/{APP}/swap", {}).body["findings"][0]["path"] == str(path)


def test_broken_file_stops_its_own_app_alone(plane: Dataplane) -> None:
    plane.configure(app_config())
    (plane.config_dir / "apps" / "broken.yaml").write_text("version: 1\napp: broken\n")
    line = plane.start("up")
    assert "app=billing" in line
    claim_serves(plane)
    assert "broken.yaml" in eventually(plane.log)


# --- addresses --------------------------------------------------------------------------------


def test_port_of_a_stranger_is_told_with_its_address(plane: Dataplane) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger:
        bind = f"127.0.0.1:{stranger.getsockname()[1]}"
        plane.configure(app_config(bind=bind))
        told = plane.cli("run", "--app", APP, code=1)
        assert f"cannot listen on {bind}: the address is in use" in told.err
    claim_nothing_runs(plane)


def test_port_of_another_supervisor_of_the_same_user_is_told(
    plane: Dataplane, other: Dataplane
) -> None:
    """Both bind for many workers: that must not let the second one join the first one's group."""
    plane.configure(app_config(workers=2))
    plane.start()
    bind = "{}:{}".format(*plane.address())
    other.configure(app_config(bind=bind, mark="other", workers=2))
    told = other.cli("run", "--app", APP, code=1)
    assert f"cannot listen on {bind}: the address is in use" in told.err
    for _ in range(8):
        claim_serves(plane)


def test_port_of_another_app_is_told(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    bind = "{}:{}".format(*plane.address())
    plane.configure(app_config(app="shop", bind=bind))
    told = plane.cli("run", "--app", "shop", code=1)
    assert f"cannot listen on {bind}" in told.err
    claim_serves(plane)


def test_swap_to_a_taken_address_fails_and_blue_serves(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        bind = f"127.0.0.1:{stranger.getsockname()[1]}"
        plane.configure(app_config(mark="green", bind=bind))
        told = plane.cli("swap", "--app", APP, "--json", code=1)
    assert f"cannot listen on {bind}: the address is in use" in told.err
    assert told.fact()["outcome"] == "failed"
    claim_serves(plane)


# --- folders ----------------------------------------------------------------------------------


def test_path_too_long_for_a_socket_is_told_at_once(plane: Dataplane) -> None:
    plane.configure(app_config())
    run_dir = plane.folder / ("long" * 30)
    told = with_folders(plane, run_dir=run_dir).cli("run", "--app", APP, code=1)
    assert "too long for a socket" in told.err
    assert "--run-dir" in told.err
    assert not run_dir.exists()


@pytest.mark.parametrize("name", ["run_dir", "state_dir"])
def test_folder_that_cannot_be_made_is_told(plane: Dataplane, name: str) -> None:
    """Also for root, who may write everywhere: its place is taken by a file."""
    plane.configure(app_config())
    taken = plane.folder / "file"
    taken.write_text("")
    told = with_folders(plane, **{name: taken / "folder"}).cli("run", "--app", APP, code=1)
    assert str(taken) in told.err
    assert "--" + name.replace("_", "-") in told.err
    assert "Traceback" not in told.err


def test_app_whose_name_makes_the_path_too_long_is_told(plane: Dataplane) -> None:
    """Told before anything is started, and not at its first restart with a longer number."""
    plane.configure(app_config())
    room = 107 - len(str(plane.folder / "supervisor.sock")) - 1
    run_dir = plane.folder / ("r" * room)  # long enough for the supervisor's own socket, just so
    told = with_folders(plane, run_dir=run_dir).cli("run", "--app", APP, code=1)
    assert "too long for a socket" in told.err
    assert "workers/billing" in told.err
    assert not run_dir.exists()


def test_folder_of_a_running_supervisor_is_refused(plane: Dataplane, other: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    told = plane.cli("up", code=1)
    assert "already runs" in told.err
    assert str(plane.pid) in told.err
    other.configure(app_config())
    told = with_folders(other, state_dir=plane.state_dir).cli("run", "--app", APP, code=1)
    assert f"already uses {plane.state_dir}" in told.err
    claim_serves(plane)


def test_stale_files_of_a_dead_supervisor_are_replaced(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    worker = plane.worker_pid()
    plane.signal(signal.SIGKILL)
    assert plane.wait_end() == -signal.SIGKILL
    os.kill(worker, signal.SIGKILL)
    wait_gone(worker)
    assert (plane.run_dir / "supervisor.sock").exists()
    assert list((plane.run_dir / "workers").iterdir())
    assert "no supervisor runs" in plane.cli("ps", code=1).err
    plane.start()
    claim_serves(plane)
    assert plane.report()["generations"][0]["generation"] == 2


def test_stale_socket_that_nobody_made_for_us_is_replaced(plane: Dataplane) -> None:
    plane.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(plane.run_dir / "supervisor.sock"))
    plane.configure(app_config())
    plane.start()
    claim_serves(plane)


# --- disk -------------------------------------------------------------------------------------


def test_full_disk_while_building_is_told_and_leaves_the_store_whole(plane: Dataplane) -> None:
    plane.configure(app_config())

    def no_space() -> None:
        """As a full disk, for any user: no file may grow beyond this."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    told = plane.cli("build", "--app", APP, code=1, preexec_fn=no_space)
    assert "cannot write" in told.err
    assert "Free some space" in told.err
    assert told.out == ""
    blobs = plane.state_dir / "images" / "blobs" / "sha256"
    assert [path.name for path in blobs.glob("*") if path.stat().st_size > 99_000] == []
    digest = plane.build()
    plane.start()
    assert plane.report()["wanted"] == digest
    claim_serves(plane)


@needs_root
def test_really_full_disk_while_building(small_disk: Dataplane) -> None:
    small_disk.configure(app_config())
    build = " ".join([*PROGRAM, *small_disk.command("build", "--app", APP)[-9:]])
    grow = f"mount -o remount,size=64m {small_disk.state_dir}"
    script = f'{build}; echo "exit $?"; {grow} && {build}; echo "exit $?"'
    ran = subprocess.run(
        [*in_a_mount(small_disk.state_dir, "4m"), "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
    )
    first, digest, second = ran.stdout.splitlines()
    assert (first, second) == ("exit 1", "exit 0"), ran.stderr
    assert "No space left on device" in ran.stderr
    assert digest.startswith("sha256:")


def test_full_disk_of_the_log_stops_nobody(plane: Dataplane) -> None:
    plane.configure(app_config())
    (plane.folder / "supervisor.err").write_text("." * 10_000)
    plane.start()
    green = plane.build(app_config(mark="green"))
    unlimited = resource.prlimit(plane.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(plane.pid, resource.RLIMIT_FSIZE, (9_000, unlimited[1]))
    logged = plane.log()
    assert plane.swap(green)["outcome"] == "swapped"
    assert plane.event("rollout.switched", generation=2)
    claim_serves(plane, b"green")
    assert plane.log() == logged
    resource.prlimit(plane.pid, resource.RLIMIT_FSIZE, unlimited)
    assert plane.swap(force=True)["outcome"] == "swapped"
    assert "generation=3" in plane.log()


@needs_root
def test_full_state_disk_under_a_supervisor_stops_nobody(small_disk: Dataplane) -> None:
    """Nothing can be built then; what is built can be swapped to, and what runs goes on."""
    plane = small_disk
    plane.configure(app_config(mark="green"))
    plane.cli("run", "--app", APP, "--detach")
    green = plane.report()["wanted"]
    plane.configure(app_config())
    plane.swap()
    filler = Path(f"/proc/{plane.pid}/root{plane.state_dir}/filler")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    plane.configure(app_config(mark="new"))
    told = plane.ask_swap()
    assert told.status == 422
    assert "No space left on device" in told.body["detail"]
    claim_serves(plane)
    assert plane.swap(green)["outcome"] == "swapped"
    claim_serves(plane, b"green")
    assert "No space left on device" in plane.event("state.not_written")["error"]
    filler.unlink()
    assert plane.swap()["outcome"] == "swapped"
    claim_serves(plane, b"new")


# --- means ------------------------------------------------------------------------------------


def claim_nothing_runs(plane: Dataplane) -> None:
    assert "no supervisor runs" in plane.cli("ps", code=1).err
    assert not (plane.run_dir / "supervisor.sock").exists()
    assert not list((plane.run_dir / "workers").glob("*"))


def with_folders(plane: Dataplane, **folders: Path) -> Dataplane:
    """The same, but for these folders; nothing is started by it."""
    changed = copy.copy(plane)
    for name, folder in folders.items():
        setattr(changed, name, folder)
    return changed
