"""The seal from inside: what a process may still do after it sealed itself as a worker does."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rig import Rig, client, open_fds, run
from tests.support.specs import app_spec

ROOT = Path(__file__).resolve().parents[2]

ALLOWED = {
    "connect to the named port": "done",
    "read what was open": "done",
    "splice through a pipe": "done",
    "take memory": "done",
}
# What seccomp alone stops, whatever the kernel's Landlock can do.
STOPPED_BY_SECCOMP = {
    "open a file": "EACCES",
    "create a file": "EACCES",
    "list a folder": "EACCES",
    "open through proc": "EACCES",
    "look at a file": "EACCES",
    "remove a file": "EPERM",
    "run a program": "EPERM",
    "fork": "EPERM",
    "start a thread": "EPERM",
    "make a UNIX socket": "EAFNOSUPPORT",
    "make a socket pair": "EPERM",
    "make a UDP socket": "EPERM",
    "make a raw socket": "EPERM",
    "make a netlink socket": "EAFNOSUPPORT",
    "make an MPTCP socket": "EPERM",
    "fast open by sendto": "ENOTSUP",
    "fast open by sendmsg": "ENOTSUP",
    "bind": "EPERM",
    "listen": "EPERM",
    "filter the shared listener": "EPERM",
    "make an io_uring": "ENOSYS",
    "signal another process": "EPERM",
    "signal by pidfd": "EPERM",
    "leave a namespace": "EPERM",
    "become another user": "EPERM",
    "trace another process": "EPERM",
    "read another's memory": "EPERM",
    "map code": "EPERM",
    "make a table writable": "EPERM",
    "map over a table": "EPERM",
    "load a program into the kernel": "EPERM",
}
STOPPED_BY_LANDLOCK_FILES = ("open a file", "create a file", "list a folder", "run a program")


def landlock_abi() -> int:
    return int(ctypes.CDLL(None).syscall(ctypes.c_long(444), None, ctypes.c_long(0), 1))


needs_landlock = pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")
needs_landlock_ports = pytest.mark.skipif(landlock_abi() < 4, reason="Landlock without ports")


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two ports that somebody listens on: one is in the spec, the other is not."""
    with (
        socket.create_server(("127.0.0.1", 0)) as named,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        yield named.getsockname()[1], other.getsockname()[1]


def attempt(ports: tuple[int, int], left_out: str = "", *names: str) -> dict[str, object]:
    """What came of each attempt. Without seccomp, only harmless ones may be named."""
    program = (sys.executable, "-m", "tests.support.attempts")
    done = subprocess.run(
        [*program, left_out, *map(str, ports), str(os.getpid()), *names],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=30,
        check=True,
    )
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no call numbers")
def test_sealed_process_can_only_serve(ports: tuple[int, int]) -> None:
    told = attempt(ports)
    assert told.pop("seal") == [True, max(0, landlock_abi()), True, False]
    if landlock_abi() < 4:
        told.pop("connect to another port")
    else:
        assert told.pop("connect to another port") == "EACCES"
    assert told == STOPPED_BY_SECCOMP | ALLOWED


@needs_landlock
def test_landlock_alone_takes_files_away(ports: tuple[int, int]) -> None:
    told = attempt(ports, "seccomp", *STOPPED_BY_LANDLOCK_FILES)
    assert told.pop("seal") == [False, landlock_abi(), True, False]
    assert set(told.values()) == {"EACCES"}


@needs_landlock_ports
def test_landlock_alone_leaves_the_named_ports_only(ports: tuple[int, int]) -> None:
    told = attempt(ports, "seccomp", "connect to the named port", "connect to another port", "bind")
    assert told["connect to the named port"] == "done"
    assert told["connect to another port"] == "EACCES"
    assert told["bind"] == "EACCES"


def test_layers_that_are_left_out_are_told_as_off(ports: tuple[int, int]) -> None:
    told = attempt(ports, "seccomp,landlock", "open a file")
    assert told["seal"] == [False, 0, True, False]
    assert told["open a file"] == "done"


def test_worker_says_which_layers_are_on_and_the_kernel_agrees(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec())
            ready = await worker.ready()
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
            )
            assert ready.seal.seccomp is (status["Seccomp"] == "2")
            assert ready.seal.no_new_privs is (status["NoNewPrivs"] == "1") is True
            assert ready.seal.landlock == max(0, landlock_abi())
            assert ready.seal.dumpable is False
            assert status["Name"] == "dp:billing/1.0"

    run(life)


def test_worker_serves_with_every_layer_left_out(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            worker = await rig.fork(app_spec(), seal=("seccomp", "landlock"))
            ready = await worker.ready()
            assert not ready.seal.seccomp
            assert ready.seal.landlock == 0
            await worker.serve()
            async with client(rig.port) as one:
                assert await one.get() == b"ok"

    run(life)


def test_worker_holds_no_descriptor_that_is_not_named(tmp_path: Path) -> None:
    async def life() -> None:
        leak = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(leak, True)
        try:
            async with Rig(tmp_path) as rig:
                first = await rig.serving(app_spec())
                second = await rig.serving(app_spec(), slot=1)
                for worker in (first, second):
                    held = [target for fd, target in open_fds(worker.pid) if fd > 2]
                    kinds = sorted(target.split(":")[0] for target in held)
                    # channel, control, listener, and a pair that uvloop keeps for signals
                    assert kinds.count("socket") == 5, held
                    assert set(kinds) <= {"socket", "anon_inode", "pipe", "/memfd"}, held
                    memory = sorted(t for t in held if "memfd" in t)
                    # stats twice: as it came, to be lent to the next supervisor, and the mapping's
                    stats = "/memfd:stats (deleted)"
                    assert memory == ["/memfd:spec (deleted)", stats, stats]
                    assert "anon_inode:[io_uring]" not in held
        finally:
            os.close(leak)

    run(life)


def test_spec_that_is_not_sealed_is_refused(tmp_path: Path) -> None:
    async def life() -> None:
        async with Rig(tmp_path) as rig:
            fd = os.memfd_create("spec", os.MFD_ALLOW_SEALING)
            os.write(fd, app_spec().to_json())
            worker = await rig.fork(app_spec(), spec_fd=fd)
            failed = await worker.failed()
            assert "not sealed" in failed.error
            assert os.waitstatus_to_exitcode(await rig.exit_status(worker)) == 1

    run(life)
