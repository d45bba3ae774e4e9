"""Prometheus text of what the stats pages hold. Counters of generations that are gone are folded
into their app's, so no counter goes back at a swap.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from dataplane.control.figures import UpstreamFigures
from dataplane.control.messages import Seal
from dataplane.control.stats import Stats
from dataplane.supervisor.fleet import App, Fleet, WorkerSlot
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.report import memory_bytes
from dataplane.supervisor.staleness import Staleness
from dataplane.supervisor.totals import NO_ROUTE, SPAN_BOUNDS, Spans, Totals

OUTCOMES: Final = ("swapped", "unchanged", "failed")
KINDS: Final = ("idle", "after_request", "streaming", "tunnel")
CODES: Final = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
LAYERS: Final[dict[str, Callable[[Seal], bool]]] = {
    "seccomp": lambda seal: seal.seccomp,
    "landlock": lambda seal: seal.landlock > 0,
    "no_new_privs": lambda seal: seal.no_new_privs,
    "undumpable": lambda seal: not seal.dumpable,
}
# Of requests, in seconds: each a bound of the engine's own buckets, so that counts are exact.
BOUNDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_BOUNDS_US: Final = tuple(round(bound * 1_000_000) for bound in BOUNDS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """One metric that is one number an app: of its stats pages, or of one of its upstreams."""

    name: str
    kind: str
    text: str


_OF_STATS: Final[tuple[tuple[_Figure, Callable[[Stats], float]], ...]] = (
    (
        _Figure(name="connections", kind="gauge", text="Client connections open now."),
        lambda stats: stats.connections,
    ),
    (
        _Figure(name="connections_total", kind="counter", text="Client connections accepted."),
        lambda stats: stats.connections_total,
    ),
    (
        _Figure(name="connections_refused_total", kind="counter",
                text="Connections beyond a limit of the app or of a source."),
        lambda stats: stats.refused_total,
    ),
    (
        _Figure(name="requests_active", kind="gauge", text="Requests being answered now."),
        lambda stats: stats.requests_active,
    ),
    (
        _Figure(name="tunnels", kind="gauge", text="Tunnels open now."),
        lambda stats: stats.tunnels,
    ),
    (
        _Figure(name="received_bytes_total", kind="counter", text="Bytes that came from clients."),
        lambda stats: stats.received_bytes_total,
    ),
    (
        _Figure(name="sent_bytes_total", kind="counter", text="Bytes that went to clients."),
        lambda stats: stats.sent_bytes_total,
    ),
    (
        _Figure(name="retries_total", kind="counter",
                text="Requests that were sent to an upstream again."),
        lambda stats: stats.retries_total,
    ),
    (
        _Figure(name="ejections_total", kind="counter",
                text="Endpoints left out because they failed in a row."),
        lambda stats: stats.ejections_total,
    ),
    (
        _Figure(name="denied_total", kind="counter",
                text="Connections and requests that access does not allow."),
        lambda stats: stats.denied_total,
    ),
    (
        _Figure(name="limited_total", kind="counter",
                text="Requests beyond a rate, or beyond limits.requests."),
        lambda stats: stats.limited_total,
    ),
    (
        _Figure(name="waiting", kind="gauge",
                text="Requests that wait for an upstream's connection now."),
        lambda stats: stats.waiting,
    ),
    (
        _Figure(name="buffer_bytes", kind="gauge", text="Bytes that wait for a slow peer."),
        lambda stats: stats.buffer_bytes,
    ),
    (
        _Figure(name="upstream_connections", kind="gauge", text="Upstream connections open now."),
        lambda stats: stats.upstream_connections,
    ),
    (
        _Figure(name="worker_cpu_seconds_total", kind="counter", text="CPU time of workers."),
        lambda stats: stats.cpu_us_total / 1_000_000,
    ),
    (
        _Figure(name="access_log_lines_total", kind="counter", text="Access log lines made."),
        lambda stats: stats.log_lines_total,
    ),
)  # fmt: skip

_OF_UPSTREAMS: Final[tuple[tuple[_Figure, Callable[[UpstreamFigures], float]], ...]] = (
    (
        _Figure(name="upstream_active", kind="gauge", text="Exchanges and tunnels with it now."),
        lambda figures: figures.active,
    ),
    (
        _Figure(name="upstream_requests_total", kind="counter",
                text="Requests and tunnels given to it, repeated ones counted again."),
        lambda figures: figures.requests_total,
    ),
    (
        _Figure(name="upstream_connects_total", kind="counter", text="Connections tried."),
        lambda figures: figures.connects_total,
    ),
    (
        _Figure(name="upstream_connect_failures_total", kind="counter",
                text="Connections that failed."),
        lambda figures: figures.connect_failures_total,
    ),
    (
        _Figure(name="upstream_failures_total", kind="counter",
                text="Exchanges that it broke, or took too long for."),
        lambda figures: figures.failures_total,
    ),
)  # fmt: skip


async def metrics_text(fleet: Fleet, logs: Logs) -> str:
    """All metrics of all apps. A worker that was forked meanwhile has no memory yet.

    Between two looks whatever waits has its turn: the kernel adds up a worker's memory for half a
    millisecond.
    """
    apps = sorted(fleet.apps.values(), key=lambda app: app.name)
    totals = []
    taken: dict[int, int] = {}
    for app in apps:
        totals.append((app, app.totals()))
        for pid in [slot.pid for slot in _living(app) if slot.pid is not None]:
            taken[pid] = memory_bytes(pid)
            await asyncio.sleep(0)
    return "".join(f"{line}\n" for line in _lines(totals, taken, logs))


def _lines(
    apps: Sequence[tuple[App, Totals]], taken: Mapping[int, int], logs: Logs
) -> Iterator[str]:
    for figure, of_stats in _OF_STATS:
        yield from _head(figure.name, figure.kind, figure.text)
        for app, totals in apps:
            yield _line(figure.name, of_stats(totals.stats), app=app.name)
    yield from _requests(apps)
    yield from _durations(apps)
    yield from _health(apps)
    for figure, of_upstream in _OF_UPSTREAMS:
        yield from _head(figure.name, figure.kind, figure.text)
        for app, totals in apps:
            for upstream, figures in _upstreams(app, totals, figure.kind):
                yield _line(figure.name, of_upstream(figures), app=app.name, upstream=upstream)
    yield from _swaps(apps)
    yield from _workers(apps, taken)
    yield from _head("access_log_dropped_total", "counter", "Access log lines never written.")
    for app, totals in apps:
        dropped = {"worker": totals.stats.log_dropped_total, "writer": logs.dropped(app.name)}
        for by, count in dropped.items():
            yield _line("access_log_dropped_total", count, app=app.name, by=by)
    yield from _head("app_info", "gauge", "What serves now.")
    for app, _ in apps:
        if app.serving is not None:
            yield _line(
                "app_info",
                1,
                app=app.name,
                image=app.serving.image.digest,
                version=app.serving.image.code_version,
                generation=str(app.serving.number),
            )


def _requests(apps: Iterable[tuple[App, Totals]]) -> Iterator[str]:
    """By route, with its upstream, and class of answer: only what there was, and one always."""
    yield from _head("requests_total", "counter", "Requests, counted as their answer begins.")
    for app, totals in apps:
        routes = totals.routes or {(NO_ROUTE, ""): (0,) * len(CODES)}
        for (route, upstream), answers in routes.items():
            for code, count in zip(CODES, answers, strict=True):
                if count or not totals.routes:
                    labels = {"app": app.name, "route": route, "upstream": upstream, "code": code}
                    yield _line("requests_total", count, **labels)


def _durations(apps: Iterable[tuple[App, Totals]]) -> Iterator[str]:
    text = "From the end of a request's head to the last byte of its answer."
    yield from _head("request_duration_seconds", "histogram", text)
    for app, totals in apps:
        counts = totals.durations.up_to(_BOUNDS_US)
        total, seconds = totals.durations.count, totals.durations.sum_us / 1_000_000
        yield from _histogram("request_duration_seconds", BOUNDS, counts, total, seconds, app.name)


def _health(apps: Iterable[tuple[App, Totals]]) -> Iterator[str]:
    """What health checks find; of an upstream without one, what its last connections told."""
    checked = {
        app.name: [
            (endpoint, endpoint.healthy)
            for endpoint in (() if app.shared is None else app.shared.endpoints())
            if endpoint.healthy is not None
        ]
        for app, _ in apps
    }
    yield from _head("upstream_up", "gauge", "1: at least one of its endpoints is well; 0: none.")
    for app, totals in apps:
        well: dict[str, bool] = {}
        for endpoint, healthy in checked[app.name]:
            well[endpoint.upstream] = well.get(endpoint.upstream, False) or healthy
        for upstream, figures in _upstreams(app, totals, "gauge"):
            up = well.get(upstream, figures.up)
            yield _line("upstream_up", int(up), app=app.name, upstream=upstream)
    yield from _head("upstream_endpoint_up", "gauge", "1: its health check finds it well.")
    for app, _ in apps:
        for endpoint, healthy in checked[app.name]:
            labels = {"upstream": endpoint.upstream, "endpoint": endpoint.endpoint}
            yield _line("upstream_endpoint_up", int(healthy), app=app.name, **labels)


def _upstreams(app: App, totals: Totals, kind: str) -> Iterator[tuple[str, UpstreamFigures]]:
    """Of what is only true now, just the upstreams that some generation has."""
    specs = [generation.image.spec for generation in app.generations]
    present = {upstream.name for spec in specs for upstream in spec.upstreams}
    for name, figures in sorted(totals.upstreams.items()):
        if kind == "counter" or name in present:
            yield name, figures


def _swaps(apps: Sequence[tuple[App, Totals]]) -> Iterator[str]:
    yield from _head("swaps_total", "counter", "Swaps and first starts, by outcome.")
    for app, _ in apps:
        for outcome in OUTCOMES:
            count = app.rollouts_ended.get(outcome, 0)
            yield _line("swaps_total", count, app=app.name, outcome=outcome)
    yield from _head("swap_duration_seconds", "histogram", "Swaps that succeeded, as a whole.")
    for app, _ in apps:
        yield from _spans("swap_duration_seconds", app.swaps, app.name)
    yield from _head("connections_moved_total", "counter", "Connections passed on at swaps.")
    for app, _ in apps:
        for kind in KINDS:
            yield _line("connections_moved_total", app.moved.get(kind, 0), app=app.name, kind=kind)


def _spans(name: str, spans: Spans, app: str) -> Iterator[str]:
    counts, total = [], 0
    for count in spans.counts:
        total += count
        counts.append(total)
    yield from _histogram(name, SPAN_BOUNDS, counts[:-1], total, spans.seconds, app)


def _workers(apps: Sequence[tuple[App, Totals]], taken: Mapping[int, int]) -> Iterator[str]:
    yield from _head("worker_restarts_total", "counter", "Workers that were replaced.")
    for app, _ in apps:
        yield _line("worker_restarts_total", app.restarts, app=app.name)
    living = [(slot, _slot_labels(slot)) for app, _ in apps for slot in _living(app)]
    yield from _head("worker_memory_bytes", "gauge", "Memory of each worker.")
    for slot, labels in living:
        if slot.pid is not None and slot.pid in taken:
            yield _line("worker_memory_bytes", taken[slot.pid], **labels)
    staleness = Staleness()
    text = "Workers that run from files the host has replaced."
    yield from _head("workers_stale", "gauge", text)
    for app, _ in apps:
        yield _line("workers_stale", staleness.workers(app), app=app.name)
    yield from _head("worker_sealed", "gauge", "1: this layer of the worker's seal is on.")
    for slot, labels in living:
        if slot.seal is not None:
            for layer, is_on in LAYERS.items():
                yield _line("worker_sealed", int(is_on(slot.seal)), **labels, layer=layer)


def _living(app: App) -> Iterator[WorkerSlot]:
    for generation in app.generations:
        for slot in generation.slots:
            if slot.pid is not None:
                yield slot


def _slot_labels(slot: WorkerSlot) -> dict[str, str]:
    return {name: str(value) for name, value in slot.facts().items()}


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP dataplane_{name} {text}"
    yield f"# TYPE dataplane_{name} {kind}"


def _histogram(
    name: str,
    bounds: Sequence[float],
    counts: Sequence[int],
    total: int,
    seconds: float,
    app: str,
) -> Iterator[str]:
    for bound, count in zip(bounds, counts, strict=True):
        yield _line(f"{name}_bucket", count, app=app, le=f"{bound:.15g}")
    yield _line(f"{name}_bucket", total, app=app, le="+Inf")
    yield _line(f"{name}_sum", seconds, app=app)
    yield _line(f"{name}_count", total, app=app)


def _line(name: str, value: float, **labels: str) -> str:
    return f"dataplane_{name}{{{_labels(labels)}}} {value}"


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
