"""The demo: upstream servers that answer honestly, and the whole example with one command."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
LIMIT_SECONDS: Final = 20

pytestmark = pytest.mark.slow

Server = tuple[subprocess.Popen[bytes], int, int]  # the process, its port, our end of the lifeline


def demo(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "dataplane", "demo", *map(str, words)]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def server() -> Iterator[Server]:
    lifeline, kept = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = ["--upstream", f"127.0.0.1:{port}", "--name", "one"]
        words += ["--listener", str(listener.fileno()), "--lifeline", str(lifeline)]
        process = subprocess.Popen(demo(*words), pass_fds=(listener.fileno(), lifeline))
    os.close(lifeline)
    try:
        yield process, port, kept
    finally:
        with contextlib.suppress(OSError):
            os.close(kept)
        process.kill()
        process.wait(LIMIT_SECONDS)


@contextlib.contextmanager
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_SECONDS)
    with contextlib.closing(client):
        yield client


def test_an_upstream_tells_what_it_was_asked_over_one_connection(server: Server) -> None:
    with connection(server[1]) as client:
        for number in range(3):
            headers = {"X-Forwarded-For": "192.0.2.1"}
            client.request("POST", f"/a?n={number}", body=b"12345", headers=headers)
            answer = client.getresponse()
            told = json.loads(answer.read())
            assert (answer.status, told["upstream"], told["method"]) == (200, "one", "POST")
            assert (told["target"], told["body_bytes"]) == (f"/a?n={number}", 5)
            assert told["headers"]["x-forwarded-for"] == "192.0.2.1"
            assert answer.will_close is False


def test_an_upstream_streams_and_answers_late(server: Server) -> None:
    with connection(server[1]) as client:
        client.request("GET", "/stream?ticks=3&ms=1")
        answer = client.getresponse()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.read() == b"tick 1\ntick 2\ntick 3\n"
        client.request("GET", "/slow?ms=1")
        assert json.loads(client.getresponse().read())["target"] == "/slow?ms=1"
        client.request("GET", "/healthz")
        assert client.getresponse().read() == b"ok\n"


def test_a_client_that_is_none_disturbs_nobody(server: Server) -> None:
    with connection(server[1]) as client:
        client.request("GET", "/healthz")
        assert client.getresponse().read() == b"ok\n"
        with socket.create_connection(("127.0.0.1", server[1]), LIMIT_SECONDS) as stranger:
            stranger.sendall(b"\x16\x03\x01 no http\r\n\r\n")
            assert stranger.recv(1) == b""
        client.request("GET", "/healthz")
        assert client.getresponse().read() == b"ok\n"


def test_an_upstream_ends_with_whoever_started_it(server: Server) -> None:
    process, port, kept = server
    with connection(port) as client:
        client.request("GET", "/healthz")
        client.getresponse().read()
    os.close(kept)
    assert process.wait(LIMIT_SECONDS) == 0


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """tmp_path is too long for a socket's path."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def example(folder: Path, app: str) -> tuple[Path, dict[str, int]]:
    """A shipped example on free ports: the config folder, and which port stands for which."""
    text = (ROOT / "configs" / "apps" / f"{app}.yaml").read_text()
    shipped = sorted(set(re.findall(r"(?:127\.0\.0\.1|\[::1\]):(\d+)", text)))
    ports = dict(zip(shipped, free_ports(len(shipped)), strict=True))
    for told, port in ports.items():
        text = re.sub(rf"(127\.0\.0\.1|\[::1\]):{told}\b", rf"\g<1>:{port}", text)
    (folder / "apps").mkdir(parents=True)
    (folder / "apps" / f"{app}.yaml").write_text(text)
    return folder, ports


def read_until(process: subprocess.Popen[bytes], pattern: str) -> str:
    """What the process said up to a line that matches."""
    assert process.stdout is not None
    said = b""
    while re.search(pattern.encode(), said) is None:
        ready, _, _ = select.select([process.stdout], [], [], LIMIT_SECONDS)
        assert ready, said
        part = os.read(process.stdout.fileno(), 65536)
        assert part, said
        said += part
    return said.decode()


