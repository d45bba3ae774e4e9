"""The command line itself: words, exit codes, folders; nothing is started here."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dataplane.cli.ask import referenced_environment, secret_variables, wish_of
from dataplane.cli.facts import ps_text, requests_per_second
from dataplane.cli.folders import Folders, find_folders
from dataplane.cli.main import MODULES, NOT_YET, main

CONTRACT = {
    "run", "up", "down", "validate", "build", "plan", "apply", "swap", "rollback", "stop", "ps",
    "history", "image", "diff", "logs", "events", "top", "schema", "keys", "supervisor",
}  # fmt: skip


def exit_code(*words: str) -> int:
    """Of a command that may leave by argparse."""
    try:
        return main(list(words))
    except SystemExit as leaving:
        return int(leaving.code or 0)


def test_every_command_of_the_contract_is_there_or_says_that_it_is_not_yet() -> None:
    assert {*MODULES, *NOT_YET} >= CONTRACT
    assert not set(MODULES) & set(NOT_YET)


@pytest.mark.parametrize("verb", NOT_YET)
def test_what_is_not_built_yet_says_so(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(verb, "anything", "--at-all") == 64
    assert "not supported yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [(), ("nonsense",), ("swap",), ("swap", "--app"), ("ps", "--nonsense"), ("ps", "x")]
)
def test_usage_errors_exit_64_and_name_the_fault(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*words) == 64
    told = capsys.readouterr()
    assert told.err.startswith("usage: dataplane")
    assert told.out == ""


@pytest.mark.parametrize("verb", sorted(MODULES))
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(verb, "--help") == 0
    assert f"example: dataplane {verb}" in capsys.readouterr().out


def test_version_is_told_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("version") == 0
    text = capsys.readouterr().out
    assert exit_code("version", "--json") == 0
    assert text == f"dataplane {json.loads(capsys.readouterr().out)['version']}\n"


def test_without_a_supervisor_a_verb_that_needs_one_exits_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for words in (("ps",), ("events",), ("swap", "--app", "a"), ("stop", "--app", "a")):
            assert exit_code(*words, "--run-dir", folder) == 1
            assert f"no supervisor runs on {folder}" in capsys.readouterr().err
        assert exit_code("down", "--run-dir", folder) == 0
        assert capsys.readouterr().out == "nothing ran\n"


def test_name_that_no_app_can_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("run", "--app", "../x") == 64
    assert "is not an app's name" in capsys.readouterr().err


def test_a_command_loads_neither_a_loop_nor_the_supervisor() -> None:
    """What most commands take is their start."""
    script = (
        "import sys; from dataplane.cli.main import main; main(['version']); "
        "print([name for name in ('asyncio', 'uvloop', 'yaml', 'h11', 'dataplane.supervisor')"
        " if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert told.stdout.decode().splitlines()[1] == "[]"


# --- folders and wishes -----------------------------------------------------------------------


def namespace(**flags: str | None) -> argparse.Namespace:
    return argparse.Namespace(**{"config": None, "run_dir": None, "state_dir": None, **flags})


def test_folder_is_the_flags_then_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAPLANE_CONFIG", "/env/config")
    monkeypatch.setenv("DATAPLANE_RUN_DIR", "/env/run")
    monkeypatch.setenv("DATAPLANE_STATE_DIR", "/env/state")
    monkeypatch.chdir(tmp_path)
    assert find_folders(namespace()) == Folders(
        config=Path("/env/config"), run=Path("/env/run"), state=Path("/env/state")
    )
    told = find_folders(namespace(config="here", run_dir="/flag/run", state_dir="/flag/state"))
    assert told == Folders(
        config=tmp_path / "here", run=Path("/flag/run"), state=Path("/flag/state")
    )


def test_only_the_variables_that_the_file_names_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "a.yaml").write_text(
        "x: ${ONE} ${TWO}\ny: ${ONE} $THREE ${}\nz: env:SECRET env:GONE xenv:THREE\n"
    )
    for name in ("ONE", "THREE", "SECRET"):
        monkeypatch.setenv(name, name.lower())
    assert referenced_environment(tmp_path, "a") == {"ONE": "one"}
    assert referenced_environment(tmp_path, "missing") == {}
    assert secret_variables(tmp_path, "a") == {"SECRET": "secret"}
    folders = Folders(config=tmp_path, run=tmp_path, state=tmp_path)
    assert wish_of(folders, "a", None, force=True) == {
        "force": True, "config_dir": str(tmp_path), "environment": {"ONE": "one"},
        "variables": {"SECRET": "secret"},
    }  # fmt: skip
    assert wish_of(folders, "a", "sha256:0", force=False) == {"image": "sha256:0", "force": False}


# --- ps ---------------------------------------------------------------------------------------


def app(**more: Any) -> dict[str, Any]:
    worker = {
        "slot": 0, "pid": 4711, "state": "serving", "connections": 120, "requests": 90210,
        "cpu_seconds": 3.2, "memory_bytes": 2400000, "restarts": 0, "stale": [],
    }  # fmt: skip
    generation = {
        "generation": 7, "image": "sha256:" + "a" * 64, "code": "1",
        "code_layer": "sha256:" + "b" * 64, "state": "serving",
        "since": "2026-11-22T18:00:00Z", "seal": None, "workers": [worker],
    }  # fmt: skip
    return {
        "app": "billing", "state": "serving", "wanted": None, "pending": True,
        "addresses": [{"listener": "web", "bind": "127.0.0.1:8080"}],
        "generations": [generation], **more,
    }  # fmt: skip


def test_ps_shows_a_line_for_each_worker_and_for_an_app_without_any() -> None:
    stopped = app(app="shop", state="stopped", pending=False, generations=[], addresses=[])
    head, billing, shop = ps_text([app(), stopped], {}, colour=False).splitlines()
    assert head.split()[:3] == ["APP", "STATE", "GEN"]
    assert billing.startswith("billing  serving (pending)  7    aaaaaaaaaaaa  1/bbbbbbbb")
    assert "127.0.0.1:8080" in billing
    assert shop.split()[:3] == ["shop", "stopped", "-"]


def test_ps_colours_states_only_where_it_may() -> None:
    assert "\x1b[" not in ps_text([app()], {}, colour=False)
    assert "\x1b[32mserving" in ps_text([app(pending=False)], {}, colour=True)


def test_ps_marks_stale_workers_and_says_what_helps() -> None:
    stale = app(pending=False)
    stale["generations"][0]["workers"][0]["stale"] = [f"/lib/{name}.so" for name in "abcd"]
    head, row, told = ps_text([stale], {}, colour=False).splitlines()
    assert row.index("serving (stale)") == head.index("WORKER")
    assert told == (
        "billing: stale, since /lib/a.so, /lib/b.so, /lib/c.so ... changed on disk: "
        "dataplane swap --force --app billing"
    )


def test_requests_per_second_are_of_two_looks() -> None:
    assert requests_per_second([app()], {("billing", 7, 0): 90200}) == {("billing", 7, 0): 10.0}
