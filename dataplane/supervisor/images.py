"""Where a rollout's image comes from: built by a child process, or taken from the store.

The supervisor itself never reads a config file: the child is the installed version of
`dataplane build`, with the asker's folder and environment, and all it gives back is a digest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dataplane.image.abi import host_abi
from dataplane.image.apps import Batch
from dataplane.image.code import unpack_code
from dataplane.image.keys import Keys
from dataplane.image.listing import find_image
from dataplane.image.proofs import Proofs
from dataplane.image.signing import provenance_of
from dataplane.image.store import Image, Store
from dataplane.model.errors import ConfigError, Finding, ImageError, LaunchError
from dataplane.model.names import AppName, Digest
from dataplane.model.spec import SpecError, decode
from dataplane.system.process import OWN_COMMAND, run

BUILD_SECONDS: Final = 60.0
BUILD_ALL_SECONDS: Final = 300.0
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
        self._keys = Keys(state_dir)
        self._proofs = Proofs(self._store, self._keys)
        self._environment = {
            name: environment[name] for name in KEPT_VARIABLES if name in environment
        }
        self._build_command = tuple(build_command)

    @property
    def store(self) -> Store:
        """The store itself, for whoever only reads it."""
        return self._store

    async def build(self, app: AppName, config_dir: Path, environment: Mapping[str, str]) -> Digest:
        """Raises `ConfigError` with all findings, `ImageError`, or `LaunchError`."""
        return await self._build_one(app, ("--config", str(config_dir)), environment)

    async def _build_one(
        self, app: AppName, words: Sequence[str], environment: Mapping[str, str]
    ) -> Digest:
        finished = await run(
            (
                *self._build_command, "--app", app, *words,
                "--state-dir", str(self._state_dir), "--json",
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

    async def build_all(self, config_dir: Path, environment: Mapping[str, str]) -> Batch:
        """Of every app that has a file; what is wrong with one is told beside the others.

        Raises `ConfigError` for the folder as a whole, `ImageError`, or `LaunchError`.
        """
        finished = await run(
            (
                *self._build_command, "--all", "--known", "--config", str(config_dir),
                "--state-dir", str(self._state_dir), "--json",
            ),
            environment={**self._environment, **environment},
            folder=None,
            limit_seconds=BUILD_ALL_SECONDS,
        )  # fmt: skip
        told = _told(finished.output)
        if "apps" in told:
            try:
                batch = decode(Batch, told, "batch")
            except SpecError as error:
                raise LaunchError(f"the build spoke another language: {error}") from error
            for one in batch.apps:
                if one.image is None and one.error is None and not one.findings:
                    raise LaunchError(f"the build said nothing of {one.app}")
            return batch
        findings = _findings(told)
        if findings:
            raise ConfigError(findings)
        text = finished.errors.decode(errors="replace").strip()
        raise ImageError(text or f"the build of all apps ended with status {finished.status}")

    def image(self, app: AppName, digest: Digest) -> Image:
        """Raises `ImageError` for one that is not there, damaged, another app's, or not for us."""
        image = self._image_of(app, digest)
        if image.abi != host_abi():
            raise ImageError(
                f"{digest} was built for {image.abi.text()}, and this host is {host_abi().text()}; "
                f"build it again"
            )
        return image

    async def image_for_here(self, app: AppName, digest: Digest) -> Image:
        """As `image`, but one of another ABI is made anew, from its own config and today's code.

        Its signature must be good: the new one is signed by this host. Raises `ImageError`.
        """
        image = self._image_of(app, digest)
        if image.abi == host_abi():
            return image
        await asyncio.to_thread(self._proofs.prove_image, image)
        return self.image(app, await self._build_one(app, ("--rebuild", digest), {}))

    def _image_of(self, app: AppName, digest: Digest) -> Image:
        image = self._store.image(digest)
        if image.app != app:
            raise ImageError(f"{digest} is an image of the app {image.app}, not of {app}")
        return image

    def proven_image(self, app: AppName, digest: Digest) -> Image:
        """As `image`, of one that may start: its signature and all its blobs are good."""
        image = self.image(app, digest)
        self._proofs.prove_image(image)
        return image

    def provenance(self, digest: Digest) -> dict[str, Any] | None:
        """Where the image came from, as far as that is told, and which trusted key says so.

        For a thread: it reads files.
        """
        try:
            told = provenance_of(self._store, self._keys, digest)
        except ImageError:
            return None  # history is told of what is known; who starts the image is told why
        return None if told is None else {**dataclasses.asdict(told.provenance), "key": told.keyid}

    async def named(self, app: AppName, text: str) -> Digest:
        """The app's image whose digest begins so (`sha256:` or not). Raises `ImageError`."""
        return await asyncio.to_thread(find_image, self._store, text, app)

    async def unpack(self, image: Image) -> Path:
        """Where the image's code lies, once image and code are proven. Raises `ImageError`."""
        tree = self.tree(image)
        if not self.is_proven(image):
            await asyncio.to_thread(self._unpack_proven, image, tree)
        return tree

    def is_proven(self, image: Image) -> bool:
        """Whether the image, its signature and its unpacked code were proven and are unchanged."""
        return self._proofs.is_proven(image, self.tree(image))

    async def prove(self, image: Image) -> None:
        """Raises `ImageError` that says which blob, key or file is not what was signed."""
        await asyncio.to_thread(self._unpack_proven, image, self.tree(image))

    async def prove_tree(self, image: Image) -> None:
        """The image's unpacked code alone, which other images may share. Raises `ImageError`."""
        await asyncio.to_thread(self._unpack_tree, image, self.tree(image))

    def _unpack_proven(self, image: Image, tree: Path) -> None:
        self._proofs.prove_image(image)
        self._unpack_tree(image, tree)

    def _unpack_tree(self, image: Image, tree: Path) -> None:
        unpack_code(self._store, self._state_dir, image.code_layer)
        self._proofs.prove_tree(tree, image.code_layer)

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
