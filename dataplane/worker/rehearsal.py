"""A worker's life, rehearsed by the zygote, so that every worker finds done what each would do.

Whatever Python learns as it runs lies in memory that forked processes share until they write to it:
how often a function was called, what its instructions have seen, names, types' methods, room in the
heap. A worker that is forked from one who has lived already writes to some hundred pages less.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import resource
import socket
import sys
import time
from collections.abc import Iterable
from typing import Final

from dataplane.control import messages
from dataplane.control.channel import BlockingChannel
from dataplane.engine.common import fill_gaps
from dataplane.model.errors import DataplaneError, LaunchError
from dataplane.model.spec import (
    AppSpec,
    EndpointSpec,
    HeaderEdits,
    LimitsSpec,
    ListenerSpec,
    MatchSpec,
    RedirectSpec,
    RespondSpec,
    RouteSpec,
    TimeoutsSpec,
    UpstreamSpec,
)
from dataplane.system.memfd import sealed_memfd, shared_memfd
from dataplane.system.memory import keep_large_apart
from dataplane.system.sandbox import PR_GET_DUMPABLE, Layer, Sandbox
from dataplane.worker.birth import Birth
from dataplane.worker.main import ENDED, Life

# Python 3.11 counts eight calls of a function before it looks at what its instructions do, and some
# more until it has made up its mind.
TIMES: Final = 16
_PAGES_BYTES: Final = 64 * 1024  # of counters; of what workers share, which nobody has laid out


def rehearse() -> None:
    """Leaves nothing behind but what was learnt: no loop, no thread, no descriptor.

    But for libuv's own pipe, which it keeps for signals that we leave to Python. It makes it anew
    after each fork, and a worker closes it with all else that it does not need.

    Where it cannot be done, it is said: workers are only larger then.
    """
    keep_large_apart()
    messages.learn_messages()
    sandbox = _NoSandbox()
    try:
        for _ in range(TIMES):
            _live_once(sandbox)
            gc.collect()
    except (DataplaneError, OSError) as error:
        print(f"zygote.not_rehearsed error={error!s}", file=sys.stderr, flush=True)
    # For good, in workers too: the collector writes to what it looks at, and may pause for longer
    # than a turn. A worker makes a few objects for each message, and none for traffic.
    gc.freeze()
    gc.disable()
    fill_gaps()


def _live_once(sandbox: Sandbox) -> None:
    """From the fork's descriptors to the last word, as a supervisor would have it."""
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor = BlockingChannel(stack.enter_context(ours))
        listener = stack.enter_context(_bound(socket.SOCK_STREAM))
        listener.listen(1)
        spec = sealed_memfd("rehearsal", _SPEC.to_json())
        stack.callback(os.close, spec)
        life = Life(
            Birth(
                fork=_FORK,
                spec_fd=spec,
                stats_fd=shared_memfd("rehearsal", _PAGES_BYTES),
                channel_fd=theirs.detach(),
                control_fd=_bound(socket.SOCK_SEQPACKET).detach(),
                shared_fd=shared_memfd("rehearsal", _PAGES_BYTES),
                listener_fds=(listener.fileno(),),
                log_fd=None,
                inputs_fd=None,
                born=time.monotonic(),
            ),
            sandbox,
            (),
            None,
        )
        stack.callback(life.close)
        for word in (messages.Serve(), messages.Ask(), messages.Adopt(), messages.End()):
            supervisor.send(word)
        if life.run() != ENDED:
            raise LaunchError(_told(supervisor))


def _told(supervisor: BlockingChannel) -> str:
    envelope = supervisor.receive()
    told = None if envelope is None else envelope.message
    return told.error if isinstance(told, messages.Failed) else "it ended without a word"


def _bound(kind: socket.SocketKind) -> socket.socket:
    """A UNIX socket under a name that the kernel chooses and nobody knows (unix(7), autobind)."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind("")
    return sock


class _NoSandbox(Sandbox):
    """Goes through it all, takes nothing from the process and has nothing to say of it."""

    def landlock(self, connect_ports: Iterable[int]) -> tuple[int, Layer]:
        abi, layer = super().landlock(connect_ports)
        return abi, dataclasses.replace(layer, reason=None)

    def filter_calls(self, own_pid: int, *, unix: bool = False) -> Layer:
        return dataclasses.replace(super().filter_calls(own_pid, unix=unix), reason=None)

    def _prctl(self, option: int, value: int = 0) -> int:
        super()._prctl(PR_GET_DUMPABLE)
        return 0 if option == PR_GET_DUMPABLE else 1

    def _call(self, number: int, *arguments: int) -> int:
        assert self._machine is not None
        if number == self._machine.calls["landlock_create_ruleset"]:
            return super()._call(number, *arguments)
        return 0

    def _limit(self, kind: int, value: int) -> None:
        resource.setrlimit(kind, resource.getrlimit(kind))


_FORK: Final = messages.Fork(
    request=0,
    app="rehearsal",
    generation=1,
    slot=0,
    image="sha256:" + "0" * 64,
    listeners=("l",),
    seal=(),
    faults=(),
    shared=True,
)

# A spec with one of everything: what a worker builds, rehearsed.
_MATCH: Final = MatchSpec(host="a", path="/", methods=("GET",), headers=(("b", "c"),))
_EDITS: Final = HeaderEdits(set=(("d", "e"),), remove=("f",))
_ROUTE: Final = RouteSpec(
    match=_MATCH,
    upstream="u",
    redirect=None,
    respond=None,
    request_timeout_ms=1,
    request_headers=_EDITS,
    response_headers=_EDITS,
)
_SPEC: Final = AppSpec(
    version=1,
    app="sample",
    listeners=(ListenerSpec(name="l", bind="127.0.0.1:0", protocol="http", upstream=None),),
    routes=(
        _ROUTE,
        dataclasses.replace(_ROUTE, upstream=None, respond=RespondSpec(status=200, body="g")),
        dataclasses.replace(_ROUTE, upstream=None, redirect=RedirectSpec(to="/h", status=308)),
    ),
    upstreams=(
        UpstreamSpec(
            name="u",
            balance="round_robin",
            endpoints=(EndpointSpec(address="127.0.0.1", port=1),),
            connect_timeout_ms=1,
            keepalive=1,
        ),
    ),
    timeouts=TimeoutsSpec(header_ms=1, body_idle_ms=1, idle_ms=1, tunnel_idle_ms=1),
    limits=LimitsSpec(connections=1, header_bytes=8192, headers=10, body_bytes=0),
    drain_deadline_ms=1,
    ready_deadline_ms=1,
    workers=1,
)
