"""A supervisor that has no descriptor left at any step of a swap: it fails, or all move."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

from tests.support.dataplane import Dataplane, app_config, eventually, tcp_config
from tests.support.nemesis import limited
from tests.support.origin import Origin, parroting
from tests.support.wire import Wire

LEAST: Final = 2  # our own connection, and one more
MOST: Final = 40  # descriptors that a swap of two workers opens at once: it needs fewer
MOVES: Final = 5


def test_swap_with_ever_more_descriptors_fails_or_moves_everybody(plane: Dataplane) -> None:
    with Origin(parroting) as origin, contextlib.ExitStack() as stack:
        config = app_config(workers=2)
        raw = tcp_config(origin.port)
        config["listeners"].append({**raw["listeners"][0], "name": "raw"})
        config["upstreams"] = raw["upstreams"]
        plane.configure(config)
        plane.start()
        clients = [stack.enter_context(Wire.connect(plane.address())) for _ in range(4)]
        tunnels = [stack.enter_context(Wire.connect(plane.address("raw"))) for _ in range(4)]
        for client in clients:
            client.get()
        for tunnel in tunnels:
            tunnel.send(b"one")
            assert tunnel.exactly(3) == b"one"
        outcomes: list[str] = []
        for more in range(LEAST, LEAST + MOST):
            held = len(os.listdir(f"/proc/{plane.pid}/fd"))
            with limited(plane.pid, resource.RLIMIT_NOFILE, held + more):
                told = plane.ask_swap(force=True)
            outcomes.append(told.body.get("outcome", "failed"))
            for client in clients:
                assert client.get().body == b"blue"
            for tunnel in tunnels:
                tunnel.send(b"two")
                assert tunnel.exactly(3) == b"two"
            if outcomes[-1] == "swapped":
                counts = told.body["connections"]
                assert counts["moved_idle"] + counts["moved_tunnel"] == 8, (more, told)
            eventually(lambda: len(plane.report()["generations"]) == 1)
            if outcomes[-MOVES:] == ["swapped"] * MOVES:
                break
        assert "failed" in outcomes
        assert outcomes[-MOVES:] == ["swapped"] * MOVES, outcomes
