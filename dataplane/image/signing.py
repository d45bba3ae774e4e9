"""Signatures and provenance: artifacts that refer to an image, never under its digest.

A signature says one thing: the holder of this key lets this image run. It covers the digest of the
manifest, which covers all the rest. Provenance is told, not relied on: it is signed as well, so
that whoever reads it knows who said so. Nothing here decides whether an image is fit for a host.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any, Final

from dataplane.image.keys import ALGORITHM, SHORT, SIGNATURE_BYTES, Keys, is_signature
from dataplane.image.store import NewReferrer, Referrer, Store, canonical, digest_of
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest
from dataplane.model.spec import SpecError, decode

SIGNATURE_TYPE: Final = "application/vnd.dataplane.signature.v1+json"
PROVENANCE_TYPE: Final = "application/vnd.dataplane.provenance.v1+json"
KEY_ANNOTATION: Final = "dev.dataplane.key"
# What is signed begins with these, so that no signature can be taken for one of another kind.
_IMAGE: Final = b"dataplane signature v1\nimage\n"
_PROVENANCE: Final = b"dataplane signature v1\nprovenance\n"
MAX_REFERRERS: Final = 64  # of one image: whoever lists more wants our time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What one signature artifact holds; nothing of it is proven yet."""

    keyid: str
    algorithm: str
    signature: str  # base64

    @property
    def short(self) -> str:
        """The key as people are shown it."""
        return self.keyid[:SHORT]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file that an image was built from."""

    path: str
    digest: str
    lines: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an image came from when it was first built here."""

    files: tuple[SourceFile, ...]
    revision: str | None  # git's, of the repository that holds the config folder
    builder: str  # version of the program that built it
    time: str
    user: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A referrer that a trusted key signed. Only what it says is signed, and not the manifest
    around it, of which anybody can make as many as they like."""

    referrer: Digest
    says: tuple[str, bytes]  # the key's name, and its statement


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Provenance as it was read: `keyid` is the trusted key that signed it, None for no such."""

    provenance: Provenance
    keyid: str | None


# --- making ------------------------------------------------------------------------------------


def sign_image(
    store: Store, keys: Keys, digest: Digest, provenance: Provenance | None = None
) -> bool:
    """Signs an image of the store by this host's key, and adds its provenance if it has none.

    False where that key's signature was there already: then nothing is added. The caller must know
    that the image is whole: this reads its manifest only. Raises `ImageError`.
    """
    store.get(digest)
    own = keys.own()
    if own is not None and not keys.is_revoked(own.id):
        found, _ = _good_signature(store, keys, digest, only=own.id)
        if found is not None:
            return False
    public, signature = keys.sign(_statement(_IMAGE, digest, digest))
    new = [_signature_referrer(public.id, signature)]
    if provenance is not None and not _has_provenance(store, digest):
        content = canonical(dataclasses.asdict(provenance))
        signer, signed = keys.sign(_statement(_PROVENANCE, digest, digest_of(content)))
        new.append(
            NewReferrer(
                artifact_type=PROVENANCE_TYPE,
                layers=(
                    (PROVENANCE_TYPE, content),
                    (SIGNATURE_TYPE, _signature_json(signer.id, signed)),
                ),
            )
        )
    store.add_referrers(digest, new)
    return True


def _signature_referrer(keyid: str, signature: bytes) -> NewReferrer:
    return NewReferrer(
        artifact_type=SIGNATURE_TYPE,
        layers=((SIGNATURE_TYPE, _signature_json(keyid, signature)),),
        annotations=((KEY_ANNOTATION, keyid),),
    )


def _signature_json(keyid: str, signature: bytes) -> bytes:
    made = Signature(
        keyid=keyid, algorithm=ALGORITHM, signature=base64.b64encode(signature).decode()
    )
    return canonical(dataclasses.asdict(made))


