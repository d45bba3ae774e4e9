"""A small third party, so that layers of unit tests are small: the real one has 14 MB."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.image import code
from dataplane.image.store import Store
from tests.unit.image.trees import make_package


@pytest.fixture
def package_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(code, "_THIRD_PARTY", ("_cffi_backend",))
    return make_package(tmp_path / "installed")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "state")
