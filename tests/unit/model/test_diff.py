"""What is told of two versions: every difference, in the config file's words, and nothing else."""

from __future__ import annotations

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies

from dataplane.model.diff import (
    Change,
    Version,
    changes_text,
    differences,
    duration_text,
    size_text,
)
from dataplane.model.spec import (
    AccessLogSpec,
    AppSpec,
    EndpointSpec,
    HeaderEdits,
    ListenerSpec,
    MatchSpec,
)
from tests.support.specs import ANYTHING, app_spec, route_answering, route_to, upstream

BLUE = app_spec(route_to("api"), upstreams=(upstream("api", 9001, 9002),))


def version(spec: AppSpec = BLUE, code: str = "1.0", layer: str = "sha256:aa") -> Version:
    return Version(spec=spec, code=code, code_layer=layer, abi="abi")


def told(before: AppSpec, after: AppSpec) -> list[str]:
    return [str(change) for change in differences(version(before), version(after))]


def matching(path: str) -> MatchSpec:
    return dataclasses.replace(ANYTHING, path=path)


def test_equal_versions_have_no_difference() -> None:
    assert differences(version(), version()) == ()


def test_value_is_told_in_the_units_and_words_of_the_config_file() -> None:
    after = dataclasses.replace(
        BLUE,
        timeouts=dataclasses.replace(BLUE.timeouts, idle_ms=1500),
        limits=dataclasses.replace(BLUE.limits, header_bytes=16384, body_bytes=1 << 20),
        drain_deadline_ms=90_000,
        access_log=AccessLogSpec(format="json", rotate_bytes=1 << 20),
        ready_deadline_ms=1000,
        workers=2,
    )
    assert told(BLUE, after) == [
        "~ timeouts.idle: 1m -> 1500ms",
        "~ limits.header_bytes: 32KiB -> 16KiB",
        "~ limits.body_bytes: 0 -> 1MiB",
        "~ drain.deadline: 5s -> 90s",
        "~ rollout.ready_deadline: 5s -> 1s",
        "~ workers: 1 -> 2",
        "~ access_log.format: none -> json",
        "~ access_log.rotate: 64MiB -> 1MiB",
    ]


def test_trust_in_proxies_is_told_network_by_network() -> None:
    (listener,) = BLUE.listeners
    before = dataclasses.replace(listener, trusted_proxies=("10.0.0.0/8", "::1/128"))
    after = dataclasses.replace(
        listener, proxy_protocol=True, trusted_proxies=("10.0.0.0/8", "192.0.2.0/24")
    )
    assert told(
        dataclasses.replace(BLUE, listeners=(before,)),
        dataclasses.replace(BLUE, listeners=(after,)),
    ) == [
        "~ listeners[web].proxy_protocol: false -> true",
        "- listeners[web].trusted_proxies: ::1/128",
        "+ listeners[web].trusted_proxies: 192.0.2.0/24",
    ]


def test_listener_is_named_and_endpoints_come_and_go_one_by_one() -> None:
    after = dataclasses.replace(
        BLUE,
        listeners=(dataclasses.replace(BLUE.listeners[0], bind="[::1]:8080"),),
        upstreams=(upstream("api", 9002, 9003),),
    )
    assert told(BLUE, after) == [
        "~ listeners[web].bind: 127.0.0.1:0 -> [::1]:8080",
        "- upstreams.api.endpoints: 127.0.0.1:9001",
        "+ upstreams.api.endpoints: 127.0.0.1:9003",
    ]


def test_endpoint_of_ipv6_has_brackets() -> None:
    one = dataclasses.replace(upstream("api"), endpoints=(EndpointSpec(address="::1", port=80),))
    after = dataclasses.replace(BLUE, upstreams=(one,))
    assert "+ upstreams.api.endpoints: [::1]:80" in told(BLUE, after)


def test_route_is_named_by_what_it_matches() -> None:
    host = MatchSpec(
        host="example.com", path="/api/", methods=("GET", "PUT"), headers=(("x-beta", "1"),)
    )
    before = dataclasses.replace(BLUE, routes=(route_to("api", host),))
    after = dataclasses.replace(BLUE, routes=(route_to("db", host),))
    assert told(before, after) == [
        "~ routes[host=example.com path=/api/ methods=GET,PUT headers.x-beta=1].upstream: api -> db"
    ]


def test_route_that_changes_what_it_does_loses_one_key_and_gets_others() -> None:
    after = dataclasses.replace(BLUE, routes=(route_answering("ok\n"),))
    assert (
        told(BLUE, after)
        == [
            "- routes[path=/].upstream: api",
            "+ routes[path=/].respond.status: 200",
            '+ routes[path=/].respond.body: "ok\\n"',
            "~ routes[path=/].request_timeout: 5s -> 5s",
        ][:3]
    )


def test_header_edits_are_told_field_by_field() -> None:
    def edited(*fields: tuple[str, str], remove: tuple[str, ...] = ()) -> AppSpec:
        edits = HeaderEdits(set=fields, remove=remove)
        return dataclasses.replace(
            BLUE, routes=(dataclasses.replace(BLUE.routes[0], request_headers=edits),)
        )

    before = edited(("x-a", "1"), ("x-b", "2"), remove=("x-old",))
    assert told(before, edited(("x-a", "one two"), ("x-c", "3"), remove=("x-new",))) == [
        '~ routes[path=/].request_headers.set.x-a: 1 -> "one two"',
        "- routes[path=/].request_headers.set.x-b: 2",
        "+ routes[path=/].request_headers.set.x-c: 3",
        "- routes[path=/].request_headers.remove: x-old",
        "+ routes[path=/].request_headers.remove: x-new",
    ]


