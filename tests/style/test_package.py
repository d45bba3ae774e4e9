"""The package that others install: complete, and made of its sources alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
IN_A_SOURCE_TREE: Final = ("dataplane", "native", "pyproject.toml", "README.md", "LICENSE")


def copy_tree(target: Path) -> Path:
    target.mkdir()
    for name in IN_A_SOURCE_TREE:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("*.so", "__pycache__", "build")
            shutil.copytree(ROOT / name, target / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def build_package(source: Path, kind: str) -> Path:
    """Calls the build backend as pip does, in a process of its own; kind is wheel or sdist."""
    call = f"import setuptools.build_meta as b; print(b.build_{kind}('dist'))"
    unset = ("CC", "CFLAGS", "LDFLAGS", "DATAPLANE_WERROR", "DATAPLANE_SANITIZE")
    (source / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", call],
        cwd=source,
        env={name: value for name, value in os.environ.items() if name not in unset},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


def library_digest(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith("_native.abi3.so")]
        return hashlib.sha256(packed.read(name)).hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_same_sources_in_another_folder_give_the_same_library(tmp_path: Path) -> None:
    first = build_package(copy_tree(tmp_path / "first"), "wheel")
    second = build_package(copy_tree(tmp_path / "a-longer-second-name"), "wheel")
    assert first.name == second.name
    assert "-cp311-abi3-linux_" in first.name
    assert library_digest(first) == library_digest(second)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_load_generator_is_in_the_package_and_may_be_run(tmp_path: Path) -> None:
    wheel = build_package(copy_tree(tmp_path / "tree"), "wheel")
    with zipfile.ZipFile(wheel) as packed:
        mode = packed.getinfo("dataplane/cli/dp_load").external_attr >> 16
    assert mode & 0o111 == 0o111


@pytest.mark.slow
def test_source_distribution_carries_the_c_sources(tmp_path: Path) -> None:
    packed = build_package(copy_tree(tmp_path / "tree"), "sdist")
    with tarfile.open(packed) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    native = {
        f"native/{path.relative_to(ROOT / 'native')}"
        for folder in ("include", "src", "load")
        for path in (ROOT / "native" / folder).glob("*.[ch]")
    }
    assert native
    assert native <= names
    assert {"LICENSE", "README.md", "dataplane/cli/main.py"} <= names
