"""Upstreams and retries in a config file: every finding with its place, and what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from dataplane.model.spec import (
    AppSpec,
    EjectionSpec,
    EndpointSpec,
    HealthSpec,
    KeySpec,
    RetriesSpec,
    RouteSpec,
    UpstreamSpec,
)
from tests.unit.image.test_config import document, load, told

# What is written inside the upstream `api`, and the one finding: it stands in line 5.
FINDINGS: Final = [
    ("balance: p2d", "'p2d' is not a way to balance (did you mean p2c?)"),
    ("key: sauce, balance: maglev", "'sauce' is not a key (write source, {header"),
    ("key: source", "round_robin needs no key (balance: maglev)"),
    ("balance: maglev, key: {}", "expected a key, found none"),
    ("balance: maglev, key: {query: x}", "unknown key 'query' in a key (known are header, cookie)"),
    ("balance: maglev, key: {header: x, cookie: y}", "more than 1 keys"),
    ("balance: maglev, key: {header: 'a b'}", "'a b' is not the name of a header field"),
    ("sticky: {cookie: 'a=b'}", "'a=b' is not a cookie's name (write, say, session)"),
    ("sticky: {}", "sticky: {cookie: NAME} lacks cookie"),
    ("max_connections: -1", "-1 is too small (0 is the smallest)"),
    ("ejection: {failures: x}", "expected a whole number, found 'x'"),
    ("ejection: {for: 0s}", "'0s': every wait needs an end"),
    ("ejection: {server_errors: yes}", "expected true or false, found 'yes'"),
    ("slow_start: soon", "'soon' is not a duration"),
    ("health: {}", "a health check needs a path (path: /healthz, or tcp: true)"),
    ("health: {path: /x, tcp: true}", "a health check has a path or tcp: true, not both"),
    ("health: {path: x}", "'x' is not a path to ask for (write /healthz)"),
    ("health: {tcp: true, timeout: 3s}", "a timeout of 3s is longer than the interval (2s is"),
    ("health: {path: /x, expect: 2xx}", "'2xx' is not a range of statuses (write 200, or 200-399"),
    ("health: {path: /x, expect: 300-200}", "'300-200' is not a range of statuses"),
    ("health: {path: /x, fall: 0}", "0 is too small (1 is the smallest)"),
    ("health: {path: /x, raise: 1}", "unknown key 'raise' in a health check (did you mean rise?)"),
    ("proxy_protocol: v3", "'v3' is not a version of the PROXY protocol"),
]


@pytest.mark.parametrize(("written", "message"), FINDINGS)
def test_finding_in_an_upstream(tmp_path: Path, written: str, message: str) -> None:
    line = f"upstreams: {{api: {{{written}, endpoints: ['127.0.0.1:1']}}}}"
    (found,) = told(tmp_path, document(upstreams=line))
    place, _, rest = found.partition(" ")
    assert place.startswith("5:")
    assert rest.startswith(message)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("{address: '127.0.0.1:1', weight: 0}", "0 is too small (1 is the smallest)"),
        ("{address: '127.0.0.1:1', weight: 257}", "257 is too large (256 is the largest)"),
        ("{address: '127.0.0.1:1', wait: 2}", "unknown key 'wait' in an endpoint (did you mean we"),
        ("'unix:app.sock'", "'unix:app.sock' names no absolute path (write unix:/run/app.sock)"),
        ("'unix:/run/app/'", "'unix:/run/app/' is not the path of a socket"),
    ],
)
def test_finding_in_an_endpoint(tmp_path: Path, endpoint: str, message: str) -> None:
    line = f"upstreams: {{api: {{endpoints: [{endpoint}]}}}}"
    (found,) = told(tmp_path, document(upstreams=line))
    assert found.partition(" ")[2].startswith(message)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{attempts: 11}", "11 is too large (10 is the largest)"),
        ("{on: [timeout]}", "'timeout' is nothing that a request is sent again for (write conn"),
        ("{on: ['399']}", "'399' is nothing that a request is sent again for"),
        ("{on: []}", "expected a list of failures, found none"),
        ("{budget: 20}", "'20' is not a share (write 20%; 100% is the most)"),
        ("{budget: 101%}", "'101%' is not a share"),
        ("{methods: [PSOT]}", "'PSOT' is not a known method"),
        ("{tries: 2}", "unknown key 'tries' in a route's retries (known are attempts, on"),
    ],
)
def test_finding_in_retries(tmp_path: Path, written: str, message: str) -> None:
    line = f"routes: [{{match: {{}}, upstream: api, retries: {written}}}]"
    found = told(tmp_path, document(routes=line))
    assert found[0].partition(" ")[2].startswith(message), found


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("sticky: {cookie: a}", "sticky: a tcp listener leads here, and sees no requests"),
        ("balance: maglev, key: {header: a}", "key: a tcp listener leads here, and sees no"),
    ],
)
def test_a_tunnel_has_nothing_to_look_into(tmp_path: Path, written: str, message: str) -> None:
    listener = 'listeners: [{name: a, bind: "127.0.0.1:1", protocol: tcp, upstream: api}]'
    line = f"upstreams: {{api: {{{written}, endpoints: ['127.0.0.1:1']}}}}"
    (found,) = told(tmp_path, document(listeners=listener, routes="", upstreams=line))
    assert found.partition(" ")[2].startswith(message)


def api_of(folder: Path, written: str, endpoints: str = "['127.0.0.1:1']") -> UpstreamSpec:
    line = f"upstreams: {{api: {{{written}, endpoints: {endpoints}}}}}"
    return load(folder, document(upstreams=line)).upstreams[0]


def test_an_upstream_means_what_it_says(tmp_path: Path) -> None:
    found = api_of(
        tmp_path,
        "balance: maglev, key: {header: X-User}, sticky: {cookie: stick}, max_connections: 7,"
        " max_waiting: 3, ejection: {failures: 2, for: 1s, server_errors: true}, slow_start: 3s,"
        " health: {path: '/h?x=1', host: api.internal, interval: 5s, expect: 204},"
        " proxy_protocol: v2",
        "[{address: '127.0.0.1:1', weight: 5}, '[::1]:2', 'unix:/run/a.sock']",
    )
    assert found == UpstreamSpec(
        name="api",
        balance="maglev",
        endpoints=(
            EndpointSpec(address="127.0.0.1", port=1, weight=5),
            EndpointSpec(address="::1", port=2),
            EndpointSpec(address="unix:/run/a.sock", port=0),
        ),
        connect_timeout_ms=1000,
        keepalive=64,
        key=KeySpec(by="header", name="x-user"),
        sticky_cookie="stick",
        max_connections=7,
        max_waiting=3,
        ejection=EjectionSpec(failures=2, for_ms=1000, server_errors=True),
        slow_start_ms=3000,
        health=HealthSpec(
            path="/h?x=1",
            host="api.internal",
            interval_ms=5000,
            timeout_ms=1000,
            fall=3,
            rise=2,
            status_min=204,
            status_max=204,
        ),
        proxy_protocol="v2",
    )
    assert [endpoint.text for endpoint in found.endpoints] == [
        "127.0.0.1:1",
        "[::1]:2",
        "unix:/run/a.sock",
    ]


def test_without_a_word_failing_endpoints_are_left_out_and_come_back_slowly(tmp_path: Path) -> None:
    found = api_of(tmp_path, "keepalive: 1")
    assert found.ejection == EjectionSpec(failures=5, for_ms=10_000, server_errors=False)
    assert (found.slow_start_ms, found.max_connections, found.max_waiting) == (10_000, 0, 1024)
    assert (found.health, found.key, found.sticky_cookie, found.proxy_protocol) == (None,) * 4


def test_a_maglev_without_a_key_goes_by_the_source(tmp_path: Path) -> None:
    assert api_of(tmp_path, "balance: maglev").key == KeySpec(by="source", name=None)
    cookie = api_of(tmp_path, "balance: maglev, key: {cookie: Session}").key
    assert cookie == KeySpec(by="cookie", name="Session")
    assert api_of(tmp_path, "health: {tcp: true}").health is not None


def routes_of(folder: Path, written: str) -> RouteSpec:
    line = f"routes: [{{match: {{}}, upstream: api{written}}}]"
    return load(folder, document(routes=line)).routes[0]


def test_retries_mean_what_they_say(tmp_path: Path) -> None:
    safe = ("DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE")
    assert routes_of(tmp_path, "").retries is None
    assert routes_of(tmp_path, ", retries: {}").retries == RetriesSpec(
        attempts=2, on=("connect-failure",), budget_percent=20, methods=safe
    )
    written = ', retries: {attempts: 1, on: [reset, "503"], budget: 5%, methods: [POST]}'
    assert routes_of(tmp_path, written).retries == RetriesSpec(
        attempts=1, on=("503", "reset"), budget_percent=5, methods=tuple(sorted((*safe, "POST")))
    )


def test_a_thousand_endpoints_are_taken_and_no_more(tmp_path: Path) -> None:
    def endpoints(count: int) -> str:
        return json.dumps(
            [f"127.0.{number // 250}.{number % 250 + 1}:80" for number in range(count)]
        )

    assert len(api_of(tmp_path, "keepalive: 1", endpoints(1000)).endpoints) == 1000
    line = f"upstreams: {{api: {{endpoints: {endpoints(1001)}}}}}"
    (found,) = told(tmp_path, document(upstreams=line))
    assert "more than 1000 entries" in found


def test_a_spec_of_an_older_image_means_what_it_meant(tmp_path: Path) -> None:
    written = json.loads(load(tmp_path, document()).to_json())
    for name in ("key", "sticky_cookie", "max_connections", "max_waiting", "ejection",
                 "slow_start_ms", "health", "proxy_protocol"):  # fmt: skip
        del written["upstreams"][0][name]
    del written["upstreams"][0]["endpoints"][0]["weight"]
    del written["routes"][0]["retries"], written["upstreams_on_rollout"]
    spec = AppSpec.from_json(json.dumps(written).encode())
    assert spec.upstreams[0].ejection is None
    assert spec.upstreams[0].endpoints[0].weight == 1
    assert spec.routes[0].retries is None
