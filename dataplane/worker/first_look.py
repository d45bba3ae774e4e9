"""A generation's first look at its upstreams, before it says that it is ready."""

from __future__ import annotations

import select
import time
from typing import Final

from dataplane.engine.engine import NOTE_AGAIN, Engine
from dataplane.model.errors import LaunchError
from dataplane.model.spec import AppSpec

# Of the time in which it has to get ready: the rest is for saying so.
SHARE: Final = 0.8
TURN_ROUNDS: Final = 16


def compare_upstreams(spec: AppSpec, engine: Engine) -> None:
    """Waits until each endpoint with a health check has been probed once, by whomever.

    Raises `LaunchError` where an upstream is well on the generation that serves and not here. An
    outage that both see stops nobody: the swap may be what mends it.
    """
    end = time.monotonic() + spec.ready_deadline_ms / 1000 * SHARE
    poll = select.poll()
    poll.register(engine.fd, select.POLLIN)
    notes = 0
    while engine.checks_open() and (left := end - time.monotonic()) > 0:
        poll.poll(0 if notes & NOTE_AGAIN else left * 1000)
        notes = engine.turn(TURN_ROUNDS)
    if worse := engine.upstreams_regressed():
        raise LaunchError(
            f"upstream {', '.join(worse)}: well where it serves now, but its health checks fail "
            "here; mend the upstream, or say rollout: {upstreams: ignore}"
        )
