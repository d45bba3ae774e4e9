"""Metrics: a scrape of many workers holds nobody up."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest

from dataplane.control.stats import NO_STATS
from dataplane.supervisor import metrics
from dataplane.supervisor.fleet import Fleet
from dataplane.supervisor.metrics import metrics_text

WORKERS = 20


def fleet() -> Fleet:
    slots = [
        SimpleNamespace(number=number, pid=1000 + number, mapped=None) for number in range(WORKERS)
    ]
    totals = dataclasses.replace(
        NO_STATS,
        connections=1,
        connections_total=2,
        requests_total=3,
        received_bytes_total=4,
        sent_bytes_total=5,
    )
    app = SimpleNamespace(
        name="billing",
        totals=lambda: totals,
        rollouts_ended={"swapped": 1},
        restarts=0,
        serving=None,
        shared=None,
        generations=[SimpleNamespace(number=1, slots=slots)],
    )
    return cast(Fleet, SimpleNamespace(apps={"billing": app}))


def test_others_run_between_two_workers_whose_memory_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = 0
    read_at: list[int] = []

    def memory_bytes(pid: int) -> int:
        read_at.append(turns)
        return pid * 4096

    monkeypatch.setattr(metrics, "memory_bytes", memory_bytes)
    monkeypatch.setattr(metrics, "cpu_seconds", lambda pid: 0.5)

    async def life() -> str:
        nonlocal turns
        scrape = asyncio.ensure_future(metrics_text(fleet()))
        while not scrape.done():
            turns += 1
            await asyncio.sleep(0)
        return scrape.result()

    text = asyncio.run(life())
    assert len(set(read_at)) == WORKERS
    labels = 'app="billing",generation="1",slot="7"'
    assert f"dataplane_worker_memory_bytes{{{labels}}} {1007 * 4096}\n" in text
    assert f"dataplane_worker_cpu_seconds_total{{{labels}}} 0.5\n" in text


def test_worker_that_comes_during_a_scrape_is_told_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = fleet()
    slots = made.apps["billing"].generations[0].slots  # type: ignore[index]

    def memory_bytes(pid: int) -> int:
        slots[0].pid = 7
        return 4096

    monkeypatch.setattr(metrics, "memory_bytes", memory_bytes)
    text = asyncio.run(metrics_text(made))
    assert 'dataplane_worker_memory_bytes{app="billing",generation="1",slot="0"}' not in text
    assert text.count("dataplane_worker_memory_bytes{") == WORKERS - 1
