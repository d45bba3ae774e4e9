"""Signatures and provenance beside an image, and what an attacker of the store can do."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from dataplane.image.abi import host_abi
from dataplane.image.keys import Keys
from dataplane.image.provenance import git_revision
from dataplane.image.signing import (
    PROVENANCE_TYPE,
    SIGNATURE_TYPE,
    Provenance,
    SourceFile,
    check_signed,
    provenance_of,
    referrers_of,
    sign_image,
    signatures_of,
    verify_image,
    wrong_signatures,
)
from dataplane.image.store import NewReferrer, Store, canonical
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest
from tests.unit.model.test_spec import SPEC

PROVENANCE = Provenance(
    files=(SourceFile(path="apps/billing.yaml", digest="sha256:" + "0" * 64, lines=7),),
    revision="a" * 40,
    builder="1.2.3",
    time="2026-11-22T18:00:00.000Z",
    user="somebody",
)


@pytest.fixture
def keys(store: Store) -> Keys:
    made = Keys(store.state_dir)
    made.ensure()
    return made


@pytest.fixture
def digest(store: Store) -> Digest:
    return store.add(SPEC, host_abi(), store.put_blob(b"code"), "1.2.3")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(store: Store, blob: Digest) -> None:
    path = store.blob_path(blob)
    path.chmod(0o644)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def forge(store: Store, digest: Digest, **fields: Any) -> None:
    """A signature artifact whose layer says this."""
    layer = canonical(fields)
    store.add_referrers(
        digest, [NewReferrer(artifact_type=SIGNATURE_TYPE, layers=((SIGNATURE_TYPE, layer),))]
    )


def test_a_signed_image_verifies_and_its_digest_is_as_before(
    store: Store, keys: Keys, digest: Digest
) -> None:
    before = store.image(digest)
    assert sign_image(store, keys, digest, PROVENANCE)
    own = keys.own()
    assert own is not None
    assert verify_image(store, keys, digest) == own.id
    assert store.image(digest) == before
    assert store.digests() == (digest,)  # what refers to an image is none


def test_signing_again_adds_nothing(store: Store, keys: Keys, digest: Digest) -> None:
    sign_image(store, keys, digest, PROVENANCE)
    before = files(store.state_dir)
    assert not sign_image(store, keys, digest, PROVENANCE)
    assert files(store.state_dir) == before


def test_every_oci_tool_can_find_the_signature(store: Store, keys: Keys, digest: Digest) -> None:
    sign_image(store, keys, digest, PROVENANCE)
    index = json.loads((store.folder / "index.json").read_bytes())
    (entry,) = [
        entry
        for entry in index["manifests"]
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name")
        == digest.replace(":", "-")
    ]
    assert entry["mediaType"] == "application/vnd.oci.image.index.v1+json"
    listed = json.loads(store.get(Digest(entry["digest"])))["manifests"]
    assert [one["artifactType"] for one in listed] == [SIGNATURE_TYPE, PROVENANCE_TYPE]
    for one in listed:
        manifest = json.loads(store.get(Digest(one["digest"])))
        assert manifest["subject"]["digest"] == digest
        assert manifest["subject"]["size"] == len(store.get(digest))
        for blob in (manifest["config"], *manifest["layers"]):
            assert len(store.get(Digest(blob["digest"]))) == blob["size"]


def test_an_image_without_a_signature_is_refused_with_what_helps(
    store: Store, keys: Keys, digest: Digest
) -> None:
    with pytest.raises(ImageError, match="it has no signature; build it again"):
        verify_image(store, keys, digest)
    assert signatures_of(store, digest) == ()


def test_each_damaged_blob_of_an_image_is_named(store: Store, keys: Keys, digest: Digest) -> None:
    sign_image(store, keys, digest)
    image = store.image(digest)
    for blob in (digest, image.config_layer, image.code_layer, image.abi_blob):
        content = store.get(blob)
        damage(store, blob)
        with pytest.raises(ImageError, match=blob.removeprefix("sha256:")):
            verify_image(store, keys, digest)
        store.put_blob(content)
        verify_image(store, keys, digest)


def test_each_damaged_blob_of_a_signature_is_named_and_healed_by_signing_again(
    store: Store, keys: Keys, digest: Digest
) -> None:
    sign_image(store, keys, digest)
    (referrer,) = referrers_of(store, digest)
    index = json.loads((store.folder / "index.json").read_bytes())
    listing = Digest(index["manifests"][-1]["digest"])
    for blob in (referrer.digest, *referrer.layers, listing):
        damage(store, blob)
        with pytest.raises(ImageError, match=blob.removeprefix("sha256:")):
            check_signed(store, keys, digest)
        assert sign_image(store, keys, digest)
        check_signed(store, keys, digest)


def test_a_key_that_is_not_trusted_or_revoked_is_named(
    store: Store, keys: Keys, digest: Digest, tmp_path: Path
) -> None:
    stranger = Keys(tmp_path / "elsewhere")
    key = stranger.ensure()
    assert key is not None
    sign_image(store, stranger, digest)
    with pytest.raises(ImageError, match=f"the key {key.short} is not trusted"):
        check_signed(store, keys, digest)
    assert wrong_signatures(store, keys, digest) == ()  # it may well be right elsewhere
    keys.trust(key)
    assert check_signed(store, keys, digest) == key.id
    keys.revoke(key.id)
    with pytest.raises(ImageError, match=f"the key {key.short} is revoked"):
        check_signed(store, keys, digest)


def test_of_several_signatures_one_that_holds_is_enough(
    store: Store, keys: Keys, digest: Digest, tmp_path: Path
) -> None:
    stranger = Keys(tmp_path / "elsewhere")
    stranger.ensure()
    sign_image(store, stranger, digest)
    assert sign_image(store, keys, digest)
    assert len(signatures_of(store, digest)) == 2
    own = keys.own()
    assert own is not None
    assert check_signed(store, keys, digest) == own.id


def test_a_signature_of_another_image_does_not_count(
    store: Store, keys: Keys, digest: Digest
) -> None:
    sign_image(store, keys, digest)
    (good,) = signatures_of(store, digest)
    other = store.add(SPEC, host_abi(), store.put_blob(b"evil"), "1.2.3")
    forge(store, other, keyid=good.keyid, algorithm="ed25519", signature=good.signature)
    with pytest.raises(ImageError, match=f"the signature of the key {good.short} is wrong"):
        check_signed(store, keys, other)
    assert len(wrong_signatures(store, keys, other)) == 1


def test_a_list_that_points_to_another_images_signature_is_refused(
    store: Store, keys: Keys, digest: Digest
) -> None:
    sign_image(store, keys, digest)
    other = store.add(SPEC, host_abi(), store.put_blob(b"evil"), "1.2.3")
    path = store.folder / "index.json"
    index = json.loads(path.read_bytes())
    for entry in index["manifests"]:
        tag = entry["annotations"].get("org.opencontainers.image.ref.name")
        if tag == digest.replace(":", "-"):
            entry["annotations"]["org.opencontainers.image.ref.name"] = other.replace(":", "-")
    path.write_bytes(canonical(index))
    with pytest.raises(ImageError, match=f"it speaks of {digest}, not of {other}"):
        check_signed(store, keys, other)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keyid": 1, "algorithm": "ed25519", "signature": ""},
        {"keyid": "../../../etc/passwd", "algorithm": "ed25519", "signature": ""},
        {"keyid": "OWN", "algorithm": "none", "signature": "GOOD"},
        {"keyid": "OWN", "algorithm": "ed25519", "signature": ""},
        {"keyid": "OWN", "algorithm": "ed25519", "signature": "\u20ac"},
        {"keyid": "OWN", "algorithm": "ed25519", "signature": base64.b64encode(b"x" * 64).decode()},
        {"keyid": "OWN", "algorithm": "ed25519", "signature": "GOOD", "more": 1},
    ],
)
def test_a_forged_signature_is_refused(
    store: Store, keys: Keys, digest: Digest, fields: dict[str, Any]
) -> None:
    sign_image(store, keys, digest)
    (good,) = signatures_of(store, digest)
    other = store.add(SPEC, host_abi(), store.put_blob(b"other code"), "1.2.3")
    real = {"OWN": good.keyid, "GOOD": good.signature}
    forge(store, other, **{name: real.get(str(one), one) for name, one in fields.items()})
    with pytest.raises(ImageError, match="is not signed by a key that is trusted here"):
        check_signed(store, keys, other)
    assert wrong_signatures(store, keys, other)


def test_whoever_lists_a_thousand_signatures_is_refused_at_once(
    store: Store, keys: Keys, digest: Digest
) -> None:
    sign_image(store, keys, digest)
    for number in range(65):
        forge(store, digest, number=number)
    with pytest.raises(ImageError, match="66 referrers, more than 64"):
        check_signed(store, keys, digest)


def test_provenance_comes_back_with_who_says_so(store: Store, keys: Keys, digest: Digest) -> None:
    assert provenance_of(store, keys, digest) is None
    sign_image(store, keys, digest, PROVENANCE)
    told = provenance_of(store, keys, digest)
    own = keys.own()
    assert told is not None
    assert own is not None
    assert (told.provenance, told.keyid) == (PROVENANCE, own.id)
    keys.revoke(own.id)
    told = provenance_of(store, keys, digest)
    assert told is not None
    assert told.keyid is None


def test_a_revoked_key_signs_nothing(store: Store, keys: Keys, digest: Digest) -> None:
    sign_image(store, keys, digest)
    own = keys.own()
    assert own is not None
    keys.revoke(own.id)
    with pytest.raises(ImageError, match="is revoked"):
        sign_image(store, keys, digest)


def test_an_image_that_is_not_there_cannot_be_signed(store: Store, keys: Keys) -> None:
    with pytest.raises(ImageError, match="is not in the store"):
        sign_image(store, keys, Digest("sha256:" + "0" * 64))


# --- git --------------------------------------------------------------------------------------


def test_the_revision_is_what_is_checked_out(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "configs"
    git = tmp_path / "repository" / ".git"
    folder.mkdir(parents=True)
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_revision(folder) is None  # no commit yet
    (git / "packed-refs").write_text(f"# pack-refs\n{'b' * 40} refs/heads/main\n")
    assert git_revision(folder) == "b" * 40
    (git / "refs" / "heads" / "main").write_text("c" * 40 + "\n")
    assert git_revision(folder) == "c" * 40
    (git / "HEAD").write_text("d" * 40 + "\n")
    assert git_revision(folder) == "d" * 40
    (git / "HEAD").write_text("ref: ../../secret\n")
    assert git_revision(folder) is None


def test_a_worktree_has_its_own_revision(tmp_path: Path) -> None:
    git = tmp_path / "main" / ".git"
    (git / "worktrees" / "two").mkdir(parents=True)
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "two").write_text("e" * 40)
    (git / "worktrees" / "two" / "HEAD").write_text("ref: refs/heads/two")
    (git / "worktrees" / "two" / "commondir").write_text("../..\n")
    tree = tmp_path / "two"
    tree.mkdir()
    (tree / ".git").write_text(f"gitdir: {git / 'worktrees' / 'two'}\n")
    assert git_revision(tree) == "e" * 40
