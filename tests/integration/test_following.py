"""Names followed for real: resolver, DNS server and wall time, on the loop of the supervisor."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from dataplane.model.names import AppName
from dataplane.supervisor.events import Events
from dataplane.supervisor.following import Following
from dataplane.supervisor.resolver import Resolver
from dataplane.system.clock import SystemClock
from tests.support.dns import DnsServer

BILLING, SHOP = AppName("billing"), AppName("shop")
SECONDS = 10.0


@pytest.mark.slow
def test_changed_answer_is_told_within_its_ttl_and_an_outage_is_not(tmp_path: Path) -> None:
    async def follow() -> None:
        clock = SystemClock()
        events = Events(clock, lambda line: None)
        resolver = Resolver(servers=(dns.server,), hosts=tmp_path / "hosts")
        told: asyncio.Queue[AppName] = asyncio.Queue()
        following = Following(
            resolver=resolver, clock=clock, events=events, changed=told.put_nowait
        )
        first = await resolver.resolve("api.example")
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(SECONDS):
            running = tasks.create_task(following.run())
            for app in (BILLING, SHOP):
                following.watch(app, {"api.example": first}, 0.1)
            dns.fail("api.example", "SERVFAIL")
            await asyncio.to_thread(dns.wait_for, "api.example", 2)
            assert following.last_good("api.example") == first
            dns.answer("api.example", "127.0.0.3", "127.0.0.2", ttl_seconds=1)
            assert {await told.get(), await told.get()} == {BILLING, SHOP}
            running.cancel()
        assert told.empty()
        assert [event["event"] for event in events.recent()] == [
            "names.unresolved",
            "names.resolved_again",
            "names.changed",
            "names.changed",
        ]
        assert events.recent()[-1]["names"] == {"api.example": ("127.0.0.2", "127.0.0.3")}
        assert dns.count("api.example") == 3

    with DnsServer() as dns, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        dns.answer("api.example", "127.0.0.1", ttl_seconds=1)
        runner.run(follow())
