"""dp.h is the single source of the seam: what it declares is what the built library has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
HEADER: Final = ROOT / "native" / "include" / "dp.h"


def cdef() -> str:
    found = re.findall(r"/\* cdef: begin \*/(.*?)/\* cdef: end \*/", HEADER.read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def declared_functions() -> list[str]:
    return re.findall(r"^[a-z][\w *]*?\b(dp_\w+)\(", without_comments(cdef()), re.MULTILINE)


@pytest.fixture(scope="module")
def native() -> Any:
    from dataplane.engine import _native

    return _native


def test_the_marked_part_needs_no_preprocessor() -> None:
    assert not re.search(r"^\s*#", cdef(), re.MULTILINE)


def test_functions_are_found_in_the_header() -> None:
    assert {"dp_abi", "dp_engine_new", "dp_engine_turn"} <= set(declared_functions())


def test_every_function_of_the_header_is_in_the_library(native: Any) -> None:
    assert [name for name in declared_functions() if not hasattr(native.lib, name)] == []


def test_library_shows_nothing_but_the_header_and_its_door(native: Any) -> None:
    """Hidden by default: a function that is not in dp.h cannot be called from outside."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", native.__file__], capture_output=True, text=True, check=True
    )
    shown = {line.split()[-1] for line in listed.stdout.splitlines()}
    unwanted = shown - set(declared_functions()) - {"PyInit__native", "_cffi_pypyinit__native"}
    assert not {name for name in unwanted if not name.startswith(("_init", "_fini"))}


def test_abi_number_of_header_and_library_agree(native: Any) -> None:
    (told,) = re.findall(r"DP_ABI = (\d+)", cdef())
    assert native.lib.dp_abi() == int(told)
