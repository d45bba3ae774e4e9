"""History: what is written survives, what is torn is cut, what is missing is told."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dataplane.model.ledger import Ledger, Side
from dataplane.model.names import AppName, Digest, Generation
from dataplane.supervisor import history as module
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, Caller, Rollout, Wish
from dataplane.supervisor.history import (
    GENERATIONS,
    LINES,
    Entry,
    History,
    append,
    bounded,
    repair,
    served_before,
    shorten,
    with_gaps,
)
from dataplane.system.clock import SystemClock

APP = AppName("billing")


def image(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def entry(generation: int | None, outcome: str = "swapped", **more: Any) -> Entry:
    told: Entry = dict.fromkeys(("image", "code", "by", "asked", "error", "ledger", "provenance"))
    time = f"2026-11-22T18:00:{(generation or 0) % 60:02}.000Z"
    return {**told, "time": time, "outcome": outcome, "generation": generation, **more}


def line(generation: int | None, outcome: str = "swapped", **more: Any) -> bytes:
    return json.dumps(entry(generation, outcome, **more)).encode() + b"\n"


class Scene:
    """A history with its folder, and the names of the events it told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / f"{APP}.jsonl"
        self.lines: list[str] = []
        clock = SystemClock()
        self.events = Events(clock, self.lines.append)
        self.history = History(folder, clock=clock, events=self.events)
        self.history.repair()

    def fail(self, text: str = "no such luck") -> None:
        """A rollout that fails before it has a generation."""
        rolling = Rollout(app=App(name=APP), wish=Wish(verb="swap", caller=Caller(uid=0, pid=7)))
        ledger = Ledger(app=APP, outcome="failed", before=None, after=None, error=text)
        self.history.ended(rolling, ledger)

    def run(self, *steps: Callable[[], Awaitable[Any] | None]) -> None:
        """The steps, one after the other, while `keep` runs."""

        async def whole() -> None:
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(self.history.keep())
                for step in steps:
                    waits = step()
                    if waits is not None:
                        await waits
                keeping.cancel()

        asyncio.run(whole())

    def told(self, name: str) -> int:
        return sum(f" {name} " in f"{line} " for line in self.lines)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "history")


def test_what_ended_is_on_disk_when_saved_returns_with_who_asked(scene: Scene) -> None:
    scene.run(scene.fail, scene.history.saved, lambda: None)
    (written,) = map(json.loads, scene.path.read_bytes().splitlines())
    assert (written["outcome"], written["error"]) == ("failed", "no such luck")
    assert written["by"] == {"uid": 0, "pid": 7, "user": "root"}
    assert written["asked"] == "swap"
    assert scene.path.stat().st_mode & 0o777 == 0o600


def test_rollout_that_changed_nothing_leaves_no_line(scene: Scene) -> None:
    side = Side(generation=Generation(1), image=image(1))
    same = Ledger(app=APP, outcome="unchanged", before=side, after=side)
    rolling = Rollout(app=App(name=APP), wish=Wish())
    scene.run(lambda: scene.history.ended(rolling, same), scene.history.saved)
    assert not scene.path.exists()


@pytest.mark.parametrize("torn", [b'{"time": "2026', b"\0" * 40, b"[]", b"{}"])
def test_torn_last_write_is_cut_and_told_and_the_rest_kept(tmp_path: Path, torn: bytes) -> None:
    folder = tmp_path / "history"
    folder.mkdir()
    (folder / f"{APP}.jsonl").write_bytes(line(1) + line(2) + torn)
    scene = Scene(folder)
    assert scene.path.read_bytes() == line(1) + line(2)
    assert scene.told("history.repaired") == 1
    assert f"bytes_cut={len(torn)}" in scene.lines[-1]


def test_last_line_that_lacks_its_end_alone_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "billing.jsonl"
    path.write_bytes(line(1) + line(2)[:-1])
    assert repair(path) == 0
    assert path.read_bytes() == line(1) + line(2)


