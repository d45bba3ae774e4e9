"""The exposition: it parses, and no counter goes back, whatever comes and goes at a swap."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from dataplane.control.figures import BUCKETS, Durations, Figures, UpstreamFigures
from dataplane.control.stats import Stats
from dataplane.model.names import AppName
from dataplane.model.spec import MatchSpec
from dataplane.supervisor.fleet import App, Fleet
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.metrics import metrics_text
from dataplane.supervisor.totals import NAMES_MAX, OTHER, Totals
from tests.support.specs import app_spec, route_to, upstream

NOBODY = cast(Logs, type("Logs", (), {"dropped": lambda self, app: 0})())


def match(path: str) -> MatchSpec:
    return MatchSpec(host=None, path=path, methods=(), headers=())


def spec(*paths: str, name: str = "api") -> Any:
    routes = [route_to(name, match(path)) for path in paths]
    return app_spec(*routes, upstreams=(upstream(name, 1),))


def figures(*answers: int) -> Figures:
    """So many good answers by route; the last one: no route, not found."""
    routes = [(0, 0, count, 0, 0, 0) for count in answers[:-1]]
    buckets = (sum(answers),) + (0,) * (BUCKETS - 1)
    return Figures(
        durations=Durations(sum_us=sum(answers), buckets=buckets),
        upstreams=(UpstreamFigures(requests_total=sum(answers[:-1]), up=1),),
        routes=(*routes, (0, 0, 0, 0, answers[-1], 0)),
    )


def samples(app: App) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, each of which must be the only one of its name and labels."""
    fleet = Fleet()
    fleet.apps[app.name] = app
    text = asyncio.run(metrics_text(fleet, NOBODY))
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.name.startswith("dataplane_")
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def counters(app: App) -> dict[Any, float]:
    return {
        key: value
        for key, value in samples(app).items()
        if key[0].endswith(("_total", "_bucket", "_count", "_sum"))
    }


def test_an_app_that_did_nothing_yet_has_every_metric_of_the_contract() -> None:
    names = {name for name, _ in samples(App(name=AppName("billing")))}
    assert {
        "dataplane_requests_total", "dataplane_request_duration_seconds_bucket",
        "dataplane_request_duration_seconds_sum", "dataplane_request_duration_seconds_count",
        "dataplane_connections", "dataplane_connections_total", "dataplane_received_bytes_total",
        "dataplane_sent_bytes_total", "dataplane_swaps_total",
        "dataplane_swap_duration_seconds_bucket", "dataplane_connections_moved_total",
        "dataplane_worker_restarts_total", "dataplane_worker_cpu_seconds_total",
    } <= names  # fmt: skip


def test_no_counter_goes_back_when_routes_and_upstreams_come_and_go() -> None:
    app = App(name=AppName("billing"))
    generations = (
        (spec("/a/", "/b/"), figures(3, 2, 1)),
        (spec("/b/", "/c/", name="other"), figures(10, 20, 5)),
        (spec("/a/"), figures(7, 0)),
        (spec(name="api"), Figures()),
    )
    before: dict[Any, float] = {}
    for of_generation, counted in generations:
        app.folded.add(of_generation, Stats(requests_total=1), counted)
        after = counters(app)
        assert all(after.get(key, -1) >= value for key, value in before.items())
        before = after

    def requests(**labels: str) -> float:
        return sum(
            value
            for (name, told), value in before.items()
            if name == "dataplane_requests_total" and labels.items() <= dict(told).items()
        )

    assert requests() == 48
    assert requests(route="path=/a/", upstream="api", code="2xx") == 10
    assert requests(route="path=/b/", upstream="other") == 10
    assert requests(route="", code="4xx") == 6


def test_buckets_add_up_to_the_count() -> None:
    app = App(name=AppName("billing"))
    buckets = tuple(range(BUCKETS))
    app.folded.add(
        spec("/"), Stats(), Figures(durations=Durations(sum_us=1_500_000, buckets=buckets))
    )
    name = "dataplane_request_duration_seconds"
    found = samples(app)
    counts = [value for (key, _), value in found.items() if key == f"{name}_bucket"]
    assert counts == sorted(counts)
    assert counts[-1] == found[f"{name}_count", (("app", "billing"),)] == sum(buckets)
    assert found[f"{name}_sum", (("app", "billing"),)] == 1.5


def test_what_a_config_may_hold_in_a_label_is_escaped() -> None:
    app = App(name=AppName("billing"))
    hostile = MatchSpec(host=None, path="/", methods=(), headers=(("x", 'a"\\b'),))
    app.folded.add(
        app_spec(route_to("api", hostile), upstreams=(upstream("api", 1),)), Stats(), figures(1, 0)
    )
    routes = [dict(told).get("route") for name, told in samples(app) if "requests_total" in name]
    assert any(route is not None and '\\"' in route for route in routes)


def test_names_that_are_remembered_have_a_bound() -> None:
    totals = Totals()
    for number in range(NAMES_MAX + 10):
        totals.add(spec(f"/{number}", name=f"u{number}"), Stats(), figures(1, 0))
    assert len(totals.routes) == len(totals.upstreams) == NAMES_MAX + 1
    assert totals.routes[OTHER, ""][2] == 10
    assert totals.upstreams[OTHER].requests_total == 10


def test_adding_to_a_copy_leaves_the_first_as_it_was() -> None:
    totals = Totals()
    totals.add(spec("/"), Stats(requests_total=1), figures(1, 0))
    kept = dataclasses.replace(totals, routes=dict(totals.routes))
    totals.copy().add(spec("/"), Stats(requests_total=1), figures(1, 0))
    assert (totals.routes, totals.stats) == (kept.routes, kept.stats)
