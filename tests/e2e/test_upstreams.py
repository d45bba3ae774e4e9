"""Upstreams of a sealed app, seen from outside: checks, limits over workers and swaps, sockets."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.dataplane import APP, Dataplane, Json, app_config, eventually
from tests.support.upstream import SECONDS, Ended, Peer, Upstream, echo
from tests.support.wire import Wire


class Moody:
    """Answers with the status it is told to; `requests` are those that were no check."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.requests = 0

    def __call__(self, peer: Peer) -> None:
        while True:
            head, _ = peer.request()
            self.requests += head.get("user-agent") != "dataplane"
            peer.answer(b"moody", status=self.status)


def config(*endpoints: str, workers: int = 1, rollout: str = "ignore", **upstream: Any) -> Json:
    made: Json = app_config()
    made["routes"] = [{"match": {"path": "/"}, "upstream": "api"}]
    made["upstreams"] = {"api": {"endpoints": list(endpoints), **upstream}}
    made["workers"] = workers
    made["rollout"] = {"upstreams": rollout}
    return made


def get(plane: Dataplane, path: str = "/") -> tuple[int, bytes]:
    host, port = plane.address()
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=SECONDS)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def served() -> Iterator[Upstream]:
    with Upstream(echo) as upstream:
        yield upstream


# What is well has to miss four in a row to be taken out, however busy the machine is.
CHECK = {"path": "/healthz", "interval": "250ms", "timeout": "250ms", "fall": 4, "rise": 1}


def test_a_check_takes_an_endpoint_out_and_tells_of_it(plane: Dataplane, served: Upstream) -> None:
    moody = Moody()
    with Upstream(moody) as sick:
        ours = f"127.0.0.1:{sick.port}"
        plane.configure(config(ours, f"127.0.0.1:{served.port}", workers=2, health=CHECK))
        plane.start()
        told = health_told(plane, ours)
        assert next(told) == "upstream.up"
        moody.status = "500 Oh no"
        assert next(told) == "upstream.down"
        before = moody.requests
        assert {get(plane)[1] for _ in range(8)} == {b""}
        assert moody.requests == before
        assert plane.metric("dataplane_upstream_up") == 1
        assert plane.metric("dataplane_upstream_endpoint_up") == 1
        moody.status = "200 OK"
        assert next(told) == "upstream.up"


def health_told(plane: Dataplane, endpoint: str) -> Iterator[str]:
    """What is told of an endpoint of the upstream api, each event once."""
    for event in plane.events():
        if (event.get("upstream"), event.get("endpoint")) == ("api", endpoint):
            yield event["event"]


def test_what_was_learned_outlives_a_swap(plane: Dataplane, served: Upstream) -> None:
    moody = Moody()
    moody.status = "500 Oh no"
    slow = {**CHECK, "interval": "5s", "timeout": "5s", "fall": 1}
    with Upstream(moody) as sick:
        ours = f"127.0.0.1:{sick.port}"
        plane.configure(config(ours, f"127.0.0.1:{served.port}", health=slow))
        plane.start()
        plane.event("upstream.down", endpoint=ours)
        before = moody.requests
        assert plane.swap(force=True)["outcome"] == "swapped"
        assert {get(plane)[1] for _ in range(6)} == {b""}  # green knows without a probe
        assert moody.requests == before


def test_an_upstream_that_is_well_on_blue_and_not_on_green_fails_the_swap(
    plane: Dataplane,
) -> None:
    asked = threading.Semaphore(0)

    def well(peer: Peer) -> None:
        while True:
            peer.request()
            asked.release()
            peer.answer(b"well")

    with Upstream(well) as served:
        plane.configure(config(f"127.0.0.1:{served.port}", rollout="regress", health=CHECK))
        plane.start()
        for _ in range(2):  # the second is asked once the first was answered
            assert asked.acquire(timeout=SECONDS)
        with Upstream(Moody()) as other:
            gone = f"127.0.0.1:{other.port}"
        plane.configure(config(gone, rollout="regress", health=CHECK))
        ledger = plane.swap(code=502)
        assert ledger["outcome"] == "failed"
        assert "upstream api: well where it serves now" in ledger["error"]
        assert get(plane)[0] == 200
        plane.configure(config(gone, rollout="ignore", health=CHECK))
        assert plane.swap()["outcome"] == "swapped"


def test_an_outage_that_blue_sees_too_stops_no_swap(plane: Dataplane) -> None:
    with Upstream(Moody()) as upstream:
        gone = f"127.0.0.1:{upstream.port}"
    plane.configure(config(gone, rollout="regress", health=CHECK))
    plane.start()
    plane.event("upstream.down", endpoint=gone)
    assert get(plane)[0] == 503
    plane.configure(config(gone, rollout="regress", health={**CHECK, "fall": 3}))
    assert plane.swap()["outcome"] == "swapped"


