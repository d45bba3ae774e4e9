"""Holds the schema against a document and says each violation as a person would.

jsonschema finds all errors; this module turns each into a `Finding` at the node it is about, and
gives back the value without the faulty parts, so that later checks do not stumble over them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError

from dataplane.image import values
from dataplane.image.document import Mapping, Node, Scalar, Sequence
from dataplane.image.typed import INTEGER, Place, Schema, resolve, schema_at, types_of
from dataplane.image.values import Unfit, shown
from dataplane.model.errors import Finding

_MIN_HEAD_BYTES: Final = 1 << 10
_MAX_HEAD_BYTES: Final = 64 << 10
_MIN_LOG_BYTES: Final = 64 << 10


def _wait(text: str) -> None:
    if values.duration_ms(text) == 0:
        raise Unfit(f"{shown(text)}: every wait needs an end", "write a longer one, say 30s")


def _head_size(value: int | str) -> None:
    if not _MIN_HEAD_BYTES <= values.size_bytes(value) <= _MAX_HEAD_BYTES:
        raise Unfit(f"{shown(value)}: a head's limit is from 1KiB to 64KiB", "32KiB is the default")


def _log_size(value: int | str) -> None:
    if values.size_bytes(value) < _MIN_LOG_BYTES:
        raise Unfit(f"{shown(value)}: a log is set aside at 64KiB or more", "64MiB is the default")


_FORMATS: Final[dict[str, Callable[[Any], object]]] = {
    "app-name": values.app_name,
    "balance-key": values.balance_key,
    "cookie-name": values.cookie_name,
    "duration": values.duration_ms,
    "edited-field-name": values.edited_field_name,
    "endpoint-address": values.endpoint_address,
    "field-name": values.field_name,
    "field-value": values.field_value,
    "head-size": _head_size,
    "health-path": values.health_path,
    "host": values.host_pattern,
    "listen-address": values.listen_address,
    "log-size": _log_size,
    "method": values.method_name,
    "network": values.network,
    "path": values.path_pattern,
    "rate-key": values.rate_key,
    "redirect-target": values.redirect_target,
    "set-field-value": values.set_field_value,
    "retry-cause": values.retry_cause,
    "share": values.share_percent,
    "statuses": values.status_range,
    "size": values.size_bytes,
    "wait": _wait,
}
_TAKE_NUMBERS: Final = frozenset({"size", "head-size", "log-size"})


def _check_format(
    _validator: Any, name: str, instance: object, _schema: Schema
) -> Iterator[ValidationError]:
    if not isinstance(instance, str) and not (name in _TAKE_NUMBERS and type(instance) is int):
        return
    try:
        _FORMATS[name](instance)
    except Unfit as unfit:
        yield ValidationError(unfit.message, cause=unfit)


_VALIDATOR: Final[Any] = validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"x-format": _check_format}
)

# One place gives one finding: the first of these that fails there.
_RANK: Final = {
    name: rank for rank, name in enumerate(("type", "const", "x-format", "enum", "pattern"))
}


def check_form(
    node: Node, value: Any, root: Schema, path: str
) -> tuple[Any, frozenset[Place], list[Finding]]:
    """The value without what the schema refuses, the places refused, a finding for each refusal."""
    validator = _VALIDATOR(root)
    told = _Telling(node, value, root, path)
    errors: list[ValidationError] = list(validator.iter_errors(value))
    for error in sorted(errors, key=lambda error: _RANK.get(str(error.validator), len(_RANK))):
        told.tell(error)
    return _without(value, (), told.faulty), frozenset(told.faulty), told.findings


def place_of(node: Node, place: Place) -> Node:
    """The node at a place; where the document ends before it, the last node on the way."""
    for step in place:
        match node:
            case Mapping() if step in node.values:
                node = node.values[str(step)]
            case Sequence() if isinstance(step, int) and step < len(node.items):
                node = node.items[step]
            case _:
                break
    return node


def key_of(node: Node, place: Place) -> Node:
    """The node of a mapping's key (of a list's entry): for what is said about all of its value."""
    if place and isinstance(place[-1], str):
        holder = place_of(node, place[:-1])
        if isinstance(holder, Mapping) and place[-1] in holder.keys:
            return holder.keys[place[-1]]
    return place_of(node, place)


class _Telling:
    """Turns a validator's errors into findings. Collects findings and faulty places."""

    def __init__(self, node: Node, value: Any, root: Schema, path: str) -> None:
        self.findings: list[Finding] = []
        self.faulty: set[Place] = set()
        self._misnamed: set[Place] = set()  # a key and its value can each have one
        self._told: set[Place] = set()
        self._node = node
        self._value = value
        self._root = root
        self._path = path

    def tell(self, error: ValidationError) -> None:
        place: Place = tuple(error.absolute_path)
        instance: Any = error.instance
        if "propertyNames" in error.absolute_schema_path:
            self._name(error, (*place, str(error.instance)))
        elif error.validator == "additionalProperties":
            self._unknown_keys(place, instance)
        elif error.validator == "required":
            self._missing(place, instance, error)
        elif error.validator == "oneOf":
            if isinstance(instance, dict):  # what is no mapping at all is told as that
                self._one_of(place, instance)
        elif place not in self._told:
            self._told.add(place)
            self.faulty.add(place)
            self._value_error(place, error)

    def _name(self, error: ValidationError, place: Place) -> None:
        if place in self._misnamed:
            return
        self._misnamed.add(place)
        self.faulty.add(place)
        key = key_of(self._node, place)
        if isinstance(error.cause, Unfit):
            self._find(key, error.cause.message, error.cause.hint)
        else:
            name = resolve(schema_at(place[:-1], self._root)["propertyNames"], self._root)
            self._find(key, f"{shown(place[-1])} is not {name['title']}", name.get("x-hint"))

    def _unknown_keys(self, place: Place, instance: dict[str, Any]) -> None:
        schema = schema_at(place, self._root)
        for key in instance.keys() - schema["properties"].keys():
            self.faulty.add((*place, key))
            message, hint = self._unknown(key, schema)
            self._find(key_of(self._node, (*place, key)), message, hint)

    def _unknown(self, key: str, schema: Schema) -> tuple[str, str | None]:
        if key in schema.get("x-not-yet", ()):
            return f"{key} is not supported yet", "remove it"
        message = f"unknown key {shown(key)} in {schema['title']}"
        if key == "<<":
            return message, "merge keys are not supported; an alias can stand for a whole value"
        if near := suggest(key, (*schema["properties"], *schema.get("x-not-yet", ()))):
            return message, f"did you mean {near}?"
        homes = [title for title, keys in _homes(self._root) if key in keys]
        if homes:
            return message, f"it belongs to {homes[0]}"
        return message, "known are " + ", ".join(schema["properties"])

    def _missing(self, place: Place, instance: dict[str, Any], error: ValidationError) -> None:
        # One error each; jsonschema quotes the key at the front of its message.
        schema = schema_at(place, self._root)
        required: Any = error.validator_value
        for key in (key for key in required if key not in instance):
            if (*place, key) in self.faulty or f"'{key}'" not in error.message.split(" is a ")[0]:
                continue
            if self._is_misspelt(key, schema, instance) or (key == "bind" and "core" in instance):
                continue
            below = resolve(schema["properties"][key], self._root)
            title = schema["title"]
            if key == "upstream":
                title = f"a {instance['protocol']} listener"
            hint = below.get("x-hint") or f"{key}: {below['title']}"
            self._find(place_of(self._node, place), f"{title} lacks {key}", hint)

    def _is_misspelt(self, key: str, schema: Schema, instance: dict[str, Any]) -> bool:
        """Whether an unknown key here was told with this one as what is meant."""
        unknown = instance.keys() - schema["properties"].keys() - {*schema.get("x-not-yet", ())}
        return any(suggest(name, schema["properties"]) == key for name in unknown)

    def _one_of(self, place: Place, instance: dict[str, Any]) -> None:
        kinds = ("upstream", "redirect", "respond")
        found = [kind for kind in instance if kind in kinds]
        if not found:
            schema = schema_at(place, self._root)
            if not any(self._is_misspelt(kind, schema, instance) for kind in kinds):
                message = "a route needs one of upstream, redirect and respond"
                self._find(place_of(self._node, place), message, None)
            return
        message = f"a route has only one of upstream, redirect and respond: {found[0]} is here too"
        self._find(key_of(self._node, (*place, found[1])), message, "make it two routes")

    def _value_error(self, place: Place, error: ValidationError) -> None:
        node = place_of(self._node, place)
        schema = schema_at(place, self._root)
        instance: Any = error.instance
        told: Any = error.validator_value
        hint: str | None = schema.get("x-hint")
        title = schema.get("title", "a value")
        match error.validator:
            case "x-format" if isinstance(error.cause, Unfit):
                message, hint = error.cause.message, error.cause.hint or hint
            case "not":  # whatever it is: an http listener's upstream
                message = "an http listener has no upstream"
                hint = "its routes name upstreams"
                node = key_of(self._node, place)
            case "type":
                message, hint = self._type_error(node, instance, schema)
            case "const" | "enum" if not isinstance(instance, str | int):
                message, hint = self._type_error(node, instance, schema)
            case "const":
                message = f"{title} is {told}, not {shown(instance)}"
                hint = f"write {told}"
            case "enum" if instance in schema.get("x-not-yet", ()):
                message = f"{shown(instance)} is not supported yet"
                hint = f"use {' or '.join(told)}"
            case "enum":
                message = f"{shown(instance)} is not {title}"
                hint = _choices(instance, told)
            case "minimum":
                message, hint = (
                    f"{instance} is too small",
                    f"{told} is the smallest",
                )
            case "maximum":
                message, hint = (
                    f"{instance} is too large",
                    f"{told} is the largest",
                )
            case "minItems" | "minLength" | "minProperties":
                message = f"expected {title}, found none"
            case "maxItems" | "maxLength" | "maxProperties":
                units = {"maxItems": "entries", "maxLength": "characters"}
                message = f"more than {told} {units.get(str(error.validator), 'keys')}"
            case "uniqueItems":
                again = next(i for i, item in enumerate(instance) if item in instance[:i])
                node = place_of(self._node, (*place, again))
                message, hint = f"{shown(instance[again])} is in the list twice", "remove one"
            case _:
                message = f"{shown(instance)} is not {title}"
        self._find(node, message, hint)

    def _type_error(self, node: Node, instance: Any, schema: Schema) -> tuple[str, str | None]:
        found = {dict: "keys and values", list: "a list", type(None): "nothing"}.get(
            type(instance), shown(instance)
        )
        hint = schema.get("x-hint")
        if "integer" in types_of(schema) and isinstance(node, Scalar):
            if not node.plain and INTEGER.fullmatch(node.text):
                hint = "remove the quotes"
            elif node.text.isdigit() and INTEGER.fullmatch(node.text) is None:
                hint = "write it without zeros in front, and not too large"
        return f"expected {schema.get('title', 'a value')}, found {found}", hint

    def _find(self, node: Node, message: str, hint: str | None) -> None:
        self.findings.append(
            Finding(path=self._path, line=node.line, column=node.column, message=message, hint=hint)
        )


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def _choices(instance: object, choices: list[object]) -> str:
    if isinstance(instance, str) and (near := suggest(instance, map(str, choices))):
        return f"did you mean {near}?"
    return "one of " + ", ".join(str(choice) for choice in choices)


def _homes(root: Schema) -> Iterator[tuple[str, frozenset[str]]]:
    """Each object of the schema that has keys of its own: its title and its keys."""
    waiting = [root]
    while waiting:
        schema = resolve(waiting.pop(0), root)
        if "properties" in schema:
            yield schema["title"], frozenset(schema["properties"])
        below = [*schema.get("properties", {}).values()]
        below += [schema.get("items"), schema.get("additionalProperties")]
        waiting += [item for item in below if isinstance(item, dict)]


def _without(value: Any, place: Place, faulty: set[Place]) -> Any:
    """The value without its faulty parts; a list's faulty entry becomes None, so places hold."""
    if place in faulty:
        return None
    if isinstance(value, dict):
        return {
            key: _without(item, (*place, key), faulty)
            for key, item in value.items()
            if (*place, key) not in faulty
        }
    if isinstance(value, list):
        return [_without(item, (*place, index), faulty) for index, item in enumerate(value)]
    return value
