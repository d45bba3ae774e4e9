"""An engine that waits by itself serves on, and hears at once what others wait for."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from dataplane.engine.errors import EngineError
from tests.support.engine import Proxy
from tests.support.upstream import SECONDS, Upstream, echo

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]


def test_requests_are_served_until_others_are_called(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(echo).port)
    ear, bell = socket.socketpair()
    with ear, bell, running.client() as client, ThreadPoolExecutor(1) as engine:
        staying = engine.submit(running.call, lambda: running.engine.stay(ear.fileno()))
        for _ in range(3):
            assert client.get().status == 200
        bell.send(b"!")
        assert staying.result(SECONDS) == 0
        # It is readable still, so nobody waits any more.
        assert running.call(lambda: running.engine.stay(ear.fileno())) == 0
        assert client.get().status == 200
    running.settles()


def test_others_have_their_turn_under_load_too(proxy: START, upstream: SERVE) -> None:
    """Without being called: after a second, with whatever comes next."""
    running = proxy(upstream(echo).port)
    ear, bell = socket.socketpair()
    with ear, bell, running.client() as client, ThreadPoolExecutor(1) as engine:
        staying = engine.submit(running.call, lambda: running.engine.stay(ear.fileno()))
        while not staying.done():
            assert client.get().status == 200
        assert staying.result(SECONDS) == 0


def test_an_end_that_waits_for_nobody_is_told(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(echo).port)
    ear, bell = socket.socketpair()
    with ear, bell:
        running.call(running.engine.drain)
        assert running.call(lambda: running.engine.stay(ear.fileno())) != 0


def test_a_descriptor_that_watches_the_engine_is_refused(proxy: START, upstream: SERVE) -> None:
    running = proxy(upstream(echo).port)
    with select.epoll() as others:
        others.register(running.engine.fd, select.EPOLLIN)
        with pytest.raises(EngineError):
            running.call(lambda: running.engine.stay(others.fileno()))
        others.unregister(running.engine.fd)
    with running.client() as client:
        assert client.get().status == 200
