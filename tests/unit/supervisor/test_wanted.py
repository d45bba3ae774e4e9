"""apps.json: what is wanted survives, and what is damaged is refused, never overwritten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.model.errors import ControlError
from dataplane.model.names import AppName, Digest
from dataplane.supervisor.events import Events
from dataplane.supervisor.wanted import BEFORE_IMAGES, Wanted
from dataplane.system.clock import SystemClock

APP = AppName("billing")


def image(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def wanted(path: Path, lines: list[str] | None = None) -> Wanted:
    told: list[str] = [] if lines is None else lines
    return Wanted(path, Events(SystemClock(), told.append))


def keep(entries: Wanted, *changes: Callable[[], None]) -> None:
    """Makes each change while `keep` runs, and waits until it is saved."""

    async def whole() -> None:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(entries.keep())
            for change in changes:
                change()
                await entries.saved()
            keeping.cancel()

    asyncio.run(whole())


def test_entries_survive(tmp_path: Path) -> None:
    path = tmp_path / "apps.json"
    entries = wanted(path)

    def change() -> None:
        assert entries.next_generation(APP) == 1
        entries.serves(APP, image(1))
        assert entries.next_generation(APP) == 2
        entries.serves(APP, image(2))
        entries.stopped(APP)

    keep(entries, change)
    again = wanted(path).app(APP)
    assert (again.image, again.before, again.generation, again.stopped) == (
        image(2), (image(1),), 2, True,
    )  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_served_before_is_remembered_and_bounded(tmp_path: Path) -> None:
    entries = wanted(tmp_path / "apps.json")
    for number in range(20):
        entries.serves(APP, image(number))
        entries.serves(APP, image(number))  # a forced swap of the same image is no step back
    assert entries.app(APP).before == tuple(
        image(number) for number in range(19 - BEFORE_IMAGES, 19)
    )


def test_recall_undoes_the_step(tmp_path: Path) -> None:
    entries = wanted(tmp_path / "apps.json")
    entries.serves(APP, image(1))
    entries.serves(APP, image(2))
    entries.recalled(APP, image(1))
    assert (entries.app(APP).image, entries.app(APP).before) == (image(1), ())


def test_serving_again_ends_being_stopped(tmp_path: Path) -> None:
    entries = wanted(tmp_path / "apps.json")
    entries.stopped(APP)
    assert entries.app(APP).stopped
    entries.serves(APP, image(1))
    assert not entries.app(APP).stopped


def test_generation_that_is_known_to_have_been_is_not_given_again(tmp_path: Path) -> None:
    entries = wanted(tmp_path / "apps.json")
    entries.used_generation(APP, 41)
    entries.used_generation(APP, 7)
    assert entries.next_generation(APP) == 42


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "apps": {}}',
        json.dumps({"version": 1, "apps": {"a": {"image": 3}}}).encode(),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "apps.json"
    path.write_bytes(content)
    with pytest.raises(ControlError, match=r"apps\.json"):
        wanted(path)
    assert path.read_bytes() == content


def test_disk_that_fails_is_told_and_stops_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    entries = wanted(tmp_path / "missing" / "apps.json", lines)
    keep(entries, lambda: entries.serves(APP, image(1)))
    assert any("state.not_written" in line for line in lines)
    assert entries.app(APP).image == image(1)


def test_what_changes_nothing_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "apps.json"
    entries = wanted(path)
    addresses = (("a.example", ("192.0.2.1",)),)
    files: list[int] = []  # each write is a new file in its place

    def serves() -> None:
        entries.serves(APP, image(1), addresses)

    def again() -> None:
        files.append(path.stat().st_ino)
        serves()
        entries.recalled(APP, image(1), addresses)
        entries.used_generation(APP, 0)

    def other() -> None:
        files.append(path.stat().st_ino)
        entries.recalled(APP, image(1))

    keep(entries, serves, again, other)
    assert files[0] == files[1] != path.stat().st_ino
    assert wanted(path).app(APP).addresses == ()


def test_what_could_not_be_written_is_tried_again_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "state" / "apps.json"
    entries = wanted(path)

    def again() -> None:
        assert not path.exists()
        path.parent.mkdir()
        entries.stopped(APP)

    keep(entries, lambda: entries.stopped(APP), again)
    assert wanted(path).app(APP).stopped
