"""What the zygote rehearses leaves nothing behind that a worker would inherit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SHOW = """
import dataclasses, json, os, resource, sys
from dataplane.worker import rehearsal

LIMITS = resource.RLIMIT_CORE, resource.RLIMIT_NOFILE

def names_of(fd):
    try:
        return os.readlink("/proc/self/fd/" + fd)
    except OSError:
        return ""  # of the folder itself

def shown():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    words = ("Name", "Threads", "NoNewPrivs", "Seccomp", "SigCgt", "SigIgn")
    return {
        "descriptors": sorted(map(names_of, os.listdir("/proc/self/fd"))),
        "status": [status[word].strip() for word in words],
        "limits": [resource.getrlimit(kind) for kind in LIMITS],
    }

def rehearse():
    before = shown()
    rehearsal.rehearse()
    json.dump([before, shown()], sys.stdout)
"""

ONE_THAT_FAILS = """
rehearsal._FORK = dataclasses.replace(rehearsal._FORK, faults=("no such fault",))
rehearse()
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHOW + script], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("script", ["rehearse()", ONE_THAT_FAILS], ids=["goes well", "fails"])
def test_the_process_is_as_it_was(script: str) -> None:
    before, after = json.loads(run(script).stdout)
    more = [name for name in after["descriptors"] if name not in before["descriptors"]]
    assert len(more) in (0, 2), "libuv keeps a pipe for signals, which it makes anew in a child"
    assert all(name.startswith("pipe:") for name in more)
    for name in more:
        after["descriptors"].remove(name)
    assert after == before


def test_it_has_nothing_to_say() -> None:
    assert run("rehearse()").stderr == ""


def test_where_it_fails_the_reason_is_told_and_the_zygote_goes_on() -> None:
    done = run(ONE_THAT_FAILS)
    assert done.returncode == 0
    assert "zygote.not_rehearsed error=" in done.stderr
    assert "no such fault" in done.stderr
