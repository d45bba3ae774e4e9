"""The house rules that no other tool holds: what the tree may hold and how big it may be."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

MAX_LINES: Final = 800  # of one file: beyond that it has more than one duty

# Words that say nothing, and words for which the house has another (see ARCHITECTURE.md).
UNWANTED_IN_TYPES: Final = (
    "Manager", "Handler", "Helper", "Util", "Utils", "Base", "Data", "Info",
    "Master", "Slave", "Arbiter", "Backend", "Cluster", "Frontend", "Tenant",
    "Bundle", "Artifact", "Snapshot",
)  # fmt: skip

# The one place that may load the C library, and the ones that may start or become a process.
ONLY_IN: Final[dict[str, str | tuple[str, ...]]] = {
    "dataplane.engine._native": "dataplane/engine/",
    "cffi": "dataplane/engine/",
    "dns": "dataplane/supervisor/nameserver.py",
    "subprocess": "dataplane/system/process.py",
    "yaml": "dataplane/image/",
    "jsonschema": "dataplane/image/",
    "h11": ("dataplane/control/", "dataplane/cli/demo_upstream.py"),
}

PYTHON: Final = sorted((ROOT / "dataplane").rglob("*.py"))
NATIVE: Final = sorted(
    path
    for folder in ("include", "src", "load", "test", "fuzz")
    for path in (ROOT / "native" / folder).glob("*.[ch]")
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def words(identifier: str) -> list[str]:
    """HTTPListenerInfo -> HTTP, Listener, Info."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[a-z0-9]+", identifier)


def class_names(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            yield node.lineno, node.name


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Every module that the source imports, `from a import b` as both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_there_is_something_to_judge() -> None:
    assert len(PYTHON) > 10
    assert len(NATIVE) > 3


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=name_of)
def test_file_has_one_duty(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines: split it by duty"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_types_are_named_for_what_they_are(path: Path) -> None:
    unwanted = [
        f"{name_of(path)}:{line}: {name}"
        for line, name in class_names(path.read_text(encoding="utf-8"))
        if not set(words(name)).isdisjoint(UNWANTED_IN_TYPES)
    ]
    assert not unwanted


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_only_the_named_place_imports_it(path: Path) -> None:
    misplaced = [
        f"{name_of(path)}:{line}: {module} belongs to {place}"
        for line, module in imported(path.read_text(encoding="utf-8"))
        for root, place in ONLY_IN.items()
        if (module == root or module.startswith(f"{root}.")) and not name_of(path).startswith(place)
    ]
    assert not misplaced


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_module_says_what_it_is_for(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not source.strip() or ast.get_docstring(ast.parse(source)), name_of(path)


def test_no_environment_is_read_below_the_command_line() -> None:
    """Settings come from flags, the environment and files in one place: the cli, and the build."""
    readers = [
        f"{name_of(path)}:{line}"
        for path in PYTHON
        if not name_of(path).startswith("dataplane/cli/") and path.name != "_build.py"
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\bos\.(environb?|getenv)\b", text)
    ]
    assert not readers


def test_the_broad_catch_stands_only_where_a_process_or_a_connection_begins() -> None:
    """`except Exception` needs a word of why beside it, and there are few."""
    marked = re.compile(r"#\s*noqa: BLE001\b")
    places = [
        f"{name_of(path)}:{token.start[0]}: {token.line.strip()}"
        for path in PYTHON
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.COMMENT and marked.search(token.string)
    ]
    bare = [place for place in places if not re.search(r"BLE001\W+\w", place)]
    assert not bare, "say why"
    assert len(places) <= 8, places


def test_tests_do_not_sleep() -> None:
    sleepers = [
        f"{name_of(path)}:{node.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
    assert not sleepers, "wait for the event itself"


def test_words_are_cut_at_capitals() -> None:
    assert words("HTTPListenerInfo") == ["HTTP", "Listener", "Info"]
    assert words("_Database2") == ["Database2"]
