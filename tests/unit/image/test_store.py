"""The store keeps what it was given, tells what is damaged, and survives a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from dataplane.image import store as module
from dataplane.image.abi import host_abi
from dataplane.image.files import write_atomically
from dataplane.image.store import Store, digest_of
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest
from tests.unit.model.test_spec import SPEC

HELLO = Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_new_store_is_an_oci_image_layout(store: Store) -> None:
    assert json.loads((store.folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.folder / "index.json").read_bytes())
    assert (index["schemaVersion"], index["manifests"]) == (2, [])
    assert store.images() == ()


def test_others_may_not_read_what_the_environment_was(store: Store) -> None:
    assert store.folder.stat().st_mode & 0o077 == 0


def test_opening_again_changes_nothing(store: Store) -> None:
    store.put_blob(b"hello")
    before = files(store.state_dir)
    Store.open(store.state_dir)
    assert files(store.state_dir) == before


def test_a_blob_is_named_by_its_content(store: Store) -> None:
    assert store.put_blob(b"hello") == HELLO
    assert store.get(HELLO) == b"hello"
    path = store.folder / "blobs" / "sha256" / HELLO.removeprefix("sha256:")
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o222 == 0


def test_a_damaged_blob_is_told_by_name_and_healed_by_putting_it_again(store: Store) -> None:
    store.put_blob(b"hello")
    path = store.blob_path(HELLO)
    path.chmod(0o644)
    path.write_bytes(b"hallo")
    with pytest.raises(ImageError, match=HELLO.removeprefix("sha256:")):
        store.get(HELLO)
    store.put_blob(b"hello")
    assert store.get(HELLO) == b"hello"


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../x", "md5:1", HELLO.upper()])
def test_what_is_no_digest_never_becomes_a_path(store: Store, digest: str) -> None:
    for refused in (store.get, store.image, store.blob_path):
        with pytest.raises(ImageError, match="is not a digest"):
            refused(Digest(digest))


def test_an_unknown_blob_is_told(store: Store) -> None:
    with pytest.raises(ImageError, match="is not in the store"):
        store.image(HELLO)


def test_an_image_comes_back_as_it_was_made(store: Store) -> None:
    layer = store.put_blob(b"code")
    digest = store.add(SPEC, host_abi(), layer, "1.2.3")
    (image,) = store.images()
    assert image == store.image(digest)
    assert (image.digest, image.app, image.spec) == (digest, "billing", SPEC)
    assert (image.code_layer, image.code_version, image.abi) == (layer, "1.2.3", host_abi())
    assert store.get(image.config_layer) == SPEC.to_json()


def test_the_manifest_says_what_oci_tools_need(store: Store) -> None:
    digest = store.add(SPEC, host_abi(), store.put_blob(b"code"), "1.2.3")
    (entry,) = json.loads((store.folder / "index.json").read_bytes())["manifests"]
    raw = store.get(digest)
    assert entry["digest"] == digest
    assert entry["size"] == len(raw)
    assert entry["annotations"]["dev.dataplane.app"] == "billing"
    manifest = json.loads(raw)
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.dataplane.image.v1+json"
    for descriptor in (manifest["config"], *manifest["layers"]):
        assert len(store.get(descriptor["digest"])) == descriptor["size"]


def test_the_same_image_is_kept_once(store: Store) -> None:
    layer = store.put_blob(b"code")
    first = store.add(SPEC, host_abi(), layer, "1.2.3")
    before = files(store.folder)
    assert store.add(SPEC, host_abi(), layer, "1.2.3") == first
    assert files(store.folder) == before


def test_an_image_without_its_code_is_told(store: Store) -> None:
    layer = store.put_blob(b"code")
    digest = store.add(SPEC, host_abi(), layer, "1.2.3")
    store.blob_path(layer).unlink()
    with pytest.raises(ImageError, match="lacks its code layer"):
        store.image(digest)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"artifactType": "application/vnd.dataplane.image.v1+json", "layers": []}',
        b'{"artifactType": "x", "layers": [{"mediaType": 1}]}',
    ],
)
def test_a_blob_that_is_no_image_is_told(store: Store, manifest: bytes) -> None:
    with pytest.raises(ImageError, match="is not an image of an app"):
        store.image(store.put_blob(manifest))


def test_a_damaged_index_is_told(store: Store) -> None:
    for content in (b"", b"{}", b'{"manifests": [{}]}', b'{"manifests": [{"digest": "../x"}]}'):
        (store.folder / "index.json").write_bytes(content)
        with pytest.raises(ImageError):
            store.images()


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "--state-dir"), (errno.EIO, "error")],
)
def test_a_failing_disk_is_told_and_leaves_the_store_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    layer = store.put_blob(b"code")
    digest = store.add(SPEC, host_abi(), layer, "1.2.3")
    before = files(store.folder)

    def fail(_path: Path, _content: bytes, _mode: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "write_atomically", fail)
    with pytest.raises(ImageError, match=hint):
        store.put_blob(b"more")
    with pytest.raises(ImageError, match=hint):
        store.add(SPEC, host_abi(), layer, "1.2.4")
    assert files(store.folder) == before
    assert store.image(digest).code_version == "1.2.3"


def test_what_a_killed_writer_left_is_swept_up(store: Store) -> None:
    left = store.folder / "blobs" / "sha256" / ".new-1234"
    left.write_bytes(b"half")
    store.put_blob(b"hello")
    assert not left.exists()


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match=r"cannot (write|read) .*file"):
        Store.open(tmp_path / "file" / "state")
    with pytest.raises(ImageError, match=r"cannot (write|read) "):
        Store.open(Path("/proc/none/state"))


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old", 0o600)

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new", 0o600)
    assert files(tmp_path) == {"file": b"old"}


def test_digests_are_lower_case_hex() -> None:
    assert digest_of(b"hello") == HELLO
