"""What the demo decides before it starts anything: folders, servers, the line to try."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from dataplane.cli import demo
from dataplane.cli.folders import Folders
from dataplane.model.spec import ListenerSpec, MatchSpec
from tests.unit.model.test_spec import SPEC

NOWHERE = Path("/proc/none")


@pytest.mark.parametrize("told", ["nothing", "flags", "environment"])
def test_a_default_that_cannot_be_written_gives_way_but_what_was_told_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    found = Folders(config=tmp_path, run=NOWHERE, state=NOWHERE)
    monkeypatch.setattr(demo, "find_folders", lambda _args: found)
    monkeypatch.chdir(tmp_path)
    for name in ("DATAPLANE_RUN_DIR", "DATAPLANE_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
        if told == "environment":
            monkeypatch.setenv(name, str(NOWHERE))
    flag = str(NOWHERE) if told == "flags" else None
    chosen = demo._writable_folders(argparse.Namespace(run_dir=flag, state_dir=flag))
    local = Folders(
        config=tmp_path, run=tmp_path / ".dataplane/run", state=tmp_path / ".dataplane/state"
    )
    assert chosen == (local if told == "nothing" else found)


def test_a_default_that_can_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Folders(config=tmp_path, run=tmp_path / "run", state=tmp_path / "state")
    monkeypatch.setattr(demo, "find_folders", lambda _args: found)
    assert demo._writable_folders(argparse.Namespace(run_dir=None, state_dir=None)) == found


def curl(bind: str, match: MatchSpec, protocol: str = "http") -> str:
    listener = dataclasses.replace(
        SPEC.listeners[0],
        bind=bind,
        protocol="tcp" if protocol == "tcp" else "http",
    )
    assert isinstance(listener, ListenerSpec)
    route = dataclasses.replace(SPEC.routes[0], match=match)
    return demo.curl_line(dataclasses.replace(SPEC, listeners=(listener,), routes=(route,)))


ANY = MatchSpec(host=None, path=None, methods=(), headers=())


@pytest.mark.parametrize(
    ("bind", "match", "line"),
    [
        ("127.0.0.1:80", ANY, "curl http://127.0.0.1:80/"),
        ("0.0.0.0:80", ANY, "curl http://127.0.0.1:80/"),
        ("[::]:80", ANY, "curl 'http://[::1]:80/'"),
        ("127.0.0.1:0", ANY, "curl http://127.0.0.1:PORT/"),
        (
            "127.0.0.1:80",
            MatchSpec(host="*.a.b", path="/x", methods=("PUT",), headers=(("h", "v w"),)),
            "curl -X PUT -H 'host: www.a.b' -H 'h: v w' http://127.0.0.1:80/x",
        ),
    ],
)
def test_the_line_to_try_fits_the_app(bind: str, match: MatchSpec, line: str) -> None:
    assert curl(bind, match) == line


def test_a_tcp_app_needs_no_route() -> None:
    assert curl("127.0.0.1:80", ANY, "tcp") == "curl http://127.0.0.1:80/"
