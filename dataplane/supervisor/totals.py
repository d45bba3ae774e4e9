"""Counters of an app over all its generations: by app, by route and upstream as the config names
them, so that they never go back, whatever comes and goes at a swap.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Final

from dataplane.control.figures import CLASSES, NO_DURATIONS, Durations, Figures, UpstreamFigures
from dataplane.control.stats import NO_STATS, Stats
from dataplane.model.diff import match_text
from dataplane.model.spec import AppSpec

# A route that an app once had is remembered, but not any number of them: what is beyond counts as
# OTHER. An app has at most 1000 routes at a time.
NAMES_MAX: Final = 4096
OTHER: Final = "(other)"
NO_ROUTE: Final = ""

SPAN_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclasses.dataclass(slots=True, kw_only=True)
class Totals:
    """Mutable: it grows by what is added."""

    stats: Stats = NO_STATS
    durations: Durations = NO_DURATIONS
    upstreams: dict[str, UpstreamFigures] = dataclasses.field(default_factory=dict)
    # Answers by class, of each route with its upstream.
    routes: dict[tuple[str, str], tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def copy(self) -> Totals:
        """The same, to be added to without changing this one."""
        return dataclasses.replace(self, upstreams=dict(self.upstreams), routes=dict(self.routes))

    def add(self, spec: AppSpec, stats: Stats, figures: Figures) -> None:
        """Adds what a slot that runs `spec` counted."""
        self.stats += stats
        self.durations += figures.durations
        for upstream, of_upstream in zip(spec.upstreams, figures.upstreams, strict=False):
            name = upstream.name
            if name not in self.upstreams and len(self.upstreams) >= NAMES_MAX:
                name = OTHER
            self.upstreams[name] = self.upstreams.get(name, UpstreamFigures()) + of_upstream
        for key, answers in zip(_route_names(spec), figures.routes, strict=False):
            if not any(answers):
                continue
            if key not in self.routes and len(self.routes) >= NAMES_MAX:
                key = (OTHER, "")
            self._add_route(key, answers)

    def merge(self, other: Totals) -> None:
        """Adds what others counted that are gone."""
        self.stats += other.stats
        self.durations += other.durations
        for name, figures in other.upstreams.items():
            if name not in self.upstreams and len(self.upstreams) >= NAMES_MAX:
                name = OTHER
            self.upstreams[name] = self.upstreams.get(name, UpstreamFigures()) + figures
        for key, answers in other.routes.items():
            if key not in self.routes and len(self.routes) >= NAMES_MAX:
                key = (OTHER, "")
            self._add_route(key, answers)

    def _add_route(self, key: tuple[str, str], answers: tuple[int, ...]) -> None:
        before = self.routes.get(key, (0,) * CLASSES)
        self.routes[key] = tuple(a + b for a, b in zip(before, answers, strict=True))


@dataclasses.dataclass(slots=True, kw_only=True)
class Spans:
    """Mutable. How long swaps took: counts up to each of SPAN_BOUNDS seconds, and beyond."""

    seconds: float = 0.0
    counts: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(SPAN_BOUNDS) + 1))

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.seconds += seconds
        self.counts[bisect.bisect_left(SPAN_BOUNDS, seconds)] += 1


def _route_names(spec: AppSpec) -> list[tuple[str, str]]:
    """In the order of the figures: each route's match and upstream, then no route."""
    named = [(match_text(route.match), route.upstream or "") for route in spec.routes]
    return [*named, (NO_ROUTE, "")]