def _statement(kind: bytes, subject: Digest, content: Digest) -> bytes:
    return kind + f"{subject}\n{content}\n".encode()


# --- asking ------------------------------------------------------------------------------------


def referrers_of(store: Store, digest: Digest) -> tuple[Referrer, ...]:
    """All that speaks of an image, oldest first. Raises `ImageError` that names what is damaged."""
    return tuple(store.referrer(digest, one) for one in _listed(store, digest))


def signatures_of(store: Store, digest: Digest) -> tuple[Signature, ...]:
    """Who says to have signed the image; nothing is proven. Raises `ImageError`."""
    return tuple(
        _read_signature(store, referrer)
        for referrer in referrers_of(store, digest)
        if referrer.artifact_type == SIGNATURE_TYPE
    )


def check_signed(store: Store, keys: Keys, digest: Digest) -> str:
    """The name of a trusted, not revoked key that signed the image.

    Raises `ImageError` that says which key or which blob is wrong.
    """
    keyid, _ = find_signature(store, keys, digest)
    return keyid


def find_signature(store: Store, keys: Keys, digest: Digest) -> tuple[str, tuple[Digest, ...]]:
    """As `check_signed`, and the blobs that prove it."""
    found, reasons = _good_signature(store, keys, digest, only=None)
    if found is not None:
        return found
    raise ImageError(
        f"{digest} is not signed by a key that is trusted here: "
        f"{'; '.join(reasons) or 'it has no signature; build it again'}"
    )


def proven_referrers(store: Store, keys: Keys, digest: Digest) -> tuple[Proven, ...]:
    """What a trusted key signed of all that speaks of an image; the rest may say anything.

    Raises `ImageError` for what names a trusted key and is not its, or cannot be read.
    """
    found = (proven_referrer(store, keys, digest, one) for one in _listed(store, digest))
    return tuple(proven for proven in found if proven is not None)


def proven_referrer(store: Store, keys: Keys, digest: Digest, one: Digest) -> Proven | None:
    """The same of one that speaks of it."""
    referrer = store.referrer(digest, one)
    if referrer.artifact_type == SIGNATURE_TYPE:
        signature = _read_signature(store, referrer)
        content, kind = digest, _IMAGE
    elif referrer.artifact_type == PROVENANCE_TYPE and len(referrer.layers) == 2:
        signature = _parse_signature(store, referrer.layers[1])
        content, kind = referrer.layers[0], _PROVENANCE
    else:
        return None
    statement = _statement(kind, digest, content)
    fault = _fault(keys, signature, statement)
    if fault is None:
        return Proven(referrer=one, says=(signature.keyid, statement))
    if keys.trusted_key(signature.keyid) is not None:
        raise ImageError(f"{fault} (referrer {one})")
    return None


def verify_image(store: Store, keys: Keys, digest: Digest) -> str:
    """Recomputes every digest of the image and checks who signed it: the key's name.

    Raises `ImageError` that says which blob or key is wrong.
    """
    store.check_blobs(digest)
    return check_signed(store, keys, digest)


def wrong_signatures(store: Store, keys: Keys, digest: Digest) -> tuple[str, ...]:
    """What is wrong with those signatures that could not be right on any host.

    That is: damaged ones, and those that a key which is trusted here did not make. Those of other
    keys cannot be judged. Raises `ImageError` where not even the list can be read.
    """
    wrong = []
    for one in _listed(store, digest):
        try:
            referrer = store.referrer(digest, one)
            if referrer.artifact_type != SIGNATURE_TYPE:
                continue
            signature = _read_signature(store, referrer)
        except ImageError as error:
            wrong.append(str(error))
            continue
        known = keys.trusted_key(signature.keyid) is not None
        fault = _fault(keys, signature, _statement(_IMAGE, digest, digest))
        if fault is not None and (known or signature.algorithm != ALGORITHM):
            wrong.append(f"{fault} (signature {referrer.digest})")
    return tuple(wrong)


