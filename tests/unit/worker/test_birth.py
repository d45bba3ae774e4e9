"""What a worker is born with."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from dataplane.control.messages import Fork, decode_message, encode_message
from dataplane.model.errors import ControlError
from dataplane.model.spec import MatchSpec
from dataplane.system.process import worker_name
from dataplane.worker.birth import birth
from dataplane.worker.faults import BLUE_STEPS, Faults
from dataplane.worker.main import descriptors_needed
from dataplane.worker.probe import request_for
from tests.support.specs import app_spec, route_answering, route_to, upstream

FORK = Fork(
    request=1,
    app="billing",
    generation=7,
    slot=0,
    image="sha256:0",
    listeners=("web", "web", "admin"),
    seal=(),
    faults=(),
)


def test_descriptors_are_taken_in_their_order() -> None:
    born = birth(FORK, (10, 11, 12, 13, 14, 15, 16), 1.5)
    assert (born.spec_fd, born.stats_fd, born.channel_fd, born.control_fd) == (10, 11, 12, 13)
    assert born.listener_fds == (14, 15, 16)
    assert born.fds == (10, 11, 12, 13, 14, 15, 16)


def test_pipe_of_the_log_is_the_last_descriptor() -> None:
    born = birth(dataclasses.replace(FORK, log=True), (10, 11, 12, 13, 14, 15, 16, 17), 1.5)
    assert (born.listener_fds, born.log_fd) == ((14, 15, 16), 17)
    assert born.fds == (10, 11, 12, 13, 14, 15, 16, 17)
    assert birth(FORK, (10, 11, 12, 13, 14, 15, 16), 1.5).log_fd is None


def test_order_without_a_log_is_the_one_that_older_code_knows() -> None:
    told = json.loads(encode_message(FORK))
    assert "log" not in told
    assert decode_message(encode_message(FORK)) == FORK
    logging = dataclasses.replace(FORK, log=True)
    assert decode_message(encode_message(logging)) == logging


@pytest.mark.parametrize("count", [0, 4, 6, 8])
def test_descriptors_that_do_not_fit_are_refused(count: int) -> None:
    with pytest.raises(ControlError, match=f"{count} descriptors came with a fork, expected 7"):
        birth(FORK, tuple(range(count)), 0.0)


@pytest.mark.parametrize(
    ("app", "generation", "slot", "name"),
    [
        ("billing", 7, 0, "dp:billing/7.0"),
        ("a-very-long-application-name", 7, 0, "dp:a-very-l/7.0"),
        ("billing", 123456, 31, "dp:b/123456.31"),
    ],
)
def test_name_keeps_generation_and_slot(app: str, generation: int, slot: int, name: str) -> None:
    told = worker_name(app, str(generation), str(slot))
    assert told.startswith(name[:4])
    assert told.endswith(f"/{generation}.{slot}")
    assert len(told) <= 15


def test_descriptors_cover_both_sides_of_each_connection() -> None:
    spec = app_spec(route_to("api"), upstreams=(upstream("api", 1, 2),))
    assert descriptors_needed(spec) > 2 * spec.limits.connections + 2 * 16


def test_probe_asks_for_what_the_first_route_takes() -> None:
    match = MatchSpec(host="*.example.com", path="/api/", methods=(), headers=())
    told = request_for(app_spec(route_answering("x", match)))
    assert told.startswith(b"GET /api/ HTTP/1.1\r\nhost: probe.example.com\r\n")
    assert told.endswith(b"\r\n\r\n")


def test_unknown_faults_are_refused_all_at_once() -> None:
    with pytest.raises(ControlError, match="unknown fault a, crash-at:blue:nowhere"):
        Faults(("a", "crash-at:blue:nowhere", "stop-turning"))


def test_worker_without_faults_passes_every_step() -> None:
    async def life() -> None:
        faults = Faults(())
        faults.before_ready()
        faults.after_ready()
        for step in BLUE_STEPS:
            await faults.step(step)
        assert not faults.stops_turning

    asyncio.run(life())
