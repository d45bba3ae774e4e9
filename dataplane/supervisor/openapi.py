"""The OpenAPI 3.1 document of the supervisor's socket, made from the table that it routes by."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import dataplane


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the document says of one call."""

    method: str
    path: str  # a template: "/v1/apps/{app}"
    summary: str
    answers: str  # what 200 holds: the name of a schema, or a media type
    problems: tuple[int, ...] = ()
    body: str | None = None  # the name of a schema
    query: tuple[str, ...] = ()


_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
_OPEN: dict[str, Any] = {"type": "object"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "null"}]}


_SIDE = _object({"generation": _COUNT, "image": _DIGEST})
_FINDING = _object(
    {"path": _TEXT, "line": _COUNT, "column": _COUNT, "message": _TEXT, "hint": _or_null(_TEXT)}
)
_CHANGE = _object(
    {
        "kind": {"enum": ["added", "removed", "changed"]}, "key": _TEXT,
        "from": _or_null(_TEXT), "to": _or_null(_TEXT),
    }
)  # fmt: skip
_ACTIONS = ["nothing", "replace", "add", "remove", "broken"]
_RESULTS = ["nothing", "swapped", "started", "removed", "failed", "broken"]
_SOURCES = {
    "config_dir": _TEXT,
    "environment": {"type": "object", "additionalProperties": _TEXT},
    "variables": {"type": "object", "additionalProperties": _TEXT},
}
_WORKER = _object(
    {
        "slot": _COUNT, "pid": _or_null(_COUNT), "state": _TEXT, "connections": _COUNT,
        "requests": _COUNT, "cpu_seconds": _NUMBER, "memory_bytes": _COUNT, "restarts": _COUNT,
        "stale": _list(_TEXT),
    }
)  # fmt: skip
_GENERATION = _object(
    {
        "generation": _COUNT, "image": _DIGEST, "code": _TEXT, "code_layer": _DIGEST,
        "state": _TEXT,
        "since": {"type": "string", "format": "date-time"}, "seal": _or_null(_OPEN),
        "names": {"type": "object", "additionalProperties": _list(_TEXT)},
        "secrets": _list(_TEXT),
        "workers": _list(_WORKER),
    }
)  # fmt: skip

_STORED_IMAGE = _object(
    {
        "image": _DIGEST, "app": _or_null(_TEXT), "code": _or_null(_TEXT),
        "config_layer": _DIGEST, "code_layer": _DIGEST, "bytes": _COUNT,
        "stored": _or_null({"type": "string", "format": "date-time"}),
        "referrers": _list(_object({"digest": _DIGEST, "kind": _TEXT})),
        "uses": _list(_TEXT), "runs": _list(_TEXT),
    }
)  # fmt: skip

