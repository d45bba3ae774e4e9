"""Which apps a config folder has, by the names of its files alone; nothing is opened or parsed.

And what is told of them when all are built at once: by the builder, to whoever asked it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dataplane.model.errors import Finding
from dataplane.model.names import APP_NAME, AppName, Digest

SUFFIX = ".yaml"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltApp:
    """How it went with one app: an image, findings, or an error of the store."""

    app: AppName
    image: Digest | None = None
    findings: tuple[Finding, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All apps that have a file, by name; and what is wrong with the folder itself."""

    apps: tuple[BuiltApp, ...]
    findings: tuple[Finding, ...]

    def all_findings(self) -> tuple[Finding, ...]:
        """Those of the folder and of every app."""
        return (*self.findings, *(finding for one in self.apps for finding in one.findings))


def app_file(config_dir: Path, app: AppName) -> Path:
    """Where the app's config file is, if it is there."""
    return config_dir / "apps" / f"{app}{SUFFIX}"


def app_names(config_dir: Path) -> tuple[AppName, ...]:
    """The apps that have a file, sorted; none where the folder is missing or cannot be read."""
    try:
        files = sorted((config_dir / "apps").iterdir())
    except OSError:
        return ()
    return tuple(
        AppName(file.stem)
        for file in files
        if file.suffix == SUFFIX and APP_NAME.fullmatch(file.stem) is not None
    )
