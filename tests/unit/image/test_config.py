"""Config files: every finding with its place, all at once, and what a sound file means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from dataplane.image.config import app_names, app_schema, check_files, load_app
from dataplane.model.errors import ConfigError
from dataplane.model.names import AppName
from dataplane.model.spec import AccessLogSpec, AccessSpec, AppSpec, HeaderEdits, RateSpec

BILLING: Final = AppName("billing")
ENVIRONMENT: Final = {"PORT": "9001", "WORKERS": "3", "EMPTY": "", "BAD": "a\udc80", "NL": "a\nb"}

# A sound file, in parts that a test may replace: lines 1 to 5, then what is added.
PARTS: Final = {
    "version": "version: 1",
    "app": "app: billing",
    "listeners": 'listeners: [{name: web, bind: "127.0.0.1:8080", protocol: http}]',
    "routes": "routes: [{match: {path: /}, upstream: api}]",
    "upstreams": 'upstreams: {api: {endpoints: ["127.0.0.1:9001"]}}',
}


def written(folder: Path, text: str | bytes, name: str = "billing.yaml") -> Path:
    path = folder / "apps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def document(more: str = "", **parts: str) -> str:
    return "\n".join([*(PARTS | parts).values(), more])


def load(folder: Path, text: str) -> AppSpec:
    written(folder, text)
    return load_app(folder, BILLING, ENVIRONMENT)


def told(folder: Path, text: str | bytes) -> list[str]:
    """Every finding as `line:column: message (hint)`."""
    written(folder, text)
    try:
        load_app(folder, BILLING, ENVIRONMENT)
    except ConfigError as error:
        return [f"{f.line}:{f.column}: {f.message} ({f.hint})" for f in error.findings]
    return []


def test_the_parts_are_a_sound_file(tmp_path: Path) -> None:
    assert told(tmp_path, document()) == []


def proxied(keys: str, protocol: str = "http") -> str:
    """A listener whose keys after the usual ones begin in line 4, column 3."""
    return f"listeners: [{{name: web, bind: '127.0.0.1:1', protocol: {protocol},\n  {keys}}}]"


FINDINGS: Final[list[tuple[dict[str, str], list[str]]]] = [
    # keys
    ({"more": "workesr: 2"}, ["6:1: unknown key 'workesr' in an app (did you mean workers?)"]),
    ({"more": "keepalive: 2"}, ["6:1: unknown key 'keepalive' in an app (it belongs to an"]),
    ({"more": "zzz: 2"}, ["6:1: unknown key 'zzz' in an app (known are version, app, listeners"]),
    ({"more": "workers: 2\nworkers: 3"}, ["7:1: key 'workers' is here twice (it stands in line 6"]),
    ({"more": "limits: {headers: 5, headers: 6}"}, ["6:22: key 'headers' is here twice"]),
    ({"more": "? [a, b]\n: 1"}, ["6:3: a key is a plain word"]),
    ({"more": "<<: {workers: 2}"}, ["6:1: unknown key '<<' in an app (merge keys"]),
    # sockets
    (
        {"listeners": "listeners: [{name: a, bind: 'unix:run/a', protocol: http}]"},
        ["3:29: 'unix:run/a' names no absolute path"],
    ),
    (
        {"listeners": "listeners: [{name: a, bind: '[::1]:1', protocol: http, mode: 0660}]"},
        ["3:56: mode is for unix: sockets, and [::1]:1 is none (remove it)"],
    ),
    (
        {"listeners": "listeners: [{name: a, bind: 'unix:/a', protocol: http, mode: rw}]"},
        ["3:62: 'rw' is not"],
    ),
    (
        {"listeners": "listeners: [{name: a, bind: '[::1]:1', protocol: http, dual_stack: true}]"},
        ["3:56: only [::] can take IPv4 as well"],
    ),
    (
        {
            "listeners": "listeners:\n- {name: a, bind: '[::]:1', protocol: http, dual_stack: true}"
            "\n- {name: b, bind: '127.0.0.1:1', protocol: http}"
        },
        ["5:19: 127.0.0.1:1 and [::]:1 cannot both be bound (the other"],
    ),
    # access and rates
    (
        {"more": "access: {allow: [10.0.0.1/8, 10.0.0.0/33, web], deny: [1.2.3.4, 5]}"},
        [
            "6:18: '10.0.0.1/8' has bits behind its prefix (write 10.0.0.0/8)",
            "6:30: '10.0.0.0/33': '33' is not a prefix length (a prefix of",
            "6:43: 'web' is not a network (write 10.0.0.0/8)",
            "6:65: '5': '5' is not an address (write 10",
        ],
    ),
    ({"more": "rate: {requests: 10, per: client}"}, ["6:27: 'client' is not a key (write source"]),
    ({"more": "rate: {requests: 10, per: {cookie: a}}"}, ["6:28: unknown key 'cookie'"]),
    ({"more": "rate: {burst: 10}"}, ["6:15: a burst needs a rate"]),
    (
        {
            "listeners": "listeners: [{name: a, bind: '[::]:1', protocol: tcp, upstream: api}]",
            "routes": "",
            "more": "rate: {requests: 1}\nlimits: {requests: 1}",
        },
        ["6:1: requests are counted on http", "7:10: requests are counted on http"],
    ),
    # types
    ({"version": "version: 2"}, ["1:10: the version of this format is 1, not 2 (write 1)"]),
    ({"version": 'version: "1"'}, ["1:10: expected the version of this format, found '1' (rem"]),
    ({"version": "version:"}, ["1:9: expected the version of this format, found nothing"]),
    ({"more": "workers: 010"}, ["6:10: expected a whole number, found '010' (write it"]),
    ({"more": "workers: on"}, ["6:10: expected a whole number, found 'on'"]),
    ({"more": "workers: 1.0"}, ["6:10: expected a whole number, found '1.0'"]),
    ({"more": "workers: 0x10"}, ["6:10: expected a whole number, found '0x10'"]),
    ({"more": "workers: 1_000"}, ["6:10: expected a whole number, found '1_000'"]),
    ({"more": "workers: [1]"}, ["6:10: expected a whole number, found a list"]),
    ({"more": "workers: 0"}, ["6:10: 0 is too small (1 is the smallest)"]),
    ({"more": "workers: 65"}, ["6:10: 65 is too large (64 is the largest)"]),
    ({"more": "workers: " + "9" * 5000}, ["6:10: expected a whole number, found '999"]),
    ({"more": "limits: 5"}, ["6:9: expected limits, name: number, found '5'"]),
    ({"more": "limits:"}, ["6:8: expected limits, name: number, found nothing"]),
    ({"more": "limits: {body_bytes: 1MB}"}, ["6:22: '1MB' is not a size (write 16KiB"]),
    ({"more": "limits: {body_bytes: -1}"}, ["6:22: -1 is too small"]),
    ({"more": "limits: {header_bytes: 0}"}, ["6:24: 0: a head's limit is from 1KiB to 64KiB"]),
    ({"more": "limits: {headers: 0}"}, ["6:19: 0 is too small (1 is the smallest)"]),
    ({"more": "timeouts: {idle: 60}"}, ["6:18: '60' is not a duration (write 250ms, 5s"]),
    ({"more": "timeouts: {idle: 0s}"}, ["6:18: '0s': every wait needs an end"]),
    ({"more": "timeouts: {idle: 25h}"}, ["6:18: '25h' is too long (24h is the longest)"]),
    ({"listeners": "listeners: web"}, ["3:12: expected a list of listeners, found 'web'"]),
    ({"listeners": "listeners: []"}, ["3:12: expected a list of listeners, found none"]),
    ({"listeners": "listeners: [web]"}, ["3:13: expected a listener, found 'web'"]),
    ({"upstreams": "upstreams: []"}, ["5:12: expected upstreams, name: {endpoints: [...]}, fo"]),
    # the app
    ({"app": "app: shop"}, ["2:6: the file's name says 'billing', not shop (one app a file"]),
    ({"app": "app: Billing"}, ["2:6: 'Billing' is not an app's name"]),
    ({"app": ""}, ["1:1: an app lacks app"]),
    # trust
    (
        {"listeners": proxied("proxy_protocol: true")},
        ["4:3: a PROXY header is taken from trusted_proxies alone (name the proxies in front"],
    ),
    (
        {"listeners": proxied("proxy_protocol: yes, trusted_proxies: [10.0.0.0/8]")},
        ["4:19: expected true or false, found 'yes'"],
    ),
    (
        {"listeners": proxied("trusted_proxies: 10.0.0.0/8")},
        ["4:20: expected a list of networks, found '10.0.0.0/8'"],
    ),
    (
        {"listeners": proxied("trusted_proxies: [10.0.0.1/8, 10.0.0.0/33, localhost]")},
        [
            "4:21: '10.0.0.1/8' has bits behind its prefix (write 10.0.0.0/8)",
            "4:33: '10.0.0.0/33': '33' is not a prefix length (a prefix of this address",
            "4:46: 'localhost' is not a network (write 10.0.0.0/8)",
        ],
    ),
    (
        {"listeners": proxied("trusted_proxies: [10.0.0.1, 10.0.0.1/32]")},
        ["4:31: '10.0.0.1/32' is in the list twice (it stands in line 4 already)"],
    ),
    (
        {"listeners": proxied("trusted_proxies: [10.0.0.0/8], upstream: api", "tcp"), "routes": ""},
        ["4:3: a tcp listener hears of clients by the PROXY protocol alone (add proxy_protocol"],
    ),
    # listeners
    (
        {"listeners": "listeners: [{name: web, protocol: http}]"},
        ["3:13: a listener lacks bind (write 127.0.0.1:8080)"],
    ),
    (
        {"listeners": "listeners: [{name: web, bindd: '127.0.0.1:1', protocol: http}]"},
        ["3:25: unknown key 'bindd' in a listener (did you mean bind?)"],
    ),
    (
        {"listeners": "listeners: [{name: web, bind: [fe80::g]:80, protocol: http}]"},
        ["3:40: not YAML: "],
    ),
    (
        {"listeners": "listeners:\n  - {name: web, bind: '::1:80', protocol: udp}"},
        ["4:23: '::1:80' is not an address", "4:43: 'udp' is not a protocol (one of http, tcp)"],
    ),
    (
        {"listeners": "listeners: [{name: a b, bind: '127.0.0.1:1', protocol: http}]"},
        ["3:20: 'a b' is not a name (up to 63 letters"],
    ),
    (
        {
            "listeners": "listeners:\n  - {name: web, bind: '127.0.0.1:1', protocol: http}\n"
            "  - {name: web, bind: '127.0.0.1:1', protocol: http}"
        },
        [
            "5:12: two listeners are named web (the other is in line 4)",
            "5:23: two listeners bind 127.0.0.1:1 (the other is in line 4)",
        ],
    ),
    (
        {
            "listeners": "listeners:\n  - {name: a, bind: '[0:0::1]:1', protocol: http}\n"
            "  - {name: b, bind: '[::]:1', protocol: http}"
        },
        ["5:21: [::]:1 and [::1]:1 cannot both be bound"],
    ),
    (
        {"listeners": "listeners: [{name: a, bind: '127.0.0.1:1', protocol: http, upstream: api}]"},
        ["3:60: an http listener has no upstream (its routes name upstreams)"],
    ),
    (
        {
            "listeners": "listeners: [{name: a, bind: '127.0.0.1:1', protocol: tcp}]",
            "routes": "#",
        },
        ["3:13: a tcp listener lacks upstream"],
    ),
    (
        {
            "listeners": "listeners: [{name: a, bind: '127.0.0.1:1', protocol: tcp, upstream: ap}]",
            "routes": "#",
        },
        ["3:69: there is no upstream 'ap' (did you mean api?)"],
    ),
    (
        {"listeners": "listeners: [{name: a, bind: '127.0.0.1:1', protocol: tcp, upstream: api}]"},
        ["4:1: routes need an http listener"],
    ),
    ({"routes": "#"}, ["3:13: an http listener needs routes"]),
    ({"routes": "routes: []"}, ["3:13: an http listener needs routes"]),
    # routes
    (
        {"routes": "routes: [{match: {path: /}}]"},
        ["4:10: a route needs one of upstream, redirect and respond"],
    ),
    (
        {"routes": "routes: [{match: {path: /}, upstrem: api}]"},
        ["4:29: unknown key 'upstrem' in a route (did you mean upstream?)"],
    ),
    (
        {"routes": "routes: [{match: {path: /}, upstream: api, respond: {}}]"},
        ["4:44: a route has only one of upstream, redirect and respond"],
    ),
    ({"routes": "routes: [{upstream: api}]"}, ["4:10: a route lacks match"]),
    (
        {"routes": "routes: [{match: {path: /}, upstream: db}]"},
        ["4:39: there is no upstream 'db' (upstreams: {db: {endpoints: [...]}})"],
    ),
    (
        {"routes": "routes: [{match: {path: api}, upstream: api}]"},
        ["4:25: 'api': a path begins with '/'"],
    ),
    (
        {"routes": "routes: [{match: {methods: [get, GET, GET, FETCH]}, upstream: api}]"},
        [
            "4:29: 'get': methods are upper case (write GET)",
            "4:39: 'GET' is in the list twice (remove one)",
            "4:44: 'FETCH' is not a known method",
        ],
    ),
    (
        {"routes": "routes: [{match: {headers: {X-A: 1, x-a: 2}}, upstream: api}]"},
        ["4:37: x-a and X-A name the same field"],
    ),
    (
        {"routes": 'routes: [{match: {headers: {"x y": "a\\r\\nb"}}, upstream: api}]'},
        ["4:29: 'x y' is not the name of a header field", "4:36: 'a\\r\\nb' has characters that"],
    ),
    (
        {"routes": "routes: [{match: {headers: {x-a: }}, upstream: api}]"},
        ["4:34: expected a text, found nothing (put it in quotes; an empty one is \"\")"],
    ),
    (
        {
            "routes": "routes:\n  - {match: {path: /, methods: [GET, PUT]}, upstream: api}\n"
            "  - {match: {methods: [PUT, GET], path: /}, upstream: api}"
        },
        ["6:6: this route is never taken: another has the same match (it begins in line 5)"],
    ),
    (
        {"routes": "routes: [{match: {path: /old/}, redirect: {to: /new}}]"},
        ["4:48: '/new' has no '/' at its end, and a prefix' rest goes after it (write /new/)"],
    ),
    (
        {"routes": "routes: [{match: {path: /}, redirect: {to: /new/, status: 200}}]"},
        ["4:59: 200 is not a redirect's status (one of 301, 302, 303, 307, 308)"],
    ),
    ({"routes": "routes: [{match: {path: /}, redirect: {}}]"}, ["4:39: a redirect lacks to"]),
    (
        {"routes": "routes: [{match: {path: /}, respond: {status: 100}}]"},
        ["4:47: 100 is too small (200 is the smallest)"],
    ),
    (
        {"routes": "routes: [{match: {path: /}, respond: {status: 204, body: x}}]"},
        ["4:58: a response with status 204 has no body"],
    ),
    (
        {
            "routes": "routes:\n- match: {path: /}\n  upstream: api\n  request_headers:\n"
            "    set: {Content-Length: 5, x-a: 1}\n    remove: [host, X-A, y, Y]"
        },
        [
            "8:11: content-length cannot be edited",
            "9:14: host cannot be edited",
            "9:20: x-a is set, too",
            "9:28: y is in the list twice",
        ],
    ),
    # upstreams
    ({"upstreams": "upstreams: {api: {}}"}, ["5:18: an upstream lacks endpoints"]),
    (
        {"upstreams": "upstreams: {api: {endpoints: []}}"},
        ["5:30: expected a list of endpoints, found none"],
    ),
    (
        {"upstreams": "upstreams: {api: {endpoints: [127.0.0.1:1, {address: 127.0.0.1:1}]}}"},
        ["5:44: endpoint 127.0.0.1:1 is here twice"],
    ),
    (
        {"upstreams": "upstreams: {api: {endpoints: [5, {}, [a]]}}"},
        [
            "5:31: '5' is not an address",
            "5:34: an endpoint lacks address",
            "5:38: expected an endpoint, found a list",
        ],
    ),
    (
        {"upstreams": "upstreams: {api: {balance: random, endpoints: [127.0.0.1:1]}}"},
        ["5:28: 'random' is not a way to balance (one of round_robin, least_request, p2c, maglev)"],
    ),
    ({"upstreams": "upstreams: {api: {endpoints: [127.0.0.1:1]}, b@d: {endpoints: [127.0.0.1:1]}}"},
        ["5:46: 'b@d' is not a name"]),
    # A faulty upstream is there all the same: who names it is not told off, too.
    ({"upstreams": "upstreams: {api: 5}"}, ["5:18: expected an upstream, found '5'"]),
    ({"upstreams": "upstream: {api: {}}"}, ["5:1: unknown key 'upstream' in an app (did you mean"]),
    # the environment
    ({"more": "workers: ${NOPE}"}, ["6:10: ${NOPE} is not set in the environment"]),
    ({"more": "workers: ${PORT"}, ["6:10: '${PORT' has no closing brace"]),
    ({"more": "workers: ${PORT:-1}"}, ["6:10: '${PORT:-1}' does not name a variable"]),
    ({"more": "workers: ${PORT}"}, ["6:10: 9001 is too large"]),
    ({"more": "workers: ${EMPTY}"}, ["6:10: expected a whole number, found ''"]),
    ({"more": "timeouts: {idle: '${BAD}'}"}, ["6:18: '${BAD}' has characters from the"]),
    (
        {"routes": "routes: [{match: {headers: {x-a: '${NL}'}}, upstream: api}]"},
        ["4:34: 'a\\nb' has characters that no header field may have"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "expected"), FINDINGS)
def test_finding(tmp_path: Path, parts: dict[str, str], expected: list[str]) -> None:
    found = told(tmp_path, document(**parts))
    assert len(found) == len(expected), found
    for finding, begin in zip(found, expected, strict=True):
        assert finding.startswith(begin), finding


NOT_YET: Final = [
    "listeners: [{name: a, bind: '127.0.0.1:1', protocol: http, tls: {certificates: []}}]",
    "listeners: [{name: a, core: web, protocol: http}]",
    "listeners: [{name: a, bind: '127.0.0.1:1', protocol: http, hosts: [a.example]}]",
    "listeners: [{name: a, bind: '127.0.0.1:1', protocol: http, default: true}]",
    "upstreams: {api: {tls: {}, endpoints: ['127.0.0.1:1']}}",
    "limits: {memory: 256MiB}",
    "limits: {cpu: 1.0}",
]


@pytest.mark.parametrize("line", NOT_YET)
def test_what_is_not_built_yet_is_refused_and_never_ignored(tmp_path: Path, line: str) -> None:
    key = line.partition(":")[0]
    found = told(tmp_path, document(**({key: line} if key in PARTS else {"more": line})))
    assert len(found) == 1
    assert "not supported yet" in found[0]


def test_an_access_log_has_a_format_a_size_and_a_count(tmp_path: Path) -> None:
    assert load(tmp_path, document()).access_log == AccessLogSpec(
        format="none", rotate_bytes=64 << 20, keep=5
    )
    line = "access_log: {format: combined, rotate: 1MiB, keep: 2}"
    assert load(tmp_path, document(more=line)).access_log == AccessLogSpec(
        format="combined", rotate_bytes=1 << 20, keep=2
    )


@pytest.mark.parametrize(
    ("given", "finding"),
    [
        ("format: xml", "6:22: "),
        (
            "rotate: 1KiB",
            "6:22: '1KiB': a log is set aside at 64KiB or more (64MiB is the default)",
        ),
        ("rotate: 100", "100: a log is set aside at 64KiB or more"),
        ("rotate: big", "is not a size"),
        ("keep: 0", "6:20: "),
        ("fromat: json", "did you mean format?"),
    ],
)
def test_an_access_log_that_cannot_be_is_told(tmp_path: Path, given: str, finding: str) -> None:
    (told_of,) = told(tmp_path, document(more=f"access_log: {{{given}}}"))
    assert finding in told_of


@pytest.mark.parametrize("item", ["", "[]", "text", "7"])
def test_a_route_that_is_no_mapping_is_a_finding(tmp_path: Path, item: str) -> None:
    (finding,) = told(tmp_path, document(routes=f"routes:\n  - {item}\n"))
    assert "a route" in finding


def test_all_findings_come_at_once_in_order_of_lines(tmp_path: Path) -> None:
    text = document(
        "workers: 0\ndrain: {deadline: soon}",
        app="app: shop",
        routes="routes: [{match: {path: x}, upstream: nope}]",
        upstreams="upstreams: {api: {endpoints: [127.0.0.1]}}",
    )
    found = told(tmp_path, text)
    assert [finding.split(":")[0] for finding in found] == ["2", "4", "4", "5", "6", "7"]


def test_a_finding_names_file_line_and_column_and_then_a_hint(tmp_path: Path) -> None:
    path = written(tmp_path, document("workers: 0"))
    with pytest.raises(ConfigError) as caught:
        load_app(tmp_path, BILLING, {})
    assert str(caught.value) == f"{path}:6:10: 0 is too small\n    hint: 1 is the smallest"


# --- what a sound file means ------------------------------------------------------------------


def test_defaults_are_written_out(tmp_path: Path) -> None:
    value: Any = json.loads(load(tmp_path, document()).to_json())
    assert value["timeouts"] == {
        "header_ms": 10_000, "body_idle_ms": 30_000, "idle_ms": 60_000, "tunnel_idle_ms": 3_600_000,
        "request_ms": 0, "send_ms": 30_000,
    }  # fmt: skip
    assert value["limits"] == {
        "connections": 10_000, "header_bytes": 32_768, "headers": 100, "body_bytes": 0,
        "connections_per_source": 0, "requests": 0,
    }  # fmt: skip
    assert (value["drain_deadline_ms"], value["ready_deadline_ms"]) == (30_000, 5_000)
    assert value["workers"] == 1
    upstream = value["upstreams"][0]
    assert (upstream["balance"], upstream["connect_timeout_ms"]) == ("round_robin", 1_000)
    assert upstream["keepalive"] == 64
    assert value["routes"][0]["request_timeout_ms"] == 30_000


def test_yaml_1_1_does_not_decide_what_a_text_is(tmp_path: Path) -> None:
    text = document(
        routes="routes: [{match: {headers: {a: on, b: 010, c: 1.0, d: 1:20, e: ~, f: 2026-01-01}},"
        " upstream: no}]",
        upstreams='upstreams: {no: {endpoints: ["127.0.0.1:9001"]}}',
    )
    (route,) = load(tmp_path, text).routes
    assert route.upstream == "no"
    assert dict(route.match.headers) == {
        "a": "on", "b": "010", "c": "1.0", "d": "1:20", "e": "~", "f": "2026-01-01"
    }  # fmt: skip


def test_an_ipv6_address_needs_no_quotes(tmp_path: Path) -> None:
    text = document(
        "drain: {deadline: 0s}",
        listeners="listeners:\n  - {name: a, bind: [::1]:80, protocol: http}\n"
        "  - name: b\n    bind: [::1]:81 # [::1]:82\n    protocol: http",
        upstreams="upstreams: {api: {endpoints: [[::1]:1, [2001:db8::1]:2,[::2]:3]}}",
    )
    spec = load(tmp_path, text)
    assert [listener.bind for listener in spec.listeners] == ["[::1]:80", "[::1]:81"]
    assert [endpoint.address for endpoint in spec.upstreams[0].endpoints] == [
        "::1", "2001:db8::1", "::2"
    ]  # fmt: skip


def test_values_are_normalised(tmp_path: Path) -> None:
    text = document(
        'rollout: {ready_deadline: 1m}\nlimits: {header_bytes: 16KiB, body_bytes: "1MiB"}',
        listeners="listeners: [{name: web, bind: '[0:0:0::1]:80', protocol: http}]",
        routes="routes: [{match: {host: '*.Example.COM', methods: [PUT, GET], headers: {X-B: b, "
        "X-A: a}}, upstream: api, request_headers: {set: {X-App: billing}, remove: [X-B, X-A]}}]",
        upstreams="upstreams: {b: {endpoints: ['[0::1]:2']}, api: {endpoints: [127.0.0.1:1]}}",
    )
    spec = load(tmp_path, text)
    assert spec.listeners[0].bind == "[::1]:80"
    assert spec.routes[0].match.host == "*.example.com"
    assert spec.routes[0].match.methods == ("GET", "PUT")
    assert spec.routes[0].match.headers == (("x-a", "a"), ("x-b", "b"))
    assert spec.routes[0].request_headers == HeaderEdits(
        set=(("x-app", "billing"),), remove=("x-a", "x-b")
    )
    assert [upstream.name for upstream in spec.upstreams] == ["api", "b"]
    assert spec.upstreams[1].endpoints[0].address == "::1"
    assert spec.ready_deadline_ms == 60_000
    assert (spec.limits.header_bytes, spec.limits.body_bytes) == (16_384, 1 << 20)


def test_comments_order_and_spelling_do_not_change_the_meaning(tmp_path: Path) -> None:
    other = """
