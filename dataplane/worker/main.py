"""A worker from the fork to its end: the order in which it is built, sealed and let loose.

The order is the point (see `dataplane.system.sandbox`). Nothing after the seal may need a file, a
name, a thread or an import.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import uvloop

from dataplane.control.messages import Failed, Ready, Seal, encode_message
from dataplane.engine.common import CommonMemory, open_pagemap
from dataplane.engine.engine import AccessLog, Engine
from dataplane.model.errors import ControlError, DataplaneError
from dataplane.model.inputs import MAX_INPUTS_BYTES, NO_INPUTS, Inputs, InputsError, filled
from dataplane.model.spec import AppSpec, SpecError
from dataplane.system.fds import close_fds
from dataplane.system.memfd import read_sealed
from dataplane.system.memory import give_back_empty_pages
from dataplane.system.once import look_into
from dataplane.system.process import set_name, worker_name
from dataplane.system.sandbox import Layer, Sandbox
from dataplane.worker.birth import Birth
from dataplane.worker.faults import Faults
from dataplane.worker.first_look import compare_upstreams
from dataplane.worker.probe import Probe
from dataplane.worker.serving import Worker

TICK_MS = 1000  # how often an idle worker shows that it lives
CONTROL_BACKLOG = 8

ENDED = 0
FAILED = 1


def live(
    birth: Birth, sandbox: Sandbox, layers: tuple[Layer, ...], common: CommonMemory | None
) -> int:
    """A worker's whole life. Returns its exit status. `layers` are on already, by inheritance.

    What is made here is not closed: the process ends with it, and the kernel clears it away.
    """
    fork = birth.fork
    set_name(worker_name(fork.app, str(fork.generation), str(fork.slot)))
    return Life(birth, sandbox, layers, common).run()


class Life:
    """A worker from its event loop to its last word. Mutable: the engine, once it is built."""

    def __init__(
        self,
        birth: Birth,
        sandbox: Sandbox,
        layers: tuple[Layer, ...],
        common: CommonMemory | None,
    ) -> None:
        self._birth = birth
        self._sandbox = sandbox
        self._layers = list(layers)
        self._common = common
        self._sock = socket.socket(fileno=birth.channel_fd)
        self._control = socket.socket(fileno=birth.control_fd)
        self._engine: Engine | None = None
        self._failures: list[BaseException] = []
        self._loop = uvloop.new_event_loop()
        give_back_empty_pages(self._loop)  # 256 KB for connections, which the engine has instead

    def run(self) -> int:
        """Returns the exit status, with the reason told to the supervisor."""
        self._loop.set_exception_handler(self._callback_failed)
        # In the running loop: as it begins to run it makes descriptors, which the seal forbids.
        self._loop.call_soon(self._boot)
        self._loop.run_forever()
        if not self._failures:
            return ENDED
        error = self._failures[0]
        if not isinstance(error, DataplaneError | SpecError | InputsError):
            traceback.print_exception(error)
        _send(self._sock, Failed(error=_text(error)))
        return FAILED

    def close(self) -> None:
        """Frees it all, for a process that goes on."""
        if self._engine is not None:
            self._engine.close()
        stats, shared = self._birth.stats_fd, self._birth.shared_fd
        close_fds((stats,) if shared is None else (stats, shared))
        for sock in (self._sock, self._control):
            sock.close()
        self._loop.close()

    def _fail(self, error: BaseException) -> None:
        self._failures.append(error)
        self._loop.stop()

    def _callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._fail(context.get("exception") or ControlError(str(context.get("message"))))

    def _boot(self) -> None:
        birth = self._birth
        give_back = _giving_back(self._common)
        self._control.setblocking(False)
        self._control.listen(CONTROL_BACKLOG)  # by ourselves: a peer is told who called it
        faults = Faults(birth.fork.faults)
        # What is served, with secrets in it; the sealed one names them only.
        spec = filled(AppSpec.from_json(read_sealed(birth.spec_fd)), _inputs(birth))
        engine = self._engine = _engine(birth, spec)
        # What it was born with stays open: the next supervisor is lent it, and the sealed spec
        # shows to who looks what this worker was given.
        probe = Probe(spec)
        seal = seal_process(spec, birth.fork.seal, self._sandbox, self._layers)
        probe.run(engine)
        if spec.upstreams_on_rollout == "regress":
            compare_upstreams(spec, engine)
        faults.before_ready()
        born_ms = (time.monotonic() - birth.born) * 1000
        _send(self._sock, Ready(pid=os.getpid(), seal=seal, born_ms=born_ms))
        faults.after_ready()
        worker = Worker(birth, seal, engine, faults, give_back, self._loop, self._fail)
        worker.start(self._sock, self._control)


def _giving_back(common: CommonMemory | None) -> Callable[[], None]:
    """Gives back, once, what this process made its own by starting, and need not keep."""
    pagemap = None
    if common is not None:
        with contextlib.suppress(OSError):  # a kernel without it
            pagemap = open_pagemap()

    def give_back() -> None:
        if common is not None and pagemap is not None:
            with contextlib.suppress(OSError):
                common.give_back(pagemap)
            os.close(pagemap)

    return give_back


def _inputs(birth: Birth) -> Inputs:
    if birth.inputs_fd is None:
        return NO_INPUTS
    # It stays open and whole: the next supervisor needs it for a restart after a crash.
    held = socket.socket(fileno=birth.inputs_fd)
    try:
        return Inputs.from_json(look_into(held, MAX_INPUTS_BYTES))
    finally:
        held.detach()


def _engine(birth: Birth, spec: AppSpec) -> Engine:
    stats = mmap.mmap(birth.stats_fd, 0)
    shared = None
    if birth.shared_fd is not None:
        shared = mmap.mmap(birth.shared_fd, os.fstat(birth.shared_fd).st_size)
    log = None
    if birth.log_fd is not None:
        fork = birth.fork
        log = AccessLog(fd=birth.log_fd, generation=fork.generation, image=fork.image)
    engine = Engine(spec, stats=stats, seed=_seed(), tick_ms=TICK_MS, shared=shared, log=log)
    for name, fd in zip(birth.fork.listeners, birth.listener_fds, strict=True):
        engine.attach(name, fd)
    return engine


def seal_process(
    spec: AppSpec, left_out: tuple[str, ...], sandbox: Sandbox, layers: list[Layer]
) -> Seal:
    """Takes from this process what serving does not need; adds each layer to `layers`.

    `left_out` names layers that a test wants off.
    """
    sandbox.limit_resources(descriptors_needed(spec))
    endpoints = [endpoint for upstream in spec.upstreams for endpoint in upstream.endpoints]
    unix = any(not endpoint.port for endpoint in endpoints)
    undumpable, no_new_privileges = sandbox.undump(), sandbox.no_new_privileges()
    layers += [undumpable, no_new_privileges]
    landlock_abi = 0
    if "landlock" not in left_out:
        ports = {endpoint.port for endpoint in endpoints if endpoint.port}
        landlock_abi, layer = sandbox.landlock(ports)
        layers.append(layer)
    seccomp = False
    if "seccomp" not in left_out:
        layer = sandbox.filter_calls(os.getpid(), unix=unix)
        layers.append(layer)
        seccomp = layer.on
    for layer in layers:
        if layer.reason is not None:
            on = str(layer.on).lower()
            print(
                f"worker.seal layer={layer.name} on={on} reason={layer.reason!r}", file=sys.stderr
            )
    return Seal(
        seccomp=seccomp,
        landlock=landlock_abi,
        no_new_privs=no_new_privileges.on,
        dumpable=not undumpable.on,
        unix=unix,
    )


def descriptors_needed(spec: AppSpec) -> int:
    """How many descriptors serving can take: what the user's limit allows where there is none."""
    if not spec.limits.connections:
        return 2**20
    pools = sum(upstream.keepalive * len(upstream.endpoints) for upstream in spec.upstreams)
    # Both sides of each connection, and what the process itself and connections on their way need.
    return 2 * spec.limits.connections + pools + 1024


def _send(sock: socket.socket, message: Ready | Failed) -> None:
    """To the supervisor. Where none is there, the next one asks, or sees the exit status."""
    try:
        sock.send(encode_message(message), socket.MSG_NOSIGNAL)
    except OSError:
        pass


def _seed() -> tuple[int, int]:
    """Drawn after the fork: the zygote's would be every worker's."""
    drawn = os.getrandom(16)
    return int.from_bytes(drawn[:8], "little"), int.from_bytes(drawn[8:], "little")


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
