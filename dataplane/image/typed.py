"""From nodes to plain values: the schema, not YAML, says what type a scalar has.

A scalar that does not fit its type stays text, so that the schema's check tells it with its place.
`${NAME}` is replaced here, in values only: what an operator's environment holds can change what a
key means, never which keys there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping as Environment
from typing import Any, Final, TypeAlias

from dataplane.image.document import Mapping, Node, Scalar, Sequence
from dataplane.image.values import shown
from dataplane.model.errors import Finding

Schema: TypeAlias = dict[str, Any]
Place: TypeAlias = tuple[str | int, ...]

# More than any text of a config needs; what a file asks for again and again must not fill memory.
MAX_EXPANDED: Final = 1 << 20

INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,15})")
_REFERENCE: Final = re.compile(r"\$(?:(\$)|\{([^}]*)(\}?))")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def resolve(schema: Schema, root: Schema) -> Schema:
    """The schema with its `$ref` into `$defs` written out; its own keywords go first."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    return {**root["$defs"][reference.removeprefix("#/$defs/")], **schema}


def child_schema(schema: Schema, step: str | int, root: Schema) -> Schema:
    """The schema of a key's or an index' value; empty where there is none."""
    if isinstance(step, int):
        below = schema.get("items", {})
    else:
        below = schema.get("properties", {}).get(step, schema.get("additionalProperties"))
    return resolve(below, root) if isinstance(below, dict) else {}


def schema_at(place: Place, root: Schema) -> Schema:
    """The schema that holds for a place in the document."""
    schema = root
    for step in place:
        schema = child_schema(schema, step, root)
    return schema


def type_document(
    node: Node, root: Schema, environment: Environment[str, str], path: str
) -> tuple[Any, tuple[Finding, ...]]:
    """The document's value, typed by the schema, and what is wrong with its `${NAME}`s."""
    typing = _Typing(root, environment, path)
    value = typing.value_of(node, root)
    return value, tuple(typing.findings)


class _Typing:
    """One walk over a document. Collects findings."""

    def __init__(self, root: Schema, environment: Environment[str, str], path: str) -> None:
        self.findings: list[Finding] = []
        self._root = root
        self._environment = environment
        self._path = path
        self._expanded = 0

    def value_of(self, node: Node, schema: Schema) -> Any:
        match node:
            case Mapping():
                return {
                    key: self.value_of(below, child_schema(schema, key, self._root))
                    for key, below in node.values.items()
                }
            case Sequence():
                below = child_schema(schema, 0, self._root)
                return [self.value_of(item, below) for item in node.items]
            case Scalar():
                return self._scalar(node, schema)

    def _scalar(self, node: Scalar, schema: Schema) -> str | int | None:
        text = node.text
        bare = node.plain
        if "$" in text:
            text = expand(text, self._environment, lambda *told: self._find(node, *told))
            bare = bare or text != node.text  # "${WORKERS}" in quotes may still be a number
            self._expanded += len(text)
            if self._expanded > MAX_EXPANDED:
                self._expanded = -(1 << 62)  # told once
                self._find(node, "the environment makes this file too large", None)
            if _UNPRINTABLE.search(text):
                message = f"{shown(node.text)} has characters from the environment that are no text"
                self._find(node, message, None)
                text = _UNPRINTABLE.sub("?", text)
        if node.plain and not node.text:
            return None
        if bare and "integer" in types_of(schema) and INTEGER.fullmatch(text):
            return int(text)
        if bare and "boolean" in types_of(schema) and text in ("true", "false"):
            return text == "true"
        return text

    def _find(self, node: Node, message: str, hint: str | None) -> None:
        self.findings.append(
            Finding(path=self._path, line=node.line, column=node.column, message=message, hint=hint)
        )


def types_of(schema: Schema) -> frozenset[str]:
    """The names of the types that the schema allows; none where it does not say."""
    told = schema.get("type")
    if isinstance(told, str):
        return frozenset((told,))
    if isinstance(told, list):
        return frozenset(told)
    choices = schema.get("enum", ())
    return frozenset("integer" if isinstance(choice, int) else "string" for choice in choices)


def expand(
    text: str, environment: Environment[str, str], find: Callable[[str, str | None], None]
) -> str:
    """The text with `${NAME}` and `$$` replaced; what cannot be is told to `find`."""

    def value(found: re.Match[str]) -> str:
        dollar, name, closed = found.groups()
        if dollar:
            return "$"
        if not closed:
            find(f"{shown(found[0])} has no closing brace", "write ${NAME}, or $${ for the text")
        elif _VARIABLE.fullmatch(name) is None:
            find(f"{shown(found[0])} does not name a variable", "only ${NAME} is known")
        elif name not in environment:
            find(f"{found[0]} is not set in the environment", "set it, or write $${ for the text")
        else:
            return environment[name]
        return found[0]

    return _REFERENCE.sub(value, text)


def defaults_filled(value: Any, schema: Schema, root: Schema) -> Any:
    """The value with every default of the schema written out."""
    if isinstance(value, list):
        below = child_schema(schema, 0, root)
        return [defaults_filled(item, below, root) for item in value]
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for key, below in schema.get("properties", {}).items():
        resolved = resolve(below, root)
        if key not in filled and "default" in resolved:
            filled[key] = resolved["default"]
    return {
        key: defaults_filled(item, child_schema(schema, key, root), root)
        for key, item in filled.items()
    }
