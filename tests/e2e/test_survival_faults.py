"""What the next supervisor finds is not as it was left: it adopts what fits, and nothing else."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from dataplane.system.sockets import bind_packet_socket
from tests.e2e.test_secrets import FIRST, told_upstream, with_secret
from tests.support.dataplane import APP, ROOT, Dataplane, Json, app_config, eventually, wait_gone
from tests.support.origin import Origin, answering, holding
from tests.support.wire import Wire, request

NOBODY: Final = "65534"

# Listens at the socket it was given, says so, and does with each connection what it was told.
STRANGER: Final = """
import socket, sys
from dataplane.control.messages import Identity, encode_message
import os
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(True)
if sys.argv[3]:
    os.setuid(int(sys.argv[3]))
kept = []
listener.listen()
print("listens", flush=True)

def answer(sock):
    sock.recv(65536)
    if sys.argv[2] == "nonsense":
        sock.send(b"hello")
    elif sys.argv[2] == "older":
        sock.send(encode_message(Identity(pid=os.getpid(), app="billing", generation=4, slot=0,
                  image="sha256:" + "0" * 64, state="serving", listeners=("web",))))
        sock.recv(65536)
        sock.close()
    elif sys.argv[2] == "lies":
        sock.send(encode_message(Identity(pid=1, app="billing", generation=4, slot=0,
                  image="sha256:" + "0" * 64, state="serving", listeners=("web",))))
while True:
    sock, _ = listener.accept()
    kept.append(sock)
    try:
        answer(sock)
    except OSError:
        pass
