"""The keys of a host: one that signs what is built here, and those whose images may run here.

A key is an Ed25519 pair, named by the SHA-256 of its raw public key. Trusted and revoked keys are
files of public keys, so that a look at the folder tells who may bring code to this host. Whoever
holds a trusted key is as good as root on it. A private key is never shown, copied or logged.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dataplane.image.files import TEMPORARY, locked, sync_folder, write_atomically
from dataplane.image.store import disk_failure
from dataplane.model.errors import ImageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM: Final = "ed25519"
RAW_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SHORT: Final = 16  # hex digits that people are shown, and may type

# RFC 8410: a SubjectPublicKeyInfo of Ed25519 is these bytes and the raw key. Read without a
# library, so that whoever only wants to know a key's name need not load one.
_SPKI: Final = bytes.fromhex("302a300506032b6570032100")
_PEM: Final = re.compile(
    r"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END PUBLIC KEY-----"
)
_LINE: Final = re.compile(rf"{ALGORITHM}:([A-Za-z0-9+/]{{43}}=)")
_ID: Final = re.compile(r"[0-9a-f]{64}")
_MAX_TEXT: Final = 4096
# Points of small order, without their sign: y of 0, 1 and -1, the two of order 8, and 0 and 1 again
# as p and p + 1. RFC 8032 leaves it to the verifier to refuse them.
_WEAK: Final = frozenset(
    bytes.fromhex(point)
    for point in (
        f"{'00' * 32}",
        f"01{'00' * 31}",
        f"ec{'ff' * 30}7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        f"ed{'ff' * 30}7f",
        f"ee{'ff' * 30}7f",
    )
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """One public key."""

    raw: bytes

    @property
    def id(self) -> str:
        """Its name: 64 hex digits."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def short(self) -> str:
        """Its name as people are shown it."""
        return self.id[:SHORT]

    def line(self) -> str:
        """The key itself in one line, for `dataplane keys trust`."""
        return f"{ALGORITHM}:{base64.b64encode(self.raw).decode()}"

    def pem(self) -> bytes:
        """The same as other programs want it."""
        body = base64.b64encode(_SPKI + self.raw).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n".encode()


def read_public_key(text: str) -> PublicKey:
    """A public key of a PEM text or of its one line. Raises `ImageError` for anything else."""
    if "PRIVATE KEY" in text:
        raise ImageError("this is a private key: give the public one, as `keys show` prints it")
    wrong = ImageError("not an Ed25519 public key: expected its PEM, or ed25519:BASE64")
    if len(text) > _MAX_TEXT:
        raise wrong
    line, pem = _LINE.fullmatch(text.strip()), _PEM.fullmatch(text.strip())
    try:
        if line is not None:
            raw = base64.b64decode(line[1], validate=True)
        elif pem is not None:
            content = base64.b64decode("".join(pem[1].split()), validate=True)
            if not content.startswith(_SPKI):
                raise wrong
            raw = content.removeprefix(_SPKI)
        else:
            raise wrong
    except binascii.Error:
        raise wrong from None
    if len(raw) != RAW_BYTES:
        raise wrong
    if bytes([*raw[:-1], raw[-1] & 0x7F]) in _WEAK:
        raise ImageError("this public key has no private one: anybody can sign in its name")
    return PublicKey(raw=raw)


