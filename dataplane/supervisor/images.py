"""Where a rollout's image comes from: built by a child process, or taken from the store.

The supervisor itself never reads a config file: the child is the installed version of
`dataplane build`, with the asker's folder and environment, and all it gives back is a digest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.image.abi import host_abi
from dataplane.image.code import unpack_code
from dataplane.image.store import Image, Store
from dataplane.model.errors import ConfigError, Finding, ImageError, LaunchError
from dataplane.model.names import AppName, Digest
from dataplane.model.spec import SpecError, decode
from dataplane.system.process import OWN_COMMAND, run

BUILD_SECONDS: Final = 60.0
# What a Python program needs to be found and to speak plainly; all else is the asker's.
KEPT_VARIABLES: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
)  # fmt: skip

BUILD_COMMAND: Final = (*OWN_COMMAND, "build")


class Images:
    """The store, and how to get an image into it."""

    def __init__(
        self,
        *,
        state_dir: Path,
        environment: Mapping[str, str],
        build_command: Sequence[str] = BUILD_COMMAND,
    ) -> None:
        """Raises `ImageError` where the store cannot be had."""
        self._state_dir = state_dir
        self._store = Store.open(state_dir)
        self._environment = {
            name: environment[name] for name in KEPT_VARIABLES if name in environment
        }
        self._build_command = tuple(build_command)

    async def build(self, app: AppName, config_dir: Path, environment: Mapping[str, str]) -> Digest:
        """Raises `ConfigError` with all findings, `ImageError`, or `LaunchError`."""
        finished = await run(
            (
                *self._build_command,
                "--app", app, "--config", str(config_dir), "--state-dir", str(self._state_dir),
                "--json",
            ),
            environment={**self._environment, **environment},
            folder=None,
            limit_seconds=BUILD_SECONDS,
        )  # fmt: skip
        told = _told(finished.output)
        if finished.status == 0 and isinstance(told.get("image"), str):
            return Digest(told["image"])
        findings = _findings(told)
        if findings:
            raise ConfigError(findings)
        text = finished.errors.decode(errors="replace").strip()
        raise ImageError(text or f"the build of {app} ended with status {finished.status}")

    def image(self, app: AppName, digest: Digest) -> Image:
        """Raises `ImageError` for one that is not there, damaged, another app's, or not for us."""
        image = self._store.image(digest)
        if image.app != app:
            raise ImageError(f"{digest} is an image of the app {image.app}, not of {app}")
        if image.abi != host_abi():
            raise ImageError(f"{digest} was built for another host: {image.abi}")
        return image

    async def unpack(self, image: Image) -> Path:
        """Where the image's code lies. Raises `ImageError`."""
        tree = self.tree(image)
        if tree.is_dir():
            return tree
        return await asyncio.to_thread(unpack_code, self._store, self._state_dir, image.code_layer)

    def tree(self, image: Image) -> Path:
        """Where the image's code lies once it is unpacked."""
        return self._state_dir / "code" / image.code_layer.removeprefix("sha256:")


def _told(output: bytes) -> dict[str, Any]:
    try:
        told = json.loads(output)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _findings(told: dict[str, Any]) -> tuple[Finding, ...]:
    found = told.get("findings")
    if not isinstance(found, list):
        return ()
    try:
        return tuple(decode(Finding, finding, "finding") for finding in found)
    except SpecError as error:
        raise LaunchError(f"the build spoke another language: {error}") from error
