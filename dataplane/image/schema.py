"""The JSON Schema of an app's file: the one truth about its form. `dataplane schema` prints it.

Beside the standard's keywords it uses three of ours, which other validators pass over:
`x-hint` (a right value, told with a finding), `x-not-yet` (keys or values that the contract has
and this version does not) and `x-format` (a check in `values.py` that says more than a pattern).
What concerns two places of a file at once (an upstream that does not exist) is in `config.py`.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from dataplane.image.values import METHODS

# The engine's own ceilings; see native/include/dp.h.
MAX_FIELDS: Final = 256
MAX_HEAD_BYTES: Final = 64 << 10
MAX_ENDPOINTS: Final = 1000
MAX_WEIGHT: Final = 256
MAX_NETWORKS: Final = 10_000

_NAME: Final = {
    "title": "a name",
    "type": "string",
    "pattern": "^[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$",
    "x-hint": "up to 63 letters, digits, '-', '_' and '.'",
}
_DURATION: Final = {
    "title": "a duration",
    "type": "string",
    "pattern": "^(0|[1-9][0-9]{0,8})(ms|s|m|h)$",
    "x-format": "duration",
    "x-hint": "write 250ms, 5s, 1m or 1h",
}
_WAIT: Final = {**_DURATION, "title": "a duration above 0", "x-format": "wait"}
_SIZE: Final = {
    "title": "a size",
    "type": ["integer", "string"],
    "minimum": 0,
    "maximum": (1 << 50),
    "pattern": "^(0|[1-9][0-9]{0,11})(B|KiB|MiB|GiB)$",
    "x-format": "size",
    "x-hint": "write 16KiB, 1MiB, or a number of bytes",
}
_FIELD_VALUE: Final = {
    "title": "a text",
    "type": "string",
    "maxLength": 4096,
    "x-format": "field-value",
    "x-hint": 'put it in quotes; an empty one is ""',
}
_FIELDS: Final = {
    "title": "header fields, name: value",
    "type": "object",
    "maxProperties": 64,
    "additionalProperties": _FIELD_VALUE,
}
_EDITS: Final = {
    "title": "edits of header fields",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "set": {
            **_FIELDS,
            "description": "a value may name a secret: file:/run/secrets/token or env:TOKEN",
            "propertyNames": {"x-format": "edited-field-name"},
            "additionalProperties": {**_FIELD_VALUE, "x-format": "set-field-value"},
        },
        "remove": {
            "title": "a list of header fields' names",
            "type": "array",
            "maxItems": 64,
            "items": {"title": "a name", "type": "string", "x-format": "edited-field-name"},
        },
    },
}
_NUMBER: Final = {"title": "a whole number", "type": "integer", "minimum": 0}
_RETRIES: Final = {
    "title": "a route's retries",
    "description": "what was certainly not executed is sent again without being asked for",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "attempts": {
            **_NUMBER,
            "description": "how often at most; 0: never, whatever happened",
            "maximum": 10,
            "default": 2,
        },
        "on": {
            "title": "a list of failures",
            "description": "connect-failure, reset (no answer began), statuses from 400 to 599",
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "default": ["connect-failure"],
            "items": {
                "title": "a failure",
                "type": "string",
                "x-format": "retry-cause",
                "x-hint": 'write connect-failure, reset, or a status like "503"',
            },
        },
        "budget": {
            "title": "a share",
            "description": "of the route's requests that may be sent again; a few always may",
            "type": "string",
            "x-format": "share",
            "x-hint": "write 20%",
            "default": "20%",
        },
        "methods": {
            "title": "a list of methods",
            "description": "repeated although they change something, beside GET, HEAD, OPTIONS, "
            "TRACE, PUT and DELETE, which are safe to repeat",
            "type": "array",
            "uniqueItems": True,
            "default": [],
            "items": {
                "title": "a method",
                "enum": list(METHODS),
                "x-format": "method",
                "x-hint": "known are " + ", ".join(METHODS),
            },
        },
    },
}
_ACCOUNT: Final = {
    "description": "of a unix: socket; known on the host where it runs",
    "type": "string",
    "pattern": "^(?:[a-z_][a-z0-9_.-]{0,31}|0|[1-9][0-9]{0,9})$",
    "x-hint": "write, say, www-data",
}
_LISTENER: Final = {
    "title": "a listener",
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "bind", "protocol"],
    "properties": {
        "name": {"$ref": "#/$defs/name"},
        "bind": {
            "title": "an address",
            "description": "host:port, [v6]:port or unix:/path; port 0 takes a free one",
            "type": "string",
            "x-format": "listen-address",
            "x-hint": "write 127.0.0.1:8080",
        },
        "protocol": {"title": "a protocol", "enum": ["http", "tcp"]},
        "upstream": {"title": "the name of an upstream", "type": "string"},
        "proxy_protocol": {
            "title": "true or false",
            "description": "connections from trusted_proxies begin with a PROXY header (v1 or v2)",
            "type": "boolean",
            "default": False,
        },
        "trusted_proxies": {
            "title": "a list of networks",
            "description": "whose PROXY header, x-forwarded-*, forwarded, x-real-ip are believed",
            "type": "array",
            "maxItems": 256,
            "default": [],
            "items": {
                "title": "a network",
                "type": "string",
                "x-format": "network",
                "x-hint": "write 10.0.0.0/8",
            },
        },
        "mode": {
            "title": "a socket's mode",
            "description": "of a unix: socket; who may write to it may connect",
            "type": "string",
            "pattern": "^0?[0-7]{3}$",
            "x-hint": 'write "0660"',
        },
        "owner": {**_ACCOUNT, "title": "a user's name or number"},
        "group": {**_ACCOUNT, "title": "a group's name or number"},
        "dual_stack": {
            "title": "true or false",
            "description": "[::] takes IPv4 as well; else IPv6 alone, whatever the host's default",
            "type": "boolean",
            "default": False,
        },
    },
    "if": {"properties": {"protocol": {"const": "tcp"}}, "required": ["protocol"]},
    "then": {"required": ["upstream"]},
    "else": {
        "if": {"properties": {"protocol": {"const": "http"}}, "required": ["protocol"]},
        "then": {"properties": {"upstream": {"not": {}}}},
    },
    "x-not-yet": ["tls", "core", "hosts", "default"],
}
_MATCH: Final = {
    "title": "what to match",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "host": {
            "title": "a host",
            "type": "string",
            "x-format": "host",
            "x-hint": 'write www.example.com or "*.example.com"',
        },
        "path": {
            "title": "a path",
            "description": "ending in '/': all beneath it; any other: only itself",
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "x-format": "path",
            "x-hint": "write /api/",
        },
        "methods": {
            "title": "a list of methods",
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {
                "title": "a method",
                "enum": list(METHODS),
                "x-format": "method",
                "x-hint": "known are " + ", ".join(METHODS),
            },
        },
        "headers": {**_FIELDS, "propertyNames": {"x-format": "field-name"}},
    },
}
_NETWORKS: Final = {
    "title": "a list of networks",
    "type": "array",
    "maxItems": MAX_NETWORKS,
    "default": [],
    "items": {
        "title": "a network",
        "type": "string",
        "x-format": "network",
        "x-hint": "write 10.0.0.0/8",
    },
}
_ACCESS: Final = {
    "title": "access: {allow: [10.0.0.0/8], deny: []}",
    "description": "what is denied may not come; where nothing is allowed by name, all others may",
    "type": "object",
    "additionalProperties": False,
    "properties": {"allow": _NETWORKS, "deny": _NETWORKS},
}
_RATE: Final = {
    "title": "rate: {requests: 100, per: source, burst: 200}",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "requests": {
            **_NUMBER,
            "description": "a second, over all workers; 0: no limit",
            "maximum": 1_000_000,
            "default": 0,
        },
        "per": {
            "title": "source or {header: NAME}",
            "description": "an IPv4 address or an IPv6 /64 network; or a header field's value",
            "type": ["string", "object"],
            "x-format": "rate-key",
            "x-hint": "write source or {header: x-api-key}",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {
                "header": {
                    "title": "a header field's name",
                    "type": "string",
                    "x-format": "field-name",
                }
            },
            "default": "source",
        },
        "burst": {
            **_NUMBER,
            "description": "how many may come at once; 0: one, and the next when the rate has it",
            "maximum": 1_000_000,
            "default": 0,
        },
    },
}
_ROUTE: Final = {
    "title": "a route",
    "type": "object",
    "additionalProperties": False,
    "required": ["match"],
    "oneOf": [{"required": ["upstream"]}, {"required": ["redirect"]}, {"required": ["respond"]}],
    "properties": {
        "match": _MATCH,
        "upstream": {"title": "the name of an upstream", "type": "string"},
        "redirect": {
            "title": "a redirect",
            "description": "of a prefix, it keeps the rest of the path",
            "type": "object",
            "additionalProperties": False,
            "required": ["to"],
            "properties": {
                "to": {
                    "title": "a path or URL",
                    "type": "string",
                    "maxLength": 2048,
                    "x-format": "redirect-target",
                    "x-hint": "write /new/ or https://...",
                },
                "status": {
                    "title": "a redirect's status",
                    "enum": [301, 302, 303, 307, 308],
                    "default": 308,
                },
            },
        },
        "respond": {
            "title": "a fixed response",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "status": {
                    "title": "a status",
                    "type": "integer",
                    "minimum": 200,
                    "maximum": 599,
                    "default": 200,
                },
                "body": {"title": "a text", "type": "string", "maxLength": 65536, "default": ""},
            },
        },
        "request_timeout": {"$ref": "#/$defs/wait", "default": "30s"},
        "request_headers": {"$ref": "#/$defs/edits", "default": {}},
        "response_headers": {"$ref": "#/$defs/edits", "default": {}},
        "retries": _RETRIES,
        "access": _ACCESS,
        "rate": _RATE,
    },
}
_ENDPOINT: Final = {
    "title": "an endpoint",
    "type": ["string", "object"],
    "x-format": "endpoint-address",
    "x-hint": "write 127.0.0.1:9001",
    "additionalProperties": False,
    "required": ["address"],
    "properties": {
        "address": {
            "title": "an address",
            "type": "string",
            "description": "host:port or [v6]:port; a host name is resolved by the supervisor",
            "x-format": "endpoint-address",
            "x-hint": "write 127.0.0.1:9001",
        },
        "weight": {
            **_NUMBER,
            "description": "its share beside the others'",
            "minimum": 1,
            "maximum": MAX_WEIGHT,
            "default": 1,
        },
    },
}
_COOKIE_NAME: Final = {
    "title": "a cookie's name",
    "type": "string",
    "x-format": "cookie-name",
    "x-hint": "write, say, session",
}
_HEALTH: Final = {
    "title": "a health check",
    "description": "health: {path: /healthz}, or {tcp: true}: connecting is enough",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "path": {
            "title": "a path",
            "type": "string",
            "maxLength": 1024,
            "x-format": "health-path",
            "x-hint": "write /healthz",
        },
        "host": {"title": "a host", "type": "string", "x-format": "host", "x-hint": "api.internal"},
        "tcp": {"title": "true or false", "type": "boolean", "default": False},
        "interval": {"$ref": "#/$defs/wait", "default": "2s"},
        "timeout": {"$ref": "#/$defs/wait", "default": "1s"},
        "fall": {
            **_NUMBER,
            "description": "failures in a row until it gets no more requests",
            "minimum": 1,
            "maximum": 100,
            "default": 3,
        },
        "rise": {
            **_NUMBER,
            "description": "successes in a row until it gets requests again",
            "minimum": 1,
            "maximum": 100,
            "default": 2,
        },
        "expect": {
            "title": "a range of statuses",
            "type": "string",
            "x-format": "statuses",
            "x-hint": "write 200, or 200-399",
            "default": "200-399",
        },
    },
}
_EJECTION: Final = {
    "title": "ejection: {failures: 5, for: 10s}",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "failures": {
            **_NUMBER,
            "description": "in a row: then an endpoint is left out; 0: never",
            "maximum": 1000,
            "default": 5,
        },
        "for": {
            "$ref": "#/$defs/wait",
            "description": "doubled each time it fails again, up to 32 times",
            "default": "10s",
        },
        "server_errors": {
            "title": "true or false",
            "description": "answers of 500 and above are failures",
            "type": "boolean",
            "default": False,
        },
    },
}
_UPSTREAM: Final = {
    "title": "an upstream",
    "type": "object",
    "additionalProperties": False,
    "required": ["endpoints"],
    "properties": {
        "balance": {
            "title": "a way to balance",
            "enum": ["round_robin", "least_request", "p2c", "maglev"],
            "default": "round_robin",
        },
        "key": {
            "title": "a key",
            "description": "of maglev: source, {header: x-user} or {cookie: session}",
            "type": ["string", "object"],
            "x-format": "balance-key",
            "x-hint": "write source, {header: x-user} or {cookie: session}",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
            "properties": {
                "header": {
                    "title": "a header field's name",
                    "type": "string",
                    "x-format": "field-name",
                },
                "cookie": _COOKIE_NAME,
            },
        },
        "sticky": {
            "title": "sticky: {cookie: NAME}",
            "description": "the proxy's own cookie brings a client back to its endpoint",
            "type": "object",
            "additionalProperties": False,
            "required": ["cookie"],
            "properties": {"cookie": _COOKIE_NAME},
        },
        "endpoints": {
            "title": "a list of endpoints",
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_ENDPOINTS,
            "items": _ENDPOINT,
        },
        "connect_timeout": {"$ref": "#/$defs/wait", "default": "1s"},
        "keepalive": {
            "title": "a whole number",
            "description": "idle connections kept for each endpoint",
            "type": "integer",
            "minimum": 0,
            "maximum": 10000,
            "default": 64,
        },
        "max_connections": {
            **_NUMBER,
            "description": "to one endpoint, over all workers; 0: no limit",
            "maximum": 1_000_000,
            "default": 0,
        },
        "max_waiting": {
            **_NUMBER,
            "description": "requests that wait for one of max_connections, connect_timeout at most",
            "maximum": 100_000,
            "default": 1024,
        },
        "health": _HEALTH,
        "ejection": {**_EJECTION, "default": {}},
        "slow_start": {
            "$ref": "#/$defs/duration",
            "description": "until an endpoint that is back has its whole share; 0s: at once",
            "default": "10s",
        },
        "proxy_protocol": {
            "title": "a version of the PROXY protocol",
            "description": "with which each connection begins; none of them is shared by clients",
            "enum": ["v1", "v2"],
        },
    },
    "x-not-yet": ["tls"],
}

_APP: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "an app",
    "description": "configs/apps/NAME.yaml: the whole proxy of one application",
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "app", "listeners"],
    "properties": {
        "version": {"title": "the version of this format", "const": 1, "type": "integer"},
        "app": {
            "title": "the app's name, which is the file's too",
            "type": "string",
            "x-format": "app-name",
        },
        "listeners": {
            "title": "a list of listeners",
            "type": "array",
            "minItems": 1,
            "maxItems": 64,
            "items": _LISTENER,
        },
        "routes": {
            "title": "a list of routes",
            "description": "the most specific wins: host, exact path, longest prefix, then order",
            "type": "array",
            "maxItems": 1000,
            "default": [],
            "items": _ROUTE,
        },
        "upstreams": {
            "title": "upstreams, name: {endpoints: [...]}",
            "type": "object",
            "maxProperties": 256,
            "default": {},
            "propertyNames": {"$ref": "#/$defs/name"},
            "additionalProperties": _UPSTREAM,
        },
        "timeouts": {
            "title": "timeouts, name: duration",
            "type": "object",
            "default": {},
            "additionalProperties": False,
            "properties": {
                "header": {"$ref": "#/$defs/wait", "default": "10s"},
                "body_idle": {"$ref": "#/$defs/wait", "default": "30s"},
                "idle": {"$ref": "#/$defs/wait", "default": "60s"},
                "tunnel_idle": {"$ref": "#/$defs/wait", "default": "1h"},
                "request": {
                    "$ref": "#/$defs/duration",
                    "description": "first byte of a request to the end of its body; 0s: no limit",
                    "default": "0s",
                },
                "send": {
                    "$ref": "#/$defs/wait",
                    "description": "a client takes nothing of the answer that waits for it",
                    "default": "30s",
                },
            },
        },
        "limits": {
            "title": "limits, name: number",
            "type": "object",
            "default": {},
            "additionalProperties": False,
            "properties": {
                "connections": {
                    "title": "a whole number",
                    "description": "of clients, over all workers; 0: no limit",
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 10_000_000,
                    "default": 10000,
                },
                "connections_per_source": {
                    **_NUMBER,
                    "description": "of one IPv4 address or IPv6 /64 network; 0: no limit",
                    "maximum": 10_000_000,
                    "default": 0,
                },
                "requests": {
                    **_NUMBER,
                    "description": "answered at once, over all workers; 0: no limit",
                    "maximum": 10_000_000,
                    "default": 0,
                },
                "header_bytes": {
                    "$ref": "#/$defs/size",
                    "description": "of one message head",
                    "x-format": "head-size",
                    "default": "32KiB",
                },
                "headers": {
                    "title": "a whole number",
                    "description": "fields in one head",
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_FIELDS,
                    "default": 100,
                },
                "body_bytes": {
                    "$ref": "#/$defs/size",
                    "description": "of a request's body; 0: no limit",
                    "default": 0,
                },
            },
            "x-not-yet": ["memory", "cpu"],
        },
        "access": {**_ACCESS, "default": {}},
        "rate": {**_RATE, "default": {}},
        "access_log": {
            "title": "access_log: {format: json}",
            "type": "object",
            "default": {},
            "additionalProperties": False,
            "properties": {
                "format": {
                    "title": "a format",
                    "description": "combined is Apache's",
                    "enum": ["json", "combined", "none"],
                    "default": "none",
                },
                "rotate": {
                    "$ref": "#/$defs/size",
                    "description": "a file is set aside before it grows beyond this",
                    "x-format": "log-size",
                    "x-hint": "write 64MiB; at least 64KiB",
                    "default": "64MiB",
                },
                "keep": {
                    "title": "a whole number",
                    "description": "files that were set aside and are kept",
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 1000,
                    "default": 5,
                },
            },
        },
        "drain": {
            "title": "drain: {deadline: 30s}",
            "type": "object",
            "default": {},
            "additionalProperties": False,
            "properties": {
                "deadline": {
                    "$ref": "#/$defs/duration",
                    "description": "for connections that cannot move",
                    "default": "30s",
                }
            },
        },
        "rollout": {
            "title": "rollout: {ready_deadline: 5s}",
            "type": "object",
            "default": {},
            "additionalProperties": False,
            "properties": {
                "ready_deadline": {"$ref": "#/$defs/wait", "default": "5s"},
                "probation": {
                    "$ref": "#/$defs/duration",
                    "description": "a swap that crash-loops or fails more requests is taken back",
                    "default": "30s",
                },
                "resolve_pause": {
                    "$ref": "#/$defs/wait",
                    "description": "at least this long between generations for changed addresses",
                    "default": "5s",
                },
                "upstreams": {
                    "title": "what unhealthy upstreams mean for a swap",
                    "description": "regress: one that is well on blue and not on green fails it",
                    "enum": ["ignore", "regress"],
                    "default": "ignore",
                },
            },
        },
        "workers": {
            "title": "a whole number",
            "description": "processes of a generation",
            "type": "integer",
            "minimum": 1,
            "maximum": 64,
            "default": 1,
        },
    },
    "$defs": {
        "name": _NAME,
        "duration": _DURATION,
        "wait": _WAIT,
        "size": _SIZE,
        "edits": _EDITS,
    },
}


def app_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `configs/apps/NAME.yaml`; the caller's own copy."""
    return copy.deepcopy(_APP)
