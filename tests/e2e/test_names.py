"""Host names as endpoints, end to end: resolved at start, followed by TTL, never an outage."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import pytest

from tests.support.dataplane import APP, Dataplane, app_config
from tests.support.dns import DnsServer
from tests.support.origin import Origin, answering
from tests.support.wire import Wire

NAME: Final = "api.test"
HERE: Final = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture
def origins() -> Iterator[list[Origin]]:
    """One at each address of HERE, all at one port; each answers with its address."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Origin(answering(HERE[0].encode())))
        others = [
            stack.enter_context(Origin(answering(host.encode()), host=host, port=first.port))
            for host in HERE[1:]
        ]
        yield [first, *others]


def named(origins: list[Origin], **more: Any) -> dict[str, Any]:
    """An app before the name, at the origins' port."""
    config = app_config(origins[0].port, **more)
    config["upstreams"]["api"]["endpoints"] = [f"{NAME}:{origins[0].port}"]
    return config


def start(plane: Dataplane, dns: DnsServer, *words: str) -> None:
    plane.start(*(words or ("run", "--app", APP)), "--resolver", dns.address)


def answers(plane: Dataplane, count: int = 8) -> set[str]:
    """The origins that a few requests come to."""
    with Wire.connect(plane.address()) as client:
        return {client.get().body.decode() for _ in range(count)}


def generations(plane: Dataplane) -> list[int]:
    return [one["generation"] for one in plane.report()["generations"]]


def test_name_is_all_of_its_addresses(
    plane: Dataplane, dns: DnsServer, origins: list[Origin]
) -> None:
    dns.answer(NAME, *HERE)
    plane.configure(named(origins))
    start(plane, dns)
    assert answers(plane) == set(HERE)
    assert plane.report()["generations"][0]["names"] == {NAME: list(HERE)}
    assert plane.cli("plan").out == "plan: 1 unchanged\n"
    assert plane.swap()["outcome"] == "unchanged"
    assert dns.count(NAME, kind="A") == 1  # within its TTL


def test_changed_answer_is_a_new_generation_and_closes_nothing(
    plane: Dataplane, dns: DnsServer, origins: list[Origin]
) -> None:
    dns.answer(NAME, HERE[0], ttl_seconds=1)
    plane.configure(named(origins))
    start(plane, dns)
    image = plane.report()["wanted"]
    with Wire.connect(plane.address()) as client:  # one connection, over the change
        assert client.get().body.decode() == HERE[0]
        dns.answer(NAME, HERE[1], ttl_seconds=60)
        plane.event("rollout.switched", generation=2)
        ended = plane.event(
            "rollout.ended", outcome="swapped", to={"generation": 2, "image": image}
        )
        assert client.get().body.decode() == HERE[1]
    assert ended["connections"]["closed"] == ended["connections"]["reset"] == 0
    (last,) = [e for e in plane.cli("history", "--app", APP, "--json").fact()["history"]
               if e["generation"] == 2]  # fmt: skip
    assert (last["asked"], last["by"]["user"]) == ("names", "supervisor")
    assert last["inputs"]["names"] == {NAME: [HERE[1]]}


def test_changes_that_come_fast_are_coalesced(
    plane: Dataplane, dns: DnsServer, origins: list[Origin]
) -> None:
    dns.answer(NAME, HERE[0], ttl_seconds=1)
    plane.configure(named(origins, rollout={"resolve_pause": "4s"}))
    start(plane, dns)
    dns.answer(NAME, HERE[1], ttl_seconds=1)
    plane.event("rollout.switched", generation=2)
    asked = dns.count(NAME)
    dns.answer(NAME, HERE[2], ttl_seconds=1)
    dns.wait_for(NAME, asked + 1)
    dns.answer(NAME, *HERE[1:], ttl_seconds=60)
    told = []
    for event in plane.events():
        if event["event"] == "names.changed":
            told.append(event)
            if event["names"] == {NAME: list(HERE[1:])}:
                break
    # However many answers came in a pause, they made one generation, of the latest of them.
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in told]
    assert len(times) >= 2
    assert all(later - earlier > 3.9 for earlier, later in itertools.pairwise(times))
    plane.event("rollout.switched", generation=1 + len(told))
    assert answers(plane) == set(HERE[1:])


def test_outage_of_the_resolver_changes_nothing(
    plane: Dataplane, dns: DnsServer, origins: list[Origin]
) -> None:
    dns.answer(NAME, HERE[0], ttl_seconds=1)
    plane.configure(named(origins))
    start(plane, dns)
    worker = plane.worker_pid()
    dns.fail(NAME, "SERVFAIL")
    told = plane.event("names.unresolved", name=NAME)
    assert "SERVFAIL" in told["error"]
    assert plane.cli("plan").out == "plan: 1 unchanged\n"
    assert plane.swap()["outcome"] == "unchanged"
    assert plane.worker_pid() == worker
    plane.configure(named(origins, mark="green"))  # nor does it stop a swap
    assert plane.swap()["outcome"] == "swapped"
    assert answers(plane) == {HERE[0]}
    dns.answer(NAME, HERE[0], ttl_seconds=60)
    plane.event("names.resolved_again", name=NAME)
    assert generations(plane) == [2]


def test_start_after_a_reboot_while_no_resolver_answers_uses_the_last_addresses(
    plane: Dataplane, dns: DnsServer, origins: list[Origin]
) -> None:
    dns.answer(NAME, HERE[1])
    plane.configure(named(origins))
    start(plane, dns)
    plane.signal(signal.SIGTERM)
    assert plane.wait_end() == 0
    dns.fail(NAME, "SERVFAIL")
    start(plane, dns, "up")
    assert answers(plane) == {HERE[1]}
    assert plane.event("names.kept")["addresses"] == [HERE[1]]


def test_name_that_is_none_starts_nothing_and_says_who_said_so(
    plane: Dataplane, dns: DnsServer, origins: list[Origin]
) -> None:
    dns.fail(NAME, "NXDOMAIN")
    plane.configure(named(origins))
    ended = plane.cli("run", "--app", APP, "--resolver", dns.address, code=1)
    assert NAME in ended.err
    assert dns.address in ended.err


def test_server_that_is_no_address_is_wrong_usage(plane: Dataplane) -> None:
    plane.configure(app_config())
    assert "10.0.0.53:8600" in plane.cli("up", "--resolver", "dns.test", code=64).err
    environment = {"DATAPLANE_RESOLVER": "10.0.0.53,nobody"}
    assert "nobody" in plane.cli("up", environment=environment, code=1).err
