"""Proof, before every start, that an image and its unpacked code are what was signed.

A file that was once read and held against its digest is not read again while the kernel says that
it is the same file: device, inode, size, and the times of its last writing and last change. Nobody
but root can set the latter back. So what is proven here is that these bytes were signed, and that
nobody has written to the files since they were read. What root, or a disk that lies, does between
the proof and the start is not.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, TypeAlias, TypeVar

from dataplane.image.code import layer_members
from dataplane.image.files import (
    FileIdentity,
    digest_of_file,
    file_clock,
    file_identity,
    is_settled,
)
from dataplane.image.keys import Keys
from dataplane.image.signing import find_signature
from dataplane.image.store import Image, Store
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest

_CHUNK: Final = 1 << 16

_Identities: TypeAlias = tuple[tuple[Path, FileIdentity], ...]
_K = TypeVar("_K")


class Proofs:
    """Mutable: what was proven, as the identities of the files that it was read from.

    To be used by any thread: each entry is put there whole.
    """

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys = store, keys
        self._blobs: dict[Digest, _Identities] = {}
        self._images: dict[Digest, _Identities] = {}
        self._trees: dict[Path, _Identities] = {}
        self._hashing = threading.Lock()  # of several that want the same layer, one reads it

    def is_proven(self, image: Image, tree: Path) -> bool:
        """Whether the image and its tree were proven and are unchanged: a matter of stat alone."""
        return _stands(self._images.get(image.digest)) and _stands(self._trees.get(tree))

    def prove_image(self, image: Image) -> None:
        """All its blobs, and a signature by a key that is trusted now.

        Raises `ImageError` that says which blob or key is wrong.
        """
        if _stands(self._images.get(image.digest)):
            return
        begun = file_clock()
        folders = (self._keys.trusted_folder, self._keys.revoked_folder)
        paths = [folder for folder in folders if folder.exists()]
        blobs = [image.digest, image.abi_blob, image.config_layer]
        keys = _identities(paths)  # before they are read
        keyid, proof = find_signature(self._store, self._keys, image.digest)
        blobs += proof
        identities = _identities([self._store.blob_path(blob) for blob in blobs])
        for blob in blobs:
            self._store.get(blob)
        key = _identities([self._keys.trusted_folder / f"{keyid}.pem"])
        layer = self._prove_blob(image.code_layer)
        # Both folders have to be there, or one that comes would not be noticed.
        if len(paths) == len(folders):
            _remember(self._images, image.digest, (*keys, *key, *identities, *layer), begun)

    def prove_tree(self, tree: Path, layer: Digest) -> None:
        """The unpacked code: these files with this content, and no other.

        Raises `ImageError` that names the file. May read 30 MB.
        """
        if _stands(self._trees.get(tree)):
            return
        with self._hashing:
            if _stands(self._trees.get(tree)):
                return
            begun = file_clock()
            identities = _listing(tree)
            _hold_against(tree, self._store, layer)
            if _listing(tree) != identities:
                raise ImageError(f"the code in {tree} changes while it is being read")
            _remember(self._trees, tree, identities, begun)

    def _prove_blob(self, digest: Digest) -> _Identities:
        """A big blob, read piece by piece, and once for all images that share it."""
        known = self._blobs.get(digest)
        if known is not None and _stands(known):
            return known
        with self._hashing:
            known = self._blobs.get(digest)
            if known is not None and _stands(known):
                return known
            begun = file_clock()
            path = self._store.blob_path(digest)
            identities = _identities([path])
            if _digest_of_file(path) != digest:
                raise ImageError(f"{path} is damaged: its content is not {digest}; build it again")
            _remember(self._blobs, digest, identities, begun)
            return identities


def _stands(known: _Identities | None) -> bool:
    if known is None:
        return False
    try:
        return all(file_identity(path) == identity for path, identity in known)
    except OSError:
        return False


def _remember(known: dict[_K, _Identities], key: _K, identities: _Identities, begun: int) -> None:
    if all(is_settled(identity, begun) for _, identity in identities):
        known[key] = identities


def _identities(paths: list[Path]) -> _Identities:
    try:
        return tuple((path, file_identity(path)) for path in paths)
    except FileNotFoundError as error:
        raise ImageError(f"{error.filename} is missing; build the image again") from error
    except OSError as error:
        raise ImageError(f"cannot read {error.filename}: {error.strerror}") from error


def _digest_of_file(path: Path) -> Digest:
    try:
        return Digest(digest_of_file(path))
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error


# --- trees -------------------------------------------------------------------------------------


def _listing(tree: Path) -> _Identities:
    """Every folder and file below, the tree itself first."""
    try:
        return tuple((path, file_identity(path)) for path in (tree, *_below(tree)))
    except OSError as error:
        raise ImageError(f"cannot read {error.filename}: {error.strerror}") from error


def _below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)
            yield path
            if entry.is_dir(follow_symlinks=False):
                yield from _below(path)


def _hold_against(tree: Path, store: Store, layer: Digest) -> None:
    """Piece by piece: a layer has 15 MB, and who proves it is to stay small."""
    hint = f"remove the folder {tree}, and it is unpacked again"
    files, folders = _kinds(tree, hint)
    with layer_members(store, layer) as members:
        for name, content in members:
            path = tree / name
            if name not in files:
                raise ImageError(f"{path} is missing; {hint}")
            files.remove(name)
            folders -= {parent.as_posix() for parent in Path(name).parents}
            if not _is_content(path, content):
                raise ImageError(f"{path} is not what the image's code says; {hint}")
    for name in (*sorted(folders), *sorted(files)):
        raise ImageError(f"{tree / name} is not in the image's code; {hint}")


def _kinds(tree: Path, hint: str) -> tuple[set[str], set[str]]:
    """The names of all files and of all folders below the tree."""
    files, folders = set(), set()
    for path, identity in _listing(tree)[1:]:
        name = path.relative_to(tree).as_posix()
        mode = identity[0]
        if stat.S_ISDIR(mode):
            folders.add(name)
        elif stat.S_ISREG(mode):
            files.add(name)
        else:
            raise ImageError(f"{path} is not in the image's code; {hint}")
    return files, folders


def _is_content(path: Path, content: IO[bytes]) -> bool:
    """Whether the file holds that and no more. `content` is read to its end only if so."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(fd, "rb", buffering=0) as file:
        while True:
            part = content.read(_CHUNK)
            try:
                if _read(file, len(part) or 1) != part:
                    return False
            except OSError:
                return False
            if not part:
                return True


def _read(file: io.FileIO, size: int) -> bytes:
    """So many bytes, or all that are left."""
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
