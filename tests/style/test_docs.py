"""The documents name what is there: files, make targets, and the test that holds each promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")

# In backticks, with a folder of this tree in front: `dataplane/cli/main.py`, `native/src/dp_*.c`.
_FILE: Final = re.compile(
    r"`((?:dataplane|native|tests|configs|benchmarks|docs|\.ci)/[\w./*{},-]*)(?:::\w+)?`"
)
_TARGET: Final = re.compile(r"`make ([a-z]+)")
_TEST: Final = re.compile(r"`(tests/e2e/[\w/]+\.py)::(test_\w+)`")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def exists(named: str) -> bool:
    if "{" in named:
        before, inner, after = re.split(r"[{}]", named, maxsplit=2)
        return all(exists(before + part + after) for part in inner.split(","))
    return any(ROOT.glob(named.rstrip("/")))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_real_files(document: str) -> None:
    missing = [named for named in _FILE.findall(read(document)) if not exists(named)]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_real_make_targets(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert set(_TARGET.findall(read(document))) <= targets


def test_readme_links_lead_somewhere() -> None:
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read("README.md"))
    assert [target for target in linked if not (ROOT / target).exists()] == []


def guarantees() -> list[str]:
    """The numbered lines under the README's heading of promises."""
    _, _, after = read("README.md").partition("\n## What it promises\n")
    section, _, _ = after.partition("\n## ")
    return [" ".join(item.split()) for item in re.split(r"^\d+\. ", section, flags=re.M)[1:]]


def test_readme_has_promises() -> None:
    assert len(guarantees()) >= 3


@pytest.mark.parametrize("guarantee", guarantees(), ids=lambda text: text[:40])
def test_each_promise_names_the_test_that_holds_it(guarantee: str) -> None:
    named = _TEST.findall(guarantee)
    assert named, f"no e2e test named: {guarantee}"
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE), (
            test
        )
