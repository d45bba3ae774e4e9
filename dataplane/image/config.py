"""Config files to specs: every finding at once, each with its place and a hint.

One file is one app. Its scalars get the type that the schema names for their place (`typed.py`),
the schema is held against the result (`check.py`), and what concerns two places at once is looked
up here. Only a file without findings becomes an `AppSpec`; no key is ever ignored. One app's file
is never judged by another's, except by `check_files`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping as Environment
from collections.abc import Sequence as Several
from pathlib import Path
from typing import Any, Final

from dataplane.image.apps import SUFFIX, app_file, app_names
from dataplane.image.check import check_form, key_of, place_of, suggest
from dataplane.image.document import Mapping, Node, Sequence, read_document
from dataplane.image.limits import (
    access_spec,
    limits_faults,
    limits_spec,
    rate_spec,
    timeouts_spec,
)
from dataplane.image.listeners import bound_addresses, listener_faults, listener_spec
from dataplane.image.schema import app_schema
from dataplane.image.typed import Place, defaults_filled, type_document
from dataplane.image.upstreams import retries_spec, upstream_faults, upstream_spec
from dataplane.image.values import (
    Unfit,
    app_name,
    duration_ms,
    host_pattern,
    network,
    overlap,
    shown,
    size_bytes,
)
from dataplane.model.errors import ConfigError, Finding
from dataplane.model.inputs import is_reference
from dataplane.model.names import AppName
from dataplane.model.spec import (
    AccessLogSpec,
    AppSpec,
    HeaderEdits,
    MatchSpec,
    RedirectSpec,
    RespondSpec,
    RouteSpec,
)

__all__ = ["app_names", "app_schema", "check_files", "folder_findings", "load_app"]

_SCHEMA: Final = app_schema()
_BODILESS: Final = (204, 304)


def load_app(config_dir: Path, app: AppName, environment: Environment[str, str]) -> AppSpec:
    """The app's spec. Raises `ConfigError` with all findings, also where there is no file."""
    path = app_file(config_dir, app)
    try:
        app_name(app)
    except Unfit as unfit:
        raise ConfigError((_of_file(str(config_dir), unfit.message, unfit.hint),)) from None
    try:
        path.stat()
    except FileNotFoundError:
        raise ConfigError((_missing(config_dir, app),)) from None
    except OSError:
        pass  # reading it tells more
    read = _read_app(path, environment)
    if read.spec is None or read.findings:
        raise ConfigError(read.findings)
    return read.spec


def check_files(
    paths: Several[Path] | None, config_dir: Path, environment: Environment[str, str]
) -> tuple[Finding, ...]:
    """All findings in these files (in all of the config folder's), also between them."""
    findings: list[Finding] = []
    if paths is None:
        paths, findings = _files_of(config_dir)
    reads: list[_Read] = []
    for path in dict.fromkeys(paths):
        read = _read_app(path, environment)
        findings += read.findings
        findings += _between(read, reads)
        reads.append(read)
    return tuple(findings)


def folder_findings(config_dir: Path) -> tuple[Finding, ...]:
    """What is wrong with the folder itself; its files are named, and none is opened."""
    files, findings = _files_of(config_dir)
    for path in files:
        try:
            app_name(path.stem)
        except Unfit as unfit:
            findings.append(_of_file(str(path), unfit.message, unfit.hint))
    return tuple(findings)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Bind:
    """A listener's normalised address and where it stands."""

    address: str
    addresses: tuple[str, ...]  # all that are taken by it
    path: str
    node: Node


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """One file: its spec if it has one, and what other files are held against."""

    path: str
    app: str | None
    spec: AppSpec | None
    binds: tuple[_Bind, ...]
    findings: tuple[Finding, ...]


def _files_of(config_dir: Path) -> tuple[list[Path], list[Finding]]:
    folder = config_dir / "apps"
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        message = "no such folder" if isinstance(error, FileNotFoundError) else str(error.strerror)
        hint = f"an app is configured in {folder}/NAME{SUFFIX}; name another folder by --config"
        return [], [_of_file(str(folder), message, hint)]
    findings = []
    files = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.suffix == SUFFIX:
            files.append(entry)
        elif entry.suffix in (".yml", ".json"):
            hint = f"rename it to {entry.stem}{SUFFIX}"
            findings.append(_of_file(str(entry), f"an app's file ends in {SUFFIX}", hint))
    core = config_dir / f"core{SUFFIX}"
    if core.exists():
        findings.append(_of_file(str(core), "the shared tier is not supported yet", "remove it"))
    if not files and not findings:
        findings.append(_of_file(str(folder), "there is no app", f"write {folder}/NAME{SUFFIX}"))
    return files, findings