def provenance_of(store: Store, keys: Keys, digest: Digest) -> Told | None:
    """Where the image came from, if that is told and can be read. Raises `ImageError`."""
    for referrer in referrers_of(store, digest):
        if referrer.artifact_type != PROVENANCE_TYPE or not referrer.layers:
            continue
        content = store.get(referrer.layers[0])
        try:
            provenance: Provenance = decode(Provenance, json.loads(content), "provenance")
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{referrer.layers[0]} is no provenance: {error}") from error
        keyid = None
        if len(referrer.layers) > 1:
            signature = _parse_signature(store, referrer.layers[1])
            statement = _statement(_PROVENANCE, digest, referrer.layers[0])
            if _fault(keys, signature, statement) is None:
                keyid = signature.keyid
        return Told(provenance=provenance, keyid=keyid)
    return None


def _has_provenance(store: Store, digest: Digest) -> bool:
    try:
        found = referrers_of(store, digest)
    except ImageError:
        return False  # damaged: told anew
    return any(referrer.artifact_type == PROVENANCE_TYPE for referrer in found)


def _good_signature(
    store: Store, keys: Keys, digest: Digest, *, only: str | None
) -> tuple[tuple[str, tuple[Digest, ...]] | None, list[str]]:
    """The first signature that holds, with its blobs; else why each does not."""
    reasons: list[str] = []
    try:
        listed = _listed(store, digest)
    except ImageError as error:
        return None, [str(error)]
    for one in listed:
        try:
            referrer = store.referrer(digest, one)
            if referrer.artifact_type != SIGNATURE_TYPE:
                continue
            signature = _read_signature(store, referrer)
        except ImageError as error:
            reasons.append(str(error))
            continue
        if only is not None and signature.keyid != only:
            continue
        fault = _fault(keys, signature, _statement(_IMAGE, digest, digest))
        if fault is None:
            return (signature.keyid, (referrer.digest, *referrer.layers)), []
        reasons.append(f"{fault} (signature {referrer.digest})")
    return None, reasons


def _listed(store: Store, digest: Digest) -> tuple[Digest, ...]:
    listed = store.referrers(digest)
    if len(listed) > MAX_REFERRERS:
        raise ImageError(f"{digest} has {len(listed)} referrers, more than {MAX_REFERRERS}")
    return listed


def _fault(keys: Keys, signature: Signature, statement: bytes) -> str | None:
    """What is wrong with a signature."""
    if signature.algorithm != ALGORITHM:
        return f"its algorithm {signature.algorithm[:40]!r} is not {ALGORITHM}"
    if keys.is_revoked(signature.keyid):
        return f"the key {signature.short} is revoked"
    key = keys.trusted_key(signature.keyid)
    if key is None:
        return f"the key {signature.short} is not trusted"
    if not is_signature(key, statement, _bytes_of(signature)):
        return f"the signature of the key {signature.short} is wrong"
    return None


def _bytes_of(signature: Signature) -> bytes:
    try:
        content = base64.b64decode(signature.signature, validate=True)
    except ValueError:
        return b""
    return content if len(content) == SIGNATURE_BYTES else b""


def _read_signature(store: Store, referrer: Referrer) -> Signature:
    if len(referrer.layers) != 1:
        raise ImageError(f"{referrer.digest} is no signature: it has {len(referrer.layers)} layers")
    return _parse_signature(store, referrer.layers[0])


def _parse_signature(store: Store, layer: Digest) -> Signature:
    content = store.get(layer)
    try:
        value: Any = json.loads(content)
        signature: Signature = decode(Signature, value, "signature")
    except (SpecError, ValueError, RecursionError) as error:
        raise ImageError(f"{layer} is no signature: {error}") from error
    if len(signature.keyid) != 64 or set(signature.keyid) - set("0123456789abcdef"):
        raise ImageError(f"{layer} is no signature: {signature.keyid[:80]!r} names no key")
    return signature