@pytest.mark.parametrize("content", [b"", line(1), line(1) + line(2)])
def test_whole_file_is_left_alone_by_repair(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "billing.jsonl"
    path.write_bytes(content)
    assert repair(path) == 0
    assert path.read_bytes() == content


def test_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    path = tmp_path / "billing.jsonl"
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        append(path, line(1))
    assert (tmp_path / "other").read_bytes() == b"other"


def test_full_disk_is_told_once_stops_nothing_and_what_happened_is_written_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.path.write_bytes(line(None, "failed", error="before"))
    before = scene.path.read_bytes()
    real = os.write

    def half(fd: int, data: bytes | memoryview) -> int:
        """A disk that takes ten bytes more."""
        size = os.fstat(fd).st_size
        if size >= len(before) + 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, bytes(data)[:10])

    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)

    def space() -> None:
        assert scene.path.read_bytes() == before  # not even half a line
        monkeypatch.setattr(os, "write", real)

    scene.run(
        lambda: monkeypatch.setattr(os, "write", half),
        lambda: scene.fail("while full"),
        scene.history.saved,
        lambda: scene.fail("while full, again"),
        scene.history.saved,
        space,
        lambda: scene.fail("with space"),
        scene.history.saved,
    )
    errors = [json.loads(line)["error"] for line in scene.path.read_bytes().splitlines()]
    assert errors == ["before", "while full", "while full, again", "with space"]
    assert scene.told("history.not_written") == 1
    assert scene.told("history.written_again") == 1


def test_what_the_disk_refused_is_told_to_whoever_asks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    seen: list[Entry] = []

    async def look() -> None:
        seen.extend(await scene.history.entries(APP, last_generation=2))

    monkeypatch.setattr(os, "write", full)
    scene.run(lambda: scene.fail("while full"), scene.history.saved, look)
    assert [one["outcome"] for one in seen] == ["failed", "not recorded"]
    assert seen[-1]["generations"] == [1, 2]


def test_file_that_grew_too_long_is_cut_to_the_last_generations(scene: Scene) -> None:
    scene.path.write_bytes(b"".join(line(number) for number in range(1, LINES + 1)))
    scene.run(scene.fail, scene.history.saved)
    kept = [json.loads(line) for line in scene.path.read_bytes().splitlines()]
    numbers = [one["generation"] for one in kept]
    assert numbers == [*range(LINES - GENERATIONS + 1, LINES + 1), None]
    assert [path.name for path in scene.folder.iterdir()] == [scene.path.name]


def test_crash_loops_and_broken_builds_push_no_generation_out() -> None:
    entries = [entry(1)] + [entry(1, "restarted")] * 500 + [entry(None, "failed")] * 500
    kept = bounded(entries)
    assert kept[0] == entry(1)
    assert len(kept) == 1 + GENERATIONS


def test_shortening_drops_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "billing.jsonl"
    path.write_bytes(line(1) + b'{"outcome": 3}\n' + b"\0\n" + line(2))
    assert shorten(path) == 2
    assert [json.loads(one)["generation"] for one in path.read_bytes().splitlines()] == [1, 2]


def told(entries: list[Entry], last: int) -> list[Any]:
    return [one.get("generations") or one["generation"] for one in with_gaps(entries, last)]


def test_generations_that_are_missing_are_told() -> None:
    entries = [entry(2), entry(2, "restarted"), entry(5), entry(None, "failed"), entry(6)]
    assert told(entries, 8) == [[1, 1], 2, 2, [3, 4], 5, None, 6, [7, 8]]
    assert told([], 3) == [[1, 3]]
    assert told([], 0) == []


def test_generations_that_end_in_another_order_are_no_gap() -> None:
    assert told([entry(1), entry(3), entry(2)], 3) == [1, 3, 2]


def test_generations_that_were_let_go_are_no_gap() -> None:
    entries = [entry(number) for number in range(51, 51 + GENERATIONS)]
    assert told(entries, 50 + GENERATIONS) == list(range(51, 51 + GENERATIONS))


def test_rollback_goes_to_the_last_other_image_that_served() -> None:
    entries = [
        entry(1, "first start", image=image(1)),
        entry(2, "swapped", image=image(2)),
        entry(3, "swapped", image=image(3)),
        entry(4, "failed", image=image(4)),
        entry(5, "swapped", image=image(3)),  # by force: no step back
        entry(5, "restarted", image=image(3)),
    ]
    assert served_before(entries, image(3)) == image(2)
    assert served_before(entries, image(9)) == image(3)
    assert served_before(entries[:1], image(1)) is None
