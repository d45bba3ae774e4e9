"""Keys: made once, private where they must be, trusted and revoked by name."""

from __future__ import annotations

import base64
import concurrent.futures
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.image.keys import Keys, PublicKey, is_signature, read_public_key
from dataplane.model.errors import ImageError


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "state")


def other_key() -> PublicKey:
    return PublicKey(raw=Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def test_a_pair_is_made_once_and_trusted(keys: Keys) -> None:
    assert (keys.exists(), keys.own(), keys.trusted()) == (False, None, ())
    made = keys.ensure()
    assert made is not None
    assert keys.own() == made
    assert keys.trusted() == (made,)
    assert keys.ensure() is None
    assert keys.init() is None
    assert keys.own() == made


def test_nobody_else_may_read_the_private_key(keys: Keys) -> None:
    keys.ensure()
    assert keys.folder.stat().st_mode & 0o777 == 0o700
    assert (keys.folder / "signing.pem").stat().st_mode & 0o777 == 0o600
    (keys.folder / "signing.pem").chmod(0o640)
    with pytest.raises(ImageError, match="others may read the signing key"):
        keys.sign(b"x")


def test_what_is_made_at_once_is_one_key(keys: Keys) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = [key for key in pool.map(lambda _: keys.ensure(), range(8)) if key is not None]
    assert made == [keys.own()]
    assert keys.trusted() == tuple(made)


def test_a_signature_is_of_one_statement_by_one_key(keys: Keys) -> None:
    keys.ensure()
    public, signature = keys.sign(b"statement")
    assert public == keys.own()
    assert is_signature(public, b"statement", signature)
    assert not is_signature(public, b"statemenT", signature)
    assert not is_signature(other_key(), b"statement", signature)
    assert not is_signature(public, b"statement", signature[:-1])
    assert not is_signature(public, b"statement", b"")


def test_the_key_is_what_other_programs_read(keys: Keys) -> None:
    keys.ensure()
    own = keys.own()
    assert own is not None
    loaded = serialization.load_pem_public_key(own.pem())
    raw = loaded.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert raw == own.raw
    content = (keys.folder / "signing.pem").read_bytes()
    private = serialization.load_pem_private_key(content, password=None)
    assert isinstance(private, Ed25519PrivateKey)
    assert private.public_key().public_bytes_raw() == own.raw


def test_a_public_key_is_read_from_its_line_and_its_pem() -> None:
    key = other_key()
    for text in (key.line(), f" {key.line()}\n", key.pem().decode()):
        assert read_public_key(text) == key


def ec_pem() -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = generate_private_key(SECP256R1()).public_key()
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "ed25519:" + base64.b64encode(b"x" * 31).decode(),
        "ed25519:" + base64.b64encode(b"x" * 33).decode(),
        "ed25519:" + "*" * 43 + "=",
        "rsa:" + base64.b64encode(b"x" * 32).decode(),
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        "-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----",
        "-----BEGIN PUBLIC KEY-----\n" + "A" * 100_000 + "\n-----END PUBLIC KEY-----",
        ec_pem(),
        f"{other_key().line()}\n{other_key().line()}",
    ],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="not an Ed25519 public key"):
        read_public_key(text)


# By RFC 8032 their y is 0, 1, -1, or that of a point of order 8; p and p + 1 are 0 and 1 once more.
WEAK = (
    "00" * 32,
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)


@pytest.mark.parametrize("sign", [0, 0x80])
@pytest.mark.parametrize("point", WEAK)
def test_a_key_in_whose_name_anybody_can_sign_is_refused(point: str, sign: int) -> None:
    raw = bytes.fromhex(point)
    weak = PublicKey(raw=bytes([*raw[:-1], raw[-1] | sign]))
    for text in (weak.line(), weak.pem().decode()):
        with pytest.raises(ImageError, match="anybody can sign in its name"):
            read_public_key(text)


