"""Building for real: the installed code, real disks, several builders at once, the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

import dataplane
from dataplane.image import code
from dataplane.image.build import build_image
from dataplane.image.code import unpack_code
from dataplane.image.store import Store, digest_of
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest
from tests.unit.image.trees import make_package
from tests.unit.model.test_spec import SPEC

ROOT: Final = Path(dataplane.__file__).resolve().parent.parent
CONFIGS: Final = ROOT / "configs"
LIMIT_SECONDS: Final = 50

pytestmark = pytest.mark.slow


def command(
    *words: str | Path, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dataplane", *map(str, words)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def build(state: Path, *words: str | Path, folder: Path | None = None) -> str:
    done = command("build", "--app", "billing", "--state-dir", state, *words, folder=folder)
    assert done.returncode == 0, done.stderr
    # Nothing else is told, but that a first build in a state folder makes the key it signs with.
    assert all("made a signing key" in line for line in done.stderr.splitlines())
    assert done.stdout.endswith("\n")
    return done.stdout.removesuffix("\n")


def blobs_are_sound(state: Path) -> None:
    folder = state / "images" / "blobs" / "sha256"
    for path in folder.iterdir():
        assert digest_of(path.read_bytes()) == f"sha256:{path.name}"


# --- the code layer ---------------------------------------------------------------------------

# Imports every module of the tree as a zygote would, and tells which files that took.
_IMPORT_ALL: Final = """
import sys
tree = sys.argv[1]
sys.path.insert(0, tree)
import importlib, json, pathlib
root = pathlib.Path(tree)
for path in sorted(root.glob("dataplane/**/*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    importlib.import_module(".".join(parts).removesuffix(".__init__"))
import uvloop
uvloop.new_event_loop().close()
print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]))
"""


def test_a_worker_can_run_from_its_layer_alone(tmp_path: Path) -> None:
    """A bare interpreter, without site-packages, loads every module that is in the layer."""
    store = Store.open(tmp_path / "state")
    image = store.image(build_image(store, SPEC, ROOT))
    assert image.code_version == dataplane.__version__
    tree = unpack_code(store, store.state_dir, image.code_layer)
    python = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    done = subprocess.run(
        [python, "-I", "-S", "-B", "-c", _IMPORT_ALL, str(tree)],
        env={"LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert any(path.startswith(str(tree / "uvloop")) for path in loaded)
    assert any(path.startswith(str(tree / "_cffi_backend")) for path in loaded)
    assert not [path for path in loaded if "site-packages" in path or path.startswith(str(ROOT))]


# --- the same digest --------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_digest_from_another_folder_and_day(tmp_path: Path) -> None:
    other = tmp_path / "a" / "config"
    shutil.copytree(CONFIGS, other)
    for path in (other / "apps").iterdir():
        os.utime(path, (1, 1))
    text = (other / "apps" / "billing.yaml").read_text()
    (other / "apps" / "billing.yaml").write_text("# another comment\n" + text)
    first = build(tmp_path / "one", "--config", CONFIGS)
    second = build(tmp_path / "two", "--config", other, folder=tmp_path)
    assert first == second
    assert first.startswith("sha256:")
    # All that the image consists of; signature and provenance are of their host and day.
    images = [Store(tmp_path / name).image(Digest(first)) for name in ("one", "two")]
    assert images[0] == images[1]
    for store in (Store(tmp_path / name) for name in ("one", "two")):
        store.check_blobs(Digest(first))


def test_json_tells_what_is_in_the_image(tmp_path: Path) -> None:
    done = command(
        "build", "--app", "billing", "--json", "--config", CONFIGS, "--state-dir", tmp_path
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    image = Store.open(tmp_path).image(told["image"])
    assert told == {
        "app": "billing",
        "image": image.digest,
        "config_layer": image.config_layer,
        "code_layer": image.code_layer,
        "code": dataplane.__version__,
        "ms": told["ms"],
    }


def test_the_askers_environment_is_recorded(tmp_path: Path) -> None:
    config = tmp_path / "apps"
    config.mkdir()
    text = (CONFIGS / "apps" / "billing.yaml").read_text().replace("9002", "${SECOND_PORT}")
    (config / "billing.yaml").write_text(text)
    words = ("build", "--app", "billing", "--config", tmp_path, "--state-dir", tmp_path / "state")
    missing = command(*words)
    assert (missing.returncode, missing.stdout) == (78, "")
    assert "${SECOND_PORT} is not set in the environment" in missing.stderr
    digests = {command(*words, SECOND_PORT=port).stdout for port in ("9102", "9103", "9102")}
    assert len(digests) == 2


# --- several builders, and disks that fail ----------------------------------------------------


def test_builders_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    apps = ("billing", "shop", "database", "billing")

    def build_one(app: str) -> subprocess.CompletedProcess[str]:
        return command("build", "--app", app, "--config", CONFIGS, "--state-dir", tmp_path)

    with ThreadPoolExecutor(len(apps)) as pool:
        done = list(pool.map(build_one, apps))
    assert [one.returncode for one in done] == [0] * len(apps), [one.stderr for one in done]
    assert done[0].stdout == done[3].stdout
    assert sorted(image.app for image in Store.open(tmp_path).images()) == sorted(set(apps))
    blobs_are_sound(tmp_path)


def test_unpackers_at_once_share_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_THIRD_PARTY", ("_cffi_backend",))
    store = Store.open(tmp_path / "state")
    digest = build_image(store, SPEC, make_package(tmp_path / "installed"))
    layer = store.image(digest).code_layer
    with ThreadPoolExecutor(8) as pool:
        trees = set(pool.map(lambda _: unpack_code(store, store.state_dir, layer), range(8)))
    assert len(trees) == 1
    assert len(list((store.state_dir / "code").iterdir())) == 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """A folder that takes less than a megabyte while `limited` is held."""

    folder: Path
    limited: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["a small disk", "a limit"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Full]:
    folder = tmp_path / "full"
    folder.mkdir()
    if request.param == "a limit":
        yield Full(folder=folder, limited=small_files)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=-3, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield Full(folder=folder, limited=contextlib.nullcontext)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_the_store_as_it_was(
    full: Full, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "_THIRD_PARTY", ("_cffi_backend",))
    package = make_package(tmp_path / "installed")
    state = full.folder / "state"
    store = Store.open(state)
    digest = build_image(store, SPEC, package)
    before = {path for path in state.rglob("*") if path.is_file()}

    (package / "dataplane" / "worker" / "large.py").write_text("#" * 900_000)
    told = r"(No space left|File too large).*Free some space"
    with full.limited(), pytest.raises(ImageError, match=told):
        build_image(store, SPEC, package)

    assert {path for path in state.rglob("*") if path.is_file()} == before
    assert store.image(digest).spec == SPEC
    blobs_are_sound(state)
    (package / "dataplane" / "worker" / "large.py").unlink()
    assert build_image(store, SPEC, package) == digest


def test_unpacking_on_a_full_disk_leaves_nothing(
    full: Full, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "_THIRD_PARTY", ())
    package = make_package(tmp_path / "installed")
    (package / "dataplane" / "worker" / "large.py").write_text("#" * 1_500_000)
    store = Store.open(tmp_path / "state")
    layer = store.image(build_image(store, SPEC, package)).code_layer
    with full.limited(), pytest.raises(ImageError, match=r"No space left|File too large"):
        unpack_code(store, full.folder, layer)
    assert list((full.folder / "code").iterdir()) == []


# --- what the commands say --------------------------------------------------------------------


def test_findings_go_to_stderr_and_the_status_is_78(tmp_path: Path) -> None:
    apps = tmp_path / "apps"
    apps.mkdir()
    (apps / "billing.yaml").write_text("version: 1\napp: billing\nlisteners: [{name: web}]\n")
    for words in (["build", "--app", "billing"], ["validate"], ["validate", apps / "billing.yaml"]):
        done = command(*words, "--config", tmp_path, "--state-dir", tmp_path / "state")
        assert (done.returncode, done.stdout) == (78, "")
        assert f"{apps}/billing.yaml:3:13: a listener lacks bind\n    hint: " in done.stderr
        assert f"{apps}/billing.yaml:3:13: a listener lacks protocol" in done.stderr
    assert not (tmp_path / "state").exists()


def test_validate_counts_what_is_well() -> None:
    done = command("validate", "--config", CONFIGS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(list((CONFIGS / 'apps').glob('*.yaml')))} files ok\n"


def test_validate_tells_findings_as_json(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    done = command("validate", "--json", path)
    assert done.returncode == 78
    assert json.loads(done.stdout) == [
        {"path": str(path), "line": 0, "column": 0, "message": "no such file", "hint": None}
    ]


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command(
        "build", "--app", "billing", "--config", CONFIGS, "--state-dir", tmp_path / "file" / "x"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dataplane: cannot ")
    assert "Traceback" not in done.stderr


def test_schema_prints_json_schema() -> None:
    done = command("schema", "app")
    assert done.returncode == 0
    assert json.loads(done.stdout)["properties"]["listeners"]
    core = command("schema", "core")
    assert (core.returncode, core.stdout) == (64, "")
    assert "not supported yet" in core.stderr
