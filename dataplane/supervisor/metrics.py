"""Prometheus text of what the stats pages hold. Counters of generations that are gone are folded
into their app's, so no counter goes back at a swap.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from dataplane.control.stats import Stats
from dataplane.supervisor.fleet import App, Fleet
from dataplane.supervisor.report import cpu_seconds, memory_bytes
from dataplane.supervisor.staleness import Staleness


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """What the kernel says that a process takes."""

    memory_bytes: int
    cpu_seconds: float


OUTCOMES: Final = ("swapped", "unchanged", "failed")

_OF_STATS: Final[tuple[tuple[str, str, str, Callable[[Stats], int]], ...]] = (
    (
        "dataplane_connections", "gauge", "Client connections open now.",
        lambda stats: stats.connections,
    ),
    (
        "dataplane_connections_total", "counter", "Client connections accepted.",
        lambda stats: stats.connections_total,
    ),
    (
        "dataplane_requests_total", "counter", "Requests that were read whole.",
        lambda stats: stats.requests_total,
    ),
    (
        "dataplane_received_bytes_total", "counter", "Bytes that came from clients.",
        lambda stats: stats.received_bytes_total,
    ),
    (
        "dataplane_sent_bytes_total", "counter", "Bytes that went to clients.",
        lambda stats: stats.sent_bytes_total,
    ),
    (
        "dataplane_retries_total", "counter", "Requests that were sent to an upstream again.",
        lambda stats: stats.retries_total,
    ),
    (
        "dataplane_ejections_total", "counter", "Endpoints left out because they failed in a row.",
        lambda stats: stats.ejections_total,
    ),
    (
        "dataplane_refused_total", "counter", "Connections beyond a limit of the app or a source.",
        lambda stats: stats.refused_total,
    ),
    (
        "dataplane_denied_total", "counter", "Connections and requests that access does not allow.",
        lambda stats: stats.denied_total,
    ),
    (
        "dataplane_limited_total", "counter", "Requests beyond a rate, or beyond limits.requests.",
        lambda stats: stats.limited_total,
    ),
    (
        "dataplane_waiting", "gauge", "Requests that wait for an upstream's connection now.",
        lambda stats: stats.waiting,
    ),
)  # fmt: skip


async def metrics_text(fleet: Fleet) -> str:
    """All metrics of all apps. A worker that was forked meanwhile has no memory and no CPU yet."""
    taken: dict[int, _Taken] = {}
    for pid in [pid for app in fleet.apps.values() for _, pid in _workers(app)]:
        taken[pid] = _Taken(memory_bytes=memory_bytes(pid), cpu_seconds=cpu_seconds(pid))
        # The kernel adds up a worker's memory for half a millisecond: nothing waits for a hundred.
        await asyncio.sleep(0)
    return "".join(f"{line}\n" for line in _lines(fleet, taken))


def _lines(fleet: Fleet, taken: Mapping[int, _Taken]) -> Iterator[str]:
    apps = sorted(fleet.apps.values(), key=lambda app: app.name)
    totals = {app.name: app.totals() for app in apps}
    for name, kind, text, figure in _OF_STATS:
        yield from _head(name, kind, text)
        for app in apps:
            yield _line(name, figure(totals[app.name]), app=app.name)
    yield from _head("dataplane_swaps_total", "counter", "Swaps and first starts, by outcome.")
    for app in apps:
        for outcome in OUTCOMES:
            count = app.rollouts_ended.get(outcome, 0)
            yield _line("dataplane_swaps_total", count, app=app.name, outcome=outcome)
    yield from _head("dataplane_worker_restarts_total", "counter", "Workers that were replaced.")
    for app in apps:
        yield _line("dataplane_worker_restarts_total", app.restarts, app=app.name)
    yield from _head("dataplane_worker_memory_bytes", "gauge", "Memory of each worker.")
    for app in apps:
        for labels, pid in _workers(app):
            if pid in taken:
                yield _line("dataplane_worker_memory_bytes", taken[pid].memory_bytes, **labels)
    yield from _head("dataplane_worker_cpu_seconds_total", "counter", "CPU time of each worker.")
    for app in apps:
        for labels, pid in _workers(app):
            if pid in taken:
                cpu = taken[pid].cpu_seconds
                yield _line("dataplane_worker_cpu_seconds_total", cpu, **labels)
    staleness = Staleness()
    yield from _head(
        "dataplane_workers_stale", "gauge", "Workers that run from files the host has replaced."
    )
    for app in apps:
        yield _line("dataplane_workers_stale", staleness.workers(app), app=app.name)
    yield from _upstream_lines(apps)
    yield from _head("dataplane_app_info", "gauge", "What serves now.")
    for app in apps:
        if app.serving is not None:
            yield _line(
                "dataplane_app_info",
                1,
                app=app.name,
                image=app.serving.image.digest,
                version=app.serving.image.code_version,
                generation=str(app.serving.number),
            )


def _upstream_lines(apps: list[App]) -> Iterator[str]:
    name = "dataplane_upstream_up"
    yield from _head(name, "gauge", "Whether health checks find at least one endpoint well.")
    endpoints = {app.name: () if app.shared is None else app.shared.endpoints() for app in apps}
    for app in apps:
        upstreams: dict[str, bool] = {}
        for endpoint in endpoints[app.name]:
            well = endpoint.healthy is not False
            upstreams[endpoint.upstream] = upstreams.get(endpoint.upstream, False) or well
        for upstream, well in upstreams.items():
            yield _line(name, int(well), app=app.name, upstream=upstream)
    name = "dataplane_upstream_endpoint_up"
    yield from _head(name, "gauge", "Whether health checks find this endpoint well.")
    for app in apps:
        for endpoint in endpoints[app.name]:
            if endpoint.healthy is not None:
                labels = {"upstream": endpoint.upstream, "endpoint": endpoint.endpoint}
                yield _line(name, int(endpoint.healthy), app=app.name, **labels)


def _workers(app: App) -> Iterator[tuple[dict[str, str], int]]:
    for generation in app.generations:
        for slot in generation.slots:
            if slot.pid is not None:
                labels = {
                    "app": app.name,
                    "generation": str(generation.number),
                    "slot": str(slot.number),
                }
                yield labels, slot.pid


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, value: float, **labels: str) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
