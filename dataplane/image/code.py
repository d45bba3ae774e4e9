"""The code layer: all that a worker runs, as one tar whose bytes depend on that code alone.

A worker runs the code of its image and not what the host has installed, so everything it imports
beyond the standard library is in here: the worker's part of this package, the C library, uvloop
and cffi's runtime. Packing and unpacking stand here together, so that they cannot disagree.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from dataplane.image.files import TEMPORARY, locked, sync_folder, write_atomically
from dataplane.image.store import Store, canonical, disk_failure
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest

# What of our own package a worker needs: a change of the supervisor is no new version of an app.
_FOLDERS: Final = ("engine", "model", "system", "worker")
_CONTROL: Final = ("__init__.py", "channel.py", "messages.py", "move.py", "move_frames.py")
_BUILD_TIME: Final = frozenset({"_build.py"})
_NATIVE: Final = "_native"
_THIRD_PARTY: Final = ("uvloop", "_cffi_backend")
_TESTS: Final = frozenset({"_testbase.py"})

_SUFFIXES: Final = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_VERSION: Final = re.compile(r"^__version__ = \"([^\"]+)\"$", re.MULTILINE)
MAX_MEMBERS: Final = 2000
MEMBER_NAME: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*")


def code_files(package_root: Path) -> dict[str, Path]:
    """Every file of the code layer, by its name in the tree, sorted. Raises `ImageError`."""
    package = package_root / "dataplane"
    found = {"dataplane/__init__.py": package / "__init__.py"}
    for folder in _FOLDERS:
        found |= _modules(package / folder, f"dataplane/{folder}", skip=_BUILD_TIME)
    for name in _CONTROL:
        found[f"dataplane/control/{name}"] = package / "control" / name
    found[_native(package / "engine")] = _extension(package / "engine", _NATIVE)
    for name in _THIRD_PARTY:
        found |= _third_party(name)
    missing = sorted(name for name, path in found.items() if not path.is_file())
    if missing:
        raise ImageError(f"the installed package {package} lacks {', '.join(missing)}")
    return dict(sorted(found.items()))


def code_version(package_root: Path) -> str:
    """The version that the package at that place says it has. Raises `ImageError`."""
    path = package_root / "dataplane" / "__init__.py"
    try:
        found = _VERSION.search(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        raise ImageError(f"{path} does not say its version")
    return found[1]


def pack_code(files: dict[str, Path]) -> bytes:
    """The layer: no times, no owners, one mode, in order of names."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o444
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def put_code(store: Store, package_root: Path) -> Digest:
    """The code layer of the installed package, in the store. Raises `ImageError`.

    Packing and hashing 15 MB takes longer than all the rest of a build, so the last result is
    remembered with the identity of every file that went into it, and of the blob that came out.
    """
    memo = store.state_dir / "code-layer.json"
    try:
        files = code_files(package_root)
        inputs = _identity(files)
    except OSError as error:
        raise ImageError(f"cannot read {error.filename}: {error.strerror}") from error
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, ImageError):
        remembered = json.loads(memo.read_bytes())
        layer = Digest(remembered["layer"])
        if remembered["inputs"] == inputs and remembered["blob"] == _blob_identity(store, layer):
            return layer
    try:
        content = pack_code(files)
    except OSError as error:
        raise ImageError(f"cannot read {error.filename}: {error.strerror}") from error
    layer = store.put_blob(content)
    with store.writing():
        value = {"inputs": inputs, "layer": layer, "blob": _blob_identity(store, layer)}
        write_atomically(memo, canonical(value), 0o600)
    return layer


def unpack_code(store: Store, state_dir: Path, code_layer: Digest) -> Path:
    """The layer's tree, read-only, unpacked at most once. Raises `ImageError`.

    A tree appears under its digest by one rename when it is complete and on disk, so whatever is
    there is whole.
    """
    store.blob_path(code_layer)  # refuses what is no digest before it becomes a path
    folder = state_dir / "code"
    tree = folder / code_layer.removeprefix("sha256:")
    if tree.is_dir():
        return tree
    with layer_members(store, code_layer) as members:
        for _ in members:  # nothing is written of a layer that is not whole and plain
            pass
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with locked(state_dir / "code.lock"):
            for left in folder.glob(f"{TEMPORARY}*"):  # under the lock: its writer is dead
                _remove_tree(left)
            if not tree.is_dir():
                _write_tree(store, code_layer, tree)
    except OSError as error:
        raise ImageError(disk_failure(state_dir, error)) from error
    return tree


