"""Common memory: nothing that a process knows is changed by moving it or by giving pages back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.engine.common import _areas
from tests.support.sanitised import SANITISED

# In a process of its own: what is moved is all its memory, and no other thread may run.
BEGIN = """
import hashlib, os, sys
from dataplane.engine.common import CommonMemory, open_pagemap

def digest(held):
    return hashlib.sha256(repr(held).encode()).hexdigest()

def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

held = [{"key": str(n), "value": [n, float(n)]} for n in range(20_000)]
before = digest(held)
common = CommonMemory()
assert common.shared > 1_000_000
assert digest(held) == before
"""


def run(script: str) -> str:
    if SANITISED:
        pytest.skip("a sanitised library moves no memory: see dp_memory.c")
    done = subprocess.run(
        (sys.executable, "-c", BEGIN + script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_only_looked_at_is_given_back_and_reads_as_before() -> None:
    told = run(
        """
def work():
    pagemap = open_pagemap()
    assert digest(held) == before
    first = common.give_back(pagemap)
    assert digest(held) == before
    assert common.give_back(pagemap) > 0
    print(first)

child(work)
"""
    )
    assert int(told) > 1_000_000


def test_what_was_changed_stays_changed_in_the_one_that_changed_it() -> None:
    run(
        """
def work():
    pagemap = open_pagemap()
    for n, one in enumerate(held):
        if n % 7 == 0:
            one["value"][0] = "changed"
    mine = digest(held)
    assert mine != before
    common.give_back(pagemap)
    assert digest(held) == mine

child(work)
assert digest(held) == before
held.clear()
child(lambda: sys.exit(held != []))
"""
    )


def test_memory_can_still_grow_shrink_and_be_freed() -> None:
    run(
        """
def work():
    pagemap = open_pagemap()
    more = [bytes(size) for size in range(1, 200_000, 97)]
    common.give_back(pagemap)
    assert sum(map(len, more)) == sum(range(1, 200_000, 97))
    del more
    held.clear()
    common.give_back(pagemap)
    assert [bytes(200_000) for _ in range(50)] == [bytes(200_000)] * 50

child(work)
child(work)
"""
    )


def test_descriptor_that_is_no_pagemap_gives_nothing_back() -> None:
    run(
        """
try:
    common.give_back(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
else:
    sys.exit("it believed an empty file")
assert digest(held) == before
"""
    )


@pytest.mark.parametrize(
    ("line", "is_taken"),
    [
        ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0", True),
        ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0          [heap]", True),
        ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0          [anon: glibc: malloc]", True),
        ("7f0000000000-7f0000100000 rw-p 00000000 08:01 77         /lib/libpython3.so", True),
        ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0          [stack]", False),
        ("7f0000000000-7f0000100000 r--p 00000000 00:00 0", False),
        ("7f0000000000-7f0000100000 rw-s 00000000 00:01 7          /memfd:stats (deleted)", False),
        ("7f0000000000-7f0000001000 rw-p 00000000 00:00 0", False),
        ("7f0000000000-7f0040000000 rw-p 00000000 00:00 0", False),
    ],
)
def test_only_private_memory_of_some_size_is_moved(
    tmp_path: Path, line: str, is_taken: bool
) -> None:
    maps = tmp_path / "maps"
    maps.write_text(line + "\n")
    assert bool(_areas(maps)) is is_taken


def test_once_gaps_are_filled_new_objects_lie_side_by_side() -> None:
    told = run(
        """
from dataplane.engine.common import fill_gaps

class Sized:
    __slots__ = ("a", "b", "c")

def pages(objects):
    return len({id(one) // 4096 for one in objects})

many = [Sized() for _ in range(50_000)]
del many[::36]  # a gap or two in each of its pages
gaps = [Sized() for _ in range(500)]
fill_gaps()
print(pages(gaps), pages([Sized() for _ in range(500)]))
"""
    )
    among_gaps, side_by_side = map(int, told.split())
    assert side_by_side * 5 < among_gaps
