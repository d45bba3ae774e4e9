"""The API's server and its client: bounded, and polite about what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dataplane.control.client import Client, NotRunning
from dataplane.control.http import (
    BODY_LIMIT,
    HEAD_LIMIT,
    Request,
    Response,
    json_response,
    problem,
    serve,
)
from dataplane.model.errors import ControlError, LaunchError


async def respond(request: Request) -> Response:
    if request.path == "/stream":
        return Response(status=200, content_type="application/x-ndjson", stream=_lines())
    if request.path == "/fails":
        raise RuntimeError("on purpose")
    if request.path == "/problem":
        return problem(409, "not now", headers=(("x-more", "1"),), ledger={"a": 1})
    return json_response(
        {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "body": request.body.decode(),
            "peer": [request.peer.pid, request.peer.uid],
        }
    )


async def _lines() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"%d\n" % number


@pytest.fixture
def path() -> Iterator[Path]:
    """A server in a thread, until the test is over."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "api.sock"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        loop = asyncio.new_event_loop()
        serving = loop.create_task(serve(listening, respond))
        thread = threading.Thread(target=_run, args=(loop, serving))
        thread.start()
        yield path
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()
        listening.close()
        path.unlink()
        loop.close()


def _run(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None]) -> None:
    try:
        loop.run_until_complete(serving)
    except asyncio.CancelledError:
        pass


def raw(path: Path, data: bytes) -> bytes:
    """What the server answers to these bytes, until it closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(data)
        answer = b""
        while part := sock.recv(65536):
            answer += part
        return answer


def test_request_arrives_whole_and_its_peer_is_known(path: Path) -> None:
    with Client(path) as client:
        assert client.pid == os.getpid()
        answer = client.ask("POST", "/v1/apps/a%20b?wait=switch&x=", {"image": None}, seconds=5)
    assert answer.status == 200
    assert answer.value() == {
        "method": "POST",
        "path": "/v1/apps/a b",
        "query": {"wait": "switch", "x": ""},
        "body": '{"image": null}',
        "peer": [os.getpid(), os.getuid()],
    }


def test_problem_has_the_members_of_the_rfc(path: Path) -> None:
    with Client(path) as client:
        answer = client.ask("GET", "/problem", seconds=5)
    assert answer.status == 409
    assert answer.value() == {
        "type": "about:blank", "title": "Conflict", "status": 409, "detail": "not now",
        "ledger": {"a": 1},
    }  # fmt: skip


def test_stream_is_read_line_by_line_until_it_ends(path: Path) -> None:
    with Client(path) as client:
        assert list(client.lines("/stream")) == [b"0", b"1", b"2"]


def test_connection_is_kept_for_the_next_request(path: Path) -> None:
    one = b"GET /one HTTP/1.1\r\nhost: x\r\n\r\n"
    two = b"GET /two HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = raw(path, one + two)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b'"/one"' in answer
    assert b'"/two"' in answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * (HEAD_LIMIT + 1), b"431"),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (BODY_LIMIT + 1)
            + b"z" * (BODY_LIMIT + 1),
            b"413",
        ),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(
    path: Path, data: bytes, status: bytes
) -> None:
    answer = raw(path, data)
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == int(status)


def test_failure_of_one_request_ends_its_connection_alone(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Client(path) as client, pytest.raises(ControlError):
        client.ask("GET", "/fails", seconds=5)
    with Client(path) as client:
        assert client.ask("GET", "/", seconds=5).status == 200
    assert "on purpose" in capfd.readouterr().err


def test_nobody_there_is_told_apart_from_a_path_that_cannot_be(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(NotRunning, match="no supervisor"):
        Client(Path(folder) / "none.sock")
    with pytest.raises(LaunchError, match="too long"):
        Client(tmp_path / ("x" * 108))
