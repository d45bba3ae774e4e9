"""The suite's report as one HTML page that needs nothing else, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

import plots
import rig
from peers import OURS
from tables import machine_text, ratio_text, verdict, versions_text

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fbfbf9; --text: #1d2126; --soft: #636b74;
  --rule: #dfe1dc; --ours: #0b6e6e; --peer: #a9b3bc; --floor: #d8c48a; --dot: #1d212688;
  --bad: #b3382c; --a: #7a5ea8; --b: #b26a1f; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --text: #e4e6e3; --soft: #98a1a9;
  --rule: #2c3136; --ours: #46b8b0; --peer: #5a6570; --floor: #7d6d3d; --dot: #e4e6e388;
  --bad: #ef7a6b; --a: #b39ddb; --b: #e0a05a; --card: #1a1e22; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 20px 64px; max-width: 920px; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 2px; }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 18px 0 6px; }
p { margin: 4px 0; } .soft { color: var(--soft); font-size: 13px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 18px 20px; margin-top: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 10px; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--soft); }
td, th { padding: 4px 8px; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
tr.ours td { font-weight: 600; color: var(--ours); }
tr:last-child td { border-bottom: 0; }
.bad { color: var(--bad); } .met { color: var(--ours); }
svg { width: 100%; height: auto; display: block; }
svg.whisker { width: 120px; display: inline-block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--text); }
svg .tick, svg .value { fill: var(--soft); font-size: 11px; }
svg .name.ours { fill: var(--ours); font-weight: 600; } svg .name.floor { fill: var(--soft); }
.bar.ours { fill: var(--ours); } .bar.peer { fill: var(--peer); } .bar.floor { fill: var(--floor); }
.dot { fill: var(--dot); } .grid { stroke: var(--rule); }
.aim { stroke: var(--bad); stroke-dasharray: 3 3; }
.range { stroke-width: 2; } .range.ours { stroke: var(--ours); }
.range.peer { stroke: var(--peer); }
.range.floor { stroke: var(--floor); } .range.bad { stroke: var(--bad); }
.mark.ours { fill: var(--ours); } .mark.peer { fill: var(--peer); }
.mark.floor { fill: var(--floor); }
.mark.bad { fill: var(--bad); } .trace { fill: none; stroke-width: 2; }
.trace.ours { stroke: var(--ours); } .trace.a { stroke: var(--a); } .trace.b { stroke: var(--b); }
.mark.a { fill: var(--a); } .mark.b { fill: var(--b); }
svg .name.a { fill: var(--a); } svg .name.b { fill: var(--b); }
"""


def html(report: rig.Json) -> str:
    """The page."""
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>dataplane beside its peers</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            *_parts(report),
            "</body>\n</html>\n",
        )
    )


def _parts(report: rig.Json) -> Iterator[str]:
    yield "<h1>dataplane beside its peers</h1>"
    yield f'<p class="soft">{escape(machine_text(report))}</p>'
    yield f'<p class="soft">Peers: {escape(versions_text(report))}.</p>'
    yield from (f'<p class="bad">Lacks: {escape(one)}</p>' for one in report["lacking"])
    yield (
        '<p class="soft">CPU us per request is the time that all of a proxy\'s processes and its '
        "CPU's softirq thread took, over the requests answered. The proxy has CPU 0, the upstream "
        "and the load share CPU 1, so requests per second understate whoever leaves CPU 0 idle. "
        "Floor is a relay with the same system calls that parses nothing.</p>"
    )
    if report["rows"]:
        yield from _overview(report)
    for row in report["rows"]:
        yield from _row(row)
    if report["memory"]:
        yield from _memory(report["memory"])
    for curve in report["curves"]:
        yield from _curve(curve)


def _overview(report: rig.Json) -> Iterator[str]:
    yield "<section><h2>CPU per request against the best peer</h2>"
    yield (
        '<p class="soft">Median of the paired ratios and its 95 % bootstrap interval; the dashed '
        "line is the target, the plain one 1.0.</p>"
    )
    yield '<div class="wide"><table><tr><th>work</th><th>us</th><th>best peer</th><th>ratio</th>'
    yield "<th></th><th>target</th><th>to the floor</th></tr>"
    for row in report["rows"]:
        cpu = {peer["name"]: peer["cpu_us"] for peer in row["peers"]}
        yield f"<tr><td>{escape(row['title'])}</td><td>{_us(cpu.get(OURS))}</td>"
        best = row["best"]
        yield f"<td>{escape(best)} {_us(cpu.get(best))}</td>" if best else "<td>-</td>"
        if row["ratio"]:
            yield f"<td>{ratio_text(row['ratio'])}</td>"
            yield f"<td>{plots.whisker(row['ratio'], row['target'])}</td>"
        else:
            yield "<td>-</td><td></td>"
        yield f"<td>{_target(row, 'ratio', 'target')}</td>"
        floor = f"{row['floor_ratio']['value']:.2f}" if row["floor_ratio"] else "-"
        yield f"<td>{floor} {_target(row, 'floor_ratio', 'floor_target')}</td></tr>"
    yield "</table></div></section>"