def as_curl_would(line: str) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
    """The answer to the printed command, which is JSON of a demo upstream."""
    asked = argparse.ArgumentParser()
    asked.add_argument("-X", dest="method", default="GET")
    asked.add_argument("-H", dest="fields", action="append", default=[])
    asked.add_argument("url")
    told = asked.parse_args(shlex.split(line)[1:])
    url = urllib.parse.urlsplit(told.url)
    assert url.port is not None
    with connection(url.port) as client:
        fields = dict(field.split(": ", 1) for field in told.fields)
        client.request(told.method, url.path, headers=fields)
        answer = client.getresponse()
        return answer, json.loads(answer.read())


@contextlib.contextmanager
def running(folder: Path, app: str) -> Iterator[tuple[str, dict[str, int]]]:
    """What the demo said until it was ready, and its ports. Ends it as a person would."""
    config, ports = example(folder / "configs", app)
    words: list[str | Path] = [
        "--config",
        config,
        "--run-dir",
        folder / "run",
        "--state-dir",
        folder / "state",
    ]
    with subprocess.Popen(demo("--app", app, *words), stdout=subprocess.PIPE) as process:
        try:
            said = read_until(process, r"(?m)^ready .*\n")
            yield said, ports
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_SECONDS) == 0
        finally:
            process.kill()
    for pid in re.findall(r"(?m)^demo: upstream .* pid (\d+)$", said):
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("app", sorted(path.stem for path in (ROOT / "configs/apps").iterdir()))
def test_each_shipped_example_runs_and_its_curl_line_works(short_dir: Path, app: str) -> None:
    with running(short_dir, app) as (said, _):
        line = re.search(r"(?m)^ +(curl .*)$", said)
        assert line is not None
        answer, told = as_curl_would(line[1])
        assert answer.status == 200
        assert re.fullmatch(r"[a-z]+-\d", told["upstream"])


def test_the_billing_example_does_what_its_file_says(short_dir: Path) -> None:
    with running(short_dir, "billing") as (said, ports), connection(ports["8080"]) as client:
        assert len(re.findall(r"(?m)^demo: upstream api-[12] at 127\.0\.0\.1:", said)) == 2
        client.request("GET", "/api/", headers={"x-internal": "me"})
        answer = client.getresponse()
        told = json.loads(answer.read())
        assert answer.headers["cache-control"] == "no-store"
        assert told["headers"]["x-app"] == "billing"
        assert told["headers"]["x-forwarded-for"] == "127.0.0.1"
        assert "x-internal" not in told["headers"]
        client.request("GET", "/old/invoices")
        answer = client.getresponse()
        answer.read()
        assert (answer.status, answer.headers["location"]) == (308, "/api/invoices")
        client.request("GET", "/healthz")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b"ok\n")


def test_beside_a_running_supervisor_the_servers_stay_until_they_are_told(short_dir: Path) -> None:
    with running(short_dir, "database"):
        config, ports = example(short_dir / "more", "billing")
        words: list[str | Path] = ["--config", config, "--run-dir", short_dir / "run"]
        words += ["--state-dir", short_dir / "state"]
        with subprocess.Popen(demo("--app", "billing", *words), stdout=subprocess.PIPE) as joined:
            try:
                read_until(joined, r"demo: the app runs in the supervisor that was there")
                with connection(ports["8080"]) as client:
                    client.request("GET", "/api/")
                    assert client.getresponse().status == 200
                joined.send_signal(signal.SIGINT)
                assert joined.wait(LIMIT_SECONDS) == 0
            finally:
                joined.kill()


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    config, ports = example(tmp_path / "configs", "billing")
    folders: list[str | Path] = ["--run-dir", tmp_path / "run", "--state-dir", tmp_path / "state"]
    with socket.create_server(("127.0.0.1", ports["9002"])):
        done = subprocess.run(
            demo("--app", "billing", "--config", config, *folders),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert f"127.0.0.1 port {ports['9002']}: Address already in use" in done.stderr
    assert "ready" not in done.stdout


def test_findings_and_usage_have_their_status(tmp_path: Path) -> None:
    def status(*words: str | Path) -> int:
        return subprocess.run(
            demo(*words), capture_output=True, timeout=LIMIT_SECONDS, check=False
        ).returncode

    folders: list[str | Path] = ["--run-dir", tmp_path, "--state-dir", tmp_path]
    assert status("--app", "nope", "--config", tmp_path, *folders) == 78
    assert status("--upstream", "nowhere") == 64
    assert status() == 64
