"""The suite's report as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import rig
from peers import FLOOR, OURS

_COLUMNS = "{:<10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6}"


def report_text(report: rig.Json) -> str:
    """All of it."""
    return "\n".join(_lines(report))


def machine_text(report: rig.Json) -> str:
    """Where and with what the figures were taken."""
    told, size = report["machine"], report["size"]
    return (
        f"{told['cpu']}, {told['cpus']} CPUs, Linux {told['kernel']}, {told['at']}; commit "
        f"{told['commit']}; {size['rounds']} interleaved rounds of {size['seconds']} s"
    )


def versions_text(report: rig.Json) -> str:
    """Of the peers, as they told them."""
    found = {
        peer["name"]: peer["version"]
        for row in report["rows"]
        for peer in row["peers"]
        if peer["name"] not in (OURS, FLOOR)
    }
    return ", ".join(f"{name} {version}" for name, version in found.items())


def ratio_text(told: rig.Json) -> str:
    """A ratio with its interval."""
    return f"{told['value']:.2f} [{told['low']:.2f}, {told['high']:.2f}]"


def verdict(row: rig.Json, key: str, target: str) -> str:
    """Whether a ratio is as small as it should be; nothing where no target is set."""
    if row[target] is None or row[key] is None:
        return ""
    return "met" if row[key]["value"] <= row[target] else "MISSED"


def _lines(report: rig.Json) -> Iterator[str]:
    yield machine_text(report)
    yield f"peers: {versions_text(report)}"
    yield from (f"lacks: {one}" for one in report["lacking"])
    for row in report["rows"]:
        yield ""
        yield from _row(row)
    if report["memory"]:
        yield ""
        yield from _memory(report["memory"])
    for curve in report["curves"]:
        yield ""
        yield from _curve(curve)
    yield ""
    if report["missed"]:
        yield "targets missed:"
        yield from (f"  {one}" for one in report["missed"])
    else:
        yield "all targets that were measured are met"


def _row(row: rig.Json) -> Iterator[str]:
    yield f"{row['title']} ({row['name']})"
    yield _COLUMNS.format(
        "", "CPU us", "req/s", "MB/s", "p50 us", "p99 us", "p99.9 us", "own", "busy"
    )
    for peer in sorted(row["peers"], key=lambda one: float(one["cpu_us"])):
        note = "" if peer["held"] else "  the rate was not held"
        note += "  disturbed: something else used its CPU" if peer["disturbed"] else ""
        yield (
            _COLUMNS.format(
                peer["name"],
                f"{peer['cpu_us']:.2f}",
                f"{peer['per_second']:,.0f}",
                f"{peer['bytes_per_second'] / 1e6:,.1f}",
                f"{peer['p50_us']:,.0f}",
                f"{peer['p99_us']:,.0f}",
                f"{peer['p999_us']:,.0f}",
                f"{peer['own_share']:.0%}",
                f"{peer['busy_share']:.0%}",
            )
            + note
        )
    for name, why in {**row["absent"], **row["failed"]}.items():
        yield f"{name:<10} left out: {why}"
    for key, target, other in (
        ("ratio", "target", row["best"]),
        ("floor_ratio", "floor_target", FLOOR),
    ):
        if row[key]:
            aim = f", target {row[target]:.2f}: {verdict(row, key, target)}" if row[target] else ""
            yield f"  {OURS} / {other}: {ratio_text(row[key])}, {row[key]['pairs']} pairs{aim}"
    yield from (f"  missed: {one}" for one in row["misses"] if "ratio" not in one)


def _memory(memory: rig.Json) -> Iterator[str]:
    yield f"{memory['title']}, of {memory['connections']:,}: bytes"
    for name, value in sorted(memory["bytes"].items(), key=lambda one: float(one[1])):
        aim = f"  target {memory['target']:.0f}" if name == OURS else ""
        yield f"{name:<10} {value:>9,.0f}{aim}"
    for name, why in memory["absent"].items():
        yield f"{name:<10} left out: {why}"


def _curve(curve: rig.Json) -> Iterator[str]:
    yield f"CPU us per request, by {curve['title']}"
    for name, points in curve["peers"].items():
        shown = "  ".join(f"{point['size']:,}: {point['cpu_us']:.2f}" for point in points)
        yield f"{name:<10} {shown}"
    for name, why in curve["absent"].items():
        yield f"{name:<10} left out: {why}"
