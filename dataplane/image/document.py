"""A YAML file as a tree of nodes that know their line and column.

Only the form is read here: scalars stay the text that was written, so that no rule of YAML 1.1
(`on`, `010`, `1:20`) decides what a value means. Everything is bounded before it is built: the
file's size, its depth, and what aliases expand to. Tags are refused; what is wrong is returned.
"""

from __future__ import annotations

import dataclasses
import re
import stat
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from dataplane.image.values import shown
from dataplane.model.errors import ConfigError, Finding

MAX_FILE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32  # the deepest key of the schema stands at 6
# What a document weighs with every alias written out: a few letters can stand for gigabytes.
MAX_WEIGHT: Final = 4 << 20
_NODE_WEIGHT: Final = 32

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Written as escapes in quotes, these would reach a log or a header field as they are.
_UNREADABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


# `bind: [::1]:80` means what it says, though YAML takes '[' for a list's beginning. Such addresses
# pass the parser under other characters, one for one, so that no column moves.
_ADDRESS: Final = re.compile(
    r"(?<![^\s,\[{])\[(?=[0-9A-Fa-f.]{0,45}:[0-9A-Fa-f.]{0,45}:)"
    r"[0-9A-Fa-f.:]{2,45}\]:[0-9]{1,6}(?![^\s,\]}])"
)
_HIDDEN: Final = "\ue000\ue001\ue002"
_HIDE: Final = str.maketrans("[]:", _HIDDEN)
_SHOW: Final = str.maketrans(_HIDDEN, "[]:")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    line: int
    column: int
    weight: int
    text: str
    plain: bool  # written without quotes, not as a block


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    line: int
    column: int
    weight: int
    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    line: int
    column: int
    weight: int
    keys: dict[str, Scalar]
    values: dict[str, Node]


Node: TypeAlias = Scalar | Sequence | Mapping


