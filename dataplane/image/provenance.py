"""Where an image comes from: the files it was built from, their git revision, builder, time, user.

Read from the config folder and, without running git, from the repository around it. Nothing here
fails a build: what cannot be read is not told.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import dataplane
from dataplane.image.keys import Keys
from dataplane.image.signing import Provenance, SourceFile, provenance_of, verify_image
from dataplane.image.store import Store
from dataplane.model.errors import ImageError
from dataplane.model.names import AppName, Digest
from dataplane.model.spec import AppSpec
from dataplane.system.clock import timestamp

_REVISION: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_BYTES: Final = 4 << 20


def provenance_from(config_dir: Path, files: Sequence[Path], now: datetime) -> Provenance:
    """What is told of an image that is built now from these files of the config folder."""
    return Provenance(
        files=tuple(source for file in files if (source := _source(config_dir, file)) is not None),
        revision=git_revision(config_dir),
        builder=dataplane.__version__,
        time=timestamp(now),
        user=_user(),
    )


def rebuilt_from(
    store: Store, keys: Keys, app: AppName, digest: Digest, now: datetime
) -> tuple[AppSpec, Provenance]:
    """The spec of a stored image and what is told of its successor: the same sources, built anew.

    Raises `ImageError` where it is not what a trusted key signed, or another app's.
    """
    verify_image(store, keys, digest)
    image = store.image(digest)
    if image.app != app:
        raise ImageError(f"{digest} is an image of the app {image.app}, not of {app}")
    told = provenance_of(store, keys, digest)
    return image.spec, Provenance(
        files=told.provenance.files if told is not None else (),
        revision=told.provenance.revision if told is not None else None,
        builder=dataplane.__version__,
        time=timestamp(now),
        user=_user(),
    )


def git_revision(folder: Path) -> str | None:
    """The commit that is checked out where the folder lies; files may differ from it."""
    try:
        for place in (folder.resolve(), *folder.resolve().parents):
            if (place / ".git").exists():
                return _head(_git_folder(place))
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _git_folder(place: Path) -> Path:
    git = place / ".git"
    if git.is_dir():
        return git
    return place / git.read_text().removeprefix("gitdir:").strip()  # a worktree, or a submodule


def _head(git: Path) -> str | None:
    head = _text(git / "HEAD") or ""
    if not head.startswith("ref: "):
        return head if _REVISION.fullmatch(head) else None
    name = head.removeprefix("ref: ")
    if ".." in name or name.startswith("/"):
        return None
    common = _text(git / "commondir")
    for place in (git, *((git / common,) if common else ())):
        found = _text(place / name) or _packed(place, name)
        if found is not None and _REVISION.fullmatch(found):
            return found
    return None


def _packed(git: Path, name: str) -> str | None:
    for line in (_text(git / "packed-refs") or "").splitlines():
        revision, _, ref = line.partition(" ")
        if ref == name:
            return revision
    return None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode().strip()
    except FileNotFoundError:
        return None


def _source(config_dir: Path, file: Path) -> SourceFile | None:
    try:
        with file.open("rb") as source:
            content = source.read(_MAX_BYTES)
    except OSError:
        return None
    name = file.relative_to(config_dir) if file.is_relative_to(config_dir) else file
    return SourceFile(
        path=str(name),
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
        lines=len(content.splitlines()),
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