def _missing(config_dir: Path, app: AppName) -> Finding:
    known = app_names(config_dir)
    if near := suggest(app, known):
        hint = f"did you mean {near}?"
    elif known:
        hint = "the folder has " + ", ".join(known)
    else:
        hint = "name the folder that holds apps/ by --config"
    return _of_file(str(app_file(config_dir, app)), "no such file", hint)


def _of_file(path: str, message: str, hint: str | None) -> Finding:
    return Finding(path=path, line=0, column=0, message=message, hint=hint)


def _read_app(path: Path, environment: Environment[str, str]) -> _Read:
    node, form = read_document(path)
    if node is None:
        return _Read(path=str(path), app=None, spec=None, binds=(), findings=form)
    value, environmental = type_document(node, _SCHEMA, environment, str(path))
    value, faulty, faults = check_form(node, value, _SCHEMA, str(path))
    # What the environment left out is told once, not again for what it makes of the value.
    told = {(finding.line, finding.column) for finding in environmental}
    faults = [finding for finding in faults if (finding.line, finding.column) not in told]
    findings = [*form, *environmental, *faults]
    value = defaults_filled(value, _SCHEMA, _SCHEMA)
    app: str | None = None
    binds: tuple[_Bind, ...] = ()
    if isinstance(node, Mapping) and isinstance(value, dict):
        cross = _CrossCheck(str(path), node, value, faulty)
        cross.check(path.stem)
        findings += cross.findings
        app, binds = value.get("app"), tuple(cross.binds)
    findings.sort(key=lambda finding: (finding.line, finding.column))
    spec = None if findings else _lower(value)
    return _Read(path=str(path), app=app, spec=spec, binds=binds, findings=tuple(findings))


def _between(read: _Read, others: list[_Read]) -> Iterator[Finding]:
    """What is wrong with a file because of those before it."""
    for other in others:
        if read.app is not None and read.app == other.app:
            message = f"app {read.app} has another file already"
            yield _of_file(read.path, message, f"it is {other.path}")
            continue
        for bind in read.binds:
            for taken in other.binds:
                if any(overlap(a, b) for a in bind.addresses for b in taken.addresses):
                    yield Finding(
                        path=read.path,
                        line=bind.node.line,
                        column=bind.node.column,
                        message=f"{bind.address} is taken by app {other.app}",
                        hint=f"it binds {taken.address} in {taken.path}:{taken.node.line}",
                    )