def read_document(path: Path) -> tuple[Node | None, tuple[Finding, ...]]:
    """The tree of the file (None if there is none) and what is wrong with its form."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            return None, (_of_file(path, "not a file", None),)
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None, (_of_file(path, "no such file", None),)
    except OSError as error:
        return None, (_of_file(path, f"cannot be read: {error.strerror}", None),)
    return parse_document(data, str(path))


def parse_document(data: bytes, path: str) -> tuple[Node | None, tuple[Finding, ...]]:
    """As `read_document`, of bytes in hand; `path` is only told."""
    reader = _Reader(path)
    try:
        node = reader.read(data)
    except ConfigError as error:
        return None, (*reader.findings, *error.findings)
    return node, tuple(reader.findings)


@dataclasses.dataclass(slots=True)
class _Open:
    """A collection whose end was not seen yet. Changes as its events come."""

    line: int
    column: int
    anchor: str | None
    is_mapping: bool
    weight: int = _NODE_WEIGHT
    items: list[Node] = dataclasses.field(default_factory=list)
    keys: dict[str, Scalar] = dataclasses.field(default_factory=dict)
    values: dict[str, Node] = dataclasses.field(default_factory=dict)
    key: Scalar | None = None  # of a mapping: its value is due next
    skip_value: bool = False  # the key was refused: its value is read, then dropped


class _Reader:
    """Builds the tree from the parser's events, without recursion. Collects findings."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self._anchors: dict[str, Node | None] = {}  # None: not complete yet
        self._open: list[_Open] = []
        self._root: Node | None = None

    def read(self, data: bytes) -> Node | None:
        text = self._decode(data)
        documents = 0
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents == 2:
                        hint = "one app a file: remove the '---' and what follows"
                        raise self._stop(event, "a second document begins here", hint)
                elif isinstance(event, yaml.NodeEvent):
                    self._node_event(event)
                elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                    self._close()
        except yaml.YAMLError as error:
            raise ConfigError((self._syntax(error, text),)) from error
        if self._root is None:
            raise ConfigError(
                (_of_file(self.path, "the file is empty", "see `dataplane schema app`"),)
            )
        return self._root

    def _decode(self, data: bytes) -> str:
        if len(data) > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES >> 20} MiB is the largest"
            raise ConfigError((_of_file(self.path, "the file is too large", limit),))
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            line = before.count(b"\n") + 1
            column = len(before.rpartition(b"\n")[2].decode(errors="replace")) + 1
            message = f"byte 0x{data[error.start]:02x} is not UTF-8"
            finding = Finding(
                path=self.path, line=line, column=column, message=message, hint="save it as UTF-8"
            )
            raise ConfigError((finding,)) from error
        if strange := re.search(f"[{_HIDDEN}]", text):
            message = f"{shown(strange[0])} is a character without a meaning"
            raise ConfigError((_at_offset(self.path, text, strange.start(), message),))
        return _ADDRESS.sub(lambda found: found[0].translate(_HIDE), text)

    def _node_event(self, event: yaml.NodeEvent) -> None:
        line, column = _place(event)
        if isinstance(event, yaml.AliasEvent):
            self._add(self._alias(event), line, column)
            return
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._find(event, f"tags are not supported: {shown(tag)}", "write the value alone")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            weight = _NODE_WEIGHT + len(event.value)
            plain = event.style is None or event.style == ""
            if _UNREADABLE.search(event.value):
                self._find(event, f"{shown(event.value)} has control characters", "remove them")
            text = _UNREADABLE.sub("?", event.value).translate(_SHOW)
            scalar = Scalar(line=line, column=column, weight=weight, text=text, plain=plain)
            if event.anchor is not None:
                self._anchors[event.anchor] = scalar
            self._add(scalar, line, column)
            return
        if len(self._open) == MAX_DEPTH:
            raise self._stop(event, f"nested deeper than {MAX_DEPTH} levels", None)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self._open.append(_Open(line, column, event.anchor, is_mapping))

    def _alias(self, event: yaml.AliasEvent) -> Node:
        name = f"*{event.anchor}"
        if event.anchor not in self._anchors:
            raise self._stop(event, f"{name} is an alias of nothing", "its anchor comes before it")
        node = self._anchors[event.anchor]
        if node is None:
            raise self._stop(event, f"{name} stands inside of what it is an alias of", None)
        return node

    def _close(self) -> None:
        done = self._open.pop()
        node: Node
        if done.is_mapping:
            node = Mapping(
                line=done.line,
                column=done.column,
                weight=done.weight,
                keys=done.keys,
                values=done.values,
            )
        else:
            node = Sequence(
                line=done.line, column=done.column, weight=done.weight, items=tuple(done.items)
            )
        if done.anchor is not None:
            self._anchors[done.anchor] = node
        self._add(node, done.line, done.column)

    def _add(self, node: Node, line: int, column: int) -> None:
        """Puts a complete node where it belongs; line and column are its own, or its alias'."""
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        parent.weight += node.weight
        if parent.weight > MAX_WEIGHT:
            hint = "aliases count as written out"
            finding = self._finding(line, column, "more than a config file may hold", hint)
            raise ConfigError((finding,))
        if not parent.is_mapping:
            parent.items.append(node)
        elif parent.key is not None or parent.skip_value:
            if parent.key is not None and not parent.skip_value:
                parent.values[parent.key.text] = node
            parent.key, parent.skip_value = None, False
        else:
            self._add_key(parent, node, line, column)

    def _add_key(self, parent: _Open, node: Node, line: int, column: int) -> None:
        if not isinstance(node, Scalar):
            hint = "a ':' is missing, or a '{' stands where a value in quotes is meant"
            self.findings.append(self._finding(line, column, "a key is a plain word", hint))
            parent.skip_value = True
            return
        if node.text in parent.keys:
            first = parent.keys[node.text].line
            message = f"key {shown(node.text)} is here twice"
            hint = f"it stands in line {first} already"
            self.findings.append(self._finding(line, column, message, hint))
            parent.skip_value = True
            return
        key = dataclasses.replace(node, line=line, column=column)
        parent.keys[key.text] = key
        parent.key = key

    def _find(self, event: yaml.Event, message: str, hint: str | None) -> None:
        self.findings.append(self._finding(*_place(event), message, hint))

    def _stop(self, event: yaml.Event, message: str, hint: str | None) -> ConfigError:
        return ConfigError((self._finding(*_place(event), message, hint),))

    def _finding(self, line: int, column: int, message: str, hint: str | None) -> Finding:
        return Finding(path=self.path, line=line, column=column, message=message, hint=hint)

    def _syntax(self, error: yaml.YAMLError, text: str) -> Finding:
        if isinstance(error, yaml.MarkedYAMLError):
            mark = error.problem_mark or error.context_mark
            problem = error.problem or error.context or "not YAML"
            if mark is None:
                return _of_file(self.path, f"not YAML: {problem}", None)
            lines = text.split("\n")
            rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
            hint = "indent with spaces" if rest.startswith("\t") else _SYNTAX_HINTS.get(problem)
            if hint is None and error.context_mark is not None and error.context is not None:
                hint = f"{error.context} that began in line {error.context_mark.line + 1}"
            return self._finding(mark.line + 1, mark.column + 1, f"not YAML: {problem}", hint)
        found = _UNREADABLE.search(text)
        if found is None:
            return _of_file(self.path, "not YAML: it cannot be read", None)
        message = f"not YAML: {shown(found[0])} is a control character"
        return _at_offset(self.path, text, found.start(), message)


_COLON: Final = "put quotes around a text that has ': ' in it"
_SYNTAX_HINTS: Final = {  # of libyaml and of PyYAML's own parser
    "mapping values are not allowed here": _COLON,
    "mapping values are not allowed in this context": _COLON,
    "could not find expected ':'": "a key needs ': ' after it",
    "found character that cannot start any token": "put quotes around a text that begins with it",
    "did not find expected alphabetic or numeric character": "put quotes around '*' and '&'",
}


def _at_offset(path: str, text: str, offset: int, message: str) -> Finding:
    before = text[:offset]
    return Finding(
        path=path,
        line=before.count("\n") + 1,
        column=len(before.rpartition("\n")[2]) + 1,
        message=message,
        hint="remove it",
    )


def _place(event: yaml.Event) -> tuple[int, int]:
    assert event.start_mark is not None  # a parser's events have their marks
    return event.start_mark.line + 1, event.start_mark.column + 1


def _of_file(path: Path | str, message: str, hint: str | None) -> Finding:
    return Finding(path=str(path), line=0, column=0, message=message, hint=hint)
