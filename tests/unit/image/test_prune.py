"""What may be needed stays, what nobody needs goes, and the reason is told."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest

from dataplane.image.build import build_signed
from dataplane.image.code import unpack_code
from dataplane.image.keys import Keys
from dataplane.image.listing import (
    NoSuchImage,
    find_image,
    is_image_line,
    read_entries,
    read_index,
    write_index,
)
from dataplane.image.prune import (
    KEPT_IMAGES,
    builds_lock,
    prune,
    remove_image,
    wanted_images,
)
from dataplane.image.signing import Provenance
from dataplane.image.store import Store
from dataplane.image.verify import verify_store
from dataplane.model.errors import ImageError
from dataplane.model.names import AppName, Digest
from tests.unit.model.test_spec import SPEC

PROVENANCE = Provenance(
    files=(), revision=None, builder="1.2.3", time="2026-01-01T00:00:00Z", user="ann"
)


class Host:
    """A store with a key, and how to fill it."""

    def __init__(self, store: Store, package_root: Path) -> None:
        self.store, self.keys, self.package_root = store, Keys(store.state_dir), package_root
        self.keys.ensure()

    def build(self, number: int, app: str = "billing") -> Digest:
        spec = dataclasses.replace(SPEC, app=app, drain_deadline_ms=1000 + number)
        return build_signed(self.store, self.keys, spec, self.package_root, PROVENANCE)

    def want(self, app: str, image: Digest, *before: Digest, **more: object) -> None:
        entry = {"image": image, "before": before, "generation": 1, "stopped": False, **more}
        text = json.dumps({"version": 1, "apps": {app: entry}})
        (self.store.state_dir / "apps.json").write_text(text)

    def blobs(self) -> set[str]:
        return {path.name for path in (self.store.folder / "blobs" / "sha256").iterdir()}


@pytest.fixture
def host(store: Store, package_root: Path) -> Host:
    return Host(store, package_root)


def test_the_last_images_of_each_app_are_kept(host: Host) -> None:
    billing = [host.build(number) for number in range(KEPT_IMAGES + 2)]
    shop = host.build(0, "shop")
    removed = prune(host.store)
    assert removed.images == tuple(billing[:2])
    assert host.store.digests() == (*billing[2:], shop)
    account = verify_store(host.store, host.keys)
    assert account.is_sound
    assert account.unneeded == 0
    assert all(image.key for image in account.images)


def test_what_runs_is_wanted_or_may_be_rolled_back_to_is_kept(host: Host) -> None:
    runs, wanted, before, secret, gone = (host.build(number) for number in range(5))
    host.want("billing", wanted, before, known_to_newer_versions_only={"x": [secret]})
    removed = prune(host.store, lambda: {runs: ("billing runs it",)}, keep=0)
    assert removed.images == (gone,)
    assert set(host.store.digests()) == {runs, wanted, before, secret}


def test_blobs_trees_and_referrers_go_with_their_last_image(host: Host) -> None:
    first = host.build(1)
    code = host.store.image(first).code_layer
    unpack_code(host.store, host.store.state_dir, code)
    worker = host.package_root / "dataplane" / "worker" / "zygote.py"
    worker.write_text("a later version\n")
    second = host.build(2)
    tree = unpack_code(host.store, host.store.state_dir, host.store.image(second).code_layer)
    removed = prune(host.store, keep=1)
    assert removed.images == (first,)
    assert removed.trees == (code.removeprefix("sha256:"),)
    (entry,) = read_entries(host.store)
    assert host.blobs() == {blob.removeprefix("sha256:") for blob in entry.blobs}
    assert [path.name for path in tree.parent.iterdir()] == [tree.name]
    assert removed.freed_bytes > 0


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(host: Host) -> None:
    digest = host.build(1)
    state = host.store.state_dir
    tree = unpack_code(host.store, state, host.store.image(digest).code_layer)
    (tree.parent / ".new-gone-x" / "below").mkdir(parents=True)
    (tree.parent / ".new-gone-x").chmod(0o555)
    old = [host.store.folder / ".new-1", host.store.folder / "blobs" / "sha256" / ".new-2"]
    for path in (*old, state / ".new-3", state / ".new-4"):
        path.write_text("half")
    os.utime(state / ".new-3", (1, 1))
    prune(host.store)
    assert [path for path in state.rglob(".new-*") if "keys" not in path.parts] == [
        state / ".new-4"  # the state folder has other writers, who hold no lock of the store
    ]
    assert tree.is_dir()


def test_a_dry_run_tells_the_same_and_removes_nothing(host: Host) -> None:
    host.build(1)
    host.build(2)
    before = host.blobs()
    told = prune(host.store, keep=1, dry_run=True)
    assert host.blobs() == before
    assert prune(host.store, keep=1) == told


def test_the_layer_that_the_next_build_starts_from_is_kept(host: Host) -> None:
    prune(host.store, keep=0)
    digest = host.build(1)
    prune(host.store, keep=0)
    assert host.store.digests() == ()
    assert host.build(1) == digest
    assert verify_store(host.store, host.keys).is_sound


def test_nothing_is_removed_while_the_wanted_state_cannot_be_read(host: Host) -> None:
    host.build(1)
    before = host.blobs()
    for text in ("", "{", '{"apps": []}', '{"apps": {"billing": 1}}', "[" * 100_000):
        (host.store.state_dir / "apps.json").write_text(text)
        with pytest.raises(ImageError, match="nothing is removed"):
            prune(host.store, keep=0)
        with pytest.raises(ImageError, match="nothing is removed"):
            remove_image(host.store, host.store.digests()[0])
    assert host.blobs() == before


def test_nothing_is_removed_while_an_image_cannot_be_read(host: Host) -> None:
    """Its blobs are not known, so any might be its."""
    damaged = host.build(1)
    kept = host.build(2)
    path = host.store.blob_path(damaged)
    path.chmod(0o644)
    path.write_bytes(b"{}")
    with pytest.raises(ImageError, match=damaged.removeprefix("sha256:")):
        prune(host.store, keep=1)
    assert len(host.blobs()) > 2
    remove_image(host.store, damaged)  # and this is the way out
    assert host.store.digests() == (kept,)
    assert verify_store(host.store, host.keys).is_sound


def test_what_runs_is_not_removed_and_the_reason_is_told(host: Host) -> None:
    first, second, third = (host.build(number) for number in range(3))
    host.want("billing", first, second)
    with pytest.raises(ImageError, match="billing serves with it"):
        remove_image(host.store, first, force=True)
    with pytest.raises(ImageError, match="may be rolled back to it; --force"):
        remove_image(host.store, second)
    with pytest.raises(ImageError, match="billing runs it"):
        remove_image(host.store, third, lambda: {third: ("billing runs it",)}, force=True)
    host.want("billing", first, second, stopped=True)
    with pytest.raises(ImageError, match="billing is stopped with it"):
        remove_image(host.store, first)
    assert remove_image(host.store, second, force=True).images == (second,)
    assert remove_image(host.store, third).images == (third,)
    assert host.store.digests() == (first,)
    with pytest.raises(ImageError, match="no image"):
        remove_image(host.store, third)


def test_no_wanted_state_wants_nothing(tmp_path: Path) -> None:
    assert wanted_images(tmp_path).all() == {}


def test_an_image_is_found_by_the_beginning_of_its_digest(host: Host) -> None:
    digest = host.build(1)
    hexadecimal = digest.removeprefix("sha256:")
    for text in (digest, hexadecimal, hexadecimal[:4], f"sha256:{hexadecimal[:12]}"):
        assert find_image(host.store, text) == digest
    for text in ("", "sha256:", hexadecimal[:3], "../../x", "zzzzzzzz", digest + "0"):
        with pytest.raises(ImageError, match="is not a digest"):
            find_image(host.store, text)
    with pytest.raises(ImageError, match="no image"):
        find_image(host.store, "0" * 64)


def test_an_app_has_its_images_alone_and_several_that_begin_so_are_named(host: Host) -> None:
    digest = host.build(1)
    app = host.store.image(digest).app
    assert find_image(host.store, digest[:12], app) == digest
    with pytest.raises(NoSuchImage, match=f"no image of shop that begins with {digest[:12]} is in"):
        find_image(host.store, digest[:12], AppName("shop"))
    index = read_index(host.store)
    (line,) = [line for line in index["manifests"] if is_image_line(line)]
    twin = digest[:-4] + ("0000" if digest[-4:] != "0000" else "1111")
    write_index(host.store, index | {"manifests": [line, line | {"digest": twin}]})
    with pytest.raises(ImageError, match="begins 2 digests, give more digits: ") as refused:
        find_image(host.store, digest[:12])
    assert digest in str(refused.value)
    assert twin in str(refused.value)


def test_prune_waits_for_a_build_that_has_put_only_its_layer(host: Host) -> None:
    """Between its layer and its manifest a build looks like garbage."""
    host.build(1)
    begun = threading.Event()
    ended = threading.Event()
    found: list[int] = []

    def build() -> None:
        with builds_lock(host.store, shared=True), builds_lock(host.store, shared=True):
            layer = host.store.put_blob(b"of nobody yet")
            begun.set()
            assert not ended.wait(0.2)
            assert host.store.get(layer) == b"of nobody yet"

    def look() -> None:
        assert begun.wait(5)
        found.append(len(prune(host.store).blobs))
        ended.set()

    threads = [threading.Thread(target=target) for target in (build, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [1]
