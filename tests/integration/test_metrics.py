"""The metrics of a real supervisor: they parse, and no counter goes back whatever is done to it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.dataplane import APP, Dataplane, eventually, wait_gone
from tests.support.origin import Origin, answering
from tests.support.wire import Wire

pytestmark = pytest.mark.slow

Samples: TypeAlias = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def plane() -> Iterator[Dataplane]:
    """Folders of its own; what was started is ended, and nothing may be left of it."""
    folder = Path(tempfile.mkdtemp())
    made = Dataplane(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def samples(plane: Dataplane) -> Samples:
    """Every sample, each of which must be the only one of its name and labels."""
    told = plane.call("GET", "/metrics")
    assert told.kind.startswith("text/plain; version=0.0.4")
    found: Samples = {}
    for family in text_string_to_metric_families(told.body):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def counters(found: Samples) -> Samples:
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in found.items() if key[0].endswith(ends)}


def value(found: Samples, name: str, **labels: str) -> float:
    """The sum over all series with these labels."""
    return sum(
        held
        for (known, told), held in found.items()
        if known == f"dataplane_{name}" and labels.items() <= dict(told).items()
    )


def config(port: int, *paths: str, upstream: str = "api", **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "app": APP,
        "listeners": [{"name": "web", "bind": "127.0.0.1:0", "protocol": "http"}],
        "routes": [{"match": {"path": path}, "upstream": upstream} for path in paths],
        "upstreams": {upstream: {"endpoints": [f"127.0.0.1:{port}"]}},
        **more,
    }


def test_no_counter_goes_back_at_swaps_restarts_and_rollbacks(plane: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        changes = [
            config(origin.port, "/a/", "/b/"),
            config(origin.port, "/b/", "/c/", upstream="other"),
            config(origin.port, "/a/", workers=2),
        ]
        plane.configure(changes[0])
        plane.start()
        before: Samples = {}
        asked = 0
        for change in (*changes, "kill", changes[0], "rollback"):
            if isinstance(change, dict):
                plane.configure(change)
                plane.swap()
            elif change == "kill":
                for worker in plane.workers():
                    os.kill(worker["pid"], signal.SIGKILL)
                    wait_gone(worker["pid"])
            else:
                plane.call("POST", f"/v1/apps/{APP}/rollback")
            with Wire.connect(plane.address()) as client:
                for path in ("/a/", "/b/", "/c/", "/elsewhere"):
                    client.get(path)
                    asked += 1
            seen = samples(plane)
            lost = [key for key, held in before.items() if seen.get(key, -1.0) < held]
            assert not lost, change
            before = counters(seen)
        seen = samples(plane)
        assert value(seen, "requests_total", app=APP) == asked
        assert value(seen, "requests_total", route="path=/a/", code="2xx") == 5
        assert value(seen, "requests_total", upstream="other") == 2
        assert value(seen, "request_duration_seconds_count") == asked
        assert value(seen, "upstream_requests_total") == value(seen, "requests_total", code="2xx")
        assert value(seen, "swaps_total", outcome="swapped") == 5
        assert value(seen, "swap_duration_seconds_count") == 5
        assert value(seen, "worker_restarts_total") == 2
        assert value(seen, "upstream_up") == 1
        assert value(seen, "worker_sealed", layer="seccomp") == len(plane.workers())


def test_an_upstream_that_takes_no_connection_is_down_until_one_is_taken(plane: Dataplane) -> None:
    with Origin(answering(b"whole")) as origin:
        port = origin.port
        plane.configure(config(port, "/"))
        plane.start()
        assert value(samples(plane), "upstream_up", upstream="api") == 1
    with Wire.connect(plane.address()) as client:
        assert client.get().status == 502
    assert value(samples(plane), "upstream_up", upstream="api") == 0
    with Origin(answering(b"whole"), port=port), Wire.connect(plane.address()) as client:
        assert client.get().status == 200
        assert value(samples(plane), "upstream_up", upstream="api") == 1


def test_the_cpu_time_of_workers_is_told_and_kept(plane: Dataplane) -> None:
    plane.configure({**config(1, "/"), "routes": [{"match": {"path": "/"}, "respond": {}}]})
    plane.start()

    def cpu() -> float:
        with Wire.connect(plane.address()) as client:
            for _ in range(50):
                client.get()
        return value(samples(plane), "worker_cpu_seconds_total", app=APP)

    used = eventually(lambda: cpu() or None)
    plane.swap(force=True)
    assert cpu() >= used
