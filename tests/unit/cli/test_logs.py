"""`logs` reads whole lines, the last ones first to last, over files that were set aside."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dataplane.cli.logs import _Log, run_logs
from dataplane.model.errors import ControlError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "logs" / "billing"
    made.mkdir(parents=True)
    return made


def fill(folder: Path, *files: range) -> None:
    """The newest last, as access.log; those before it as .1, .2 and so on."""
    for age, numbers in enumerate(reversed(files)):
        name = "access.log" if age == 0 else f"access.log.{age}"
        (folder / name).write_bytes(b"".join(b"%d\n" % number for number in numbers))


def numbers(lines: list[bytes]) -> list[int]:
    return [int(line) for line in lines]


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6, 11, 12, 100])
def test_the_last_lines_of_all_files(folder: Path, count: int) -> None:
    fill(folder, range(3), range(3, 9), range(9, 12))
    assert numbers(_Log(folder).last(count)) == list(range(12))[12 - min(count, 12) :]


def test_lines_that_span_many_blocks(folder: Path) -> None:
    fill(folder, range(60_000))
    assert numbers(_Log(folder).last(50_000)) == list(range(10_000, 60_000))


def test_what_comes_later_is_read_once_whole(folder: Path) -> None:
    fill(folder, range(2))
    log = _Log(folder)
    log.last(10)
    with (folder / "access.log").open("ab") as file:
        file.write(b"2\n3")
        file.flush()
        assert numbers(list(log.more())) == [2]
        file.write(b"3\n4\n")
    assert numbers(list(log.more())) == [33, 4]
    assert list(log.more()) == []


def test_a_line_that_is_half_there_is_not_among_the_last(folder: Path) -> None:
    (folder / "access.log").write_bytes(b"1\n2")
    log = _Log(folder)
    assert numbers(log.last(10)) == [1]
    with (folder / "access.log").open("ab") as file:
        file.write(b"2\n")
    assert numbers(list(log.more())) == [22]


def rotate(folder: Path, *more: int) -> None:
    for age in range(9, 0, -1):
        old = folder / f"access.log.{age}"
        if old.exists():
            old.rename(folder / f"access.log.{age + 1}")
    (folder / "access.log").rename(folder / "access.log.1")
    (folder / "access.log").write_bytes(b"".join(b"%d\n" % number for number in more))


@pytest.mark.parametrize("rotations", [1, 2, 4])
def test_following_goes_through_every_file_that_was_set_aside(folder: Path, rotations: int) -> None:
    fill(folder, range(2))
    log = _Log(folder)
    log.last(10)
    with (folder / "access.log").open("ab") as file:
        file.write(b"2\n")
    for number in range(3, 3 + rotations):
        rotate(folder, number)
    assert numbers(list(log.more())) == list(range(2, 3 + rotations))
    assert list(log.more()) == []


def test_file_that_was_cut_short_is_read_from_its_start(folder: Path) -> None:
    fill(folder, range(100, 110))
    log = _Log(folder)
    log.last(1)
    (folder / "access.log").write_bytes(b"1\n")
    assert numbers(list(log.more())) == [1]


def asked(tmp_path: Path, **more: object) -> argparse.Namespace:
    given = {
        "app": "billing", "follow": False, "lines": 10, "json": False, "config": None,
        "run_dir": None, "state_dir": str(tmp_path), **more,
    }  # fmt: skip
    return argparse.Namespace(**given)


def test_nothing_reaches_a_terminal_raw(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "access.log").write_bytes(b"\x1b[2J\x80 x\n")
    assert run_logs(asked(tmp_path)) == 0
    assert capsys.readouterr().out == "\\x1b[2J\\x80 x\n"


def test_lines_that_are_no_objects_become_some(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "access.log").write_bytes(b'127.0.0.1 - "x"\n{"a":1}\n')
    assert run_logs(asked(tmp_path, json=True)) == 0
    assert capsys.readouterr().out.splitlines() == ['{"line": "127.0.0.1 - \\"x\\""}', '{"a":1}']


def test_no_log_is_told_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"access_log: \{format: json\}"):
        run_logs(asked(tmp_path))
