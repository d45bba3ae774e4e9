"""One proxy under one work: is what it answers right, and what does an answer cost it?"""

from __future__ import annotations

import http.client
import os
import re
import time
from dataclasses import dataclass
from typing import Final

import rig
from peers import LOAD_CPU, PROXY_CPU, Peer
from works import Protocol, Work

CHECKED_BYTES: Final = 64 * 1024 * 1024  # of bodies, but no more than so many requests
CHECKED_REQUESTS: Final = 2000
LOG_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One peer under load once."""

    requests: int
    seconds: float
    cpu_us: float  # a request
    per_second: float
    bytes_per_second: float  # of bodies, both ways
    p50_us: float
    p99_us: float
    p999_us: float
    held: float  # the share of what was due that was sent and answered; 1 without a rate
    own_share: float  # of the proxy's CPU, by the scheduler's own count
    busy_share: float  # of the same, by the kernel's ticks: must agree with the one above


def check(peer: Peer, work: Work) -> str | None:
    """What is wrong with the peer's answers; a fast wrong answer must not win."""
    size = max(work.answer, work.upload)
    count = max(work.connections, min(CHECKED_REQUESTS, CHECKED_BYTES // size))
    words = ("--verify-body", "--requests", str(count))
    report = rig.load(peer.port, *work.load_options(), *words, cpu=LOAD_CPU)
    if report["failed"] or report["ok"] < count:
        return f"{report['failures']} {report['first_failures'][:1]}"
    if work.protocol is Protocol.HTTP and peer.name != "floor" and not _adds_client(peer.port):
        return "does not tell the upstream x-forwarded-for"
    if peer.logs and not _is_logged(peer, count):
        return "does not log its requests"
    return None


def _adds_client(port: int) -> bool:
    """Whether the upstream is told the client's address: work that all must do alike."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/head")
        head = connection.getresponse().read().decode("latin-1").lower()
    finally:
        connection.close()
    return re.search(r"^x-forwarded-for: [0-9]", head, re.MULTILINE) is not None


def _is_logged(peer: Peer, lines: int) -> bool:
    deadline = time.monotonic() + LOG_SECONDS
    while time.monotonic() < deadline:
        if all(log.exists() and log.read_bytes().count(b"\n") >= lines for log in peer.logs):
            return True
        time.sleep(0.05)
    return False


def measure(peer: Peer, work: Work, seconds: float, *options: str) -> Round:
    """The peer under load for so long. Raises `rig.RunFailed` if an answer is wrong."""
    counted = [*rig.tree(peer.root_pid), *rig.ksoftirqd(PROXY_CPU)]
    words = ["--no-token", "--ms", str(round(seconds * 1000)), *options]
    if work.rate is not None:
        words += ["--rate", str(work.rate)]
    busy, spent = rig.busy_seconds(PROXY_CPU), rig.cpu_ns(counted)
    began = time.monotonic()
    told = rig.load(peer.port, *work.load_options(), *words, cpu=LOAD_CPU)
    took = time.monotonic() - began
    spent = rig.cpu_ns(counted) - spent
    busy = rig.busy_seconds(PROXY_CPU) - busy
    for log in peer.logs:
        if log.exists():
            os.truncate(log, 0)
    if told["failed"] or not told["ok"]:
        raise rig.RunFailed(f"{peer.name}: {told['failures']} {told['first_failures'][:1]}")
    latency = told["latency_us"]
    return Round(
        requests=told["ok"],
        seconds=told["seconds"],
        cpu_us=spent / 1e3 / told["ok"],
        per_second=told["requests_per_second"],
        bytes_per_second=(told["bytes_in"] + told["bytes_out"]) / told["seconds"],
        p50_us=latency["p50"],
        p99_us=latency["p99"],
        p999_us=latency["p999"],
        held=told["ok"] / (told["ok"] + told["unsent"]),
        own_share=spent / 1e9 / took,
        busy_share=busy / took,
    )


def idle_bytes(peer: Peer, connections: int) -> float:
    """User-space memory of one idle kept-alive connection, in bytes (PSS of all its processes).

    Raises `rig.RunFailed` where memory cannot be read or a connection breaks.
    """
    words = ("--mode", "idle", "--sources", str(connections))
    # Its pools, and what it makes at first use, are there before the first look.
    rig.load(peer.port, "--requests", "500", "--connections", "100", cpu=LOAD_CPU)
    before = _pss(peer)
    idle = (*words, "--connections", str(connections))
    with rig.Load(peer.port, *idle, cpu=LOAD_CPU) as load:
        told = load.event("round")
        if told["failed"] or told["open"] != connections:
            raise rig.RunFailed(f"{peer.name} keeps {told['open']} of {connections} connections")
        time.sleep(0.2)  # what is given back late is given back
        after = _pss(peer)
        load.say("stop")
        load.report()
    return (after - before) * 1024 / connections


def _pss(peer: Peer) -> int:
    return sum(rig.memory_kb(pid)["Pss"] for pid in rig.tree(peer.root_pid))
