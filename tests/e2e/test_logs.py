"""The access log, from a request to `dataplane logs`: whole, rotated, and in nobody's way."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.dataplane import (
    APP,
    SECONDS,
    Dataplane,
    Json,
    app_config,
    children,
    eventually,
    process_name,
    tcp_config,
    wait_gone,
)
from tests.support.origin import Origin, answering
from tests.support.wire import Wire

JSON_LOG: Final[Json] = {"access_log": {"format": "json"}}


def log_path(plane: Dataplane) -> Path:
    return plane.state_dir / "logs" / APP / "access.log"


def entries(plane: Dataplane, count: int) -> list[Json]:
    """Of all files, oldest first, once there are that many lines."""
    log = log_path(plane)

    def read() -> list[bytes]:
        files = sorted(log.parent.glob("access.log.*"), key=lambda path: -int(path.suffix[1:]))
        content = b"".join(path.read_bytes() for path in (*files, log) if path.exists())
        return content.splitlines()

    eventually(lambda: len(read()) >= count)
    lines = read()
    assert len(lines) == count
    return [json.loads(line) for line in lines]


def ask(plane: Dataplane, count: int, path: str = "/") -> None:
    """So many requests on one connection."""
    with Wire.connect(plane.address()) as client:
        for number in range(count):
            assert client.get(f"{path}?{number}").status == 200


def numbers(lines: list[Json]) -> list[int]:
    return [int(line["path"].partition("?")[2]) for line in lines]


def writer_pid(plane: Dataplane) -> int:
    """The log writer's, once it is there."""

    def find() -> int | None:
        return next((pid for pid in children(plane.pid) if process_name(pid) == "dp:log"), None)

    return eventually(find)


def start(plane: Dataplane, **more: Any) -> None:
    config: Json = {**JSON_LOG, **more}
    plane.configure(app_config(**config))
    plane.start()