def test_another_order_is_a_difference_and_told_as_that() -> None:
    routes = (route_to("api", matching("/a")), route_to("api", matching("/b")))
    before = dataclasses.replace(BLUE, routes=routes)
    after = dataclasses.replace(BLUE, routes=routes[::-1], upstreams=(upstream("api", 9002, 9001),))
    assert told(before, after) == [
        "~ routes (order): path=/a, path=/b -> path=/b, path=/a",
        "~ upstreams.api.endpoints (order): 127.0.0.1:9001, 127.0.0.1:9002"
        " -> 127.0.0.1:9002, 127.0.0.1:9001",
    ]


def test_route_in_between_changes_no_order() -> None:
    first, last = route_to("api", matching("/a")), route_to("api", matching("/c"))
    before = dataclasses.replace(BLUE, routes=(first, last))
    after = dataclasses.replace(BLUE, routes=(first, route_to("api", matching("/b")), last))
    assert all("order" not in line for line in told(before, after))
    assert "+ routes[path=/b].upstream: api" in told(before, after)


def test_code_is_told_beside_the_config() -> None:
    changes = differences(version(), version(code="1.1", layer="sha256:bb"))
    assert [str(change) for change in changes] == [
        "~ code: 1.0 -> 1.1",
        "~ code layer: sha256:aa -> sha256:bb",
    ]


def test_addresses_and_secrets_are_told_but_never_what_a_secret_holds() -> None:
    before = dataclasses.replace(
        version(),
        addresses=(("db.internal", ("10.0.0.1", "10.0.0.2")),),
        secrets=(("file:/a", "digest-one"), ("file:/b", "same"), ("file:/c", "gone-digest")),
    )
    after = dataclasses.replace(
        version(),
        addresses=(("db.internal", ("10.0.0.2", "10.0.0.3")),),
        secrets=(("file:/a", "digest-two"), ("file:/b", "same"), ("env:D", "new-digest")),
    )
    text = changes_text(differences(before, after))
    assert text.splitlines() == [
        "- addresses[db.internal]: 10.0.0.1",
        "+ addresses[db.internal]: 10.0.0.3",
        "+ secrets[env:D]: given",
        "~ secrets[file:/a]: changed",
        "- secrets[file:/c]: given",
    ]
    assert "digest" not in text


def test_nothing_of_a_spec_reaches_a_terminal_raw() -> None:
    routes = (route_answering("\x1b[2J\u202e"),)
    text = changes_text(differences(version(), version(dataclasses.replace(BLUE, routes=routes))))
    assert text.replace("\n", "").isprintable()
    assert text.isascii()


def test_new_version_tells_every_key_and_a_gone_one_as_many() -> None:
    added, removed = differences(None, version()), differences(version(), None)
    assert {change.kind for change in added} == {"added"}
    assert {change.kind for change in removed} == {"removed"}
    assert [change.key for change in added] == [change.key for change in removed]
    keys = {change.key for change in added}
    assert {"app", "listeners[web].bind", "routes[path=/].upstream", "workers"} <= keys


def test_change_as_json_names_both_sides() -> None:
    change = Change(kind="changed", key="workers", before="1", after="2")
    assert change.to_json() == {"kind": "changed", "key": "workers", "from": "1", "to": "2"}


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0s"), (1, "1ms"), (1500, "1500ms"), (60_000, "1m"), (90_000, "90s"), (7_200_000, "2h")],
)
def test_durations_are_written_with_the_largest_whole_unit(milliseconds: int, text: str) -> None:
    assert duration_text(milliseconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1000, "1000"), (1024, "1KiB"), (3 << 20, "3MiB")]
)
def test_sizes_are_written_with_the_largest_whole_unit(count: int, text: str) -> None:
    assert size_text(count) == text


_PATHS = strategies.sampled_from(["/", "/a", "/b/"])
_ROUTES = strategies.lists(
    strategies.one_of(
        strategies.builds(lambda path, to: route_to(to, matching(path)), _PATHS,
                          strategies.sampled_from(["api", "db"])),
        strategies.builds(lambda path, body: route_answering(body, matching(path)), _PATHS,
                          strategies.text(max_size=3)),
    ),
    min_size=1, max_size=4, unique_by=lambda route: route.match,
)  # fmt: skip
_UPSTREAMS = strategies.lists(
    strategies.builds(
        lambda name, ports: upstream(name, *ports),
        strategies.sampled_from(["api", "db"]),
        strategies.lists(strategies.integers(1, 3), unique=True),
    ),
    max_size=2, unique_by=lambda one: one.name,
)  # fmt: skip
_LISTENERS = strategies.lists(
    strategies.builds(
        lambda name, port: ListenerSpec(
            name=name, bind=f"127.0.0.1:{port}", protocol="http", upstream=None
        ),
        strategies.sampled_from(["web", "admin"]),
        strategies.integers(1, 2),
    ),
    min_size=1, max_size=2, unique_by=lambda one: one.name,
)  # fmt: skip


@strategies.composite
def specs(draw: strategies.DrawFn) -> AppSpec:
    return dataclasses.replace(
        app_spec(*draw(_ROUTES), upstreams=tuple(draw(_UPSTREAMS))),
        listeners=tuple(draw(_LISTENERS)),
        workers=draw(strategies.integers(1, 2)),
    )


@hypothesis.given(specs(), specs())
@hypothesis.settings(max_examples=150, deadline=None)
def test_versions_differ_exactly_where_something_is_told(before: AppSpec, after: AppSpec) -> None:
    """Invariant: no two images with different configs look the same, nor equal ones different."""
    told_forth, told_back = told(before, after), told(after, before)
    assert bool(told_forth) == (before.to_json() != after.to_json())
    assert len(told_forth) == len(told_back)
