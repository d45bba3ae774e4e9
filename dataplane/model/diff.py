"""What differs between two versions of an app, key by key, in the words of its config file.

A version is a spec with the code that runs it, the addresses its names stood for and the secrets it
was given. Of a secret only its name is ever told. Pure: equal versions have no difference, versions
that are not equal have at least one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from dataplane.model.spec import AppSpec, EndpointSpec, MatchSpec

Kind: TypeAlias = Literal["added", "removed", "changed"]
# One value, or the members of a list.
Fact: TypeAlias = str | tuple[str, ...]

# Of entries that have keys of their own only the order is a fact of the list.
_ORDER: Final = " (order)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """All that makes one generation of an app differ from another."""

    spec: AppSpec
    code: str  # what the package calls itself
    code_layer: str  # what it is
    abi: str  # of the host that it was built for
    addresses: tuple[tuple[str, tuple[str, ...]], ...] = ()  # host name, what it resolved to
    secrets: tuple[tuple[str, str], ...] = ()  # name, keyed digest of its content


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key. A secret's change has neither before nor after."""

    kind: Kind
    key: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.kind == "added":
            return f"+ {self.key}: {self.after}"
        if self.kind == "removed":
            return f"- {self.key}: {self.before}"
        if self.before is None or self.after is None:
            return f"~ {self.key}: changed"
        return f"~ {self.key}: {self.before} -> {self.after}"

    def to_json(self) -> dict[str, str | None]:
        return {"kind": self.kind, "key": self.key, "from": self.before, "to": self.after}


def differences(before: Version | None, after: Version | None) -> tuple[Change, ...]:
    """Every key that differs, in the config file's order; of None all are new, or gone."""
    changes = list(_compared(_facts(before), _facts(after)))
    changes += _of_secrets(
        dict(before.secrets if before else ()), dict(after.secrets if after else ())
    )
    return tuple(changes)


def changes_text(changes: Iterable[Change], indent: str = "") -> str:
    """One line a change."""
    return "\n".join(f"{indent}{change}" for change in changes)


# --- comparing -----------------------------------------------------------------------------------


def _compared(before: Mapping[str, Fact], after: Mapping[str, Fact]) -> Iterator[Change]:
    for key in _merged(tuple(before), tuple(after)):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, str) or isinstance(new, str):
            yield from _of_values(key, _joined(old), _joined(new))
        else:
            yield from _of_members(key, old or (), new or ())


