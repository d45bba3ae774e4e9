"""The form of a YAML file: places, bounds, and what is refused before any value is looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from dataplane.image import document
from dataplane.image.document import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    Mapping,
    Node,
    Scalar,
    Sequence,
    parse_document,
    read_document,
)


def parse(text: str | bytes) -> tuple[Node | None, list[str]]:
    node, findings = parse_document(text.encode() if isinstance(text, str) else text, "f")
    return node, [str(finding).replace("\n    hint:", " |") for finding in findings]


def plain(node: Node | None) -> object:
    match node:
        case Scalar():
            return node.text
        case Sequence():
            return [plain(item) for item in node.items]
        case Mapping():
            return {key: plain(value) for key, value in node.values.items()}
        case None:
            return None


def test_nodes_know_their_places() -> None:
    node, findings = parse("a: 1\nb:\n  - x\n  - {c: 'y'}\n")
    assert findings == []
    assert plain(node) == {"a": "1", "b": ["x", {"c": "y"}]}
    assert isinstance(node, Mapping)
    assert (node.keys["b"].line, node.keys["b"].column) == (2, 1)
    items = node.values["b"]
    assert isinstance(items, Sequence)
    assert isinstance(items.items[1], Mapping)
    value = items.items[1].values["c"]
    assert isinstance(value, Scalar)
    assert (value.line, value.column, value.plain) == (4, 9, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f: the file is empty"),
        ("# only a comment\n", "f: the file is empty"),
        ("a: [", "f:2:1: not YAML: did not find expected node content"),
        ("a: b: c", "f:1:5: not YAML: mapping values are not allowed in this context | put quotes"),
        ("a:\n\t- b", "f:2:1: not YAML: found character that cannot start any token | indent with"),
        ("a: 1\n  b: 2", "f:2:4: not YAML: mapping values are not allowed"),
        ("a: @b", "f:1:4: not YAML: found character that cannot start any token | put quotes"),
        (
            "a: 'b",
            "f:1:6: not YAML: found unexpected end of stream | while scanning a quoted scalar",
        ),
        ("a: 1\n---\nb: 2", "f:2:1: a second document begins here | one app a file"),
        ("a: !!python/object:os.system x", "f:1:4: tags are not supported"),
        ("a: !x 1", "f:1:4: tags are not supported: '!x'"),
        ("%TAG ! tag:x,2000:\n---\na: !b 1", "f:3:4: tags are not supported"),
        ("a: *b", "f:1:4: *b is an alias of nothing"),
        ("a: &b [*b]", "f:1:8: *b stands inside of what it is an alias of"),
        ("a: 1\na: 2", "f:2:1: key 'a' is here twice | it stands in line 1 already"),
        ("[a]: 1", "f:1:1: a key is a plain word"),
        ('a: "\\x07"', "f:1:4: '\\x07' has control characters"),
        ("a: \x07", "f:1:4: not YAML: '\\x07' is a control character"),
        ("a: \ue000", "f:1:4: '\\ue000' is a character without a meaning"),
        (b"a: \xff", "f:1:4: byte 0xff is not UTF-8 | save it as UTF-8"),
        (b"a: 1\nb: \xc3\xa4\xc3", "f:2:5: byte 0xc3 is not UTF-8"),
        (
            "a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH,
            f"f:1:35: nested deeper than {MAX_DEPTH} levels",
        ),
        ("a: " + "[" * 900, f"f:1:35: nested deeper than {MAX_DEPTH} levels"),
        ("x" * (MAX_FILE_BYTES + 1), "f: the file is too large | 1 MiB is the largest"),
    ],
)
def test_finding(text: str | bytes, expected: str) -> None:
    _, findings = parse(text)
    assert len(findings) == 1
    assert findings[0].startswith(expected)


def test_findings_of_form_come_together_and_the_rest_is_read() -> None:
    node, findings = parse("a: 1\na: 2\nb: !x 3\n[k]: 4\nc: 5\n")
    assert len(findings) == 3
    assert plain(node) == {"a": "1", "b": "3", "c": "5"}


def test_the_value_of_a_refused_key_is_skipped_whole() -> None:
    node, findings = parse("a: 1\na: {x: [1, {y: 2}]}\nb: 3\n")
    assert len(findings) == 1
    assert plain(node) == {"a": "1", "b": "3"}


def test_a_few_letters_cannot_stand_for_gigabytes() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    node, findings = parse("\n".join(lines))
    assert node is None
    assert "more than a config file may hold | aliases count as written out" in findings[0]


def test_long_texts_count_through_aliases_too() -> None:
    text = "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 1000) + "]"
    _, findings = parse(text)
    assert "more than a config file may hold" in findings[0]


def test_a_byte_order_mark_is_passed_over() -> None:
    node, findings = parse(b"\xef\xbb\xbfa: 1")
    assert (plain(node), findings) == ({"a": "1"}, [])


def test_the_slower_parser_gives_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyYAML has no libyaml, its own parser is used."""
    text = "a: &x [1, 'b', \"c\", [::1]:80]\nb: *x\nc: |\n  d\n"
    expected = parse(text)
    monkeypatch.setattr(document, "_LOADER", yaml.SafeLoader)
    assert parse(text) == expected
    assert len(parse("a: [")[1]) == len(parse("a: \x07")[1]) == len(parse('a: "\\ud800"')[1]) == 1


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        node, findings = read_document(tmp_path / name)
        assert node is None
        assert findings[0].message == "not a file"
    (tmp_path / "loop").symlink_to("loop")
    assert read_document(tmp_path / "loop")[1][0].message.startswith("cannot be read: ")


def test_depth_that_the_yaml_library_itself_refuses_is_one_finding() -> None:
    _, findings = parse("a: " + "[" * 100_000)
    assert len(findings) == 1
    assert "nest" in findings[0]
