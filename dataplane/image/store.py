"""The store: images of all apps as an OCI image layout in STATE_DIR/images.

Blobs never change and are named by their digest; what is read is always held against it. Writers
take one lock, and every file is there whole or not at all: whatever fails, images that were in the
store stay readable. Holds no times, so that equal images are equal files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.image.abi import Abi
from dataplane.image.files import (
    TEMPORARY,
    FileIdentity,
    file_clock,
    file_identity,
    is_settled,
    locked,
    open_plain,
    write_atomically,
)
from dataplane.model.errors import ImageError
from dataplane.model.names import APP_NAME, DIGEST, AppName, Digest
from dataplane.model.spec import AppSpec, SpecError

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
IMAGE_TYPE: Final = "application/vnd.dataplane.image.v1+json"
ABI_TYPE: Final = "application/vnd.dataplane.abi.v1+json"
SPEC_TYPE: Final = "application/vnd.dataplane.spec.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
CODE_TYPE: Final = "application/vnd.dataplane.code.v1.tar"
APP_ANNOTATION: Final = "dev.dataplane.app"
VERSION_ANNOTATION: Final = "org.opencontainers.image.version"
TAG_ANNOTATION: Final = "org.opencontainers.image.ref.name"

_EMPTY: Final = b"{}"
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_EMPTY_INDEX: Final = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
MAX_BLOB_BYTES: Final = 256 << 20  # a code layer has 15 MB
_CHUNK: Final = 1 << 18


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of the store; its manifest and config layer were checked against their digests."""

    digest: Digest
    app: AppName
    spec: AppSpec
    config_layer: Digest
    code_layer: Digest
    code_version: str
    abi: Abi
    abi_blob: Digest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """An artifact that speaks of an image, and is listed beside it: never under its digest."""

    digest: Digest
    artifact_type: str
    layers: tuple[Digest, ...]  # read and proven by whoever asks for them


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewReferrer:
    """One to be made: its layers by media type and content."""

    artifact_type: str
    layers: tuple[tuple[str, bytes], ...]
    annotations: tuple[tuple[str, str], ...] = ()


class Stream:
    """The bytes of a file, one after the other, and the digest of all of them. Mutable."""

    def __init__(self, file: io.FileIO, path: Path) -> None:
        self._file, self._path = file, path
        self._total = hashlib.sha256()
        self._left = MAX_BLOB_BYTES + 1

    def read(self, size: int, /) -> bytes:
        """At most so many; none at the end. Raises `ImageError`."""
        try:
            data = self._file.read(min(size, self._left)) or b""
        except OSError as error:
            raise ImageError(f"cannot read {self._path}: {error.strerror}") from error
        self._left -= len(data)
        self._total.update(data)
        return data

    def digest(self) -> Digest:
        """Of the whole file: what was not asked for is read now."""
        while self.read(_CHUNK):
            pass
        return Digest(f"sha256:{self._total.hexdigest()}")


