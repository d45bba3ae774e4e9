"""Which apps a config folder has, by the names of its files alone; nothing is opened or parsed."""

from __future__ import annotations

from pathlib import Path

from dataplane.model.names import APP_NAME, AppName

SUFFIX = ".yaml"


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
