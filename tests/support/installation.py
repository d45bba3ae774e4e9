"""A copy of the package, as an installation of its own that a test may change or take away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import dataplane
from tests.support.dataplane import ROOT

# The engine's `server` field of answers that are its own, as the C library holds it.
_SERVER: Final = b"\0dataplane\0"


def copy_package(folder: Path) -> Path:
    """Copies the package below the folder: what PYTHONPATH has to name."""
    site = folder / "site-packages"
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dataplane", site / "dataplane", ignore=unwanted)
    return site


def change(path: Path, old: str, new: str) -> None:
    """Puts another text in the place of one that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def release(site: Path, version: str) -> None:
    """Has the copy say that it is another version, and change nothing else."""
    told = f'__version__ = "{dataplane.__version__}"'
    change(site / "dataplane" / "__init__.py", told, f'__version__ = "{version}"')


def fix_engine(site: Path, server: str) -> None:
    """A hot fix of the engine's own code that every client can see: it tells another `server`."""
    (library,) = (site / "dataplane" / "engine").glob("_native*.so")
    text = server.encode()
    assert len(text) == len(_SERVER) - 2
    content = library.read_bytes()
    assert content.count(_SERVER) == 1
    fixed = library.with_name("fixed")  # a new file: the old one may be mapped
    fixed.write_bytes(content.replace(_SERVER, b"\0" + text + b"\0"))
    fixed.rename(library)
