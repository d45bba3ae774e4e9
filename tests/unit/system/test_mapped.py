"""A mapped file that is replaced on disk is noticed; all else is not."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from dataplane.system.mapped import MappedFiles


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "lib with blank.so"
    path.write_bytes(b"x" * mmap.PAGESIZE)
    return path


@pytest.fixture
def mapped(library: Path) -> MappedFiles:
    """Of a process that has the library mapped; ours stays so for the fixture alone."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        return MappedFiles()


def test_nothing_changed_is_nothing_told(mapped: MappedFiles) -> None:
    assert mapped.changed() == ()


def test_a_replaced_file_is_told(mapped: MappedFiles, library: Path) -> None:
    other = library.with_suffix(".new")
    other.write_bytes(library.read_bytes())
    other.rename(library)
    assert mapped.changed() == (str(library),)


def test_a_removed_file_is_told(mapped: MappedFiles, library: Path) -> None:
    library.unlink()
    assert mapped.changed() == (str(library),)


def test_a_file_written_in_place_is_told(mapped: MappedFiles, library: Path) -> None:
    os.utime(library, ns=(1, 1))
    assert mapped.changed() == (str(library),)