def test_anybody_can_sign_in_the_name_of_a_weak_key() -> None:
    """Why it is refused: this signature was made by nobody, and holds for every statement."""
    weak = PublicKey(raw=bytes.fromhex("01" + "00" * 31))
    signed_by_nobody = weak.raw + bytes(32)
    assert is_signature(weak, b"any image", signed_by_nobody)
    assert is_signature(weak, b"any other", signed_by_nobody)


def test_a_private_key_is_never_taken_for_a_public_one(keys: Keys) -> None:
    keys.ensure()
    with pytest.raises(ImageError, match="this is a private key"):
        read_public_key((keys.folder / "signing.pem").read_text())


def test_trust_and_revoke(keys: Keys) -> None:
    key = other_key()
    assert keys.trusted_key(key.id) is None
    assert keys.trust(key)
    assert not keys.trust(key)
    assert keys.trusted_key(key.id) == key
    assert keys.revoke(key.id[:8]) == key.id
    assert keys.trusted_key(key.id) is None
    assert (keys.trusted(), keys.revoked()) == ((), (key.id,))
    assert keys.revoke(key.id) == key.id
    with pytest.raises(ImageError, match="was revoked here; to trust it after all, remove"):
        keys.trust(key)


def test_a_revoked_key_that_lies_among_the_trusted_is_not_trusted(keys: Keys) -> None:
    """As a crash between the two files of a revocation leaves it."""
    key = other_key()
    keys.trust(key)
    content = (keys.trusted_folder / f"{key.id}.pem").read_bytes()
    keys.revoke(key.id)
    (keys.trusted_folder / f"{key.id}.pem").write_bytes(content)
    assert keys.trusted_key(key.id) is None
    assert keys.trusted() == ()


def test_a_key_that_was_never_here_can_be_revoked_by_its_whole_name_only(keys: Keys) -> None:
    key = other_key()
    with pytest.raises(ImageError, match="no key"):
        keys.revoke(key.short)
    keys.revoke(key.id)
    with pytest.raises(ImageError, match="was revoked"):
        keys.trust(key)


@pytest.mark.parametrize("name", ["", "a", "../../etc", "zzzzzzzzzz"])
def test_a_name_that_is_none_is_refused(keys: Keys, name: str) -> None:
    keys.ensure()
    with pytest.raises(ImageError, match="no key"):
        keys.revoke(name)
    assert len(keys.trusted()) == 1


def test_a_revoked_pair_signs_nothing_and_gets_a_successor(keys: Keys) -> None:
    first = keys.ensure()
    assert first is not None
    keys.revoke(first.id)
    assert keys.ensure() is None  # a build does not undo what a person did
    with pytest.raises(ImageError, match="is revoked; make another one by: dataplane keys init"):
        keys.sign(b"x")
    second = keys.init()
    assert second is not None
    assert second != first
    assert keys.sign(b"x")[0] == second
    assert (keys.trusted(), keys.revoked()) == ((second,), (first.id,))


def test_a_trusted_file_that_holds_another_key_is_told(keys: Keys) -> None:
    key = other_key()
    keys.trust(key)
    (keys.trusted_folder / f"{key.id}.pem").write_bytes(other_key().pem())
    with pytest.raises(ImageError, match="is damaged: it holds the key"):
        keys.trusted_key(key.id)


def test_a_damaged_pair_is_told(keys: Keys) -> None:
    keys.ensure()
    (keys.folder / "signing.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ImageError, match=r"signing\.pem is damaged"):
        keys.sign(b"x")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot write"):
        Keys(tmp_path / "file").ensure()


def test_who_needs_no_key_loads_no_cryptography() -> None:
    """Nor what a worker loads: its code layer could not hold a library of 10 MB."""
    program = (
        "import sys; import dataplane.cli.main, dataplane.cli.facts, dataplane.image.signing, "
        "dataplane.supervisor.main, dataplane.worker.forking; "
        "assert not [name for name in sys.modules if name.startswith('cryptography')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