# The same, written by somebody else.
upstreams:
  api: {keepalive: 64, endpoints: [{address: '127.0.0.1:9001'}]}
workers: 1
routes:
  - upstream: api
    request_timeout: 30000ms
    match:
      path: "/"
listeners:
  - {protocol: http, bind: "127.0.0.1:8080", name: 'web'}
app: billing
version: 1
"""
    assert load(tmp_path, other).to_json() == load(tmp_path, document()).to_json()


def test_the_environment_is_put_in_and_dollars_can_be_escaped(tmp_path: Path) -> None:
    text = document(
        'workers: "${WORKERS}"',
        routes="routes: [{match: {path: /}, respond: {body: '$${PORT} is ${PORT}, costs $5$$'}}]",
        upstreams="upstreams: {api: {endpoints: ['127.0.0.1:${PORT}']}}",
    )
    spec = load(tmp_path, text)
    assert spec.workers == 3
    assert spec.upstreams[0].endpoints[0].port == 9001
    assert spec.routes[0].respond is not None
    assert spec.routes[0].respond.body == "${PORT} is 9001, costs $5$"


def test_a_value_of_the_environment_can_never_become_keys(tmp_path: Path) -> None:
    written(tmp_path, document("drain: ${DRAIN}"))
    with pytest.raises(ConfigError) as caught:
        load_app(tmp_path, BILLING, {"DRAIN": "{deadline: 5s}"})
    assert "expected drain: {deadline: 30s}" in str(caught.value)


def test_an_alias_stands_for_a_whole_value(tmp_path: Path) -> None:
    text = document(
        routes="routes:\n  - {match: {path: /a}, upstream: api, request_headers: &h {set: {x: 1}}}"
        "\n  - {match: {path: /b}, upstream: api, request_headers: *h}"
    )
    first, second = load(tmp_path, text).routes
    assert (
        first.request_headers == second.request_headers == HeaderEdits(set=(("x", "1"),), remove=())
    )


# --- files and folders ------------------------------------------------------------------------


def test_a_missing_file_is_a_finding_that_names_what_is_there(tmp_path: Path) -> None:
    written(tmp_path, document())
    with pytest.raises(ConfigError) as caught:
        load_app(tmp_path, AppName("biling"), {})
    assert str(caught.value) == (
        f"{tmp_path}/apps/biling.yaml: no such file\n    hint: did you mean billing?"
    )


@pytest.mark.parametrize("name", ["../apps/billing", "/etc/passwd", "", ".", "a\0b", "Billing"])
def test_an_apps_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    written(tmp_path, document())
    with pytest.raises(ConfigError) as caught:
        load_app(tmp_path, AppName(name), {})
    assert "is not an app's name" in str(caught.value)


def test_names_are_those_of_the_files(tmp_path: Path) -> None:
    assert app_names(tmp_path) == ()
    for name in ("shop.yaml", "billing.yaml", ".hidden.yaml", "Bad Name.yaml", "note.txt"):
        written(tmp_path, "", name)
    assert app_names(tmp_path) == ("billing", "shop")


def test_all_files_of_the_folder_are_checked_also_against_each_other(tmp_path: Path) -> None:
    written(tmp_path, document())
    written(
        tmp_path,
        document(
            app="app: shop",
            listeners='listeners: [{name: web, bind: "0.0.0.0:8080", protocol: http}]',
        ),
        "shop.yaml",
    )
    written(tmp_path, "a: [", "broken.yaml")
    written(tmp_path, document(), "old.yml")
    written(tmp_path, document(), "second.yaml")
    (tmp_path / "core.yaml").write_text("version: 1\n")
    found = {str(finding).partition("\n")[0] for finding in check_files(None, tmp_path, {})}
    apps = f"{tmp_path}/apps"
    assert {line for line in found if "not YAML" not in line} == {
        f"{tmp_path}/core.yaml: the shared tier is not supported yet",
        f"{apps}/old.yml: an app's file ends in .yaml",
        f"{apps}/second.yaml:2:6: the file's name says 'second', not billing",
        f"{apps}/second.yaml: app billing has another file already",
        f"{apps}/shop.yaml:3:31: 0.0.0.0:8080 is taken by app billing",
        f"{apps}/shop.yaml:3:31: 0.0.0.0:8080 is taken by app None",
    } - {f"{apps}/shop.yaml:3:31: 0.0.0.0:8080 is taken by app None"}
    assert sum("broken.yaml" in line for line in found) == 1


def test_named_files_are_checked_wherever_they_are(tmp_path: Path) -> None:
    path = written(tmp_path / "elsewhere", document("workers: 0"))
    (finding,) = check_files([path, path], tmp_path, {})
    assert finding.message == "0 is too small"
    (missing,) = check_files([tmp_path / "nope.yaml"], tmp_path, {})
    assert missing.message == "no such file"


def test_a_folder_without_apps_is_a_finding(tmp_path: Path) -> None:
    (missing,) = check_files(None, tmp_path, {})
    assert missing.message == "no such folder"
    (tmp_path / "apps").mkdir()
    (empty,) = check_files(None, tmp_path, {})
    assert empty.message == "there is no app"


# --- the schema -------------------------------------------------------------------------------


def test_the_schema_is_one_of_2020_12() -> None:
    schema = app_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema


def test_the_schema_alone_accepts_a_sound_file() -> None:
    validator = jsonschema.Draft202012Validator(app_schema())
    sound = {
        "version": 1,
        "app": "billing",
        "listeners": [{"name": "web", "bind": "127.0.0.1:80", "protocol": "http"}],
        "routes": [{"match": {"path": "/"}, "upstream": "api"}],
        "upstreams": {"api": {"endpoints": ["127.0.0.1:1", {"address": "127.0.0.1:2"}]}},
    }
    assert not list(validator.iter_errors(sound))
    assert list(validator.iter_errors({**sound, "workers": "1"}))


def test_who_changes_the_printed_schema_changes_nothing_here() -> None:
    app_schema()["properties"].clear()
    assert app_schema()["properties"]


def test_value_that_names_a_secret_is_kept_as_its_reference(tmp_path: Path) -> None:
    edits = "{set: {authorization: 'env:TOKEN', X-Key: 'file:/run/key', x-app: file}}"
    routes = f"routes: [{{match: {{path: /}}, upstream: api, request_headers: {edits}}}]"
    made = load(tmp_path, document(routes=routes)).routes[0].request_headers
    assert made == HeaderEdits(
        set=(("x-app", "file"),),
        remove=(),
        secrets=(("authorization", "env:TOKEN"), ("x-key", "file:/run/key")),
    )


def test_host_name_is_kept_as_an_endpoint(tmp_path: Path) -> None:
    upstreams = "upstreams: {api: {endpoints: ['DB.internal:5432', {address: 'b:1'}]}}"
    spec = load(tmp_path, document("rollout: {resolve_pause: 250ms}", upstreams=upstreams))
    told = [(one.address, one.port) for one in spec.upstreams[0].endpoints]
    assert told == [("db.internal", 5432), ("b", 1)]
    assert spec.resolve_pause_ms == 250


def test_trust_is_lowered_to_networks_in_one_form(tmp_path: Path) -> None:
    keys = "proxy_protocol: true, trusted_proxies: ['2001:DB8::/32', 10.0.0.0/8, 192.0.2.1]"
    (listener,) = load(tmp_path, document(listeners=proxied(keys))).listeners
    assert listener.proxy_protocol is True
    assert listener.trusted_proxies == ("10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32")
    (listener,) = load(tmp_path, document()).listeners
    assert (listener.proxy_protocol, listener.trusted_proxies) == (False, ())


def test_access_rates_and_limits_become_their_spec(tmp_path: Path) -> None:
    text = """
