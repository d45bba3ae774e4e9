"""The engine's Python side: a spec becomes tables, results become errors, and pages agree."""

from __future__ import annotations

import dataclasses
import mmap
import os
import socket

import pytest

from dataplane.control.figures import (
    BOUNDS_US,
    BUCKETS,
    DURATION,
    ROUTES,
    TABLE_AT,
    TABLE_MAGIC,
    TABLE_VERSION,
    UPSTREAMS,
    mapping_bytes,
)
from dataplane.control.stats import FIELDS, STATS_MAGIC, STATS_VERSION, offset_of
from dataplane.engine import engine as binding
from dataplane.engine._native import ffi, lib
from dataplane.engine.engine import NOTE_EMPTY, Engine, EngineError
from dataplane.model.spec import AppSpec, HeaderEdits, MatchSpec, RedirectSpec
from dataplane.system.sockets import bind_first
from tests.support.specs import app_spec, route_answering, route_to, upstream


def make(spec: AppSpec | None = None, stats: mmap.mmap | None = None) -> Engine:
    return Engine(spec or app_spec(), stats=stats, seed=(1, 2), tick_ms=0)


# --- the page of figures that the supervisor reads with a layout of its own --------------------


@pytest.mark.parametrize(("name", "count"), FIELDS)
def test_supervisors_layout_of_the_stats_page_is_the_engines(name: str, count: int) -> None:
    assert offset_of(name) == ffi.offsetof("dp_stats", name)
    field = dict(ffi.typeof("dp_stats").fields)[name].type
    assert ffi.sizeof(field) == 8 * count


def test_supervisor_reads_every_figure_that_the_engine_writes() -> None:
    named = [name for name, _ in ffi.typeof("dp_stats").fields]
    assert named == ["magic", "version", *(name for name, _ in FIELDS), "reserved"]
    assert lib.DP_STATS_VERSION == STATS_VERSION
    assert ffi.sizeof("dp_stats") <= mmap.PAGESIZE


@pytest.mark.parametrize(("upstreams", "routes"), [(0, 0), (1, 1), (3, 1000), (256, 1000)])
def test_supervisors_layout_of_the_sections_is_the_engines(upstreams: int, routes: int) -> None:
    table = ffi.new("dp_stats_table *")
    assert mapping_bytes(upstreams, routes) == lib.dp_stats_layout(upstreams, routes, table)
    assert (table.magic, table.version) == (TABLE_MAGIC, TABLE_VERSION)
    assert lib.DP_STATS_TABLE == TABLE_AT
    assert [table.sections[i].kind for i in range(table.count)] == [DURATION, UPSTREAMS, ROUTES]


def test_supervisors_bounds_of_durations_are_the_engines() -> None:
    assert len(BOUNDS_US) == BUCKETS - 1 == lib.DP_DURATION_BUCKETS - 1
    assert [lib.dp_duration_bucket(bound) for bound in BOUNDS_US] == list(range(BUCKETS - 1))
    assert lib.dp_duration_bucket(BOUNDS_US[-1] + 1) == BUCKETS - 1


def test_engine_marks_its_page_and_counts_on() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        for round_of in range(2):
            with make(stats=page) as engine:
                engine.turn(1)
            assert int.from_bytes(page[:4], "little") == STATS_MAGIC
            at = offset_of("turns")
            assert int.from_bytes(page[at : at + 8], "little") >= round_of + 1


def test_page_that_is_too_small_is_refused() -> None:
    page = mmap.mmap(-1, 64)
    with pytest.raises(EngineError, match="64 bytes"):
        make(stats=page)
    page.close()


# --- numbers that Python knows by heart --------------------------------------------------------


def test_numbers_are_those_of_the_header() -> None:
    assert lib.dp_abi() == lib.DP_ABI == binding.ABI
    assert binding.NOTE_AGAIN == lib.DP_NOTE_AGAIN
    assert binding.NOTE_MOVABLE == lib.DP_NOTE_MOVABLE
    assert binding.NOTE_EMPTY == lib.DP_NOTE_EMPTY
    assert binding.TRANSPORT_PLAIN == lib.DP_TRANSPORT_PLAIN
    assert binding.TRANSPORT_TRICKLE == lib.DP_TRANSPORT_TRICKLE


def test_library_of_another_abi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "ABI", binding.ABI + 1)
    with pytest.raises(EngineError, match="ABI"):
        make()


# --- building ----------------------------------------------------------------------------------