def test_a_sticky_cookie_outlives_swap_and_supervisor(plane: Dataplane) -> None:
    def named(name: bytes) -> Callable[[Peer], None]:
        def script(peer: Peer) -> None:
            while True:
                peer.request()
                peer.answer(name)

        return script

    with Upstream(named(b"a")) as one, Upstream(named(b"b")) as other:
        endpoints = [f"127.0.0.1:{upstream.port}" for upstream in (one, other)]
        plane.configure(config(*endpoints, workers=2, sticky={"cookie": "stick"}))
        plane.start()
        with Wire.connect(plane.address()) as client:
            first = client.get()
        cookie = (first.field("set-cookie") or "").partition(";")[0]

        def holds() -> None:
            for _ in range(4):
                with Wire.connect(plane.address()) as client:
                    again = client.get("/", f"cookie: {cookie}")
                assert (again.body, again.field("set-cookie")) == (first.body, None)

        holds()
        assert plane.swap(force=True)["outcome"] == "swapped"
        holds()
        plane.signal(signal.SIGTERM)
        assert plane.wait_end() == 0
        plane.start()
        holds()


class Busy:
    """Counts how many connections are open at once; answers when it is let."""

    def __init__(self) -> None:
        self.open: set[Peer] = set()
        self.most = 0
        self.lock = threading.Lock()
        self.came = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, peer: Peer) -> None:
        with self.lock:
            # One that was cut is not open any more, though its thread still waits to be let.
            self.open = {one for one in self.open if not is_cut(one)} | {peer}
            self.most = max(self.most, len(self.open))
        try:
            while True:
                peer.request()
                self.came.release()
                assert self.let.acquire(timeout=SECONDS)
                peer.answer(b"busy")
        finally:
            with self.lock:
                self.open.discard(peer)


def is_cut(peer: Peer) -> bool:
    """Whether the other side has closed the connection."""
    poll = select.poll()
    poll.register(peer.sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def test_a_limit_counts_once_over_workers_and_a_dead_one_gives_back(plane: Dataplane) -> None:
    busy = Busy()
    with Upstream(busy) as upstream:
        plane.configure(
            config(f"127.0.0.1:{upstream.port}", workers=2, max_connections=1, connect_timeout="9s")
        )
        plane.start()
        pids = [worker["pid"] for worker in plane.workers()]
        with contextlib.ExitStack() as clients:
            first, holder = asked(plane, clients, pids)
            assert busy.came.acquire(timeout=SECONDS)
            others = [asked(plane, clients, pids)]
            while {pid for _, pid in others} != set(pids) and len(others) < 64:
                others.append(asked(plane, clients, pids))
            living = [client for client, pid in others if pid != holder]
            assert living
            assert not busy.came.acquire(timeout=0.3)
            os.kill(holder, signal.SIGKILL)
            with pytest.raises((ConnectionError, Ended)):
                first.answer()
            for _ in [first, *living]:  # the thread of the connection that was cut is let, too
                busy.let.release()
            assert [client.answer().status for client in living] == [200] * len(living)
            assert busy.most == 1


def asked(plane: Dataplane, clients: contextlib.ExitStack, pids: list[int]) -> tuple[Client, int]:
    """A client whose request was sent, and the pid of the worker that has its connection."""
    client = clients.enter_context(Client(plane.address()[1]))
    client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n")
    port = client.sock.getsockname()[1]
    held = eventually(lambda: [pid for pid in pids if holds_connection_to(pid, port)])
    return client, held[0]


def holds_connection_to(pid: int, port: int) -> bool:
    """Whether a process has a connection to this port of 127.0.0.1 (root may look)."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[2] == f"0100007F:{port:04X}":
            inodes.add(f"socket:[{words[9]}]")
    folder = Path(f"/proc/{pid}/fd")
    for link in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            if os.readlink(link) in inodes:
                return True
    return False


def test_a_unix_socket_upstream_is_reached_through_the_seal(plane: Dataplane) -> None:
    path = plane.folder / "u.sock"
    with Upstream(echo, address=str(path)):
        plane.configure(config(f"unix:{path}"))
        plane.start()
        assert [get(plane)[0] for _ in range(3)] == [200, 200, 200]
        assert plane.report()["generations"][0]["seal"]["unix"] is True
    path.unlink()


def test_an_app_without_one_says_so_in_its_seal(plane: Dataplane, served: Upstream) -> None:
    plane.configure(config(f"127.0.0.1:{served.port}"))
    plane.start()
    assert plane.report(APP)["generations"][0]["seal"]["unix"] is False