SCHEMAS: dict[str, Any] = {
    "StoredImage": _STORED_IMAGE,
    "StoredImages": _object({"images": _list(_STORED_IMAGE)}),
    "App": _object(
        {
            "app": _TEXT, "state": _TEXT, "wanted": _or_null(_DIGEST),
            "pending": {"type": "boolean"},
            "addresses": _list(_object({"listener": _TEXT, "bind": _TEXT})),
            "generations": _list(_GENERATION),
        },
        {"error": _TEXT},  # why all of it, or a part, does not run
    ),
    "Apps": _object({"apps": _list({"$ref": "#/components/schemas/App"})}),
    "Ledger": _object(
        {
            "app": _TEXT, "outcome": {"enum": ["swapped", "unchanged", "failed"]},
            "from": _or_null(_SIDE), "to": _or_null(_SIDE),
            "ms": _object(
                dict.fromkeys(("build", "spawn", "ready", "switch", "drain", "total"), _NUMBER)
            ),
            "connections": _object(
                dict.fromkeys(
                    ("moved_idle", "moved_after_request", "moved_streaming", "moved_tunnel",
                     "finished", "closed", "reset"),
                    _COUNT,
                )
            ),
            "stall_ms": _object(dict.fromkeys(("p50", "p99", "max"), _NUMBER)),
            "error": _or_null(_TEXT),
        },
        # why connections did not move: a reason and how many
        {"declined": {"type": "object", "additionalProperties": _COUNT}},
    ),
    "History": _object(
        {
            "app": _TEXT,
            "history": _list(
                _object(
                    {
                        "time": _or_null({"type": "string", "format": "date-time"}),
                        "outcome": {
                            "enum": ["first start", "started", "swapped", "rolled back", "failed",
                                     "stopped", "restarted", "under way", "not recorded"]
                        },
                        "generation": _or_null(_COUNT), "image": _or_null(_DIGEST),
                        "code": _or_null(_TEXT),
                        "by": _or_null(_object({"user": _TEXT, "uid": _COUNT, "pid": _COUNT})),
                        "asked": _or_null(_TEXT), "error": _or_null(_TEXT),
                        "ledger": _or_null({"$ref": "#/components/schemas/Ledger"}),
                        "provenance": _or_null(_OPEN),
                    },
                    {"generations": _list(_COUNT)},
                )
            ),
        }
    ),
    "RollbackWish": _object({}, {"image": _TEXT, "force": {"type": "boolean"}}),
    "Wish": _object(
        {},
        {
            "image": _DIGEST, "force": {"type": "boolean"},
            **_SOURCES,
        },
    ),
    "PlanWish": _object({}, _SOURCES),
    "ApplyWish": _object({}, {**_SOURCES, "plan": _DIGEST}),
    "Plan": _object(
        {
            "plan": _DIGEST, "config_dir": _TEXT,
            "apps": _list(
                _object(
                    {
                        "app": _TEXT, "action": {"enum": _ACTIONS},
                        "from": _or_null(_DIGEST), "to": _or_null(_DIGEST),
                        "changes": _list(_CHANGE), "findings": _list(_FINDING),
                        "error": _or_null(_TEXT), "note": _or_null(_TEXT),
                    }
                )
            ),
            "findings": _list(_FINDING),
            "counts": _object(dict.fromkeys(_ACTIONS, _COUNT)),
        }
    ),
    "Applied": _object(
        {
            "plan": _DIGEST,
            "apps": _list(
                _object(
                    {
                        "app": _TEXT, "action": {"enum": _ACTIONS}, "result": {"enum": _RESULTS},
                        "image": _or_null(_DIGEST),
                        "ledger": _or_null({"$ref": "#/components/schemas/Ledger"}),
                        "findings": _list(_FINDING), "error": _or_null(_TEXT),
                    }
                )
            ),
            "findings": _list(_FINDING),
            "counts": _object(dict.fromkeys(_RESULTS, _COUNT)),
        }
    ),
    "Problem": _object(
        {"type": _TEXT, "title": _TEXT, "status": _COUNT, "detail": _TEXT},
        {"findings": _list(_FINDING), "ledger": {"$ref": "#/components/schemas/Ledger"}},
    ),
    "Facts": _OPEN,
}  # fmt: skip


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dataplane supervisor",
            "version": dataplane.__version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _described(operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": _TEXT} for name in operation.query]
    problem = {
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        }
    }
    responses: dict[str, Any] = {
        "200": {"description": operation.summary, "content": _content(operation.answers)}
    }
    for status in operation.problems:
        responses[str(status)] = {"description": _WHY[status], **problem}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": False, "content": _content(operation.body)}
    return described


def _content(answers: str) -> dict[str, Any]:
    if "/" in answers:
        return {answers: {"schema": _TEXT}}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{answers}"}}}


_WHY = {
    403: "The caller may only read.",
    404: "No such app, or no such image.",
    409: "Another swap has not switched yet, or the app does not run.",
    422: "The request, the config or the image is invalid.",
    501: "Not supported yet.",
    502: "Green never got ready, or died; blue is untouched.",
    503: "Not ready.",
}
