"""What lies in a store, as a graph: images, what refers to them, and the blobs that each needs.

Reads the index and manifests alone, never a layer, so that a list of a thousand images costs
little. Decides nothing about trust.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from dataplane.image.files import write_atomically
from dataplane.image.store import (
    APP_ANNOTATION,
    IMAGE_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    TAG_ANNOTATION,
    VERSION_ANNOTATION,
    Store,
    canonical,
    digest_of,
    referrers_tag,
)
from dataplane.model.errors import ImageError
from dataplane.model.names import DIGEST, AppName, Digest

# A prefix of a digest that a person typed: fewer digits are a slip rather than a name.
MIN_PREFIX: Final = 4
_DIGITS: Final = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest with the blobs that it names, by their descriptors."""

    digest: Digest
    size: int
    kind: str  # its artifact type
    annotations: dict[str, str]
    subject: Digest | None  # what it refers to; None for an image
    config: dict[str, Any]
    layers: tuple[dict[str, Any], ...]

    @property
    def blobs(self) -> frozenset[Digest]:
        """The blobs that it needs, itself included."""
        below = (Digest(blob["digest"]) for blob in (self.config, *self.layers))
        return frozenset((self.digest, *below))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An image, and the list of what refers to it (None: nothing does)."""

    manifest: Manifest
    descriptor: dict[str, Any]  # its line of the index
    listed: dict[str, Any] | None  # the list's line of the index
    referrers: tuple[Manifest, ...]

    @property
    def digest(self) -> Digest:
        return self.manifest.digest

    @property
    def app(self) -> str | None:
        return self.manifest.annotations.get(APP_ANNOTATION)

    @property
    def code_layer(self) -> Digest:
        return Digest(self.manifest.layers[1]["digest"])

    @property
    def blobs(self) -> frozenset[Digest]:
        """All that it needs, and all that refers to it."""
        found = self.manifest.blobs.union(*(referrer.blobs for referrer in self.referrers))
        return found if self.listed is None else found | {Digest(self.listed["digest"])}

    @property
    def lines(self) -> tuple[dict[str, Any], ...]:
        """Its lines of the index."""
        return (self.descriptor,) if self.listed is None else (self.descriptor, self.listed)


class NoSuchImage(ImageError):
    """The store has no such image."""


def read_index(store: Store) -> dict[str, Any]:
    """The index as it stands. Raises `ImageError` for one that is damaged."""
    path = store.folder / "index.json"
    try:
        index = json.loads(path.read_bytes())
        for descriptor in index["manifests"]:
            store.blob_path(Digest(descriptor["digest"]))
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ImageError(f"{path} is damaged: {error}") from error
    return dict(index)


def image_line(manifest: Manifest) -> dict[str, Any]:
    """The index's line of an image, from what its digest covers and nothing else.

    A tag is never the image's to choose: by those, lists of referrers are found.
    """
    annotations = {key: text for key, text in manifest.annotations.items() if key != TAG_ANNOTATION}
    return {
        "mediaType": MANIFEST_TYPE,
        "digest": manifest.digest,
        "size": manifest.size,
        "artifactType": manifest.kind,
        "annotations": annotations,
    }


def referrers_list(referrers: Iterable[Manifest]) -> bytes:
    """The list of what refers to an image, as OCI tools find it under the image's tag."""
    lines = [
        {
            "mediaType": MANIFEST_TYPE,
            "digest": referrer.digest,
            "size": referrer.size,
            "artifactType": referrer.kind,
        }
        for referrer in referrers
    ]
    return canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": lines})


def list_line(subject: Digest, content: bytes) -> dict[str, Any]:
    """The index's line of that list."""
    return {
        "mediaType": INDEX_TYPE,
        "digest": digest_of(content),
        "size": len(content),
        "annotations": {TAG_ANNOTATION: referrers_tag(subject)},
    }


def write_index(store: Store, index: dict[str, Any]) -> None:
    """Replaces the index; the store's lock must be held. Raises OSError."""
    write_atomically(store.folder / "index.json", canonical(index), 0o644)


def is_image_line(line: dict[str, Any]) -> bool:
    """Whether a line of the index names an image, and not a list of referrers."""
    return line.get("mediaType") == MANIFEST_TYPE and line.get("artifactType") == IMAGE_TYPE


def find_line(index: dict[str, Any], digest: Digest) -> dict[str, Any]:
    """The index's line of an image. Raises `ImageError` where there is none."""
    for line in index["manifests"]:
        if is_image_line(line) and line["digest"] == digest:
            return dict(line)
    raise NoSuchImage(f"no image {digest} is in the store")


def read_entry(store: Store, index: dict[str, Any], descriptor: dict[str, Any]) -> Entry:
    """The image that a line of the index names. Raises `ImageError`."""
    digest = Digest(descriptor["digest"])
    manifest = read_manifest(store, digest)
    if manifest.kind != IMAGE_TYPE or manifest.subject is not None or len(manifest.layers) != 2:
        raise ImageError(f"{digest} is not an image of an app")
    tag = referrers_tag(digest)
    listed = next((line for line in index["manifests"] if tag_of(line) == tag), None)
    referrers = [] if listed is None else list_of_referrers(store, Digest(listed["digest"]))
    manifests = tuple(read_manifest(store, referrer) for referrer in referrers)
    for referrer in manifests:
        if referrer.subject != digest:
            raise ImageError(f"{referrer.digest} is listed beside {digest}, and is about another")
    return Entry(manifest=manifest, descriptor=descriptor, listed=listed, referrers=manifests)


