"""Takes from the store what nobody needs any more, and never what somebody might.

Kept are the last images of each app, whatever runs or is wanted, and whatever may be rolled back
to; of everything else first the names go, then the bytes, so that a crash in between leaves an
index that is true. Builds hold `builds_lock`, which keeps all of this out until they are done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from dataplane.image.files import TEMPORARY, locked, sync_folder
from dataplane.image.listing import (
    Entry,
    is_image_line,
    read_entries,
    read_entry,
    read_index,
    write_index,
)
from dataplane.image.store import Store, disk_failure
from dataplane.model.errors import ImageError
from dataplane.model.names import DIGEST, Digest

LEFT_SECONDS: Final = 3600.0  # nobody writes one small file for so long
KEPT_IMAGES: Final = 10  # of each app, the newest: a day of hot fixes is that many

# What is needed of an image right now, by digest, one phrase each: "billing runs it".
Uses: TypeAlias = Mapping[Digest, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What went, or would go."""

    images: tuple[Digest, ...] = ()
    blobs: tuple[Digest, ...] = ()
    trees: tuple[str, ...] = ()
    freed_bytes: int = 0

    def and_also(self, other: Removed) -> Removed:
        """Both."""
        return Removed(
            images=(*self.images, *other.images),
            blobs=(*self.blobs, *other.blobs),
            trees=(*self.trees, *other.trees),
            freed_bytes=self.freed_bytes + other.freed_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What the wanted state needs of images."""

    runs: Uses  # what an app serves with, or will once it is started
    may_return: Uses  # what served before: `rollback` takes it

    def all(self) -> Uses:
        """Both."""
        return merge_uses(self.runs, self.may_return)


@contextlib.contextmanager
def builds_lock(store: Store, *, shared: bool) -> Iterator[None]:
    """Held (shared) by whoever puts blobs into the store that no manifest names yet, and (alone) by
    whoever removes such blobs. Taken before the store's own lock, never after. Raises
    `ImageError`."""
    try:
        store.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(store.state_dir / "builds.lock", shared=shared):
            yield
    except OSError as error:
        raise ImageError(disk_failure(store.state_dir, error)) from error


def wanted_images(state_dir: Path) -> Wants:
    """What the wanted state names. Raises `ImageError` for one that cannot be understood: then
    nothing may be removed.

    Every digest in the file counts, whatever key it stands under, so that a newer supervisor's
    file never makes an older command remove what that supervisor needs.
    """
    path = state_dir / "apps.json"
    try:
        apps = json.loads(path.read_bytes())["apps"]
        entries = {str(name): dict(entry) for name, entry in apps.items()}
    except FileNotFoundError:
        return Wants(runs={}, may_return={})
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}; nothing is removed") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"{path} is damaged ({error!r}); nothing is removed") from error
    runs: list[tuple[Digest, str]] = []
    before: list[tuple[Digest, str]] = []
    for app, entry in sorted(entries.items()):
        stopped = entry.get("stopped") is True
        verb = "is stopped with it" if stopped else "serves with it"
        for key, value in entry.items():
            found, text = (
                (runs, f"{app} {verb}")
                if key == "image"
                else (before, f"{app} may be rolled back to it")
            )
            found += [(digest, text) for digest in _digests_in(value)]
    return Wants(runs=_gathered(runs), may_return=_gathered(before))


def merge_uses(*parts: Uses) -> Uses:
    """All of them."""
    return _gathered(
        (digest, text) for part in parts for digest, texts in part.items() for text in texts
    )


def prune(
    store: Store,
    uses: Callable[[], Uses] = dict,
    *,
    keep: int = KEPT_IMAGES,
    dry_run: bool = False,
) -> Removed:
    """Removes all but what is needed. `uses` tells what a supervisor needs beyond the wanted state;
    it is asked under the store's lock. Raises `ImageError`, and then nothing that is needed is
    gone."""
    with builds_lock(store, shared=False), store.writing():
        entries = read_entries(store)
        needed = {*wanted_images(store.state_dir).all(), *uses()}
        latest: dict[str | None, list[Digest]] = {}
        for entry in entries:
            latest.setdefault(entry.app, []).append(entry.digest)
        for digests in latest.values():
            needed.update(digests[-keep:] if keep else ())
        kept = tuple(entry for entry in entries if entry.digest in needed)
        gone = tuple(entry.digest for entry in entries if entry.digest not in needed)
        return _reduce(store, kept, gone, dry_run=dry_run)


def remove_image(
    store: Store,
    digest: Digest,
    uses: Callable[[], Uses] = dict,
    *,
    force: bool = False,
) -> Removed:
    """Removes one image and what only it needs. Raises `ImageError` with the reason for one that
    runs, or that may be rolled back to unless `force`."""
    with builds_lock(store, shared=False), store.writing():
        index = read_index(store)
        lines = [line for line in index["manifests"] if is_image_line(line)]
        if all(line["digest"] != digest for line in lines):
            raise ImageError(f"no image {digest} is in the store {store.folder}")
        wants = wanted_images(store.state_dir)
        if reasons := merge_uses(wants.runs, uses()).get(digest):
            raise ImageError(f"{digest} is needed: {', '.join(reasons)}")
        if not force and (reasons := wants.may_return.get(digest)):
            raise ImageError(
                f"{digest} is needed: {', '.join(reasons)}; --force removes it all the same"
            )
        # What is to go need not be whole: it is not even read.
        kept = tuple(read_entry(store, index, line) for line in lines if line["digest"] != digest)
        return _reduce(store, kept, (digest,))


def _reduce(
    store: Store, kept: tuple[Entry, ...], gone: tuple[Digest, ...], *, dry_run: bool = False
) -> Removed:
    """Leaves these images and what they need. Both locks are held."""
    needed = frozenset(blob for entry in kept for blob in entry.blobs)
    needed |= _remembered_layer(store)  # the next build starts from it
    unneeded = [
        path for path in sorted(_blob_files(store)) if Digest(f"sha256:{path.name}") not in needed
    ]
    trees = _unneeded_trees(store, (entry.code_layer for entry in kept))
    removed = Removed(
        images=gone,
        blobs=tuple(Digest(f"sha256:{path.name}") for path in unneeded),
        trees=tuple(tree.name for tree in trees),
        freed_bytes=sum(path.stat().st_size for path in unneeded) + sum(map(_tree_bytes, trees)),
    )
    if dry_run:
        return removed
    index = read_index(store)
    left = [line for entry in kept for line in entry.lines]
    if index["manifests"] != left:
        ordered = [line for line in index["manifests"] if line in left]
        write_index(store, index | {"manifests": ordered})
    _remove_unfinished(store)
    for path in unneeded:
        path.unlink(missing_ok=True)
    if unneeded:
        sync_folder(unneeded[0].parent)
    _remove_trees(store, trees)
    return removed


def _remove_unfinished(store: Store) -> None:
    """What writers left that were killed. Those of the store's own folders held our lock; beside
    them others write as well, and none of these for long."""
    for folder in (store.folder, store.folder / "blobs" / "sha256"):
        for left in folder.glob(f"{TEMPORARY}*"):
            left.unlink()
    now = time.clock_gettime(time.CLOCK_REALTIME)  # the clock of files
    for left in store.state_dir.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            if left.is_file() and now - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()


def _blob_files(store: Store) -> Iterator[Path]:
    for path in (store.folder / "blobs" / "sha256").iterdir():
        if DIGEST.fullmatch(f"sha256:{path.name}") is not None and path.is_file():
            yield path


def _remembered_layer(store: Store) -> frozenset[Digest]:
    try:
        layer = json.loads((store.state_dir / "code-layer.json").read_bytes())["layer"]
    except (OSError, ValueError, LookupError, TypeError):
        return frozenset()
    return frozenset({Digest(layer)}) if isinstance(layer, str) else frozenset()


def _unneeded_trees(store: Store, layers: Iterable[Digest]) -> list[Path]:
    needed = {layer.removeprefix("sha256:") for layer in layers}
    try:
        trees = sorted((store.state_dir / "code").iterdir())
    except FileNotFoundError:
        return []
    return [
        tree
        for tree in trees
        if DIGEST.fullmatch(f"sha256:{tree.name}") is not None and tree.name not in needed
    ]


def _remove_trees(store: Store, trees: list[Path]) -> None:
    """By one rename each, so that a tree of this name is whole whenever it is there."""
    folder = store.state_dir / "code"
    if not folder.is_dir():
        return
    with locked(store.state_dir / "code.lock"):
        for tree in trees:
            os.rename(tree, tree.with_name(f"{TEMPORARY}gone-{tree.name}"))
        for left in folder.glob(f"{TEMPORARY}*"):  # these, and what killed writers left
            for where, _, _ in os.walk(left):
                os.chmod(where, 0o700)
            shutil.rmtree(left, ignore_errors=True)
        sync_folder(folder)


def _tree_bytes(tree: Path) -> int:
    return sum(
        Path(where, name).lstat().st_size for where, _, names in os.walk(tree) for name in names
    )


def _digests_in(value: object) -> Iterator[Digest]:
    if isinstance(value, str) and DIGEST.fullmatch(value) is not None:
        yield Digest(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _digests_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _digests_in(item)


def _gathered(pairs: Iterable[tuple[Digest, str]]) -> dict[Digest, tuple[str, ...]]:
    uses: dict[Digest, tuple[str, ...]] = {}
    for digest, text in pairs:
        if text not in uses.get(digest, ()):
            uses[digest] = (*uses.get(digest, ()), text)
    return uses
