"""What an image needs of the host: code that is compiled runs on one interpreter and platform."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import json
import re

from dataplane.control.messages import PROTOCOL
from dataplane.model.errors import ImageError
from dataplane.model.spec import SpecError, decode


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Abi:
    """An image runs where this is equal."""

    interpreter: str  # "cpython-311"
    platform: str  # "x86_64-linux-gnu"
    messages: int  # the version in which its worker and the supervisor talk

    def to_json(self) -> bytes:
        """Canonical, as the image's config blob holds it."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":")).encode()

    def text(self) -> str:
        """As people are told it."""
        return f"{self.interpreter} on {self.platform} (messages {self.messages})"

    @staticmethod
    def from_json(content: bytes) -> Abi:
        """Raises `SpecError` for anything else."""
        try:
            value = json.loads(content)
        except ValueError as error:
            raise SpecError(f"not JSON: {error}") from error
        return decode(Abi, value, "abi")


def host_abi() -> Abi:
    """What this interpreter, on this host, can run."""
    # The first suffix is the interpreter's own: ".cpython-311-x86_64-linux-gnu.so".
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    found = re.fullmatch(r"\.(cpython-\d+[a-z]*)-(.+)\.so", suffix)
    if found is None:
        raise ImageError(f"not a CPython on Linux: {suffix}")
    return Abi(interpreter=found[1], platform=found[2], messages=PROTOCOL)
