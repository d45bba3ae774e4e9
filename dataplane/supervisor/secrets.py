"""Secrets: read where their references point, told apart by a keyed digest, never told themselves.

Their content is in this process and in the workers that use it, nowhere else: not in an image, an
argument, a log, an error, a core file. What is wrong with a secret is told by its reference and a
position in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import resource
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dataplane.image.files import locked, write_atomically
from dataplane.image.store import disk_failure
from dataplane.model.errors import LaunchError
from dataplane.model.inputs import FILE_REFERENCE, VARIABLE_REFERENCE
from dataplane.system.sandbox import Sandbox

MAX_SECRET_BYTES: Final = 4096  # as the schema allows a header field's value
_KEY_BYTES: Final = 32
_LINE_END: Final = b"\n"


class Secrets:
    """Reads secrets, and knows this host's key for their digests. Mutable: the key, once read."""

    def __init__(self, state_dir: Path) -> None:
        self._key_path = state_dir / "secrets.key"
        self._key: bytes | None = None

    def read(self, reference: str, variables: Mapping[str, str]) -> str:
        """What the reference stands for. For a thread: it reads files. Raises `LaunchError`."""
        self.protect()
        if reference.startswith(FILE_REFERENCE):
            content = _content(reference, Path(reference.removeprefix(FILE_REFERENCE)))
        else:
            name = reference.removeprefix(VARIABLE_REFERENCE)
            if name not in variables:
                raise LaunchError(
                    f"the secret {reference} is not set: set the variable where the command is "
                    "given, or where the supervisor is started"
                )
            content = os.fsencode(variables[name])
        return _checked(reference, content)

    def digests(self, secrets: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """A keyed digest for each content: equal for equal ones, and no help to who guesses.

        Raises `LaunchError`.
        """
        if not secrets:
            return ()
        key = self._own_key()
        return tuple(
            (reference, hmac.new(key, content.encode(), hashlib.sha256).hexdigest())
            for reference, content in secrets
        )

    def protect(self) -> None:
        """From here on nobody but root may look into this process, and it leaves no core file."""
        if self._key is None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            Sandbox().undump()
            self._own_key()

    def _own_key(self) -> bytes:
        """Drawn at its first use; another host's digests tell nothing about this one's."""
        if self._key is None:
            try:
                with locked(self._key_path.with_suffix(".lock")):
                    with contextlib.suppress(FileNotFoundError):
                        self._key = self._key_path.read_bytes()
                    if self._key is None or len(self._key) != _KEY_BYTES:
                        self._key = os.getrandom(_KEY_BYTES)
                        write_atomically(self._key_path, self._key, 0o600)
            except OSError as error:
                self._key = None
                raise LaunchError(disk_failure(self._key_path, error)) from error
        return self._key


def _content(reference: str, path: Path) -> bytes:
    try:
        # A pipe without a writer must not hold up a start.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise LaunchError(f"the secret {reference} cannot be read: {error.strerror}") from error
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise LaunchError(f"the secret {reference} is not a file")
        try:
            content = file.read(MAX_SECRET_BYTES + 2)
        except OSError as error:
            raise LaunchError(f"the secret {reference} cannot be read: {error.strerror}") from error
    return content.removesuffix(_LINE_END).removesuffix(b"\r")


def _checked(reference: str, content: bytes) -> str:
    """Fit for a header field (RFC 9110 5.5), or it is told where it is not."""
    if not content:
        raise LaunchError(f"the secret {reference} is empty")
    if len(content) > MAX_SECRET_BYTES:
        raise LaunchError(f"the secret {reference} is longer than {MAX_SECRET_BYTES} bytes")
    for position, byte in enumerate(content, 1):
        if not 0x20 <= byte <= 0x7E:
            raise LaunchError(
                f"the secret {reference} cannot be a header's value: byte {position} is not "
                "printable ASCII (one line break at its end is left out)"
            )
    if content != content.strip():
        raise LaunchError(f"the secret {reference} begins or ends with a space")
    return content.decode("ascii")
