"""A worker runs the code of its image, whatever becomes of what the host has installed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Final

from tests.support.dataplane import (
    APP,
    ROOT,
    Dataplane,
    app_config,
    eventually,
    process_name,
)
from tests.support.installation import change
from tests.support.wire import Wire

DIGEST_LINE: Final = re.compile(r"sha256:[0-9a-f]{64}\n")


# --- the digest -------------------------------------------------------------------------------


def test_build_prints_the_digest_and_nothing_else(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.cli("keys", "init")  # or the first build would say that it made a key
    told = plane.cli("build", "--app", APP)
    assert DIGEST_LINE.fullmatch(told.out)
    assert told.err == ""
    facts = plane.cli("build", "--app", APP, "--json").fact()
    assert (facts["app"], facts["image"]) == (APP, told.out.strip())


def test_same_inputs_give_the_same_digest_from_another_folder(
    plane: Dataplane, apart: Dataplane
) -> None:
    """Another config folder, state folder, working folder, environment and installation."""
    config = app_config(mark="same")
    digest = plane.build(config)
    assert apart.build(config) == digest
    assert plane.build() == digest
    # Neither the order of keys nor comments are part of what it means.
    text = plane.configure(dict(reversed(config.items()))).read_text()
    plane.configure(f"# a comment\n{text}")
    assert plane.build() == digest
    assert plane.build(app_config(mark="other")) != digest


def test_code_is_part_of_the_image(apart: Dataplane, installed: Path) -> None:
    digest = apart.build(app_config())
    change(installed / "dataplane" / "cli" / "main.py", "Decides nothing else.", "Decides less.")
    assert apart.build() == digest  # no worker runs the command line
    change(installed / "dataplane" / "system" / "process.py", '"dp:', '"d2:')
    assert apart.build() != digest


def test_variable_of_the_asker_is_recorded_in_the_image(plane: Dataplane) -> None:
    plane.configure(app_config(mark="${COLOUR}"))
    told = plane.cli("build", "--app", APP, code=78)
    assert "COLOUR" in told.err
    teal, red = (
        plane.cli("build", "--app", APP, environment={"COLOUR": colour}).out.strip()
        for colour in ("teal", "red")
    )
    assert teal != red
    plane.configure(app_config())
    plane.start()
    plane.swap(teal)
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"teal"
    # A swap through the supervisor builds with the environment of who asks, not with its own.
    plane.configure(app_config(mark="${COLOUR}"))
    plane.cli("swap", "--app", APP, environment={"COLOUR": "plum"})
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"plum"


# --- the code ---------------------------------------------------------------------------------


def test_worker_runs_its_image_with_the_package_gone(apart: Dataplane, installed: Path) -> None:
    """A swap, a crash restart, a new zygote, and one of another code version."""
    green = apart.build(app_config(mark="green"))
    apart.configure(app_config())
    apart.start()
    change(installed / "dataplane" / "system" / "process.py", '"dp:', '"d2:')
    newer = apart.build(app_config(mark="newer"))
    installed.rename(installed.with_name("gone"))

    with Wire.connect(apart.address()) as client:
        assert client.get().body == b"blue"
        assert apart.swap(green)["outcome"] == "swapped"
        assert client.get().body == b"green"
    claim_own_code(apart, installed, "dp:")

    crashed = apart.worker_pid()
    os.kill(crashed, signal.SIGKILL)
    with Wire.connect(apart.address()) as client:
        assert client.get().body == b"green"
    claim_own_code(apart, installed, "dp:")

    (zygote,) = apart.zygote_pids()
    os.kill(zygote, signal.SIGKILL)
    apart.event("zygote.died", pid=zygote)
    assert apart.swap(force=True, image=green)["outcome"] == "swapped"
    claim_own_code(apart, installed, "dp:")

    with Wire.connect(apart.address()) as client:
        client.get()
        assert apart.swap(newer)["connections"]["moved_idle"] == 1
        assert client.get().body == b"newer"
    eventually(lambda: len(apart.zygote_pids()) == 1)  # the former version's has nothing to do
    claim_own_code(apart, installed, "d2:")


def claim_own_code(plane: Dataplane, installed: Path, name: str) -> None:
    """The worker and its zygote map nothing of any installation, but the tree of their image."""
    worker = plane.worker_pid()
    assert process_name(worker).startswith(name)
    if os.geteuid() != 0:
        return  # a sealed worker's mappings are shown to root alone
    for pid in (worker, *plane.zygote_pids()):
        files = mapped_files(pid)
        assert not [file for file in files if "site-packages" in file]
        assert not [file for file in files if file.startswith((str(ROOT), str(installed.parent)))]
        libraries = [file for file in files if "/_native." in file or "/uvloop/" in file]
        assert len(libraries) == 2
        assert all(file.startswith(str(plane.state_dir / "code")) for file in libraries)


def mapped_files(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(None, 5)[5] for line in lines if "/" in line}


# --- the store --------------------------------------------------------------------------------


def test_damaged_image_is_refused_and_blue_serves(plane: Dataplane) -> None:
    green = plane.build(app_config(mark="green"))
    plane.configure(app_config())
    plane.start()
    blob = plane.state_dir / "images" / "blobs" / "sha256" / green.removeprefix("sha256:")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    told = plane.ask_swap(green)
    assert (told.status, told.kind) == (422, "application/problem+json")
    assert green.removeprefix("sha256:")[:12] in told.body["detail"]
    assert plane.cli("swap", "--app", APP, "--image", green, code=1).err
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"


def test_image_of_another_app_is_refused(plane: Dataplane) -> None:
    shop = plane.build(app_config(app="shop"), app="shop")
    plane.configure(app_config())
    plane.start()
    told = plane.ask_swap(shop)
    assert told.status == 422
    assert "shop" in told.body["detail"]
    assert len(plane.workers()) == 1
