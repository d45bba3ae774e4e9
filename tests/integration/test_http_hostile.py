"""Hostile peers, one behaviour each: it stays theirs, and the next one notices nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest

from tests.support.client import Client
from tests.support.engine import Proxy
from tests.support.hostile import CLIENTS, UPSTREAMS, Act, Outcome, play, playing
from tests.support.upstream import Ended, Peer, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]


@pytest.mark.parametrize("name", UPSTREAMS)
def test_a_hostile_upstream_harms_only_the_answer_it_gave(
    name: str, proxy: START, upstream: SERVE
) -> None:
    """The client gets that answer, a 502, or one that is visibly cut; others get their own."""
    behaviour = UPSTREAMS[name]
    answered = threading.Event()
    served = upstream(playing(behaviour, answered))
    running = proxy(served.port)
    client = running.client()
    client.send(f"{behaviour.method} /first HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    to_head = behaviour.method == "HEAD"
    if behaviour.outcome is Outcome.CUT:
        assert not comes_whole(client)
    else:
        answer = client.answer(to_head=to_head, after_interim=True)
        wanted = 502 if behaviour.outcome is Outcome.REFUSED else behaviour.status
        assert answer.status == wanted
        assert wanted == 502 or answer.body == behaviour.body
    answered.set()
    if Act.WAIT in behaviour.steps:  # what comes unasked ends the connection that it came on
        running.until(lambda stats: stats["upstream_connections"] == 0)
    for path in ("/second", "/third"):
        with running.client() as other:
            assert other.get(path).body == f"GET {path} HTTP/1.1".encode()
    client.close()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_hostile_client_gets_its_answers_and_nothing_else_arrives(
    name: str, proxy: START, upstream: SERVE
) -> None:
    behaviour = CLIENTS[name]
    arrived: list[str] = []

    def script(peer: Peer) -> None:
        while True:
            head, _ = peer.request()
            arrived.append(head.line)
            peer.answer()

    running = proxy(upstream(script).port, headers=100, header_bytes=16 * 1024)
    client = running.client()
    with contextlib.suppress(ConnectionError):  # refused while it still sends
        play(client, behaviour.steps)
    assert statuses(client, len(behaviour.answers)) == behaviour.answers
    client.close()
    running.until(lambda stats: stats["connections"] == 0)
    assert tuple(arrived) == behaviour.arrives
    with running.client() as other:
        assert other.get("/other").body == b"ok"
    assert arrived[len(behaviour.arrives) :] == ["GET /other HTTP/1.1"]


def comes_whole(client: Client) -> bool:
    """Whether there is a whole answer; a refusal, where the fault came with the head, is none."""
    try:
        return client.answer().status != 502
    except (Ended, ConnectionResetError):
        return False


def statuses(client: Client, count: int) -> tuple[int, ...]:
    found = []
    for _ in range(count):
        while (head := client.head()).line.startswith("HTTP/1.1 1"):
            pass
        client.body(head)
        found.append(int(head.line.split(" ")[1]))
    return tuple(found)