def test_spec_with_one_of_everything_is_built() -> None:
    edits = HeaderEdits(set=(("x-one", "1"),), remove=("x-two",))
    match = MatchSpec(
        host="*.example.com", path="/api/", methods=("GET", "POST"), headers=(("x-beta", "1"),)
    )
    redirect = dataclasses.replace(
        route_answering(""), respond=None, redirect=RedirectSpec(to="/new/", status=308)
    )
    routes = (
        dataclasses.replace(route_to("api", match), request_headers=edits, response_headers=edits),
        redirect,
        route_answering("ok\n"),
    )
    with make(app_spec(*routes, upstreams=(upstream("api", 1, 2),))) as engine:
        assert engine.fd >= 0


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            app_spec(
                route_to("api"),
                upstreams=(
                    dataclasses.replace(
                        upstream("api"),
                        endpoints=(
                            dataclasses.replace(upstream("x", 1).endpoints[0], address="nowhere"),
                        ),
                    ),
                ),
            ),
            "upstream api, endpoint nowhere:1",
        ),
        (
            app_spec(
                route_answering("x", MatchSpec(host=None, path="/", methods=("FLY",), headers=()))
            ),
            r"routes\[0\]: method FLY",
        ),
    ],
)
def test_spec_that_the_engine_cannot_carry_out_is_told(spec: AppSpec, told: str) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineError, match=told):
        make(spec)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_tables_are_read_only_once_they_are_built() -> None:
    """The mapping that holds them shows in the process's own list of mappings."""

    def read_only_anonymous() -> int:
        with open("/proc/self/maps", encoding="ascii") as maps:
            lines = [line.split() for line in maps]
        return sum(1 for line in lines if line[1] == "r--p" and len(line) == 5)

    before = read_only_anonymous()
    with make():
        assert read_only_anonymous() == before + 1


# --- life --------------------------------------------------------------------------------------


def test_listener_that_is_not_in_the_spec_is_refused() -> None:
    with make() as engine, pytest.raises(EngineError, match="listener other"):
        engine.attach("other", 0)


def test_listening_socket_is_lent_and_never_closed() -> None:
    listening = bind_first("127.0.0.1:0")
    with make() as engine:
        engine.attach("web", listening.fileno())
        engine.serve()
        engine.pause()
    with socket.create_connection(listening.getsockname()) as client:
        client.send(b"x")  # an http client's connection comes once it has said something
        listening.settimeout(10)
        accepted, _ = listening.accept()
        accepted.close()
    listening.close()


def test_only_http_listeners_wait_for_the_first_bytes() -> None:
    """A server behind a tcp listener may speak first, also where the address was http's before."""

    def put_off(sock: socket.socket) -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)

    raw = dataclasses.replace(app_spec().listeners[0], protocol="tcp", upstream="api")
    tcp = dataclasses.replace(app_spec(upstreams=(upstream("api", 1),)), listeners=(raw,))
    with bind_first("127.0.0.1:0") as listening:
        for spec, waits in ((None, True), (tcp, False)):
            with make(spec) as engine:
                engine.attach("web", listening.fileno())
                engine.serve()
                assert (put_off(listening) > 0) == waits


def test_drained_engine_without_connections_says_that_it_is_empty() -> None:
    with make() as engine:
        assert not engine.turn(16)
        engine.drain()
        assert engine.turn(16) & NOTE_EMPTY
        assert engine.save(1, 10, 1000) == (b"", 0, ())
        assert engine.tally() == binding.Tally(
            moved_idle=0,
            moved_after_request=0,
            moved_streaming=0,
            moved_tunnel=0,
            finished=0,
            closed=0,
            reset=0,
            declined=(),
        )


def test_batches_that_are_not_open_are_refused() -> None:
    with make() as engine:
        for call in (engine.take_back, engine.drop):
            with pytest.raises(EngineError):
                call(9)
        with pytest.raises(EngineError):
            engine.commit(9, b"")
        with pytest.raises(EngineError):
            engine.start(9, 1)


@pytest.mark.parametrize("records", [b"", b"garbage", bytes(28), b"\xff" * 64])
def test_records_that_cannot_be_held_close_their_descriptors(records: bytes) -> None:
    with make() as engine:
        reader, writer = os.pipe()
        with pytest.raises(EngineError, match="moved connections"):
            engine.hold(1, records, 1, (writer,))
        assert os.read(reader, 1) == b"", "nobody holds the writing end any more"
        os.close(reader)
