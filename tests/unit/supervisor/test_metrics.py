"""The exposition: it parses, no counter goes back at a swap, and a scrape holds nobody up."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dataplane.control.figures import BUCKETS, Durations, Figures, UpstreamFigures
from dataplane.control.shared import EndpointState, SharedPage
from dataplane.control.stats import Stats, StatsPage
from dataplane.image.abi import Abi
from dataplane.image.store import Image
from dataplane.model.inputs import NO_INPUTS
from dataplane.model.lifecycle import Life
from dataplane.model.names import AppName, Digest, Generation
from dataplane.model.spec import AppSpec, MatchSpec
from dataplane.supervisor import metrics
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import App, AppGeneration, Fleet, WorkerSlot
from dataplane.supervisor.listeners import Lent
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.metrics import metrics_text
from dataplane.supervisor.totals import NAMES_MAX, OTHER, Totals
from dataplane.system.clock import SystemClock
from tests.support.specs import app_spec, route_to, upstream

WORKERS = 20


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


async def scrape(app: App) -> str:
    fleet = Fleet()
    fleet.apps[app.name] = app
    async with asyncio.TaskGroup() as tasks:
        clock = SystemClock()
        events = Events(clock, lambda line: None)
        logs = Logs(Path("none"), clock=clock, events=events, tasks=tasks)
        return await metrics_text(fleet, logs)


def generation(app: App, of: AppSpec, spec_fd: int) -> AppGeneration:
    none = Digest("sha256:" + 64 * "0")
    image = Image(
        digest=none,
        app=app.name,
        spec=of,
        config_layer=none,
        code_layer=none,
        code_version="0.1.0",
        abi=cast(Abi, None),
        abi_blob=none,
    )
    made = AppGeneration(
        app=app,
        number=Generation(1),
        image=image,
        tree=Path("none"),
        spec_fd=spec_fd,
        inputs=NO_INPUTS,
        identity="",
        since=SystemClock().now(),
        lent=Lent(shares=(), sockets=(), addresses=()),
    )
    app.generations.append(made)
    return made


@pytest.fixture
def crowd() -> Iterator[App]:
    """An app with many workers, of which each has a process."""
    app = App(name=AppName("billing"))
    with ExitStack() as stack:
        of = generation(app, spec("/"), -1)
        slots = []
        for number in range(WORKERS):
            stats = StatsPage(f"test-{number}")
            stack.callback(stats.close)
            slots.append(
                WorkerSlot(
                    generation=of,
                    number=number,
                    control_path=Path("none"),
                    stats=stats,
                    life=Life.SERVING,
                    pid=1000 + number,
                )
            )
        of.slots = tuple(slots)
        yield app


def samples(app: App) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, each of which must be the only one of its name and labels."""
    text = asyncio.run(scrape(app))
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


def test_others_run_between_two_workers_whose_memory_is_read(
    crowd: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    read_at: list[int] = []

    def memory_bytes(pid: int) -> int:
        read_at.append(turns)
        return pid * 4096

    monkeypatch.setattr(metrics, "memory_bytes", memory_bytes)

    async def life() -> str:
        nonlocal turns
        scraping = asyncio.ensure_future(scrape(crowd))
        while not scraping.done():
            turns += 1
            await asyncio.sleep(0)
        return scraping.result()

    text = asyncio.run(life())
    assert len(set(read_at)) == WORKERS
    labels = 'app="billing",generation="1",slot="7"'
    assert f"dataplane_worker_memory_bytes{{{labels}}} {1007 * 4096}\n" in text


def test_worker_that_comes_during_a_scrape_is_told_by_the_next(
    crowd: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = crowd.generations[0].slots

    def memory_bytes(pid: int) -> int:
        slots[0].pid = 7
        return 4096

    monkeypatch.setattr(metrics, "memory_bytes", memory_bytes)
    memory = [
        dict(labels)["slot"]
        for name, labels in samples(crowd)
        if name == "dataplane_worker_memory_bytes"
    ]
    assert memory == [str(number) for number in range(1, WORKERS)]


class Checked(SharedPage):
    """Shared memory whose workers found the endpoints of one upstream to be like this."""

    told: tuple[EndpointState, ...] = ()

    def endpoints(self) -> tuple[EndpointState, ...]:
        return self.told


@pytest.mark.parametrize(
    ("healthy", "passive", "up"),
    [
        ((None, None), 1, 1), ((None, None), 0, 0), ((True, False), 0, 1), ((False, False), 1, 0),
        ((), 1, 1),
    ],
)  # fmt: skip
def test_health_checks_have_the_word_on_an_upstream_that_has_them(
    healthy: tuple[bool | None, ...], passive: int, up: int
) -> None:
    app = App(name=AppName("billing"))
    generation(app, spec("/"), -1)
    app.folded.add(spec("/"), Stats(), Figures(upstreams=(UpstreamFigures(up=passive),)))
    page = Checked("test", bytes(16))
    app.shared = page
    page.told = tuple(
        EndpointState(
            upstream="api",
            endpoint=f"127.0.0.1:{port}",
            open=0,
            waiting=0,
            ejected_until_ms=0,
            healthy=well,
        )
        for port, well in enumerate(healthy)
    )
    found = samples(app)
    page.close()
    assert found["dataplane_upstream_up", (("app", "billing"), ("upstream", "api"))] == up
    endpoints = [key for key in found if key[0] == "dataplane_upstream_endpoint_up"]
    assert len(endpoints) == sum(well is not None for well in healthy)
