"""The app's memory file: laid out as the engine reads it, and read as the engine writes it."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from dataplane.control.shared import SHARED_BYTES, SharedPage
from dataplane.engine.engine import Engine
from dataplane.model.errors import ControlError
from tests.support.upstreams import app_of, health


@pytest.fixture
def page() -> Iterator[SharedPage]:
    shared = SharedPage("test", b"0123456789abcdef")
    yield shared
    shared.close()


def engine(page: mmap.mmap, *ports: int) -> Engine:
    spec = app_of(*ports, health=health(), max_connections=3)
    return Engine(spec, stats=None, seed=(1, 2), tick_ms=0, shared=page)


def test_an_engine_takes_a_seat_and_its_endpoints_are_seen(page: SharedPage) -> None:
    assert (page.seated(), page.endpoints()) == ((), ())
    with mmap.mmap(page.fd, SHARED_BYTES) as mapped, engine(mapped, 1, 2) as made:
        assert made.shares
        assert page.seated() == (os.getpid(),)
        found = page.endpoints()
        assert [(one.upstream, one.endpoint) for one in found] == [
            ("api", "127.0.0.1:1"),
            ("api", "127.0.0.1:2"),
        ]
        assert {(one.open, one.waiting, one.healthy) for one in found} == {(0, 0, None)}
    assert (page.seated(), page.endpoints()) == ((), ())


def test_a_dead_process_loses_its_seat_to_the_next(page: SharedPage) -> None:
    with mmap.mmap(page.fd, SHARED_BYTES) as mapped, engine(mapped, 1):
        page.mark_dead(os.getpid() + 1)  # another's death is another's
        assert page.seated() == (os.getpid(),)
        page.mark_dead(os.getpid())
        assert (page.seated(), page.endpoints()) == ((), ())
        with engine(mapped, 1):
            assert page.seated() == (os.getpid(),)


def test_it_cannot_be_made_smaller_or_larger(page: SharedPage) -> None:
    assert os.fstat(page.fd).st_size == SHARED_BYTES
    seals = fcntl.fcntl(page.fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SHRINK
    assert seals & fcntl.F_SEAL_GROW
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(page.fd, 4096)


@pytest.mark.parametrize("place", [0, 4, 8, 40, 44, 48, 56, 60])
def test_an_engine_goes_on_without_a_layout_that_it_does_not_know(
    page: SharedPage, place: int
) -> None:
    with mmap.mmap(page.fd, SHARED_BYTES) as mapped:
        mapped[place : place + 4] = b"\xff\xff\xff\x7f"
        with engine(mapped, 1) as made:
            assert not made.shares
            assert made.upstreams_down() == ()


def test_file_that_a_worker_lent_is_gone_on_with(page: SharedPage) -> None:
    with mmap.mmap(page.fd, SHARED_BYTES) as mapped, engine(mapped, 1):
        lent = SharedPage("", b"", lent=os.dup(page.fd))
        assert lent.seated() == (os.getpid(),)
        lent.mark_dead(os.getpid())
        assert page.seated() == ()
        lent.close()


@pytest.mark.parametrize("place", [0, 4, 8, 36, 40, 44])
def test_lent_file_of_another_layout_is_refused_and_left_open(page: SharedPage, place: int) -> None:
    with mmap.mmap(page.fd, SHARED_BYTES) as mapped:
        mapped[place] ^= 1
    with pytest.raises(ControlError, match="another layout"):
        SharedPage("", b"", lent=page.fd)
    os.fstat(page.fd)