def test_each_request_is_told_by_one_line_and_logs_prints_the_last(plane: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        plane.configure(app_config(origin.port, **JSON_LOG))
        plane.start()
        ask(plane, 12)
    lines = entries(plane, 12)
    assert numbers(lines) == list(range(12))
    digest = plane.report()["wanted"].removeprefix("sha256:")[:12]
    assert {(line["generation"], line["image"], line["upstream"]) for line in lines} == {
        (1, digest, "api")
    }
    printed = plane.cli("logs", "--app", APP).out.splitlines()
    assert [json.loads(line) for line in printed] == lines[-10:]
    assert len(plane.cli("logs", "--app", APP, "-n", "3", "--json").out.splitlines()) == 3
    assert plane.metric("dataplane_access_log_lines_total") == 12
    assert plane.metric("dataplane_access_log_dropped_total") == 0
    plane.signal(signal.SIGTERM)
    assert plane.wait_end() == 0
    assert len(plane.cli("logs", "--app", APP, "-n", "100").out.splitlines()) == 12


def test_an_app_without_a_log_starts_no_writer_and_says_so(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    ask(plane, 1)
    told = plane.cli("logs", "--app", APP, code=1)
    assert "access_log: {format: json}" in told.err
    assert not log_path(plane).parent.parent.exists()
    assert "dp:log" not in map(process_name, children(plane.pid))


def test_combined_and_tcp_are_logged_too(plane: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        plane.configure(tcp_config(origin.port, access_log={"format": "combined"}))
        plane.start()
        ask(plane, 1)
    log = log_path(plane)
    eventually(lambda: log.exists() and log.read_text())
    assert log.read_text().startswith("127.0.0.1 - - [")
    (line,) = plane.cli("logs", "--app", APP, "--json").out.splitlines()
    assert json.loads(line)["line"] + "\n" == log.read_text()


@contextlib.contextmanager
def following(plane: Dataplane, *words: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        plane.command("logs", "--app", APP, "-f", *words), stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def lines_of(child: subprocess.Popen[str], count: int) -> list[Json]:
    assert child.stdout is not None
    lines: list[Json] = []
    rest = b""
    while len(lines) < count:
        assert select.select([child.stdout], [], [], SECONDS)[0], f"{len(lines)} of {count} came"
        # Not through the buffer of a file: what is in that would not be selected.
        came = os.read(child.stdout.fileno(), 1 << 20)
        assert came, f"it ended after {len(lines)} of {count}"
        *whole, rest = (rest + came).split(b"\n")
        lines += map(json.loads, whole)
    return lines


def test_following_goes_on_over_rotations_and_loses_no_line(plane: Dataplane) -> None:
    start(plane, access_log={"format": "json", "rotate": "64KiB", "keep": 20})
    with following(plane, "-n", "1000") as child:
        ask(plane, 1)
        lines_of(child, 1)
        ask(plane, 300, "/" + "x" * 1000)
        assert numbers(lines_of(child, 300)) == list(range(300))
    aside = list(log_path(plane).parent.glob("access.log.*"))
    assert 4 < len(aside) <= 20
    assert all(path.stat().st_size <= 64 << 10 for path in aside)


def test_following_misses_no_file_while_others_are_set_aside(plane: Dataplane) -> None:
    """The older ones are moved first, so that one number lacks for a moment."""
    log = log_path(plane)
    log.parent.mkdir(parents=True)

    def aside(number: int) -> Path:
        return log.with_name(f"{log.name}.{number}")

    log.write_text('{"path": "/?0"}\n')
    with following(plane) as child:
        assert numbers(lines_of(child, 1)) == [0]
        child.send_signal(signal.SIGSTOP)
        log.rename(aside(3))
        aside(2).write_text('{"path": "/?1"}\n')
        log.write_text('{"path": "/?2"}\n')
        child.send_signal(signal.SIGCONT)
        assert numbers(lines_of(child, 2)) == [1, 2]


def test_following_may_begin_before_there_is_a_log(plane: Dataplane) -> None:
    with following(plane) as child:
        start(plane)
        ask(plane, 3)
        assert numbers(lines_of(child, 3)) == [0, 1, 2]


def test_only_so_many_files_are_kept(plane: Dataplane) -> None:
    start(plane, access_log={"format": "json", "rotate": "64KiB", "keep": 2})
    ask(plane, 300, "/" + "x" * 1400)
    log = log_path(plane)
    eventually(lambda: log.exists() and b"?299" in log.read_bytes())
    names = sorted(path.name for path in log_path(plane).parent.iterdir())
    assert names == ["access.log", "access.log.1", "access.log.2"]


def test_usr1_opens_the_files_anew(plane: Dataplane) -> None:
    start(plane)
    ask(plane, 1)
    entries(plane, 1)
    log_path(plane).rename(log_path(plane).with_name("mine"))
    plane.signal(signal.SIGUSR1)
    plane.event("log.reopened")
    ask(plane, 2)
    entries(plane, 2)
    assert log_path(plane).with_name("mine").read_text().count("\n") == 1


def test_a_killed_writer_is_back_at_once_and_reads_on(plane: Dataplane) -> None:
    start(plane)
    ask(plane, 10)
    entries(plane, 10)
    killed = writer_pid(plane)
    os.kill(killed, signal.SIGSTOP)  # so that it holds nothing when it dies
    ask(plane, 50)
    os.kill(killed, signal.SIGKILL)
    wait_gone(killed)
    ask(plane, 20)
    lines = entries(plane, 80)
    assert numbers(lines) == [*range(10), *range(50), *range(20)]
    assert plane.event("log.writer_ended")["pid"] == killed
    assert writer_pid(plane) != killed


def test_a_full_disk_stops_nobody_and_is_told_once(plane: Dataplane) -> None:
    start(plane)
    ask(plane, 3)
    entries(plane, 3)
    pid = writer_pid(plane)
    whole = log_path(plane).read_bytes()
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (len(whole) + 100, limits[1]))
    for _ in range(3):
        ask(plane, 5)
    told = plane.event("log.failing")
    assert (told["app"], told["error"]) in ((APP, "ENOSPC"), (APP, "EFBIG"))
    # All of them, before there is room again: what has not been read by then would be written.
    eventually(lambda: plane.metric("dataplane_access_log_dropped_total") == 15)
    assert log_path(plane).read_bytes() == whole
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    ask(plane, 1)
    plane.event("log.resumed")
    entries(plane, 4)
    assert plane.metric("dataplane_access_log_dropped_total") == 15
    failing = [
        event
        for event in map(json.loads, plane.cli("events", "--json").out.splitlines())
        if event["event"] == "log.failing"
    ]
    assert len(failing) == 1


def test_a_writer_that_hangs_costs_lines_and_no_request(plane: Dataplane) -> None:
    start(plane)
    ask(plane, 1)
    pid = writer_pid(plane)
    entries(plane, 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        ask(plane, 1200, "/" + "x" * 1400)
        told = plane.event("log.dropped")
        assert told["lines"] > 0
    finally:
        os.kill(pid, signal.SIGCONT)
    dropped = int(plane.metric("dataplane_access_log_dropped_total"))
    assert 0 < dropped < 1200
    lines = entries(plane, 1201 - dropped)
    assert [line["status"] for line in lines] == [200] * len(lines)


def test_lines_are_written_on_when_the_supervisor_is_killed(plane: Dataplane) -> None:
    start(plane)
    address, writer, worker = plane.address(), writer_pid(plane), plane.worker_pid()
    plane.signal(signal.SIGKILL)
    plane.wait_end()
    with Wire.connect(address) as client:
        for number in range(5):
            assert client.get(f"/?{number}").status == 200
    assert numbers(entries(plane, 5)) == list(range(5))
    plane.cli("down")
    wait_gone(worker)
    wait_gone(writer)


@pytest.mark.parametrize("workers", [1, 2])
def test_swaps_cost_no_line(plane: Dataplane, workers: int) -> None:
    start(plane, workers=workers)
    for generation in range(1, 6):
        ask(plane, 20)
        with Wire.connect(plane.address()) as client:
            client.get("/?20")
            ledger = plane.swap(force=True)
            assert client.get("/?21").status == 200
        assert ledger["to"]["generation"] == generation + 1
    lines = entries(plane, 5 * 22)
    assert len({line["request_id"] for line in lines}) == len(lines)
    assert {line["generation"] for line in lines} == set(range(1, 7))


# --- top ---------------------------------------------------------------------------------------


def test_top_shows_what_each_app_does(plane: Dataplane) -> None:
    start(plane)
    shown = plane.later(plane.cli, "top", "--interval", "1.5", "-n", "2", "--json")
    while not shown.done():
        ask(plane, 20)
    looks = [json.loads(line)["apps"] for line in shown.result().out.splitlines()]
    assert len(looks) == 2
    ((row,), _) = looks
    assert row["app"] == APP
    assert row["requests_per_second"] > 0
    assert 0 < row["p50_seconds"] <= row["p99_seconds"] < 5
    assert row["memory_bytes"] > 0
    text = plane.cli("top", "--interval", "0.1", "-n", "1").out
    assert text.split()[:4] == ["APP", "REQ/S", "ERR/S", "P50"]
    assert "\x1b" not in text
