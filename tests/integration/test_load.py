"""The load generator notices everything: what it calls "0 failed" is worth as much as these tests.

Run against its own upstream server, which answers exactly, or wrongly in exactly one way.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
LOAD: Final = ROOT / "benchmarks" / "build" / "dp_load"
UPSTREAM: Final = ROOT / "benchmarks" / "build" / "dp_upstream"

Report = dict[str, Any]
Serve = Callable[..., "Served"]


class Served:
    """A dp_upstream that runs, and what it counted once it has ended."""

    def __init__(self, *options: str) -> None:
        self.child = subprocess.Popen(
            [UPSTREAM, "--end-with-parent", *options], stdout=subprocess.PIPE, text=True
        )
        assert self.child.stdout is not None
        self.out = self.child.stdout
        told = json.loads(self.out.readline())
        host = told["listen"].rpartition(":")[0]
        self.address = f"{host}:{told['port']}"

    def end(self) -> Report:
        """Ends it: its counters."""
        self.child.send_signal(signal.SIGTERM)
        counted: Report = json.loads(self.out.readline())
        self.close()
        return counted

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.terminate()
        assert self.child.wait(10) == 0
        self.out.close()


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """Both programs, up to date."""
    subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT / "benchmarks" / "load")],
        check=True,
        capture_output=True,
        timeout=50,
    )


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[Served] = []

    def start(*options: str) -> Served:
        started.append(Served(*options))
        return started[-1]

    yield start
    for served in started:
        if not served.out.closed:
            served.close()


def load(address: str, *options: str, code: int = 0) -> Report:
    """A whole run of dp_load: its report, the exit code being the expected one."""
    ran = subprocess.run(
        [LOAD, "--address", address, *options],
        capture_output=True,
        text=True,
        timeout=40,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    report: Report = json.loads(ran.stdout.splitlines()[-1])
    return report


def test_kept_connections_are_opened_once_and_every_answer_is_counted(serve: Serve) -> None:
    upstream = serve()
    words = ("--requests", "2000", "--connections", "8", "--headers", "browser", "--verify-body")
    report = load(upstream.address, *words, "--expect-length", "128")
    assert (report["ok"], report["failed"], report["connects"]) == (2000, 0, 8)
    assert report["open_at_end"] == 8
    assert report["bytes_in"] == 2000 * 128
    assert 0 < report["latency_us"]["p50"] <= report["latency_us"]["max"]
    counted = upstream.end()
    assert (counted["accepts"], counted["requests"]) == (8, 2000)


def test_a_connection_per_request_is_one_connection_per_request(serve: Serve) -> None:
    upstream = serve()
    words = ("--mode", "per-request", "--requests", "300", "--connections", "4", "--verify-body")
    report = load(upstream.address, *words)
    assert (report["ok"], report["failed"], report["connects"]) == (300, 0, 300)
    assert upstream.end()["accepts"] == 300


@pytest.mark.parametrize(
    ("path", "length"), [("/b/300000", 300000), ("/c/300000", 300000), ("/c/0", 0), ("/b/0", 0)]
)
def test_bodies_are_read_to_the_last_byte(serve: Serve, path: str, length: int) -> None:
    words = ("--requests", "20", "--connections", "2", "--path", path, "--verify-body")
    report = load(serve().address, *words, "--expect-length", str(length))
    assert (report["ok"], report["bytes_in"]) == (20, 20 * length)


def test_a_body_until_close_is_read_to_its_end(serve: Serve) -> None:
    words = ("--mode", "per-request", "--requests", "6", "--path", "/u/200000", "--verify-body")
    report = load(serve().address, *words, "--expect-length", "200000")
    assert (report["ok"], report["failed"]) == (6, 0)


@pytest.mark.parametrize("framing", [(), ("--body-chunked",)], ids=["length", "chunked"])
def test_request_bodies_arrive_whole(serve: Serve, framing: tuple[str, ...]) -> None:
    upstream = serve()
    words = ("--method", "POST", "--body-bytes", "200000", "--requests", "20", "--verify-body")
    assert load(upstream.address, *words, *framing, "--connections", "2")["ok"] == 20
    assert upstream.end()["received_bytes"] == 20 * 200000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("reset", "reset"),
        ("mid-reset", "reset"),
        ("short", "eof"),
        ("garbage", "malformed"),
        ("never", "timeout"),
        ("token", "bad_token"),
        ("length", "bad_length"),
        ("body", "bad_body"),
        ("surplus", "surplus"),
        ("status", "bad_status"),
    ],
)
def test_one_wrong_answer_among_right_ones_is_noticed(serve: Serve, fault: str, kind: str) -> None:
    upstream = serve("--fault", fault, "--fault-at", "40")
    words = ["--requests", "200", "--connections", "4", "--verify-body", "--keep-going"]
    words += ["--timeout-ms", "300"]
    if fault in ("length", "body"):
        words += ["--expect-length", "128"]
    report = load(upstream.address, *words, code=1)
    assert report["failures"] == {kind: 1}
    assert (report["ok"], report["requests"]) == (199, 200)
    assert report["first_failures"][0]["kind"] == kind
    # What broke stays broken: three go on, and nobody connects in its place.
    assert (report["connects"], report["open_at_end"]) == (4, 3)
    counted = upstream.end()
    assert (counted["accepts"], counted["faults"]) == (4, 1)


def test_a_run_ends_at_its_first_failure_unless_told_otherwise(serve: Serve) -> None:
    upstream = serve("--fault", "reset", "--fault-at", "10")
    report = load(upstream.address, "--requests", "100000", "--connections", "1", code=1)
    assert (report["ok"], report["failures"]) == (9, {"reset": 1})


def test_a_polite_close_of_a_kept_connection_is_a_failure(serve: Serve) -> None:
    words = ("--path", "/u/100", "--requests", "10", "--connections", "1")
    assert load(serve().address, *words, code=1)["failures"] == {"told_to_close": 1}


def test_a_wrong_beginning_of_the_body_is_noticed(serve: Serve) -> None:
    words = ("--requests", "3", "--connections", "1", "--no-token")
    address = serve().address
    assert load(address, *words, "--expect-body", "0123456789")["ok"] == 3
    report = load(address, *words, "--expect-body", "0123456780", code=1)
    assert report["failures"] == {"bad_body": 1}


def test_an_upstream_that_does_not_echo_the_token_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen(
            [LOAD, "--address", f"127.0.0.1:{listener.getsockname()[1]}", "--connections", "1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            out, _ = child.communicate(timeout=20)
    assert json.loads(out)["failures"] == {"bad_token": 1}


def test_a_refused_connect_is_counted() -> None:
    with socket.socket() as bound:  # bound and not listening: nobody else gets the port
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        report = load(address, "--requests", "1", "--connections", "2", code=1)
    assert report["failures"] == {"connect_refused": 2}
    assert report["connects"] == 0


def test_idle_connections_are_asked_once_a_line_and_their_marks_counted(serve: Serve) -> None:
    upstream = serve("--mark", "blue")
    words = ["--mode", "idle", "--connections", "20", "--mark-header", "X-Upstream"]
    with subprocess.Popen(
        [LOAD, "--address", upstream.address, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(3):
            told = json.loads(child.stdout.readline())
            assert (told["round"], told["ok"], told["open"]) == (number, 20, 20)
            assert told["marks"] == {"blue": 20}
            child.stdin.write("round\n" if number < 2 else "stop\n")
            child.stdin.flush()
        report = json.loads(child.stdout.readline())
        assert child.wait(10) == 0
    assert (report["ok"], report["connects"], report["open_at_end"]) == (60, 20, 20)
    assert upstream.end()["accepts"] == 20


def test_idle_connections_that_are_closed_meanwhile_are_all_counted(serve: Serve) -> None:
    upstream = serve()
    words = ["--mode", "idle", "--connections", "5", "--keep-going"]
    with subprocess.Popen(
        [LOAD, "--address", upstream.address, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["ok"] == 5
        upstream.end()
        child.stdin.write("round\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["ok"] == 0
        child.stdin.close()
        report = json.loads(child.stdout.readline())
        assert child.wait(10) == 1
    assert report["failed"] == 5
    assert set(report["failures"]) <= {"eof", "reset"}
    assert report["open_at_end"] == 0


@pytest.mark.slow
def test_the_rate_is_held(serve: Serve) -> None:
    words = ("--rate", "500", "--seconds", "1", "--connections", "4")
    assert 400 <= load(serve().address, *words)["ok"] <= 500


def test_an_ipv6_address_works(serve: Serve) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    report = load(serve("--listen", "[::1]:0").address, "--requests", "10", "--connections", "1")
    assert report["ok"] == 10


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--address", "localhost:80"),
        ("--address", "127.0.0.1:99999"),
        ("--address", "127.0.0.1:80", "--connections", "0"),
        ("--address", "127.0.0.1:80", "--mode", "fast"),
        ("--address", "127.0.0.1:80", "--requests", "1x"),
        ("--address", "127.0.0.1:80", "more"),
    ],
)
def test_wrong_usage_exits_64_and_says_how(words: tuple[str, ...]) -> None:
    ran = subprocess.run([LOAD, *words], capture_output=True, text=True, timeout=10)
    assert ran.returncode == 64
    assert "usage: dp_load" in ran.stderr
    assert not ran.stdout


def test_what_was_due_and_not_sent_counts_with_how_long_it_waited(serve: Serve) -> None:
    """Nothing answers half a million requests a second on one connection. A generator that timed
    only what it sent would call that fast."""
    words = ("--connections", "1", "--rate", "500000", "--seconds", "1")
    report = load(serve().address, *words)
    assert (report["failed"], report["rate"]) == (0, 500000)
    assert report["unsent"] > 0
    assert abs(report["requests"] + report["unsent"] - 500000) <= 1
    assert report["latency_us"]["p50"] > 100_000


def test_a_connection_that_ends_is_opened_anew_where_that_is_asked(serve: Serve) -> None:
    upstream = serve()
    words = ("--reopen", "--path", "/u/100", "--requests", "200", "--connections", "4")
    report = load(upstream.address, *words)
    assert (report["ok"], report["failed"]) == (200, 0)
    assert 200 <= report["connects"] <= 204


def test_nobody_there_ends_a_run_that_opens_anew() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    report = load(f"127.0.0.1:{port}", "--reopen", code=1)
    assert report["ok"] == 0
    assert report["failures"]["connect_refused"] >= 1000


def test_clients_are_spread_over_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        words = ("--connections", "8", "--sources", "8", "--timeout-ms", "300", "--requests", "8")
        report = load(f"127.0.0.1:{listener.getsockname()[1]}", *words, "--keep-going", code=1)
        peers = set()
        for _ in range(8):
            client, (host, _) = listener.accept()
            client.close()
            peers.add(host)
    assert report["connects"] == 8
    assert len(peers) == 8
    assert all(host.startswith("127.") for host in peers)


def test_a_unix_socket_is_an_address_too(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        words = ("--connections", "1", "--timeout-ms", "300", "--requests", "1")
        report = load(f"unix:{path}", *words, code=1)
        assert report["connects"] == 1


def test_progress_is_told_each_second(serve: Serve) -> None:
    ran = subprocess.run(
        [LOAD, "--address", serve().address, "--progress", "--rate", "100", "--seconds", "2"],
        capture_output=True,
        text=True,
        timeout=40,
        stdin=subprocess.DEVNULL,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines[0]["event"] == "progress"
    assert lines[0]["ok"] > 50
    assert lines[-1]["event"] == "report"