access: {allow: [10.0.0.0/8, "::1", "::ffff:192.0.2.0/120"], deny: [10.0.0.9, 10.0.0.9/32]}
rate: {requests: 100, per: {header: X-Api-Key}, burst: 200}
timeouts: {request: 5s, send: 2s}
limits: {connections_per_source: 20, requests: 30}
"""
    route = "{match: {path: /}, upstream: api, access: {deny: ['::/0']}, rate: {requests: 1}}"
    spec = load(tmp_path, document(text, routes=f"routes: [{route}]"))
    assert spec.access == AccessSpec(
        allow=("10.0.0.0/8", "192.0.2.0/24", "::1/128"), deny=("10.0.0.9/32",)
    )
    assert spec.rate == RateSpec(requests=100, burst=200, header="x-api-key")
    assert (spec.timeouts.request_ms, spec.timeouts.send_ms) == (5000, 2000)
    assert (spec.limits.connections_per_source, spec.limits.requests) == (20, 30)
    assert spec.routes[0].access == AccessSpec(allow=(), deny=("::/0",))
    assert spec.routes[0].rate == RateSpec(requests=1, burst=0, header=None)


def test_without_a_word_all_may_come_as_often_as_they_like(tmp_path: Path) -> None:
    spec = load(tmp_path, document("access: {}\nrate: {requests: 0, per: source, burst: 0}"))
    assert spec.access is None
    assert spec.rate is None
    assert spec == load(tmp_path, document())