class Store:
    """An OCI image layout on disk, which many processes may share.

    Mutable: the index's lists of referrers as last read, since whoever starts a hundred images
    looks for each one's; they are read again when the file is another.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.folder = state_dir / "images"
        self._blobs = self.folder / "blobs" / "sha256"
        self._index = self.folder / "index.json"
        self._lists: tuple[FileIdentity, dict[str, Digest]] | None = None  # by tag

    @staticmethod
    def open(state_dir: Path) -> Store:
        """The store of the state folder, made if it is missing. Raises `ImageError`."""
        store = Store(state_dir)
        try:
            store._index.stat()
        except FileNotFoundError:
            with store.writing():
                store._make_layout()
        except OSError as error:
            raise ImageError(f"cannot read {store._index}: {error.strerror}") from error
        return store

    def check_blobs(self, digest: Digest) -> None:
        """Recomputes every digest of an image: manifest, ABI, config layer and code layer.

        Raises `ImageError` that names the blob.
        """
        self.get(self.image(digest).code_layer)  # the others are read, and so proven, by `image`

    def put_blob(self, data: bytes) -> Digest:
        """Keeps the bytes, under their digest. Raises `ImageError`."""
        with self.writing():
            return self._put(data)

    def get(self, digest: Digest) -> bytes:
        """The blob's bytes, proven to be those. Raises `ImageError` that names the blob."""
        path = self.blob_path(digest)
        try:
            with open_plain(path) as file:
                data = file.read(MAX_BLOB_BYTES + 1)
        except FileNotFoundError:
            raise ImageError(f"{digest} is not in the store {self.folder}") from None
        except OSError as error:
            raise ImageError(f"cannot read {path}: {error.strerror}") from error
        if digest_of(data) != digest:
            raise ImageError(f"{path} is damaged: its content is not {digest}; build it again")
        return data

    @contextlib.contextmanager
    def reading(self, digest: Digest) -> Iterator[Stream]:
        """A blob too big to be held, to be read piece by piece.

        It is proven when this ends without an error: until then, believe nothing that was read.
        Raises `ImageError` that names the blob, also instead of an error that its content led to.
        """
        path = self.blob_path(digest)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise ImageError(f"{digest} is not in the store {self.folder}") from None
        except OSError as error:
            raise ImageError(f"cannot read {path}: {error.strerror}") from error
        with file:
            stream = Stream(file, path)
            try:
                yield stream
            finally:
                if stream.digest() != digest:
                    raise ImageError(
                        f"{path} is damaged: its content is not {digest}; build it again"
                    )

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob is, if it is there. Raises `ImageError` for what is no digest."""
        if DIGEST.fullmatch(digest) is None:
            raise ImageError(f"{digest!r} is not a digest: sha256: and 64 hex digits")
        return self._blobs / digest.removeprefix("sha256:")

    def image(self, digest: Digest) -> Image:
        """The image of that digest. Raises `ImageError` if it is unknown, damaged or not ours."""
        raw = self.get(digest)
        try:
            return self._read_manifest(digest, json.loads(raw))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ImageError(f"{digest} is not an image of an app: {error}") from error

    def images(self) -> tuple[Image, ...]:
        """All images, oldest first. Raises `ImageError` if one cannot be read."""
        return tuple(self.image(digest) for digest in self.digests())

    def digests(self) -> tuple[Digest, ...]:
        """The digests of all images, oldest first; nothing but the index is read."""
        entries = self._read_index()["manifests"]
        # Beside them stand the lists of their referrers.
        return tuple(
            Digest(entry["digest"]) for entry in entries if entry.get("artifactType") == IMAGE_TYPE
        )

    def referrers(self, subject: Digest) -> tuple[Digest, ...]:
        """What speaks of that image, oldest first. Raises `ImageError` that names the blob."""
        self.blob_path(subject)  # refuses what is no digest
        listed = self._lists_by_tag().get(referrers_tag(subject))
        entries = [] if listed is None else self._read_list(listed)
        return tuple(Digest(entry["digest"]) for entry in entries)

    def referrer(self, subject: Digest, digest: Digest) -> Referrer:
        """One of them. Raises `ImageError` where it is damaged, or speaks of another image."""
        return self._read_referrer(subject, digest)

    def add_referrers(self, subject: Digest, new: Sequence[NewReferrer]) -> tuple[Digest, ...]:
        """Lists artifacts beside an image that is here. Raises `ImageError`.

        The list is an OCI index under the tag that the distribution specification names for
        registries without a referrers API, so that every OCI tool finds and carries it.
        """
        with self.writing():
            size = self._size(subject)
            about = _descriptor(MANIFEST_TYPE, subject, size)
            index = self._read_index()
            tag = referrers_tag(subject)
            entries: list[dict[str, Any]] = []
            for other in index["manifests"]:
                if _tag_of(other) == tag:
                    with contextlib.suppress(ImageError):  # a damaged list is made anew
                        entries = self._read_list(Digest(other["digest"]))
            made = []
            for referrer in new:
                descriptor = self._put_referrer(about, referrer)
                made.append(Digest(descriptor["digest"]))
                if all(entry["digest"] != descriptor["digest"] for entry in entries):
                    entries.append(descriptor)
            listed = canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})
            entry = _descriptor(INDEX_TYPE, self._put(listed), len(listed))
            entry["annotations"] = {TAG_ANNOTATION: tag}
            others = [other for other in index["manifests"] if _tag_of(other) != tag]
            index["manifests"] = [*others, entry]
            write_atomically(self._index, canonical(index), 0o644)
            return tuple(made)

    def _put_referrer(self, about: dict[str, Any], new: NewReferrer) -> dict[str, Any]:
        manifest = canonical(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": new.artifact_type,
                "config": _descriptor(EMPTY_TYPE, self._put(_EMPTY), len(_EMPTY)),
                "layers": [
                    _descriptor(kind, self._put(content), len(content))
                    for kind, content in new.layers
                ],
                "subject": about,
                "annotations": dict(new.annotations),
            }
        )
        descriptor = _descriptor(MANIFEST_TYPE, self._put(manifest), len(manifest))
        return descriptor | {"artifactType": new.artifact_type}

    def _lists_by_tag(self) -> dict[str, Digest]:
        known, lists = self._lists or (None, {})
        try:
            identity = file_identity(self._index)
        except OSError as error:
            raise ImageError(f"cannot read {self._index}: {error.strerror}") from error
        if known != identity:
            begun = file_clock()
            manifests = self._read_index()["manifests"]
            tagged = [(_tag_of(entry), Digest(entry["digest"])) for entry in reversed(manifests)]
            lists = {tag: digest for tag, digest in tagged if tag is not None}
            if is_settled(identity, begun):
                self._lists = (identity, lists)
        return lists

    def _read_list(self, listed: Digest) -> list[dict[str, Any]]:
        """What is on a list of referrers."""
        content = self.get(listed)
        try:
            entries = json.loads(content)["manifests"]
            for entry in entries:
                self.blob_path(entry["digest"])
            return list(entries)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ImageError(f"{listed} is not a list of referrers: {error}") from error

    def _read_referrer(self, subject: Digest, digest: Digest) -> Referrer:
        raw = self.get(digest)
        try:
            manifest = json.loads(raw)
            if manifest["subject"]["digest"] != subject:
                raise SpecError(f"it speaks of {manifest['subject']['digest']}, not of {subject}")
            layers = tuple(Digest(layer["digest"]) for layer in manifest["layers"])
            for blob in (*layers, Digest(manifest["config"]["digest"])):
                self.blob_path(blob)
            kind = str(manifest["artifactType"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ImageError(f"{digest} is not a referrer: {error}") from error
        return Referrer(digest=digest, artifact_type=kind, layers=layers)

    def manifest(self, spec: AppSpec, abi: Abi, code_layer: Digest, code_version: str) -> bytes:
        """What names the image of a spec and a code layer that is here, be it here itself or not.
        Raises OSError for a code layer that is not."""
        config, host = spec.to_json(), abi.to_json()
        return canonical(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": IMAGE_TYPE,
                "config": _descriptor(ABI_TYPE, digest_of(host), len(host)),
                "layers": [
                    _descriptor(SPEC_TYPE, digest_of(config), len(config)),
                    _descriptor(CODE_TYPE, code_layer, self._size(code_layer)),
                ],
                "annotations": {APP_ANNOTATION: spec.app, VERSION_ANNOTATION: code_version},
            }
        )

    def add(self, spec: AppSpec, abi: Abi, code_layer: Digest, code_version: str) -> Digest:
        """Makes the image of a spec and a code layer that is here already. Raises `ImageError`."""
        with self.writing():
            manifest = self.manifest(spec, abi, code_layer, code_version)
            for content in (spec.to_json(), abi.to_json()):
                self._put(content)
            digest = self._put(manifest)
            index = self._read_index()
            if all(entry["digest"] != digest for entry in index["manifests"]):
                entry = _descriptor(MANIFEST_TYPE, digest, len(manifest))
                annotations = json.loads(manifest)["annotations"]
                entry |= {"artifactType": IMAGE_TYPE, "annotations": annotations}
                index["manifests"].append(entry)
                write_atomically(self._index, canonical(index), 0o644)
            return digest

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the store's lock; a failure of the disk becomes an `ImageError` that says so."""
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.state_dir / "images.lock"):
                yield
        except OSError as error:
            raise ImageError(disk_failure(self.state_dir, error)) from error

    def _make_layout(self) -> None:
        # Whoever may read images reads what the environment was when they were built.
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._blobs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "oci-layout", _LAYOUT, 0o644)
        if not self._index.exists():  # the index comes last: it says that the layout is there
            write_atomically(self._index, canonical(_EMPTY_INDEX), 0o644)

    def _put(self, data: bytes) -> Digest:
        for left in self._blobs.glob(f"{TEMPORARY}*"):  # under the lock: its writer is dead
            left.unlink()
        digest = digest_of(data)
        path = self.blob_path(digest)
        try:
            with open_plain(path) as file:
                sound = file.read(len(data) + 1) == data
        except OSError:  # missing, or a link that was put there: the file itself takes its place
            sound = False
        if not sound:
            write_atomically(path, data, 0o444)
        return digest

    def _size(self, digest: Digest) -> int:
        return self.blob_path(digest).stat().st_size

    def _read_index(self) -> dict[str, Any]:
        try:
            index = json.loads(self._index.read_bytes())
            for entry in index["manifests"]:
                self.blob_path(entry["digest"])
        except OSError as error:
            raise ImageError(f"cannot read {self._index}: {error.strerror}") from error
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ImageError(f"{self._index} is damaged: {error}") from error
        return dict(index)

    def _read_manifest(self, digest: Digest, manifest: dict[str, Any]) -> Image:
        kinds = [layer["mediaType"] for layer in manifest["layers"]]
        if manifest["artifactType"] != IMAGE_TYPE or kinds != [SPEC_TYPE, CODE_TYPE]:
            raise SpecError("of another kind")
        config_layer, code_layer = (Digest(layer["digest"]) for layer in manifest["layers"])
        # The code layer is proven when it is unpacked; here it need only be there.
        code = self.blob_path(code_layer)
        if not code.exists():
            raise ImageError(f"{digest} lacks its code layer {code_layer}; build it again")
        spec = AppSpec.from_json(self.get(config_layer))
        abi_blob = Digest(manifest["config"]["digest"])
        if APP_NAME.fullmatch(spec.app) is None:
            raise SpecError(f"{spec.app!r} is not an app's name")
        return Image(
            digest=digest,
            app=AppName(spec.app),
            spec=spec,
            config_layer=config_layer,
            code_layer=code_layer,
            code_version=str(manifest["annotations"][VERSION_ANNOTATION]),
            abi=Abi.from_json(self.get(abi_blob)),
            abi_blob=abi_blob,
        )


def digest_of(data: bytes) -> Digest:
    """The name of these bytes in the store."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def referrers_tag(subject: Digest) -> str:
    """The tag of the list of what speaks of an image, as the OCI specification has it."""
    return subject.replace(":", "-")


def canonical(value: object) -> bytes:
    """One way to write a JSON value: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def disk_failure(folder: Path, error: OSError) -> str:
    """What went wrong with a state folder, and what helps."""
    place = error.filename if isinstance(error.filename, str) else folder
    text = f"cannot write {place}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{text}; images that were built before are untouched. Free some space in {folder}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"{text}; name a folder that you may write to by --state-dir"
    return text


def _tag_of(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    tag = annotations.get(TAG_ANNOTATION) if isinstance(annotations, dict) else None
    return tag if isinstance(tag, str) else None


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}