class _CrossCheck:
    """What the schema cannot say: one place of the file against another. Collects findings.

    The value has its defaults, but lacks what was found faulty before: a faulty entry of a list
    is None, a faulty key is not there.
    """

    def __init__(
        self, path: str, node: Mapping, value: dict[str, Any], faulty: frozenset[Place]
    ) -> None:
        self.findings: list[Finding] = []
        self.binds: list[_Bind] = []
        self._path = path
        self._node = node
        self._value = value
        self._faulty = faulty
        # All that are named, also those with faults: these are told where they stand. None: the
        # whole is faulty, and who names one is not to blame.
        written = node.values.get("upstreams")
        self._upstreams: tuple[str, ...] | None = None
        if isinstance(written, Mapping):
            self._upstreams = tuple(written.values)
        elif written is None and not self._is_misspelt("upstreams"):
            self._upstreams = ()

    def check(self, stem: str) -> None:
        app = self._value.get("app")
        if app is not None and app != stem:
            message = f"the file's name says {shown(stem)}, not {app}"
            self._find(("app",), message, f"one app a file, named as the app: {app}{SUFFIX}")
        self._listeners(self._value.get("listeners") or [])
        for index, route in enumerate(self._value["routes"]):
            if route is not None:
                self._route(("routes", index), route)
        self._routes_are_reached(self._value["routes"])
        tunnelled = {
            listener.get("upstream")
            for listener in self._value.get("listeners") or []
            if listener is not None and listener.get("protocol") == "tcp"
        }
        for name, upstream in self._value["upstreams"].items():
            place: Place = ("upstreams", name)
            for fault in upstream_faults(self._node, place, upstream, name in tunnelled):
                self._find(fault.place, fault.message, fault.hint, key=fault.key)

    def _listeners(self, listeners: list[dict[str, Any] | None]) -> None:
        names: dict[str, int] = {}
        protocols = set()
        for index, listener in enumerate(listeners):
            place: Place = ("listeners", index)
            if listener is None:
                protocols.add("unknown")
                continue
            protocols.add(listener.get("protocol", "unknown"))
            name = listener.get("name")
            if name in names:
                line = place_of(self._node, ("listeners", names[name], "name")).line
                message = f"two listeners are named {name}"
                self._find((*place, "name"), message, f"the other is in line {line}")
            elif name is not None:
                names[name] = index
            if listener.get("bind") is not None:
                self._bind((*place, "bind"), listener)
            if listener.get("upstream") is not None:
                self._upstream((*place, "upstream"), listener["upstream"])
            self._trust(place, listener)
        for fault in limits_faults(self._value, protocols):
            self._find(fault.place, fault.message, fault.hint, key=fault.key)
        if protocols == {"tcp"} and self._value["routes"]:
            hint = "a tcp listener names its upstream itself"
            self._find(("routes",), "routes need an http listener", hint, key=True)
        if "http" in protocols and not self._has_routes():
            message = "an http listener needs routes"
            index = [(item or {}).get("protocol") for item in listeners].index("http")
            self._find(("listeners", index), message, "routes: [{match: {path: /}, upstream: ...}]")

    def _trust(self, place: Place, listener: dict[str, Any]) -> None:
        networks = listener.get("trusted_proxies") or []
        told, proxied = (*place, "trusted_proxies"), (*place, "proxy_protocol")
        if not {told, proxied}.isdisjoint(self._faulty) or "protocol" not in listener:
            return
        if listener.get("proxy_protocol") and not networks:
            hint = "name the proxies in front: trusted_proxies: [10.0.0.0/8]"
            self._find(
                proxied, "a PROXY header is taken from trusted_proxies alone", hint, key=True
            )
        elif listener["protocol"] == "tcp" and networks and not listener.get("proxy_protocol"):
            message = "a tcp listener hears of clients by the PROXY protocol alone"
            self._find(told, message, "add proxy_protocol: true", key=True)
        seen: dict[str, int] = {}
        for index, text in enumerate(networks):
            if text is None:
                continue
            if network(text) in seen:
                line = place_of(self._node, (*told, seen[network(text)])).line
                message = f"{shown(text)} is in the list twice"
                self._find((*told, index), message, f"it stands in line {line} already")
            seen.setdefault(network(text), index)

    def _has_routes(self) -> bool:
        """Whether routes are written, be they faulty or misspelt."""
        written = self._node.values.get("routes")
        if isinstance(written, Sequence):
            return bool(written.items)
        return written is not None or self._is_misspelt("routes")

    def _is_misspelt(self, key: str) -> bool:
        properties = _SCHEMA["properties"]
        unknown = [name for name in self._node.values if name not in properties]
        return any(suggest(name, properties) == key for name in unknown)

    def _bind(self, place: Place, listener: dict[str, Any]) -> None:
        for fault in listener_faults(place[:-1], listener):
            self._find(fault.place, fault.message, fault.hint, key=fault.key)
        addresses = bound_addresses(listener)
        address = addresses[0]
        for other in self.binds:
            if any(overlap(one, another) for one in addresses for another in other.addresses):
                message = f"two listeners bind {address}"
                if address != other.address:
                    message = f"{address} and {other.address} cannot both be bound"
                self._find(place, message, f"the other is in line {other.node.line}")
                break
        node = place_of(self._node, place)
        self.binds.append(_Bind(address=address, addresses=addresses, path=self._path, node=node))

    def _upstream(self, place: Place, name: str) -> None:
        if self._upstreams is None or name in self._upstreams:
            return
        near = suggest(name, self._upstreams)
        hint = f"did you mean {near}?" if near else f"upstreams: {{{name}: {{endpoints: [...]}}}}"
        self._find(place, f"there is no upstream {shown(name)}", hint)

    def _route(self, place: Place, route: dict[str, Any]) -> None:
        if route.get("upstream") is not None:
            self._upstream((*place, "upstream"), route["upstream"])
        match = route.get("match") or {}
        self._same_names((*place, "match", "headers"), match.get("headers") or {})
        for edits in ("request_headers", "response_headers"):
            self._edits((*place, edits), route.get(edits) or {})
        path, target = match.get("path"), (route.get("redirect") or {}).get("to")
        if path is not None and path.endswith("/") and target and not target.endswith("/"):
            message = f"{shown(target)} has no '/' at its end, and a prefix' rest goes after it"
            self._find((*place, "redirect", "to"), message, f"write {target}/")
        respond = route.get("respond") or {}
        if respond.get("status") in _BODILESS and respond.get("body"):
            message = f"a response with status {respond['status']} has no body"
            self._find((*place, "respond", "body"), message, "remove it, or use 200")

    def _edits(self, place: Place, edits: dict[str, Any]) -> None:
        self._same_names((*place, "set"), edits.get("set") or {})
        names = {name.lower() for name in edits.get("set") or {}}
        seen: set[str] = set()
        for index, name in enumerate(edits.get("remove") or []):
            if name is None:
                continue
            if name.lower() in names:
                hint = "set replaces what was there"
                self._find((*place, "remove", index), f"{name.lower()} is set, too", hint)
            elif name.lower() in seen:
                message = f"{name.lower()} is in the list twice"
                self._find((*place, "remove", index), message, "remove one")
            seen.add(name.lower())

    def _same_names(self, place: Place, fields: dict[str, Any]) -> None:
        """A field's name has no case: two spellings of one would leave the winner to chance."""
        seen: dict[str, str] = {}
        for name in fields:
            if name.lower() in seen:
                message = f"{name} and {seen[name.lower()]} name the same field"
                self._find((*place, name), message, "remove one", key=True)
            seen[name.lower()] = name

    def _routes_are_reached(self, routes: list[dict[str, Any] | None]) -> None:
        seen: dict[MatchSpec, int] = {}
        for index, route in enumerate(routes):
            place: Place = ("routes", index, "match")
            faulty = any(refused[:3] == place for refused in self._faulty)
            if route is None or "match" not in route or faulty:
                continue
            match = _match(route["match"])
            if match in seen:
                line = place_of(self._node, ("routes", seen[match])).line
                message = "this route is never taken: another has the same match"
                self._find(place, message, f"it begins in line {line}", key=True)
            seen.setdefault(match, index)

    def _find(self, place: Place, message: str, hint: str | None, *, key: bool = False) -> None:
        node = key_of(self._node, place) if key else place_of(self._node, place)
        self.findings.append(
            Finding(path=self._path, line=node.line, column=node.column, message=message, hint=hint)
        )


