"""Identifiers that cross floors, as types of their own, so that they cannot be mixed up."""

from __future__ import annotations

import re
from typing import Final, NewType

AppName = NewType("AppName", str)
Generation = NewType("Generation", int)
Slot = NewType("Slot", int)
Digest = NewType("Digest", str)  # "sha256:" and 64 lower-case hex digits

# A file name, a label in metrics and part of a socket's path: kept short and plain.
APP_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def short_digest(digest: Digest) -> str:
    """The first 12 hex digits, as logs and tables show a digest."""
    return digest.removeprefix("sha256:")[:12]