"""


@contextlib.contextmanager
def stranger(plane: Dataplane, does: str, *, uid: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that is no worker, at the control socket of a worker's name."""
    path = plane.run_dir / "workers" / f"{APP}.4.0.sock"
    sock = bind_packet_socket(path)
    with sock:
        child = subprocess.Popen(
            [sys.executable, "-c", STRANGER, str(sock.fileno()), does, uid],
            pass_fds=(sock.fileno(),),
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "listens\n"
        yield child
        assert child.poll() is None  # whatever it is, it is not ours to end
    finally:
        child.kill()
        child.communicate()
        path.unlink(missing_ok=True)


def served(plane: Dataplane, path: str = "/") -> bytes:
    with Wire.connect(plane.address()) as client:
        return client.get(path).body


def killed_at_rest(plane: Dataplane, config: Json | None = None) -> None:
    plane.configure(config or app_config(workers=2))
    plane.start()
    plane.kill()


def kill_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


# --- workers that died or hang meanwhile ------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1])
def test_worker_that_died_meanwhile_is_started_in_its_slot(plane: Dataplane, slot: int) -> None:
    plane.configure(app_config(workers=2))
    plane.start()
    pids = [worker["pid"] for worker in plane.workers()]
    plane.kill()
    kill_and_wait(pids[slot])
    plane.start("up")
    assert plane.event("worker.missing", slot=slot)["generation"] == 1
    eventually(lambda: plane.report()["state"] == "serving")
    workers = plane.workers()
    assert workers[1 - slot]["pid"] == pids[1 - slot]
    assert [worker["restarts"] for worker in workers] == [int(slot == n) for n in range(2)]
    for _ in range(20):  # both sockets of the address have a reader
        assert served(plane) == b"blue"
    assert plane.swap(force=True)["outcome"] == "swapped"


def test_app_whose_workers_all_died_is_started_anew(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    pid, requests = plane.worker_pid(), plane.metric("dataplane_requests_total")
    served(plane)
    requests = plane.metric("dataplane_requests_total")
    plane.kill()
    kill_and_wait(pid)
    plane.start("up")
    assert served(plane) == b"blue"
    assert plane.report()["generations"][0]["generation"] == 2
    assert plane.metric("dataplane_requests_total") >= requests + 1


def test_adopted_worker_that_dies_is_replaced_as_any_other(plane: Dataplane) -> None:
    killed_at_rest(plane)
    plane.start("up")
    killed = plane.workers()[0]["pid"]
    os.kill(killed, signal.SIGKILL)
    assert plane.event("worker.ended", pid=killed)["status"] == "unknown"
    eventually(lambda: plane.workers()[0]["restarts"] == 1 and plane.report()["state"] == "serving")
    for _ in range(20):
        assert served(plane) == b"blue"
    told = plane.cli("history", "--app", APP, "--json").fact()["history"]
    outcomes = [one["outcome"] for one in told]
    assert outcomes == ["first start", "adopted", "restarted"], (told, plane.tail())


def test_worker_that_hangs_is_killed_and_replaced(plane: Dataplane) -> None:
    plane.configure(app_config(workers=2))
    plane.start()
    first, second = (worker["pid"] for worker in plane.workers())
    plane.kill()
    os.kill(first, signal.SIGSTOP)
    plane.start("up")
    assert plane.event("worker.hung", pid=first)["error"] == "it does not answer"
    wait_gone(first)
    eventually(lambda: plane.report()["state"] == "serving")
    assert plane.workers()[1]["pid"] == second
    assert served(plane) == b"blue"


def test_zygote_of_a_dead_supervisor_goes_and_its_workers_stay(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    (zygote,), worker = plane.zygote_pids(), plane.worker_pid()
    plane.kill()
    wait_gone(zygote)
    assert list(plane.living()) == [worker]
    plane.start("up")
    assert plane.event("zygote.ready")["pid"] != zygote
    assert plane.worker_pid() == worker


def test_log_writer_that_died_too_costs_counted_lines_and_is_replaced(plane: Dataplane) -> None:
    plane.configure(app_config(access_log={"format": "json"}))
    plane.start()
    writer = plane.event("log.writer_started")["pid"]
    address = plane.address()
    plane.kill()
    kill_and_wait(writer)
    with Wire.connect(address) as client:
        assert client.get("/lost").body == b"blue"  # nobody is there to read it
    plane.start("up")
    served(plane, "/kept")
    log = plane.state_dir / "logs" / APP / "access.log"
    eventually(lambda: log.exists() and b"/kept" in log.read_bytes())
    made = plane.metric("dataplane_access_log_lines_total")
    assert made == log.read_bytes().count(b"\n") + plane.metric(
        "dataplane_access_log_dropped_total"
    )


# --- what generations were given --------------------------------------------------------------


def test_restart_after_an_adoption_has_the_secrets_of_its_generation(plane: Dataplane) -> None:
    """They were in the dead supervisor's memory, and in the workers'."""
    with Origin(answering(b"ok")) as origin:
        plane.configure(with_secret(origin.port, "env:TOKEN"))
        plane.start(environment={"TOKEN": FIRST})
        plane.kill()
        plane.start("up")
        killed = plane.worker_pid()
        os.kill(killed, signal.SIGKILL)
        wait_gone(killed)
        assert told_upstream(plane, origin) == [FIRST]
        assert plane.swap(force=True)["outcome"] == "swapped"
        assert told_upstream(plane, origin) == [FIRST]
        assert FIRST not in plane.log()


def test_app_on_a_unix_socket_is_adopted_with_its_file(plane: Dataplane) -> None:
    path = plane.folder / "app.sock"
    plane.configure(app_config(bind=f"unix:{path}", workers=2))
    plane.start()
    pids = plane.living()
    plane.kill()
    plane.start("up")
    assert plane.living() == pids
    assert plane.swap(force=True)["outcome"] == "swapped"
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    with Wire(client) as wire:
        assert wire.get().body == b"blue"
    plane.cli("stop", "--app", APP)
    assert not path.exists()


def test_stopped_app_that_still_drains_is_not_started_again(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.configure(app_config(app="shop", mark="shop"))
    plane.start("up")
    plane.cli("stop", "--app", APP)
    (shop,) = plane.living("shop")
    plane.kill()
    plane.start("up")
    assert plane.living() == {}
    assert list(plane.living("shop")) == [shop]
    assert plane.report()["state"] == "stopped"


# --- who is not adopted -----------------------------------------------------------------------


@pytest.mark.parametrize("does", ["nonsense", "lies", "silence"])
def test_stranger_at_a_control_socket_is_not_adopted(plane: Dataplane, does: str) -> None:
    killed_at_rest(plane)
    pids = plane.living()
    with stranger(plane, does) as other:
        plane.start("up")
        assert plane.event("worker.refused", pid=other.pid)["app"] == APP
        assert plane.living() == pids
        assert served(plane) == b"blue"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_worker_of_another_user_is_not_adopted(plane: Dataplane) -> None:
    killed_at_rest(plane)
    pids = plane.living()
    for folder in (plane.folder, plane.run_dir):
        folder.chmod(0o755)
    with stranger(plane, "older", uid=NOBODY) as other:
        plane.start("up")
        told = plane.event("worker.refused", pid=other.pid)
        assert told["error"] == f"it runs as user {NOBODY}"
        assert plane.living() == pids


def test_worker_of_code_that_cannot_be_adopted_is_told_of_and_left_alone(plane: Dataplane) -> None:
    plane.configure(app_config(app="shop", mark="shop"))
    plane.start("up")
    with stranger(plane, "older") as older:
        plane.kill()
        plane.start("up")
        assert plane.event("worker.former", app=APP)["pid"] == older.pid
        refused = plane.call("PUT", f"/v1/apps/{APP}")
        assert refused.status == 409
        assert f"(pid {older.pid}), of code that cannot be adopted" in refused.body["detail"]
        assert len(plane.living("shop")) == 1


def test_worker_whose_image_is_gone_is_ended_and_its_app_started_anew(plane: Dataplane) -> None:
    plane.configure(app_config(bind="127.0.0.1:0"))
    plane.start()
    image = plane.report()["wanted"].removeprefix("sha256:")
    worker = plane.worker_pid()
    pidfd = os.pidfd_open(worker)
    plane.kill()
    for blob in plane.state_dir.rglob(image):
        blob.unlink() if blob.is_file() else shutil.rmtree(blob)
    plane.start("run", "--app", APP)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert plane.event("worker.refused", pid=worker)["generation"] == 1
    assert served(plane) == b"blue"
    assert plane.report()["generations"][0]["generation"] == 2


def test_worker_whose_control_socket_was_removed_is_ended(plane: Dataplane) -> None:
    """It holds its address, and nobody could tell it anything any more."""
    killed_at_rest(plane, app_config())
    ((worker, _),) = plane.living().items()
    for path in (plane.run_dir / "workers").iterdir():
        Path(path).unlink()
    plane.start("up")
    assert plane.event("worker.stray")["pid"] == worker
    wait_gone(worker)
    assert served(plane) == b"blue"


def test_workers_in_another_run_folder_are_left_to_it(plane: Dataplane) -> None:
    """Whoever names another run folder has not lost the workers in the first."""
    killed_at_rest(plane, app_config())
    pids = plane.living()
    first = plane.run_dir
    plane.run_dir = plane.folder / "other"
    plane.configure(app_config(app="shop", mark="shop"))
    plane.start("up", "--app", "shop")
    assert plane.event("worker.elsewhere")["run_dir"] == str(first)
    assert plane.living() == pids
    plane.signal(signal.SIGTERM)
    assert plane.wait_end() == 0
    plane.run_dir = first
    plane.start("up")
    assert plane.living() == pids


def test_app_that_was_about_to_end_with_its_supervisor_is_called_back(plane: Dataplane) -> None:
    with Origin(holding(b"slow")) as origin:
        plane.configure(app_config(origin.port))
        plane.start()
        pids = plane.living()
        with Wire.connect(plane.address()) as busy:
            busy.send(request("/held"))
            origin.wait_asked(1)
            plane.signal(signal.SIGTERM)
            eventually(lambda: plane.report()["generations"][0]["state"] == "draining")
            plane.kill()
            plane.start("up")
            eventually(lambda: plane.report()["state"] == "serving")
            assert plane.living() == pids
            origin.released.set()
            assert busy.answer().status == 200
            assert busy.get().status == 200