def _modules(folder: Path, name: str, skip: frozenset[str] = frozenset()) -> dict[str, Path]:
    """The Python files below a folder; no bytecode, no stubs, no sources of compiled ones."""
    found = {}
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - {"__pycache__", "tests"})
        below = Path(where).relative_to(folder).as_posix()
        for file in files:
            if file.endswith(".py") and file not in skip:
                found[f"{name}/{file}" if below == "." else f"{name}/{below}/{file}"] = Path(
                    where, file
                )
    return found


def _extension(folder: Path, name: str) -> Path:
    """The compiled module that this interpreter would load from the folder."""
    for suffix in _SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    hint = "run `make setup`, or install the package again with a C compiler at hand"
    raise ImageError(f"the C library {folder / name} was not built; {hint}")


def _native(folder: Path) -> str:
    return f"dataplane/engine/{_extension(folder, _NATIVE).name}"


def _third_party(name: str) -> dict[str, Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImageError(f"the package {name} is not installed; install dataplane again")
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return {origin.name: origin}
    found = _modules(origin.parent, name, skip=_TESTS)
    for path in origin.parent.iterdir():
        if path.name.endswith(_SUFFIXES[0]):
            found[f"{name}/{path.name}"] = path
    return found


def _identity(files: dict[str, Path]) -> str:
    """Changes whenever one of the files does: the kernel sets ctime, and nobody can set it back."""
    total = hashlib.sha256()
    for name, path in files.items():
        told = path.stat()
        fields = (name, told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns)
        total.update(repr(fields).encode())
    return total.hexdigest()


def _blob_identity(store: Store, layer: Digest) -> list[int]:
    told = store.blob_path(layer).stat()
    return [told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns]


@contextlib.contextmanager
def layer_members(store: Store, layer: Digest) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Every file of the layer, each to be read before the next; proven as `Store.reading` says.

    Raises `ImageError` for anything but plain files at plain names.
    """
    with store.reading(layer) as stream:
        try:
            # "r|": forward only, so that each byte is hashed as it is read.
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as tar:
                yield _members(tar, layer)
        except tarfile.TarError as error:
            raise ImageError(f"code layer {layer} is not a tar: {error}") from error


def _members(tar: tarfile.TarFile, layer: Digest) -> Iterator[tuple[str, IO[bytes]]]:
    seen = set()
    for member in tar:
        name = member.name
        if not _is_plain(member) or MEMBER_NAME.fullmatch(name) is None or name in seen:
            raise ImageError(f"code layer {layer} has an unsafe member {name!r}")
        seen.add(name)
        if len(seen) > MAX_MEMBERS:
            raise ImageError(f"code layer {layer} has more than {MAX_MEMBERS} members")
        file = tar.extractfile(member)
        assert file is not None  # a regular file has content
        yield name, file


def _is_plain(member: tarfile.TarInfo) -> bool:
    """A file as large as it says: tarfile calls a sparse one regular, whatever it unfolds to."""
    return member.isreg() and not member.issparse()


def _write_tree(store: Store, layer: Digest, tree: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=tree.parent))
    try:
        with layer_members(store, layer) as members:
            for name, content in members:
                _write_file(unfinished / name, content)
        for where, _, _ in os.walk(unfinished, topdown=False):
            sync_folder(Path(where))
            os.chmod(where, 0o555)
        os.rename(unfinished, tree)
    except BaseException:
        _remove_tree(unfinished)
        raise
    sync_folder(tree.parent)


def _write_file(path: Path, content: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    with open(fd, "wb") as file:
        shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(fd)


def _remove_tree(path: Path) -> None:
    """Removes an unfinished tree, whose folders may be read-only already."""
    for where, _, _ in os.walk(path):
        os.chmod(where, 0o755)
    shutil.rmtree(path, ignore_errors=True)