def _lower(value: dict[str, Any]) -> AppSpec:
    """The spec of a value without faults: normalised, so that equal meanings give equal bytes."""
    log = value["access_log"]
    return AppSpec(
        version=1,
        app=value["app"],
        listeners=tuple(listener_spec(listener) for listener in value["listeners"]),
        routes=tuple(map(_route, value["routes"])),
        upstreams=tuple(
            upstream_spec(name, value["upstreams"][name]) for name in sorted(value["upstreams"])
        ),
        timeouts=timeouts_spec(value["timeouts"]),
        limits=limits_spec(value["limits"]),
        drain_deadline_ms=duration_ms(value["drain"]["deadline"]),
        ready_deadline_ms=duration_ms(value["rollout"]["ready_deadline"]),
        workers=value["workers"],
        access=access_spec(value["access"]),
        rate=rate_spec(value["rate"]),
        probation_ms=duration_ms(value["rollout"]["probation"]),
        resolve_pause_ms=duration_ms(value["rollout"]["resolve_pause"]),
        upstreams_on_rollout=value["rollout"]["upstreams"],
        access_log=AccessLogSpec(
            format=log["format"], rotate_bytes=size_bytes(log["rotate"]), keep=log["keep"]
        ),
    )


def _route(value: dict[str, Any]) -> RouteSpec:
    redirect, respond = value.get("redirect"), value.get("respond")
    return RouteSpec(
        match=_match(value["match"]),
        upstream=value.get("upstream"),
        redirect=None
        if redirect is None
        else RedirectSpec(to=redirect["to"], status=redirect["status"]),
        respond=None
        if respond is None
        else RespondSpec(status=respond["status"], body=respond["body"]),
        request_timeout_ms=duration_ms(value["request_timeout"]),
        request_headers=_header_edits(value["request_headers"]),
        response_headers=_header_edits(value["response_headers"]),
        retries=retries_spec(value.get("retries")),
        access=access_spec(value.get("access")),
        rate=rate_spec(value.get("rate")),
    )


def _match(value: dict[str, Any]) -> MatchSpec:
    host = value.get("host")
    return MatchSpec(
        host=None if host is None else host_pattern(host),
        path=value.get("path"),
        methods=tuple(sorted(value.get("methods", ()))),
        headers=_fields(value.get("headers", {})),
    )


def _header_edits(value: dict[str, Any]) -> HeaderEdits:
    told = _fields(value.get("set", {}))
    return HeaderEdits(
        set=tuple((name, text) for name, text in told if not is_reference(text)),
        secrets=tuple((name, text) for name, text in told if is_reference(text)),
        remove=tuple(sorted(name.lower() for name in value.get("remove", ()))),
    )


def _fields(value: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name.lower(), text) for name, text in value.items()))