def _us(value: float | None) -> str:
    return "-" if value is None else plots.figure(value)


def _target(row: rig.Json, key: str, target: str) -> str:
    judged = verdict(row, key, target)
    if not judged:
        return ""
    css = "met" if judged == "met" else "bad"
    return f'<span class="{css}">{row[target]:.2f} {judged.lower()}</span>'


def _row(row: rig.Json) -> Iterator[str]:
    yield f"<section><h2>{escape(row['title'])}</h2>"
    if row["ratio"]:
        yield (
            f'<p class="soft">{OURS} takes {ratio_text(row["ratio"])} of {row["best"]}'
            + (f", {ratio_text(row['floor_ratio'])} of the floor" if row["floor_ratio"] else "")
            + "</p>"
        )
    yield "<h3>CPU us per request, each round a dot</h3>"
    cpu = {peer["name"]: peer["cpu_us"] for peer in row["peers"]}
    rounds = {peer["name"]: peer["cpu_us_rounds"] for peer in row["peers"]}
    yield plots.bars(cpu, f"CPU per request, {row['title']}", rounds)
    yield "<h3>latency: p50, p99 (the figure) and p99.9, us</h3>"
    yield plots.latencies(row["peers"], f"latency, {row['title']}")
    yield '<div class="wide"><table><tr><th></th><th>CPU us</th><th>requests/s</th><th>MB/s</th>'
    yield "<th>p50 us</th><th>p99 us</th><th>p99.9 us</th><th>own</th><th>busy</th></tr>"
    for peer in sorted(row["peers"], key=lambda one: float(one["cpu_us"])):
        yield f'<tr class="{plots.kind(peer["name"])}"><td>{escape(peer["name"])}</td>'
        yield f"<td>{peer['cpu_us']:.2f}</td><td>{peer['per_second']:,.0f}</td>"
        yield f"<td>{peer['bytes_per_second'] / 1e6:,.1f}</td>"
        yield "".join(f"<td>{peer[key]:,.0f}</td>" for key in ("p50_us", "p99_us", "p999_us"))
        css = ' class="bad"' if peer["disturbed"] else ""
        yield f"<td>{peer['own_share']:.0%}</td><td{css}>{peer['busy_share']:.0%}</td></tr>"
    yield "</table></div>"
    unheld = [peer["name"] for peer in row["peers"] if not peer["held"]]
    if unheld:
        yield f'<p class="bad">Did not hold the rate: {escape(", ".join(unheld))}.</p>'
    yield from _left_out({**row["absent"], **row["failed"]})
    yield from (f'<p class="bad">Missed: {escape(one)}</p>' for one in row["misses"])
    yield "</section>"


def _left_out(told: rig.Json) -> Iterator[str]:
    for name, why in told.items():
        yield f'<p class="soft">Left out: {escape(name)} ({escape(str(why)[:200])})</p>'


def _memory(memory: rig.Json) -> Iterator[str]:
    yield f"<section><h2>{escape(memory['title'])}</h2>"
    yield (
        f'<p class="soft">Bytes (PSS), {memory["connections"]:,} connections; the dashed line is '
        f"the target, {memory['target']:.0f}.</p>"
    )
    yield plots.bars(memory["bytes"], memory["title"], aim=memory["target"])
    yield from _left_out(memory["absent"])
    yield "</section>"


def _curve(curve: rig.Json) -> Iterator[str]:
    yield f"<section><h2>CPU us per request, by {escape(curve['title'])}</h2>"
    others = iter(("a", "b"))
    css = {name: "ours" if name == OURS else next(others) for name in curve["peers"]}
    yield plots.curve(curve["peers"], curve["title"], css)
    yield from _left_out(curve["absent"])
    yield "</section>"
