"""The net under all of these tests: a worker that is at fault fails the test that it worked for.

The fault is put into a copy of the package, so that it happens where a true one would: in a worker
that is sealed. Blue goes on; only the end of the test tells.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.dataplane import Dataplane, app_config
from tests.support.installation import change
from tests.support.sanitised import SANITISED, fault_told
from tests.support.wire import Wire

needs_sanitisers = pytest.mark.skipif(not SANITISED, reason="only `make san-e2e` has sanitisers")

# Where a worker's own code stands after its seal, and that it is no rehearsal.
SEALED: Final = "        faults.before_ready()\n"
FORKED: Final = "        if birth.fork.request:\n"
ABORT: Final = "os.abort()\n"
# One byte more than was allocated, to a function of the engine.
READ_BEYOND: Final = """\
import ctypes
from dataplane.engine._native import ffi, lib
allocate = ctypes.CDLL(None).malloc
allocate.restype = ctypes.c_void_p
path = ffi.cast("uint8_t *", allocate(8))
ffi.memmove(path, b"/abcdefg", 8)
lib.dp_path_normalise(path, 9, ffi.new("size_t *"))
"""
# An address at which no engine can lie.
MISALIGNED: Final = """\
from dataplane.engine._native import ffi, lib
lib.dp_engine_fd(ffi.cast("dp_engine *", 4097))
"""


@pytest.fixture
def faulty(installed: Path) -> Iterator[Dataplane]:
    """A dataplane that runs from the copy; the test itself is to close it."""
    folder = Path(tempfile.mkdtemp())
    yield Dataplane(
        folder,
        program=(sys.executable, "-m", "dataplane"),
        environment={"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        pytest.param(ABORT, r"killed by SIGABRT", id="crash"),
        pytest.param(
            READ_BEYOND,
            r"(?s)AddressSanitizer: heap-buffer-overflow.*dp_path_normalise",
            id="address",
            marks=needs_sanitisers,
        ),
        pytest.param(
            MISALIGNED,
            r"runtime error: member access within misaligned address",
            id="undefined",
            marks=needs_sanitisers,
        ),
    ],
)
def test_a_fault_in_a_sealed_worker_fails_its_test(
    faulty: Dataplane, installed: Path, fault: str, told: str
) -> None:
    faulty.configure(app_config())
    faulty.start()
    indented = textwrap.indent(fault, 12 * " ")
    change(installed / "dataplane" / "worker" / "main.py", SEALED, SEALED + FORKED + indented)
    faulty.swap(faulty.build(app_config(mark="green")), code=502)
    with Wire.connect(faulty.address()) as client:
        assert client.get().body == b"blue"
    with pytest.raises(AssertionError, match=told) as seen:
        faulty.close()
    assert "was left" not in str(seen.value)


@needs_sanitisers
def test_every_zygote_and_worker_has_the_sanitiser_in_it(plane: Dataplane) -> None:
    plane.configure(app_config(workers=2))
    plane.start()
    for pid in (*plane.zygote_pids(), *(worker["pid"] for worker in plane.workers())):
        assert "libasan.so" in Path(f"/proc/{pid}/maps").read_text()
    (tree,) = (plane.state_dir / "code").glob("[0-9a-f]*")
    (library,) = (tree / "dataplane" / "engine").glob("_native*.so")
    assert b"__asan_report_load8" in library.read_bytes()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("==7==ERROR: AddressSanitizer: heap-use-after-free on", True),
        ("src/dp_http.c:7:9: runtime error: signed integer overflow", True),
        ("==7==AddressSanitizer CHECK failed: sanitizer_common.cpp:53", True),
        ("t worker.ended app=a status='killed by SIGSEGV'", True),
        ('{"event":"worker.ended","status":"killed by SIGABRT"}', True),
        ("t worker.ended app=a status='killed by SIGKILL'", False),
        ("t worker.ended app=a status='exit 70'", False),
        ("error='RuntimeError: a runtime error'", False),
    ],
)
def test_a_fault_is_told_from_what_tests_do_on_purpose(text: str, fault: bool) -> None:
    told = fault_told(f"before\n{text}\nafter\n")
    assert (told == f"{text}\nafter\n") if fault else (told is None)
