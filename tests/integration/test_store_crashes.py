"""Whatever ends a writer of the store, and wherever: the store verifies, and the next one goes on.

Writers run in children of their own. Each is killed at every call that changes the disk, one run
for each of them, so that no point between two calls is left to chance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from dataplane.image import code
from dataplane.image.build import build_signed
from dataplane.image.code import unpack_code
from dataplane.image.keys import Keys
from dataplane.image.prune import prune
from dataplane.image.signing import Provenance
from dataplane.image.store import Store
from dataplane.image.transfer import export_image, import_image
from dataplane.image.verify import verify_store
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest
from tests.unit.image.trees import make_package
from tests.unit.model.test_spec import SPEC

pytestmark = pytest.mark.slow

PROVENANCE: Final = Provenance(
    files=(), revision=None, builder="1.2.3", time="2026-01-01T00:00:00Z", user="ann"
)
CHANGING: Final = (
    "open",
    "write",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "chmod",
    "fchmod",
)
DONE, REFUSED, BROKEN = 0, 3, 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A host with one image and its code unpacked, an installed package, and another host's tar."""

    folder: Path
    package_root: Path
    tar: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def build(self, number: int = 1) -> Digest:
        store = Store.open(self.state)
        spec = dataclasses.replace(SPEC, drain_deadline_ms=1000 + number)
        digest = build_signed(store, Keys(self.state), spec, self.package_root, PROVENANCE)
        unpack_code(store, self.state, store.image(digest).code_layer)
        return digest

    def take(self) -> None:
        with self.tar.open("rb") as file:
            import_image(Store.open(self.state), Keys(self.state), file, "x.tar")

    def prune(self) -> None:
        prune(Store.open(self.state), keep=0)

    def copy(self, folder: Path) -> World:
        shutil.copytree(self.folder, folder, symlinks=True)
        return dataclasses.replace(self, folder=folder)

    def claim_sound(self) -> None:
        """It verifies; and it works: what was cut off can be done."""
        account = verify_store(Store.open(self.state), Keys(self.state))
        assert account.is_sound, account

    def claim_works(self) -> None:
        for unfinished in self.state.glob(".new-*"):
            os.utime(unfinished, (1, 1))  # only what is old is nobody's for sure
        self.build(2)
        self.take()
        self.prune()
        self.claim_sound()
        left = [path for path in self.state.rglob(".new-*") if "keys" not in path.parts]
        assert not left, left


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(code, "_THIRD_PARTY", ())
    package_root = make_package(tmp_path / "installed")
    tar = tmp_path / "x.tar"
    made = World(folder=tmp_path / "here", package_root=package_root, tar=tar)
    there = dataclasses.replace(made, folder=tmp_path / "there")
    for one in (made, there):
        Store.open(one.state)
        Keys(one.state).ensure()
    own = Keys(there.state).own()
    assert own is not None
    Keys(made.state).trust(own)
    package_root.joinpath("dataplane/worker/zygote.py").write_text("another version\n")
    export_image(Store(there.state), there.build(7), tar)
    package_root.joinpath("dataplane/worker/zygote.py").write_text("zygote\n")
    made.build(0)
    return made


def in_child(do: Callable[[], object]) -> int:
    """Runs it in a fork of this process; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = BROKEN
        try:
            do()
            status = DONE
        except ImageError:
            status = REFUSED
        except BaseException:  # noqa: BLE001 - a process's top
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at(count: int, do: Callable[[], object]) -> Callable[[], object]:
    """The same, dead at that call which changes the disk; a write is cut in half."""

    def run() -> None:
        left = [count]

        def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **more: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    if name == "write":
                        call(args[0], bytes(args[1])[: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)

            return counted

        for name in CHANGING:
            setattr(os, name, dying(name, getattr(os, name)))
        do()

    return run


@pytest.mark.parametrize("what", ["build", "take", "prune"])
@pytest.mark.timeout(120)
def test_a_writer_that_is_killed_anywhere_leaves_a_store_that_verifies(
    world: World, tmp_path: Path, what: str
) -> None:
    count = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        count += 1
        again = world.copy(tmp_path / f"run-{count}")
        status = in_child(killed_at(count, getattr(again, what)))
        again.claim_sound()
        if count % 7 == 0:
            again.claim_works()
        shutil.rmtree(again.folder, onerror=make_writable)
    assert status == DONE
    assert count > 10  # it did die on the way


def make_writable(remove: Callable[..., Any], path: str, _: object) -> None:
    """Unpacked code is read-only."""
    os.chmod(os.path.dirname(path), 0o700)
    os.chmod(path, 0o700)
    if remove is not os.rmdir:
        remove(path)
    else:
        shutil.rmtree(path, onerror=make_writable)


@pytest.mark.parametrize("what", ["build", "take"])
def test_a_writer_that_may_write_no_more_says_so_and_leaves_a_store_that_verifies(
    world: World, tmp_path: Path, what: str
) -> None:
    """RLIMIT_FSIZE: every write beyond that size fails, as on a full disk."""
    seen = set()
    for limit in (0, 1, 64, 300, 700, 1200, 3000, 9000, 1 << 20):
        again = world.copy(tmp_path / f"limit-{limit}")

        def limited(again: World = again, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            getattr(again, what)()

        status = in_child(limited)
        assert status in (DONE, REFUSED)
        seen.add(status)
        again.claim_sound()
        again.claim_works()
        shutil.rmtree(again.folder, onerror=make_writable)
    assert seen == {DONE, REFUSED}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr!r}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("what", ["build", "take"])
def test_a_full_disk_is_told_and_leaves_a_store_that_verifies(
    world: World, small_disk: Path, what: str
) -> None:
    again = world.copy(small_disk / "here")
    ballast = small_disk / "ballast"
    refused = 0
    for pages in range(0, 60, 3):
        fill(ballast, leave=pages * 4096)
        with contextlib.suppress(ImageError):
            getattr(again, what)()
            refused -= 1
        refused += 1
        ballast.unlink()
        again.claim_sound()
        if what == "take":
            again.prune()
    assert 0 < refused < 20
    again.claim_works()


def fill(path: Path, leave: int) -> None:
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, os.fstat(file.fileno()).st_size - leave))


def test_many_at_once_leave_what_one_after_the_other_would(world: World) -> None:
    """Imports, builds and prunes, side by side, each again and again."""

    writers = [world.take, world.take, lambda: world.build(3), lambda: world.build(4), world.prune]
    pids = []
    for writer in writers:
        pid = os.fork()
        if pid == 0:
            status = BROKEN
            try:
                for _ in range(8):
                    writer()
                status = DONE
            except ImageError:
                status = REFUSED
            except BaseException:  # noqa: BLE001 - a process's top
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)
        pids.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    # Prune takes an image that is done and that nobody wants, be it from under its builder's feet:
    # to be unpacked it is too late then, and that is told.
    assert statuses[0] == statuses[1] == statuses[4] == DONE, statuses
    assert {*statuses[2:4]} <= {DONE, REFUSED}, statuses
    world.claim_sound()
    world.claim_works()
