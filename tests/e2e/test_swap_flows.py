"""What carries bytes lives through swaps: tunnels, WebSockets, downloads, event streams."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.client import Client
from tests.support.dataplane import Dataplane, Json, app_config, tcp_config
from tests.support.flood import Listener, Speaker
from tests.support.upstream import Peer, Upstream

SWAPS: Final = 20
WHOLE: Final = 64 * 1024 * 1024
BLOCK: Final = bytes(range(256)) * 256

ASK: Final = (
    b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)
SWITCH: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode()


class Origin:
    """The upstream of all of them. Mutable: what it has begun to say, and whether it is to end."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.floods: queue.SimpleQueue[tuple[Speaker, Listener]] = queue.SimpleQueue()
        self.events = 0

    def http(self, peer: Peer) -> None:
        peer.sock.settimeout(None)  # an idle connection of a pool may wait as long as the test
        head, _ = peer.request()
        if "/chat" in head.line:
            peer.send(SWITCH)
            self.both(peer)
        elif "/events" in head.line:
            self.tell(peer)
        elif "/download" in head.line:
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % WHOLE)
            for _ in range(WHOLE // len(BLOCK)):
                peer.send(BLOCK)
            self.http(peer)
        else:
            peer.answer(b"ok")
            self.http(peer)

    def both(self, peer: Peer) -> None:
        """Much in both directions at once."""
        self.floods.put((Speaker(peer, 1), Listener(peer)))
        assert self.over.wait(120)

    def tell(self, peer: Peer) -> None:
        peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        while not self.over.wait(0.002):
            event = b"data: %d\n\n" % self.events
            peer.send(b"%x\r\n" % len(event) + event + b"\r\n")
            self.events += 1
        peer.send(b"0\r\n\r\n")


def config(mark: str, api: int, raw: int) -> Json:
    told = app_config(api, mark=mark)
    other = tcp_config(raw)
    listener = {**other["listeners"][0], "name": "raw"}
    return {
        **told,
        "listeners": [*told["listeners"], listener],
        "upstreams": {**told["upstreams"], **other["upstreams"]},
        "drain": {"deadline": "20s"},
    }


@contextlib.contextmanager
def running(plane: Dataplane, origin: Origin, **more: object) -> Iterator[tuple[str, str]]:
    """An app before it, and its two images."""
    with Upstream(origin.http) as api, Upstream(origin.both) as raw:
        green = plane.build({**config("green", api.port, raw.port), **more})
        plane.configure({**config("blue", api.port, raw.port), **more})
        plane.start()
        try:
            yield green, plane.report()["wanted"]
        finally:
            origin.over.set()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_that_flows_lives_through_twenty_swaps(plane: Dataplane, workers: int) -> None:
    origin = Origin()
    whole = hashlib.sha256(BLOCK * (WHOLE // len(BLOCK))).hexdigest()
    with contextlib.ExitStack() as stack:
        images = stack.enter_context(running(plane, origin, workers=workers))
        web, raw = (plane.address(listener=name)[1] for name in ("web", "raw"))
        tunnel, chat, events, download, idle = (
            stack.enter_context(Client(port)) for port in (raw, web, web, web, web)
        )
        assert idle.get().status == 200
        chat.send(ASK)
        assert chat.head().line == "HTTP/1.1 101 Switching Protocols"
        pairs = [origin.floods.get(timeout=10) for _ in range(2)]
        mine = [(Speaker(one, 2), Listener(one)) for one in (tunnel, chat)]
        events.send(get("/events"))
        events.head()
        told: list[bytes] = []
        reader = threading.Thread(target=lambda: told.append(events.chunked()))
        reader.start()
        download.send(get("/download"))
        assert int(download.head().get("content-length") or 0) == WHOLE
        got = hashlib.sha256()

        def take(count: int) -> None:
            got.update(download.exactly(count))

        ledgers = []
        for number in range(SWAPS):
            before = [heard.got for _, heard in (*pairs, *mine)]
            take(WHOLE // SWAPS // 2)
            ledgers.append(plane.swap(images[number % 2]))
            take(WHOLE // SWAPS // 2)
            for (_, heard), at in zip((*pairs, *mine), before, strict=True):
                while heard.got == at:
                    assert heard.failure is None, heard.failure
                    threading.Event().wait(0.001)
        take(WHOLE - SWAPS * 2 * (WHOLE // SWAPS // 2))
        assert got.hexdigest() == whole
        speakers = [speaker.digest() for speaker, _ in (*pairs, *mine)]
        hearers = [heard.digest() for _, heard in (*mine, *pairs)]
        assert sorted(speakers) == sorted(hearers)
        origin.over.set()
        reader.join(10)
        wanted = b"".join(b"data: %d\n\n" % number for number in range(origin.events))
        assert told == [wanted]
        for one in (idle, download):
            assert one.get().status == 200
    counts: Counter[str] = Counter()
    for ledger in ledgers:
        assert ledger["outcome"] == "swapped"
        assert ledger["declined"] == {}
        counts.update(ledger["connections"])
    assert counts["closed"] + counts["reset"] + counts["finished"] == 0
    assert counts["moved_tunnel"] == 2 * SWAPS
    # The download's last part waits in the kernel, and its connection is between requests.
    assert SWAPS * 3 // 2 < counts["moved_streaming"] <= SWAPS * 2
    assert sum(counts[name] for name in counts if name.startswith("moved_")) == 5 * SWAPS
    drains = sorted(ledger["ms"]["drain"] for ledger in ledgers)
    assert drains[len(drains) // 2] < 1_000, drains


def test_a_tunnel_whose_upstream_is_gone_flows_on_at_blue_and_the_ledger_says_why(
    plane: Dataplane,
) -> None:
    origin = Origin()
    with running(plane, origin):
        with Client(plane.address(listener="raw")[1]) as tunnel:
            tunnel.send(b"x")
            speaker, _ = origin.floods.get(timeout=10)
            with Upstream() as other:
                image = plane.build(config("other", other.port, other.port))
                swap = plane.later(plane.swap, image)
                plane.event("rollout.switched", image=image)
                # For far longer than its being offered and declined takes.
                assert len(tunnel.exactly(WHOLE)) == WHOLE
                spoken = plane.later(speaker.digest)
                tunnel.finish()
                tunnel.rest()
                spoken.result()
                ledger = swap.result()
        assert ledger["declined"] == {"upstream_gone": 1}
        assert ledger["connections"]["finished"] == 1
        assert ledger["connections"]["reset"] == 0
