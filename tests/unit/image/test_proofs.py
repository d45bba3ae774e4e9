"""Proofs: what was read once is not read again, and whatever changes is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.image import proofs as module
from dataplane.image.build import build_image
from dataplane.image.code import unpack_code
from dataplane.image.files import SETTLED_NS
from dataplane.image.keys import Keys
from dataplane.image.proofs import Proofs
from dataplane.image.signing import referrers_of, sign_image
from dataplane.image.store import Image, Store
from dataplane.model.errors import ImageError
from tests.unit.model.test_spec import SPEC


class Case:
    """A built, signed and unpacked image whose files have settled."""

    def __init__(self, store: Store, package_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.keys = Keys(store.state_dir)
        self.keys.ensure()
        self.image: Image = store.image(build_image(store, SPEC, package_root))
        sign_image(store, self.keys, self.image.digest)
        self.tree = unpack_code(store, store.state_dir, self.image.code_layer)
        self.proofs = Proofs(store, self.keys)
        # As if a while had passed: what was written just now is not remembered.
        monkeypatch.setattr(module, "file_clock", lambda: time.time_ns() + 2 * SETTLED_NS)

    def prove(self) -> None:
        self.proofs.prove_image(self.image)
        self.proofs.prove_tree(self.tree, self.image.code_layer)

    def is_proven(self) -> bool:
        return self.proofs.is_proven(self.image, self.tree)


@pytest.fixture
def case(store: Store, package_root: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(store, package_root, monkeypatch)


def test_what_was_proven_is_not_read_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not case.is_proven()
    case.prove()
    assert case.is_proven()

    def read(*_: object) -> bytes:
        raise AssertionError("read again")

    monkeypatch.setattr(Store, "get", read)
    monkeypatch.setattr(module, "_digest_of_file", read)
    case.prove()


def test_what_was_written_just_now_is_not_remembered(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write within the same tick would leave the same times."""
    monkeypatch.setattr(module, "file_clock", time.time_ns)
    for folder in (case.keys.trusted_folder, case.tree):
        folder.chmod(0o700)
    case.prove()
    assert not case.is_proven()


def overwrite(path: Path) -> None:
    """In place, with the same size and the same time of writing: only ctime tells."""
    told = path.stat()
    path.chmod(0o644)
    path.write_bytes(bytes(told.st_size))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    path.chmod(told.st_mode & 0o777)


def replace(path: Path) -> None:
    path.parent.chmod(0o755)
    (path.parent / "other").write_bytes(b"other")
    (path.parent / "other").rename(path)


def remove(path: Path) -> None:
    path.parent.chmod(0o755)
    path.unlink()


@pytest.mark.parametrize("change", [overwrite, replace, remove])
@pytest.mark.parametrize("which", ["manifest", "config", "abi", "code", "signature", "layer"])
def test_every_blob_that_changes_is_noticed_and_named(
    case: Case, change: Callable[[Path], None], which: str
) -> None:
    (referrer,) = referrers_of(case.store, case.image.digest)
    blob = {
        "manifest": case.image.digest,
        "config": case.image.config_layer,
        "abi": case.image.abi_blob,
        "code": case.image.code_layer,
        "signature": referrer.digest,
        "layer": referrer.layers[0],
    }[which]
    case.prove()
    change(case.store.blob_path(blob))
    assert not case.is_proven()
    with pytest.raises(ImageError, match=blob.removeprefix("sha256:")):
        case.prove()


@pytest.mark.parametrize("change", [overwrite, replace, remove])
def test_every_file_of_the_tree_that_changes_is_noticed_and_named(
    case: Case, change: Callable[[Path], None]
) -> None:
    case.prove()
    path = case.tree / "dataplane" / "model" / "spec.py"
    change(path)
    assert not case.is_proven()
    with pytest.raises(ImageError, match=str(path)):
        case.prove()


def plant_file(tree: Path) -> Path:
    path = tree / "dataplane" / "engine" / "evil.py"
    path.write_text("import os")
    return path


def plant_link(tree: Path) -> Path:
    path = tree / "dataplane" / "engine" / "engine.py"
    path.unlink()
    path.symlink_to("/etc/passwd")
    return path


def plant_folder(tree: Path) -> Path:
    path = tree / "dataplane" / "engine" / "__pycache__"
    path.mkdir()
    return path


def plant_pipe(tree: Path) -> Path:
    path = tree / "dataplane" / "engine" / "pipe.py"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("plant", [plant_file, plant_link, plant_folder, plant_pipe])
def test_what_is_not_in_the_layer_is_refused(case: Case, plant: Callable[[Path], Path]) -> None:
    case.prove()
    (case.tree / "dataplane" / "engine").chmod(0o755)
    path = plant(case.tree)
    assert not case.is_proven()
    with pytest.raises(ImageError, match=f"{path} is not in the image's code"):
        case.prove()


def test_a_revoked_key_ends_the_proof(case: Case) -> None:
    case.prove()
    own = case.keys.own()
    assert own is not None
    case.keys.revoke(own.id)
    assert not case.is_proven()
    with pytest.raises(ImageError, match=f"the key {own.short} is revoked"):
        case.prove()


def test_a_key_that_is_revoked_where_a_link_leads_to_ends_the_proof(
    case: Case, tmp_path: Path
) -> None:
    """A host whose keys are kept by a tool of its own, elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    case.keys.revoked_folder.rename(elsewhere)
    case.keys.revoked_folder.symlink_to(elsewhere)
    case.prove()
    assert case.is_proven()
    own = case.keys.own()
    assert own is not None
    (elsewhere / f"{own.id}.pem").write_bytes(b"revoked")
    assert not case.is_proven()
    with pytest.raises(ImageError, match=f"the key {own.short} is revoked"):
        case.prove()


@pytest.mark.parametrize("which", ["manifest", "code"])
def test_a_blob_that_became_a_link_is_refused_though_its_content_is_right(
    case: Case, tmp_path: Path, which: str
) -> None:
    digest = case.image.digest if which == "manifest" else case.image.code_layer
    path = case.store.blob_path(digest)
    case.prove()
    path.rename(tmp_path / "aside")
    path.symlink_to(tmp_path / "aside")
    assert not case.is_proven()
    with pytest.raises(ImageError, match=f"cannot read {path}"):
        case.prove()


def test_a_touched_file_is_read_again_and_accepted(case: Case) -> None:
    case.prove()
    os.utime(case.tree / "dataplane" / "model" / "spec.py")
    assert not case.is_proven()
    case.prove()
    assert case.is_proven()
