"""A log's file holds whole lines, whatever the disk does and whoever moves it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.supervisor.log_file import LogFile

LINES = b"one\ntwo\nthree\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "billing"


def make(folder: Path, rotate_bytes: int = 1 << 20, keep: int = 3) -> LogFile:
    return LogFile(str(folder), rotate_bytes, keep)


def append(file: LogFile, lines: bytes = LINES) -> None:
    """As the writer does: from a buffer that is larger than what is in it."""
    buffer = bytearray(len(lines) + 100)
    buffer[: len(lines)] = lines
    file.append(buffer, len(lines))


@contextlib.contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file of this process may grow beyond: what a full disk does to a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_lines_are_appended_to_what_is_there(folder: Path) -> None:
    file = make(folder)
    append(file)
    append(file)
    again = make(folder)
    append(again)
    assert (folder / "access.log").read_bytes() == LINES * 3
    assert (file.written, file.dropped, file.error) == (6, 0, None)
    assert (folder / "access.log").stat().st_mode & 0o777 == 0o640


def test_file_is_set_aside_before_it_grows_beyond_its_bound(folder: Path) -> None:
    file = make(folder, rotate_bytes=100, keep=2)
    for number in range(100):
        append(file, b"%05d of a line\n" % number)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["access.log", "access.log.1", "access.log.2"]
    assert all(path.stat().st_size <= 100 for path in folder.iterdir())
    kept = b"".join((folder / name).read_bytes() for name in reversed(names))
    numbers = [int(line.split()[0]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 100))
    assert file.written == 100


def test_one_batch_larger_than_a_file_fills_several(folder: Path) -> None:
    file = make(folder, rotate_bytes=64, keep=50)
    append(file, b"".join(b"%05d of a line\n" % number for number in range(50)))
    assert all(path.stat().st_size <= 64 for path in folder.iterdir())
    assert sum(path.read_bytes().count(b"\n") for path in folder.iterdir()) == file.written == 50


def test_line_longer_than_a_file_is_written_all_the_same(folder: Path) -> None:
    file = make(folder, rotate_bytes=10)
    append(file, b"x" * 50 + b"\n" + b"y" * 50 + b"\n")
    assert (folder / "access.log").read_bytes() == b"y" * 50 + b"\n"
    assert (folder / "access.log.1").read_bytes() == b"x" * 50 + b"\n"


def test_file_that_was_moved_or_removed_is_followed_by_a_new_one(folder: Path) -> None:
    file = make(folder)
    append(file)
    (folder / "access.log").rename(folder / "mine")
    append(file)
    (folder / "access.log").unlink()
    append(file)
    assert (folder / "mine").read_bytes() == (folder / "access.log").read_bytes() == LINES


def test_file_that_was_cut_short_in_place_goes_on(folder: Path) -> None:
    file = make(folder)
    append(file)
    os.truncate(folder / "access.log", 0)
    append(file)
    assert (folder / "access.log").read_bytes() == LINES


def test_full_disk_takes_whole_lines_and_the_rest_is_counted(folder: Path) -> None:
    file = make(folder)
    append(file)
    with full_at(len(LINES) + 6):
        append(file)
        assert (folder / "access.log").read_bytes() == LINES + b"one\n"
        assert (file.written, file.dropped) == (4, 2)
        assert file.error in ("EFBIG", "ENOSPC")
        append(file)
        assert file.dropped == 5
    append(file)
    assert (folder / "access.log").read_bytes() == LINES + b"one\n" + LINES
    assert file.error is None


def test_folder_that_cannot_be_made_drops_and_counts(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    file = make(tmp_path / "logs" / "billing")
    append(file)
    assert (file.dropped, file.error) == (3, "ENOTDIR")
    (tmp_path / "logs").unlink()
    append(file)
    assert (file.written, file.error) == (3, None)


@pytest.mark.parametrize(
    ("before", "after", "dropped"),
    [
        (b"one\ntwo\nthr", b"one\ntwo\n", 1),
        (b"torn from the start", b"", 1),
        (b"one\n", b"one\n", 0),
        (b"x" * 10_000, b"x" * 10_000 + b"\n", 0),
    ],
)
def test_line_that_a_killed_writer_left_torn_is_taken_back(
    folder: Path, before: bytes, after: bytes, dropped: int
) -> None:
    folder.mkdir(parents=True)
    (folder / "access.log").write_bytes(before)
    file = make(folder)
    append(file)
    assert (folder / "access.log").read_bytes() == after + LINES
    assert file.dropped == dropped


def test_line_that_another_writer_is_just_writing_is_left_alone(folder: Path) -> None:
    folder.mkdir(parents=True)
    with (folder / "access.log").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        other.write(b"half a li")
        other.flush()
        append(make(folder))
    assert (folder / "access.log").read_bytes() == b"half a li" + LINES


def test_file_is_no_link_to_another(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "access.log").symlink_to(tmp_path / "elsewhere")
    file = make(folder)
    append(file)
    assert file.error == "ELOOP"
    assert not (tmp_path / "elsewhere").exists()
