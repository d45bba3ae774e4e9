"""The seal as others see it: what the kernel says of a worker that serves."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.support.dataplane import Dataplane, app_config, children, eventually, process_name
from tests.support.origin import Origin, answering
from tests.support.wire import Wire

ALL_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# What a worker may hold beyond its standard three: no file, and nothing that could reach one.
KINDS: Final = re.compile(
    r"socket:\[\d+\]|pipe:\[\d+\]|anon_inode:\[(eventpoll|eventfd|timerfd|pidfd)\]"
    r"|/memfd:(stats|spec|shared)-[\w.-]+ \(deleted\)"
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="a sealed worker's descriptors are shown to root alone"
)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def targets(pid: int) -> dict[int, str]:
    """What each descriptor of the process is."""
    folder = Path(f"/proc/{pid}/fd")
    return {int(fd.name): os.readlink(fd) for fd in folder.iterdir()}


def test_every_worker_is_sealed(plane: Dataplane) -> None:
    """The first, one after a swap, one after a crash: each of them, and ps says so."""
    with Origin(answering(b"whole")) as origin:
        plane.configure(app_config(origin.port, workers=2))
        plane.start()
        claim_sealed(plane)
        plane.swap(force=True)
        claim_sealed(plane)
        os.kill(plane.workers()[0]["pid"], signal.SIGKILL)
        eventually(lambda: plane.workers()[0]["restarts"] == 1)
        claim_sealed(plane)
        (generation,) = plane.report()["generations"]
        assert generation["seal"]["seccomp"] is True
        assert generation["seal"]["no_new_privs"] is True
        assert generation["seal"]["dumpable"] is False
        assert bool(generation["seal"]["landlock"]) == bool(landlock_abi())


def claim_sealed(plane: Dataplane) -> None:
    """Every worker, as soon as all serve."""
    eventually(lambda: all(one["state"] == "serving" for one in plane.workers()))
    workers = plane.workers()
    assert len(workers) == 2
    for worker in workers:
        seen = status(worker["pid"])
        assert (seen["Seccomp"], seen["NoNewPrivs"]) == ("2", "1")
        assert int(seen["Seccomp_filters"]) >= 2
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"whole"


def landlock_abi() -> int:
    """What the kernel offers; 0: nothing."""
    abi: int = ctypes.CDLL(None).syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), 1)
    return max(abi, 0)


@needs_root
def test_worker_holds_no_descriptor_but_the_named_kinds(plane: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        plane.configure(app_config(origin.port))
        plane.start()
        for _ in range(2):
            with Wire.connect(plane.address()) as client:
                client.get()
                held = targets(plane.worker_pid())
                assert (held.pop(0), held.pop(1)) == ("/dev/null", "/dev/null")
                assert held.pop(2) == str(plane.folder / "supervisor.err")
                odd = {fd: target for fd, target in held.items() if not KINDS.fullmatch(target)}
                assert not odd
            plane.swap(force=True)


@needs_root
def test_nothing_that_serves_holds_an_io_uring(plane: Dataplane) -> None:
    """It would evade the filter: the event loop must not have made one, nor inherited it."""
    plane.configure(app_config())
    plane.start()
    for pid in (plane.worker_pid(), *plane.zygote_pids()):
        assert not [target for target in targets(pid).values() if "io_uring" in target]
        assert "io_uring" not in Path(f"/proc/{pid}/maps").read_text()


@needs_root
def test_worker_cannot_be_looked_into(plane: Dataplane) -> None:
    """Not dumpable: its files under /proc are root's, whoever it runs as; no core file."""
    plane.configure(app_config())
    plane.start()
    pid = plane.worker_pid()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    assert plane.report()["generations"][0]["seal"]["dumpable"] is False


def test_config_is_a_sealed_memory_file(plane: Dataplane) -> None:
    plane.configure(app_config(mark="sealed"))
    plane.start()
    (fd,) = [fd for fd, target in targets(plane.pid).items() if "memfd:spec-" in target]
    with open(f"/proc/{plane.pid}/fd/{fd}", "rb") as spec:
        assert fcntl.fcntl(spec, fcntl.F_GET_SEALS) & ALL_SEALS == ALL_SEALS
        assert b"sealed" in spec.read()
    with (
        pytest.raises(PermissionError),
        open(f"/proc/{plane.pid}/fd/{fd}", "r+b", buffering=0) as spec,
    ):
        spec.write(b"x")


def test_zygote_meets_no_traffic_and_workers_are_its_children(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    (zygote,) = plane.zygote_pids()
    assert plane.worker_pid() in children(zygote)
    assert process_name(plane.pid) == "dp:supervisor"
    assert process_name(plane.worker_pid()) == "dp:billing/1.0"
    assert status(zygote)["NoNewPrivs"] == "1"
