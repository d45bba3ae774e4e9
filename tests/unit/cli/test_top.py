"""`top` from two texts of metrics: rates, shares of time, and a table."""

from __future__ import annotations

import math

import pytest

from dataplane.cli.top import quantile, read_look, rows_of, top_text

TEXT = """\
# HELP dataplane_requests_total Requests.
# TYPE dataplane_requests_total counter
dataplane_requests_total{{app="a",route="path=/x{{\\"}}",upstream="",code="2xx"}} {good}
dataplane_requests_total{{app="a",route="",upstream="",code="5xx"}} {bad}
dataplane_request_duration_seconds_bucket{{app="a",le="0.001"}} {quick}
dataplane_request_duration_seconds_bucket{{app="a",le="0.01"}} {all}
dataplane_request_duration_seconds_bucket{{app="a",le="+Inf"}} {all}
dataplane_connections{{app="a"}} 5
dataplane_worker_cpu_seconds_total{{app="a"}} {cpu}
dataplane_worker_memory_bytes{{app="a",generation="1",slot="0"}} 1000000
dataplane_worker_memory_bytes{{app="a",generation="1",slot="1"}} 1500000
dataplane_connections{{app="idle"}} 0
"""


def look(**figures: float) -> str:
    return TEXT.format(**figures)


def test_rates_are_of_what_came_between_two_looks() -> None:
    before = read_look(look(good=10, bad=1, quick=5, all=11, cpu=1.0))
    after = read_look(look(good=30, bad=3, quick=16, all=33, cpu=2.0))
    busy, idle = rows_of(before, after, 2.0)
    assert (busy.app, busy.requests_per_second, busy.errors_per_second) == ("a", 11.0, 1.0)
    assert (busy.connections, busy.cpu_percent, busy.memory_bytes) == (5, 50.0, 2_500_000)
    assert busy.p50_seconds == pytest.approx(0.001)
    assert busy.p99_seconds == pytest.approx(0.001 + 0.009 * (21.78 - 11) / 11)
    assert (idle.app, idle.p50_seconds, idle.requests_per_second) == ("idle", None, 0)


def test_app_that_one_look_alone_knows_is_left_out() -> None:
    assert rows_of({}, read_look(look(good=1, bad=1, quick=1, all=1, cpu=1)), 1.0) == []


@pytest.mark.parametrize(("share", "expected"), [(0.25, 0.5), (0.5, 1.0), (0.75, 5.5), (1.0, 10.0)])
def test_a_share_is_found_within_its_bucket(share: float, expected: float) -> None:
    assert quantile({1.0: 50, 10.0: 100, math.inf: 100}, share) == pytest.approx(expected)


def test_what_is_beyond_every_bound_is_told_as_the_last_one() -> None:
    assert quantile({1.0: 0, math.inf: 10}, 0.5) == 1.0
    assert quantile({1.0: 0, math.inf: 0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_the_table_has_a_line_an_app() -> None:
    before = read_look(look(good=10, bad=1, quick=5, all=11, cpu=1.0))
    after = read_look(look(good=30, bad=3, quick=16, all=33, cpu=2.0))
    head, busy, idle = top_text(rows_of(before, after, 2.0)).splitlines()
    assert " ".join(head.split()) == "APP REQ/S ERR/S P50 P99 CONNS CPU MEMORY IN/S OUT/S"
    assert busy.split()[:4] == ["a", "11.0", "1.0", "1.00ms"]
    assert busy.split()[-3:] == ["2.5M", "0", "0"]
    assert idle.split()[3:5] == ["-", "-"]
