"""A dataplane for each end-to-end test: real processes, real sockets, the seal always on."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dataplane import Dataplane
from tests.support.installation import copy_package
from tests.support.load import build_tools

# This process has the sanitiser by now, if it was told to. Commands never load the engine, zygotes
# get it in another way, and programs of others (curl, ps) may hang with it.
os.environ.pop("LD_PRELOAD", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these are slow by the suite's measure, and none may hang."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def load_tools() -> None:
    """The load generator and its upstream, up to date."""
    build_tools()


@pytest.fixture
def plane() -> Iterator[Dataplane]:
    """Folders of its own; what was started is ended, and nothing may be left of it."""
    # Short, since a socket's path may have 107 bytes only.
    folder = Path(tempfile.mkdtemp())
    made = Dataplane(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def installed() -> Iterator[Path]:
    """A copy of the package, as an installation that can be changed and taken away."""
    folder = Path(tempfile.mkdtemp())
    yield copy_package(folder)
    shutil.rmtree(folder)


@pytest.fixture
def apart(installed: Path) -> Iterator[Dataplane]:
    """A dataplane that runs from that copy."""
    folder = Path(tempfile.mkdtemp())
    made = Dataplane(
        folder,
        program=(sys.executable, "-m", "dataplane"),
        environment={"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)
