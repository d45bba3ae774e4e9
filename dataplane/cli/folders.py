"""What commands have in common: their folders (by flag, environment, default) and apps' names.

The command line is the only place that reads the environment for settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from dataplane.model.names import APP_NAME, AppName


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The three folders, absolute. None of them need exist."""

    config: Path
    run: Path
    state: Path


def find_folders(args: argparse.Namespace) -> Folders:
    """The folders that the flags, the environment or the defaults name."""
    return Folders(
        config=_folder(args.config, "DATAPLANE_CONFIG") or _default_config(),
        run=_folder(args.run_dir, "DATAPLANE_RUN_DIR")
        or _default("/run", "XDG_RUNTIME_DIR", Path.home() / ".local" / "run"),
        state=_folder(args.state_dir, "DATAPLANE_STATE_DIR")
        or _default("/var/lib", "XDG_STATE_HOME", Path.home() / ".local" / "state"),
    )


def _folder(flag: str | Path | None, variable: str) -> Path | None:
    told = flag or os.environ.get(variable)
    return Path(told).absolute() if told else None


def _default_config() -> Path:
    here = Path("configs")
    if here.is_dir():
        return here.absolute()
    if os.getuid() == 0:
        return Path("/etc/dataplane")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dataplane"


def _default(root: str, variable: str, fallback: Path) -> Path:
    if os.getuid() == 0:
        return Path(root) / "dataplane"
    return Path(os.environ.get(variable) or fallback) / "dataplane"


def app_name(text: str) -> AppName:
    """As the `type` of an argument: what no app can be called is wrong usage."""
    if APP_NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an app's name: lower-case letters, digits and hyphens"
        )
    return AppName(text)