class Keys:
    """STATE_DIR/keys. Holds nothing in memory: what is asked is what the folder says now."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.folder = state_dir / "keys"
        self.trusted_folder = self.folder / "trusted"
        self.revoked_folder = self.folder / "revoked"
        self._private = self.folder / "signing.pem"
        self._public = self.folder / "signing.pub"

    # --- the pair of this host ----------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is a pair to sign with."""
        return self._private.exists()

    def ensure(self) -> PublicKey | None:
        """Makes this host's pair if there is none, and trusts it: the key, if one was made.

        Raises `ImageError`.
        """
        if self.exists():
            return None
        return self._make(replace=False)

    def init(self) -> PublicKey | None:
        """As `ensure`; a pair that was revoked gets a successor, too. Raises `ImageError`."""
        own = self.own()
        if own is None:
            return self._make(replace=False)
        return self._make(replace=True) if self.is_revoked(own.id) else None

    def own(self) -> PublicKey | None:
        """The public key of this host's pair, if there is one. Raises `ImageError`."""
        if not self.exists():
            return None
        try:
            return read_public_key(self._public.read_text())
        except FileNotFoundError:
            return _public_of(self._load())
        except (OSError, UnicodeDecodeError) as error:
            raise ImageError(f"cannot read {self._public}: {error}") from error
        except ImageError as error:
            raise ImageError(f"{self._public} is damaged: {error}") from error

    def sign(self, statement: bytes) -> tuple[PublicKey, bytes]:
        """This host's signature. Raises `ImageError` where there is no key, or a revoked one."""
        private = self._load()
        public = _public_of(private)
        if self.is_revoked(public.id):
            raise ImageError(
                f"this host's signing key {public.short} is revoked; "
                "make another one by: dataplane keys init"
            )
        return public, private.sign(statement)

    def _make(self, *, replace: bool) -> PublicKey | None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.generate()
        content = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = _public_of(private)
        try:
            with self._writing():
                if self.exists() and not replace:
                    return None  # somebody else was quicker
                write_atomically(self._file(self.trusted_folder, public.id), public.pem(), 0o644)
                write_atomically(self._public, public.pem(), 0o644)
                write_atomically(self._private, content, 0o600)
        except OSError as error:
            raise ImageError(disk_failure(self.folder, error)) from error
        return public

    def _load(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            with self._private.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(_MAX_TEXT)
        except FileNotFoundError:
            hint = "make one by: dataplane keys init"
            raise ImageError(f"this host has no signing key {self._private}; {hint}") from None
        except OSError as error:
            raise ImageError(f"cannot read {self._private}: {error.strerror}") from error
        if mode & 0o077:
            raise ImageError(
                f"others may read the signing key {self._private}: revoke it and make another, "
                f"or, if nobody has read it: chmod 600 {self._private}"
            )
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError) as error:
            raise ImageError(f"{self._private} is damaged: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ImageError(f"{self._private} is not an Ed25519 key")
        return key

    # --- whom this host trusts ----------------------------------------------------------------

    def trusted(self) -> tuple[PublicKey, ...]:
        """The keys whose images may run here, the revoked ones left out. Raises `ImageError`."""
        revoked = self._ids(self.revoked_folder)
        return tuple(
            self._read(self.trusted_folder, name)
            for name in self._ids(self.trusted_folder)
            if name not in revoked
        )

    def revoked(self) -> tuple[str, ...]:
        """The names of the keys that were revoked here. Raises `ImageError`."""
        return self._ids(self.revoked_folder)

    def is_revoked(self, key: str) -> bool:
        """Whether nothing that this key signed may run here. Raises `ImageError`."""
        return key in self._ids(self.revoked_folder)

    def trusted_key(self, key: str) -> PublicKey | None:
        """The trusted key of that name; None for an unknown or a revoked one."""
        if _ID.fullmatch(key) is None or self.is_revoked(key):
            return None
        if not self._file(self.trusted_folder, key).exists():
            return None
        return self._read(self.trusted_folder, key)

    def trust(self, key: PublicKey) -> bool:
        """Has this key's images accepted from now on: False if they were already."""
        if self.is_revoked(key.id):
            path = self._file(self.revoked_folder, key.id)
            raise ImageError(
                f"the key {key.short} was revoked here; to trust it after all, remove {path}"
            )
        try:
            with self._writing():
                path = self._file(self.trusted_folder, key.id)
                if path.exists() and self._read(self.trusted_folder, key.id) == key:
                    return False
                write_atomically(path, key.pem(), 0o644)
        except OSError as error:
            raise ImageError(disk_failure(self.folder, error)) from error
        return True

    def revoke(self, name: str) -> str:
        """Has nothing accepted that this key signed, for good: the key's whole name.

        A name may be the beginning of a trusted key's. Raises `ImageError`.
        """
        known = {*self._ids(self.trusted_folder), *self._ids(self.revoked_folder)}
        found = sorted(key for key in known if key.startswith(name)) if len(name) >= 8 else []
        if _ID.fullmatch(name) is not None:
            found = [name]  # also one that was never trusted: it shall never be
        if not found:
            raise ImageError(f"no key {name!r} here; `dataplane keys show` names them")
        if len(found) > 1:
            raise ImageError(f"{name!r} is the beginning of {len(found)} keys; type more of it")
        (key,) = found
        try:
            with self._writing():
                content = b"revoked\n"
                with contextlib.suppress(FileNotFoundError):
                    content = self._file(self.trusted_folder, key).read_bytes()
                # First the mark, then the removal: a crash between them leaves a revoked key.
                write_atomically(self._file(self.revoked_folder, key), content, 0o644)
                self._file(self.trusted_folder, key).unlink(missing_ok=True)
                sync_folder(self.trusted_folder)
        except OSError as error:
            raise ImageError(disk_failure(self.folder, error)) from error
        return key

    # --- files --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.trusted_folder, self.revoked_folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        with locked(self._state_dir / "keys.lock"):
            for left in self.folder.glob(f"**/{TEMPORARY}*"):  # under the lock: its writer is dead
                left.unlink()
            yield

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / f"{key}.pem"

    @staticmethod
    def _ids(folder: Path) -> tuple[str, ...]:
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ImageError(f"cannot read {folder}: {error.strerror}") from error
        stems = [name.removesuffix(".pem") for name in names if name.endswith(".pem")]
        return tuple(stem for stem in stems if _ID.fullmatch(stem))

    def _read(self, folder: Path, key: str) -> PublicKey:
        path = self._file(folder, key)
        try:
            read = read_public_key(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ImageError(f"cannot read {path}: {error}") from error
        except ImageError as error:
            raise ImageError(f"{path} is damaged: {error}") from error
        if read.id != key:
            raise ImageError(f"{path} is damaged: it holds the key {read.short}")
        return read


def is_signature(key: PublicKey, statement: bytes, signature: bytes) -> bool:
    """Whether this key signed this statement."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True


def _public_of(private: Ed25519PrivateKey) -> PublicKey:
    return PublicKey(raw=private.public_key().public_bytes_raw())
