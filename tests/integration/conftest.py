"""Fixtures for tests of the engine: each runs over both transports, to prove the two seams."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from dataplane.engine.engine import TRANSPORT_PLAIN, TRANSPORT_TRICKLE
from dataplane.model.spec import AppSpec
from tests.support.engine import Proxy, app
from tests.support.upstream import Script, Upstream, echo, refusing


@pytest.fixture(params=[TRANSPORT_PLAIN, TRANSPORT_TRICKLE], ids=["plain", "trickle"])
def transport(request: pytest.FixtureRequest) -> int:
    """Trickle reads and writes one byte at a time: no codec may notice."""
    number: int = request.param
    return number


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever a test opens, closed in the reverse order."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def dead(stack: ExitStack) -> Callable[[], int]:
    """Gives a port that refuses every connection."""
    return lambda: refusing(stack.enter_context(socket.socket()))


@pytest.fixture
def upstream(stack: ExitStack) -> Callable[..., Upstream]:
    """Starts a scripted upstream."""

    def start(script: Script = echo, **options: Any) -> Upstream:
        return stack.enter_context(Upstream(script, **options))

    return start


@pytest.fixture
def proxy(stack: ExitStack, transport: int) -> Callable[..., Proxy]:
    """Starts an engine for a spec, or for the ports of its one upstream."""

    def start(*ports: int, spec: AppSpec | None = None, **options: Any) -> Proxy:
        own = {
            name: options.pop(name) for name in ("send_buffer", "seed", "shared") if name in options
        }
        given = app(ports, **options) if spec is None else spec
        return stack.enter_context(Proxy(given, transport=transport, **own))

    return start
