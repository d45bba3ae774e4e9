"""Plots as inline SVG: no script, nothing from outside, colours from the page's own variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import rig
from peers import FLOOR, OURS

WIDTH: Final = 680
LEFT: Final = 92  # names
RIGHT: Final = 84  # figures
LINE: Final = 24
BAR: Final = 14


def kind(name: str) -> str:
    """The class that colours it."""
    return {OURS: "ours", FLOOR: "floor"}.get(name, "peer")


def svg(height: float, label: str, parts: Sequence[str]) -> str:
    """A drawing that is as wide as its place."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", css: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def figure(value: float) -> str:
    """Three digits that matter."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def nice_step(value: float) -> float:
    """1, 2 or 5 times a power of ten, not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= value)


def bars(
    values: Mapping[str, float],
    label: str,
    rounds: Mapping[str, Sequence[float]] | None = None,
    aim: float | None = None,
) -> str:
    """One bar each, shortest first, with its rounds as dots; ours should not pass `aim`."""
    ordered = sorted(values.items(), key=lambda one: one[1])
    every = [one for taken in (rounds or {}).values() for one in taken]
    most = max([*values.values(), *every, aim or 0.0], default=1.0) or 1.0
    wide = WIDTH - LEFT - RIGHT

    def at(value: float) -> float:
        return LEFT + wide * min(1.0, max(0.0, value) / most)

    parts = []
    for index, (name, value) in enumerate(ordered):
        top = index * LINE + 5
        middle = top + BAR / 2
        parts.append(text(LEFT - 8, middle + 4, name, anchor="end", css=f"name {kind(name)}"))
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{max(1.0, at(value) - LEFT):.1f}" height="{BAR}" '
            f'rx="2" class="bar {kind(name)}"/>'
        )
        taken = (rounds or {}).get(name, ())
        for one in taken:
            parts.append(f'<circle cx="{at(one):.1f}" cy="{middle}" r="1.8" class="dot"/>')
        end = max([at(value), *map(at, taken)])
        parts.append(text(end + 8, middle + 4, figure(value), css="value"))
    height = len(ordered) * LINE + 4
    if aim is not None:
        parts.append(line(at(aim), 0, at(aim), height, "aim"))
    return svg(height, label, parts)


def latencies(peers: Sequence[rig.Json], label: str) -> str:
    """p50, p99 and p99.9 of each on one logarithmic scale."""
    known = [one for one in peers if one["p50_us"] > 0]
    low = 10 ** math.floor(math.log10(min((one["p50_us"] for one in known), default=1.0)))
    high = 10 ** math.ceil(math.log10(max((one["p999_us"] for one in known), default=10.0)))
    decades = max(1.0, math.log10(high / low))
    wide = WIDTH - LEFT - RIGHT

    def at(value: float) -> float:
        return LEFT + wide * (math.log10(max(low, value) / low) / decades)

    height = len(known) * LINE + 4
    parts = []
    for power in range(round(decades) + 1):
        value = low * 10**power
        parts.append(line(at(value), 0, at(value), height, "grid"))
        shown = f"{value:.0f} us" if value < 1000 else f"{value / 1000:.0f} ms"
        parts.append(text(at(value), height + 14, shown, anchor="middle", css="tick"))
    for index, one in enumerate(sorted(known, key=lambda peer: float(peer["p99_us"]))):
        y = index * LINE + 12
        css = kind(one["name"])
        parts.append(text(LEFT - 8, y + 4, one["name"], anchor="end", css=f"name {css}"))
        parts.append(line(at(one["p50_us"]), y, at(one["p999_us"]), y, f"range {css}"))
        for key, size in (("p50_us", 4.5), ("p99_us", 3.5), ("p999_us", 2.5)):
            parts.append(
                f'<circle cx="{at(one[key]):.1f}" cy="{y}" r="{size}" class="mark {css}">'
                f"<title>{key.removesuffix('_us')} {one[key]:,.0f} us</title></circle>"
            )
        parts.append(text(WIDTH - RIGHT + 10, y + 4, f"{one['p99_us']:,.0f}", css="value"))
    return svg(height + 20, label, parts)


def whisker(ratio: rig.Json, target: float | None) -> str:
    """A ratio with its interval between 0 and 1.5, the target as a line."""
    width, most = 120, 1.5

    def at(value: float) -> float:
        return 4 + (width - 8) * min(1.0, value / most)

    parts = [line(at(1.0), 2, at(1.0), 18, "grid")]
    if target is not None:
        parts.append(line(at(target), 1, at(target), 19, "aim"))
    css = "bad" if target is not None and ratio["value"] > target else "ours"
    parts.append(line(at(ratio["low"]), 10, at(ratio["high"]), 10, f"range {css}"))
    parts.append(f'<circle cx="{at(ratio["value"]):.1f}" cy="10" r="4" class="mark {css}"/>')
    return (
        f'<svg viewBox="0 0 {width} 20" class="whisker" role="img" '
        f'aria-label="ratio {ratio["value"]:.2f}">{"".join(parts)}</svg>'
    )


def curve(peers: Mapping[str, Sequence[rig.Json]], label: str, css: Mapping[str, str]) -> str:
    """CPU per request at each size, sizes at equal distances."""
    sizes = sorted({point["size"] for points in peers.values() for point in points})
    highest = max((point["cpu_us"] for points in peers.values() for point in points), default=1.0)
    step_up = nice_step(highest / 4)
    most = step_up * math.ceil(highest / step_up)
    top, tall = 8, 190
    step = (WIDTH - LEFT - RIGHT) / max(1, len(sizes) - 1)

    def at(point: rig.Json) -> tuple[float, float]:
        return (
            LEFT + step * sizes.index(point["size"]),
            top + tall * (1 - point["cpu_us"] / most),
        )

    parts = []
    for number in range(round(most / step_up) + 1):
        y = top + tall * (1 - number * step_up / most)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text(LEFT - 8, y + 4, f"{number * step_up:g}", anchor="end", css="tick"))
    for index, size in enumerate(sizes):
        x = LEFT + step * index
        parts.append(text(x, top + tall + 18, f"{size:,}", anchor="middle", css="tick"))
    for name, points in peers.items():
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))
        parts.append(f'<polyline points="{path}" class="trace {css[name]}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="mark {css[name]}"/>'
            for x, y in map(at, points)
        ]
    # Names at the lines' ends, moved apart where lines end close together.
    ends = sorted((at(points[-1])[1], name) for name, points in peers.items() if points)
    last = -1000.0
    for y, name in ends:
        last = max(y + 4, last + 15)
        parts.append(text(WIDTH - RIGHT + 10, last, name, css=f"name {css[name]}"))
    return svg(top + tall + 26, label, parts)