def read_entries(store: Store) -> tuple[Entry, ...]:
    """All images, oldest first. Raises `ImageError` that names the culprit."""
    index = read_index(store)
    return tuple(
        read_entry(store, index, line) for line in index["manifests"] if is_image_line(line)
    )


def read_manifest(store: Store, digest: Digest) -> Manifest:
    """The manifest of that digest. Raises `ImageError`."""
    raw = store.get(digest)
    try:
        return _manifest(digest, len(raw), json.loads(raw))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"{digest} is not a manifest: {error!r}") from error


def list_of_referrers(store: Store, digest: Digest) -> tuple[Digest, ...]:
    """The manifests that a list of referrers names. Raises `ImageError`."""
    raw = store.get(digest)
    try:
        found = tuple(Digest(line["digest"]) for line in json.loads(raw)["manifests"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ImageError(f"{digest} is not a list of referrers: {error!r}") from error
    for referrer in found:
        store.blob_path(referrer)
    return found


def is_beginning(text: str) -> bool:
    """Whether a word can mean an image by its digest, or by enough of the first digits of it."""
    digits = text.removeprefix("sha256:")
    return MIN_PREFIX <= len(digits) <= _DIGITS and not set(digits) - set("0123456789abcdef")


def find_image(store: Store, text: str, app: AppName | None = None) -> Digest:
    """The only image (of the app) whose digest is this, or begins so, with `sha256:` or without.

    Raises `ImageError` where none or several are meant.
    """
    if not is_beginning(text):
        raise ImageError(
            f"{text!r} is not a digest: sha256: and {_DIGITS} hex digits, or their first "
            f"{MIN_PREFIX} or more"
        )
    digits = text.removeprefix("sha256:")
    # By the index alone: a damaged image is found as well, for that is how one gets rid of it.
    found = [
        Digest(line["digest"])
        for line in read_index(store)["manifests"]
        if is_image_line(line) and line["digest"].removeprefix("sha256:").startswith(digits)
    ]
    of_app = ""
    if app is not None:
        of_app = f" of {app}"
        found = [digest for digest in found if store.image(digest).app == app]
    if not found:
        begins = "" if len(digits) == _DIGITS else "that begins with "
        raise NoSuchImage(f"no image{of_app} {begins}{text} is in the store {store.folder}")
    if len(found) > 1:
        raise ImageError(
            f"{text} begins {len(found)} digests{of_app}, give more digits: {', '.join(found)}"
        )
    return found[0]


def image_facts(store: Store, entry: Entry, uses: Iterable[str] = ()) -> dict[str, Any]:
    """What is told of an image. Nothing in it comes from the config layer, which holds values of
    the environment: not everybody who may list images may see those."""
    manifest = entry.manifest
    config_layer, code_layer = manifest.layers
    return {
        "image": entry.digest,
        "app": entry.app,
        "code": manifest.annotations.get(VERSION_ANNOTATION),
        "config_layer": config_layer["digest"],
        "code_layer": code_layer["digest"],
        "bytes": manifest.size + sum(blob["size"] for blob in (manifest.config, *manifest.layers)),
        "stored": stored_at(store, entry.digest),
        "referrers": [
            {"digest": referrer.digest, "kind": referrer.kind} for referrer in entry.referrers
        ],
        "uses": sorted(uses),
    }


def stored_at(store: Store, digest: Digest) -> str | None:
    """When the blob came into this store, as its file tells."""
    try:
        seconds = store.blob_path(digest).stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _manifest(digest: Digest, size: int, value: dict[str, Any]) -> Manifest:
    subject = value.get("subject")
    annotations = dict(value.get("annotations") or {})
    manifest = Manifest(
        digest=digest,
        size=size,
        kind=str(value.get("artifactType", "")),
        annotations={str(key): str(text) for key, text in annotations.items()},
        subject=None if subject is None else Digest(subject["digest"]),
        config=dict(value["config"]),
        layers=tuple(dict(layer) for layer in value["layers"]),
    )
    for blob in (manifest.config, *manifest.layers, *([] if subject is None else [subject])):
        if DIGEST.fullmatch(blob["digest"]) is None:
            raise ValueError(f"{blob['digest']!r} is not a digest")
        if type(blob["size"]) is not int or blob["size"] < 0:
            raise ValueError(f"{blob['size']!r} is not a size")
    return manifest


def tag_of(line: dict[str, Any]) -> str | None:
    """The tag of a line of the index: an image's own, or that of its list of referrers."""
    annotations = line.get("annotations")
    tag = annotations.get(TAG_ANNOTATION) if isinstance(annotations, dict) else None
    return tag if isinstance(tag, str) else None
