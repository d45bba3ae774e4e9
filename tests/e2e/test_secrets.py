"""Secrets end to end: named by an app's file, read by the supervisor, known to workers alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Final

from tests.conftest import descendants
from tests.support.dataplane import APP, Dataplane, app_config, eventually, wait_gone
from tests.support.origin import Origin, answering
from tests.support.wire import Wire

FIRST: Final = "Bearer q7vJ2-first-content"
SECOND: Final = "Bearer zz81x-second-content"


def secret_file(plane: Dataplane, content: str = FIRST) -> Path:
    path = plane.folder / "token"
    path.write_text(f"{content}\n")
    path.chmod(0o600)
    return path


def with_secret(port: int, reference: str, **more: Any) -> dict[str, Any]:
    config = app_config(port, **more)
    config["routes"][0]["request_headers"] = {"set": {"authorization": reference}}
    return config


def told_upstream(plane: Dataplane, origin: Origin) -> list[str]:
    """The field as the upstream gets it."""
    with Wire.connect(plane.address()) as client:
        assert client.get().status == 200
    return origin.requests[-1].values("authorization")


def hold_file(path: Path, content: str) -> bool:
    return content.encode() in path.read_bytes()


def test_secret_reaches_the_upstream_and_nobody_else(plane: Dataplane) -> None:
    with Origin(answering(b"ok")) as origin:
        file = secret_file(plane)
        plane.configure(with_secret(origin.port, f"file:{file}"))
        ready = plane.start()
        assert told_upstream(plane, origin) == [FIRST]
        plane.cli("swap", "--app", APP, "--force")
        assert told_upstream(plane, origin) == [FIRST]
        shown = [
            ready,
            plane.log(),
            *(plane.cli(*words).out for words in (
                ("ps", "--json"), ("history", "--app", APP, "--json"), ("image", "ls", "--json"),
                ("image", "inspect", plane.report()["wanted"], "--json"),
            )),
            plane.cli("plan").out,
            plane.cli("events", "--json").out,
            plane.call("GET", "/metrics").body,
        ]  # fmt: skip
        assert [text for text in shown if FIRST in text] == []
        below = [path for path in plane.state_dir.rglob("*") if path.is_file()]
        assert below
        assert [path for path in below if hold_file(path, FIRST)] == []
        for pid in (plane.pid, *descendants(plane.pid)):
            for name in ("cmdline", "environ"):
                assert not hold_file(Path(f"/proc/{pid}/{name}"), FIRST)
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            (core,) = [line for line in limits if line.startswith("Max core file size")]
            if pid in (plane.pid, plane.worker_pid()):
                assert core.split()[4:6] == ["0", "0"]
        # The spec that a worker holds for good names it, no more.
        held = Path(f"/proc/{plane.worker_pid()}/fd")
        memory = [fd for fd in held.iterdir() if os.readlink(fd).startswith("/memfd:spec")]
        assert memory
        assert [fd for fd in memory if hold_file(fd, FIRST)] == []


def test_changed_secret_is_a_new_generation_of_the_same_image(plane: Dataplane) -> None:
    with Origin(answering(b"ok")) as origin:
        file = secret_file(plane)
        plane.configure(with_secret(origin.port, f"file:{file}"))
        plane.start()
        image = plane.report()["wanted"]
        assert plane.cli("plan").out == "plan: 1 unchanged\n"
        assert plane.swap()["outcome"] == "unchanged"
        secret_file(plane, SECOND)
        planned = plane.cli("plan", code=2).out
        assert f"~ secrets[file:{file}]: changed" in planned
        assert SECOND not in planned
        plane.cli("apply")
        assert told_upstream(plane, origin) == [SECOND]
        after = plane.report()
        assert after["wanted"] == image
        assert [one["generation"] for one in after["generations"]] == [2]
        assert after["generations"][0]["secrets"] == [f"file:{file}"]
        assert plane.swap()["outcome"] == "unchanged"


def test_restart_after_a_crash_uses_the_secret_of_its_generation(plane: Dataplane) -> None:
    with Origin(answering(b"ok")) as origin:
        file = secret_file(plane)
        plane.configure(with_secret(origin.port, f"file:{file}"))
        plane.start()
        file.unlink()
        worker = plane.worker_pid()
        os.kill(worker, signal.SIGKILL)
        wait_gone(worker)
        assert told_upstream(plane, origin) == [FIRST]


def test_secret_that_cannot_be_used_leaves_blue_as_it_was(plane: Dataplane) -> None:
    with Origin(answering(b"ok")) as origin:
        file = secret_file(plane)
        plane.configure(with_secret(origin.port, f"file:{file}"))
        plane.start()
        worker = plane.worker_pid()
        broken = {
            "cannot be read": None,
            "is empty": b"\n",
            "byte 5 is not printable ASCII": b"abcd\x00" + FIRST.encode(),
            "begins or ends with a space": FIRST.encode() + b" ",
            "longer than 4096 bytes": b"x" * 4097,
        }
        for reason, content in broken.items():
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
            ended = plane.cli("swap", "--app", APP, code=1)
            assert f"file:{file}" in ended.err
            assert reason in ended.err
            assert FIRST not in ended.err + plane.log()
            assert told_upstream(plane, origin) == [FIRST]
        assert plane.worker_pid() == worker
        assert "longer than 4096 bytes" in plane.cli("plan", code=1).err


def test_variable_is_the_askers_then_what_serves_then_the_supervisors(plane: Dataplane) -> None:
    with Origin(answering(b"ok")) as origin:
        plane.configure(with_secret(origin.port, "env:API_TOKEN"))
        plane.start(environment={"API_TOKEN": FIRST})
        assert told_upstream(plane, origin) == [FIRST]
        assert plane.cli("plan").out == "plan: 1 unchanged\n"
        plane.cli("swap", "--app", APP, environment={"API_TOKEN": SECOND})
        assert told_upstream(plane, origin) == [SECOND]
        plane.cli("swap", "--app", APP, "--force")
        assert told_upstream(plane, origin) == [SECOND]
        assert plane.cli("plan").out == "plan: 1 unchanged\n"


def test_variable_that_nobody_set_is_told_by_its_name(plane: Dataplane) -> None:
    with Origin(answering(b"ok")) as origin:
        plane.configure(app_config(origin.port))
        plane.start()
        plane.configure(with_secret(origin.port, "env:API_TOKEN"))
        ended = plane.cli("swap", "--app", APP, code=1)
        assert "the secret env:API_TOKEN is not set" in ended.err
        assert eventually(lambda: plane.report()["state"] == "serving")