def _stays(old: Sequence[str], new: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are on both sides, in the order of each."""
    return [one for one in old if one in new], [one for one in new if one in old]


def _of_values(key: str, old: str | None, new: str | None) -> Iterator[Change]:
    kind: Kind = "added" if old is None else "removed" if new is None else "changed"
    yield Change(kind=kind, key=key, before=old, after=new)


def _of_members(key: str, old: Sequence[str], new: Sequence[str]) -> Iterator[Change]:
    if not key.endswith(_ORDER):
        for member in old:
            if member not in new:
                yield Change(kind="removed", key=key, before=member, after=None)
        for member in new:
            if member not in old:
                yield Change(kind="added", key=key, before=None, after=member)
    before, after = _stays(old, new)
    if before != after:
        place = f"{key.removesuffix(_ORDER)}{_ORDER}"
        yield Change(kind="changed", key=place, before=", ".join(before), after=", ".join(after))


def _of_secrets(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        key = f"secrets[{_shown(name)}]"
        if name not in before:
            yield Change(kind="added", key=key, before=None, after="given")
        elif name not in after:
            yield Change(kind="removed", key=key, before="given", after=None)
        elif before[name] != after[name]:
            yield Change(kind="changed", key=key, before=None, after=None)


def _merged(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """All keys: in the order of `after`, those that are gone behind their former neighbour."""
    merged = list(after)
    places = {key: index for index, key in enumerate(after)}
    gone_behind: dict[str | None, list[str]] = {}
    neighbour: str | None = None
    for key in before:
        if key in places:
            neighbour = key
        else:
            gone_behind.setdefault(neighbour, []).append(key)
    return [
        *gone_behind.get(None, ()),
        *(one for key in merged for one in (key, *gone_behind.get(key, ()))),
    ]


def _joined(fact: Fact | None) -> str | None:
    return ", ".join(fact) if isinstance(fact, tuple) else fact


# --- a version as facts --------------------------------------------------------------------------

# Where the config file has another word, or another place, for a field of the spec.
_WORDS: Final = {
    "drain_deadline_ms": "drain.deadline",
    "ready_deadline_ms": "rollout.ready_deadline",
    "probation_ms": "rollout.probation",
    "resolve_pause_ms": "rollout.resolve_pause",
    "secrets": "set",  # a reference stands where a value would
    "upstreams_on_rollout": "rollout.upstreams",
    "sticky_cookie": "sticky.cookie",
    "rotate_bytes": "rotate",
}
# Fields whose entries are named in the config file as keys, and not listed.
_MAPPINGS: Final = frozenset({"upstreams"})


def _facts(version: Version | None) -> dict[str, Fact]:
    """What is not set is not there."""
    facts: dict[str, Fact] = {}
    if version is None:
        return facts
    facts["code"] = _shown(version.code)
    facts["code layer"] = version.code_layer
    facts["abi"] = _shown(version.abi)
    _add_fields(facts, "", version.spec)
    for name, addresses in version.addresses:
        facts[f"addresses[{_shown(name)}]"] = addresses
    return facts


def _add_fields(facts: dict[str, Fact], prefix: str, value: Any, *, named: bool = False) -> None:
    """`named`: by its name or its match, which stands in the prefix."""
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if named and field.name in ("name", "match"):
            continue
        name = _WORDS.get(field.name, field.name.removesuffix("_ms"))
        _add(facts, f"{prefix}{name}", field.name, held)


def _add(facts: dict[str, Fact], key: str, field: str, held: Any) -> None:
    if held is None:
        return
    if dataclasses.is_dataclass(held):
        _add_fields(facts, f"{key}.", held)
    elif isinstance(held, tuple):
        _add_many(facts, key, field, held)
    elif isinstance(held, bool):
        facts[key] = str(held).lower()
    elif field.endswith("_ms"):
        facts[key] = duration_text(held)
    elif field.endswith("_bytes"):
        facts[key] = size_text(held)
    else:
        facts[key] = _shown(str(held))


def _add_many(facts: dict[str, Fact], key: str, field: str, held: tuple[Any, ...]) -> None:
    if not held:
        return
    if all(isinstance(item, EndpointSpec) for item in held):
        facts[key] = tuple(map(_endpoint_text, held))
    elif all(dataclasses.is_dataclass(item) for item in held):
        names = _distinct([_name_of(item, index) for index, item in enumerate(held)])
        for name, item in zip(names, held, strict=True):
            place = f"{key}.{name}" if field in _MAPPINGS else f"{key}[{name}]"
            _add_fields(facts, f"{place}.", item, named=True)
        facts[f"{key}{_ORDER}"] = tuple(names)
    elif all(isinstance(item, tuple) and len(item) == 2 for item in held):
        for name, value in held:
            facts[f"{key}.{_shown(str(name))}"] = _shown(str(value))
    else:
        facts[key] = tuple(_shown(str(item)) for item in held)


def _name_of(item: Any, index: int) -> str:
    match = getattr(item, "match", None)
    if isinstance(match, MatchSpec):
        return match_text(match)
    name = getattr(item, "name", None)
    return str(index) if name is None else _shown(str(name))


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return distinct


# --- values as a person writes them --------------------------------------------------------------


def match_text(match: MatchSpec) -> str:
    """What a route matches, in few words: "host=example.com path=/api/"."""
    words = []
    if match.host is not None:
        words.append(f"host={match.host}")
    if match.path is not None:
        words.append(f"path={_shown(match.path)}")
    if match.methods:
        words.append(f"methods={','.join(match.methods)}")
    words += [f"headers.{name}={_shown(value)}" for name, value in match.headers]
    return " ".join(words) or "any"


def duration_text(milliseconds: int) -> str:
    """The largest unit that needs no fraction."""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def size_text(count: int) -> str:
    """The largest unit that needs no fraction."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _endpoint_text(endpoint: EndpointSpec) -> str:
    """With whatever else its fields say, where that is not what is meant without them."""
    words = [_shown(endpoint.text)]
    for field in dataclasses.fields(endpoint):
        held = getattr(endpoint, field.name)
        if field.name not in ("address", "port") and held != field.default:
            words.append(f"{field.name}={held}")
    return " ".join(words)


def _shown(text: str) -> str:
    """As it is where that is one plain word, else quoted: nothing in it reaches a terminal raw."""
    plain = text.isascii() and text.isprintable() and not set(text) & {" ", '"', "\\"}
    return text if text and plain else json.dumps(text)
