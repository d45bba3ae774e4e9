"""Holds a whole store against its digests and signatures. Changes nothing, and reads every byte.

What a crash may leave is no fault: blobs that nothing names, an image that was not signed yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from dataplane.image.files import TEMPORARY, digest_of_file
from dataplane.image.keys import Keys
from dataplane.image.listing import is_image_line, read_entry, read_index
from dataplane.image.proofs import Proofs
from dataplane.image.prune import builds_lock
from dataplane.image.signing import check_signed, proven_referrers, signatures_of
from dataplane.image.store import Store
from dataplane.model.errors import ImageError
from dataplane.model.names import DIGEST, Digest

UNSIGNED: Final = "not signed: its build did not end, so it starts nowhere; build it again"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One image. Without a key and without a fault it is whole, and unsigned."""

    image: Digest
    app: str | None
    key: str | None  # that is trusted and signed it
    fault: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All of the store."""

    images: tuple[Verified, ...]
    faults: tuple[str, ...]  # of what is no image
    blobs: int
    unneeded: int  # blobs that no image needs: `prune` removes them

    @property
    def is_sound(self) -> bool:
        return not self.faults and all(image.fault is None for image in self.images)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "sound": self.is_sound}


def verify_store(store: Store, keys: Keys) -> Account:
    """Everything, each blob read once. Raises `ImageError` where the index cannot be read."""
    with contextlib.ExitStack() as held:
        # So that nothing is removed meanwhile. Where no lock can be had, nobody can write either.
        with contextlib.suppress(ImageError):
            held.enter_context(builds_lock(store, shared=True))
        return _verify(store, keys)


def _verify(store: Store, keys: Keys) -> Account:
    faults = []
    index = read_index(store)
    if not _is_layout(store.folder / "oci-layout"):
        faults.append(f"{store.folder / 'oci-layout'} is not what it should be")
    blobs = {
        Digest(f"sha256:{path.name}"): path
        for path in sorted((store.folder / "blobs" / "sha256").iterdir())
        if not path.name.startswith(TEMPORARY)  # its writer is dead, or not done
    }
    for digest, path in blobs.items():
        if DIGEST.fullmatch(digest) is None:
            faults.append(f"{path} is no blob")
        elif not _is_sound(path, digest):
            faults.append(f"{path} is damaged: its content is not {digest}")
    needed: set[Digest] = set()
    images = []
    for line in index["manifests"]:
        if is_image_line(line):
            images.append(_verified(store, keys, index, line, needed))
    faults += _trees(store, keys, needed)
    return Account(
        images=tuple(images),
        faults=tuple(faults),
        blobs=len(blobs),
        unneeded=len(blobs.keys() - needed),
    )


def _verified(
    store: Store, keys: Keys, index: dict[str, Any], line: dict[str, Any], needed: set[Digest]
) -> Verified:
    digest = Digest(line["digest"])
    app = key = fault = None
    try:
        entry = read_entry(store, index, line)
        app = entry.app
        needed |= entry.blobs
        for blob in entry.blobs:
            if not store.blob_path(blob).exists():
                raise ImageError(f"{blob} is not in the store {store.folder}")
        store.image(digest)
        if signatures_of(store, digest):
            key = check_signed(store, keys, digest)
            proven_referrers(store, keys, digest)
    except ImageError as error:
        fault = str(error)
    return Verified(image=digest, app=app, key=key, fault=fault)


def _trees(store: Store, keys: Keys, needed: set[Digest]) -> list[str]:
    """What is wrong with unpacked code."""
    faults = []
    proofs = Proofs(store, keys)
    try:
        trees = sorted((store.state_dir / "code").iterdir())
    except FileNotFoundError:
        return []
    for tree in trees:
        layer = Digest(f"sha256:{tree.name}")
        if layer in needed:
            try:
                proofs.prove_tree(tree, layer)
            except ImageError as error:
                faults.append(str(error))
    return faults


def _is_layout(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == {"imageLayoutVersion": "1.0.0"})
    except (OSError, ValueError, RecursionError):
        return False


def _is_sound(path: Path, blob: Digest) -> bool:
    try:
        return digest_of_file(path) == blob
    except OSError:
        return False
