"""The nemesis, once through all that it knows; `make nemesis` goes on for as long as asked."""

from __future__ import annotations

import os
import random
from typing import Final

import pytest

from tests.support.dataplane import Dataplane
from tests.support.load import token_upstream
from tests.support.nemesis import APPS, Nemesis
from tests.support.rig import unused_port

SECONDS: Final = float(os.environ.get("NEMESIS_SECONDS", "0"))
LEAST: Final = 5 if SECONDS else 1  # of each fault
SEED: Final = int(os.environ.get("NEMESIS_SEED") or random.SystemRandom().getrandbits(32))


@pytest.mark.timeout(SECONDS * 4 + 300)
def test_whatever_breaks_no_request_is_lost_but_what_a_killed_worker_was_serving(
    plane: Dataplane, load_tools: None
) -> None:
    ports: dict[str, int] = {}
    while len(ports) < len(APPS):
        port = unused_port()
        if port not in ports.values():
            ports[APPS[len(ports)]] = port
    with token_upstream() as upstream:
        nemesis = Nemesis(plane, upstream, ports, SEED)
        nemesis.start()
        print(f"seed {SEED}")
        nemesis.run(SECONDS, LEAST)
        for name, count in sorted(nemesis.counts.items()):
            print(f"{count:8} {name}")
