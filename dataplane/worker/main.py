"""A worker from the fork to its end: the order in which it is built, sealed and let loose.

The order is the point (see `dataplane.system.sandbox`). Nothing after the seal may need a file, a
name, a thread or an import.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import socket
import sys
import time
import traceback

import uvloop

from dataplane.control.channel import Channel
from dataplane.control.messages import Failed, Ready, Seal
from dataplane.engine.engine import Engine
from dataplane.model.errors import ControlError, DataplaneError
from dataplane.model.spec import AppSpec, SpecError
from dataplane.system.fds import close_fds
from dataplane.system.memfd import read_sealed
from dataplane.system.memory import give_back_empty_pages
from dataplane.system.process import set_name
from dataplane.system.sandbox import Layer, Sandbox, limit_resources
from dataplane.worker.birth import Birth
from dataplane.worker.faults import Faults
from dataplane.worker.probe import PROBE_SECONDS, Probe
from dataplane.worker.serving import Worker

TICK_MS = 1000  # how often an idle worker shows that it lives
CONTROL_BACKLOG = 8

ENDED = 0
FAILED = 1

_NAME_BYTES = 15


def live(birth: Birth, sandbox: Sandbox, layers: tuple[Layer, ...]) -> int:
    """A worker's whole life. Returns its exit status. `layers` are on already, by inheritance."""
    set_name(process_name(birth.fork.app, birth.fork.generation, birth.fork.slot))
    # Neither a Runner nor a close: the process ends with the loop, and the kernel clears it away.
    loop = uvloop.new_event_loop()
    give_back_empty_pages(loop)  # a buffer of 256 KB, for connections that the engine has instead
    return loop.run_until_complete(_live(birth, sandbox, list(layers)))


def process_name(app: str, generation: int, slot: int) -> str:
    """What ps shows. The app's name is cut where it does not fit, generation and slot never."""
    tail = f"/{generation}.{slot}"
    return f"dp:{app[: max(0, _NAME_BYTES - len('dp:') - len(tail))]}{tail}"


async def _live(birth: Birth, sandbox: Sandbox, layers: list[Layer]) -> int:
    channel = Channel(socket.socket(fileno=birth.channel_fd))
    try:
        faults = Faults(birth.fork.faults)
        control = socket.socket(fileno=birth.control_fd)
        control.setblocking(False)
        control.listen(CONTROL_BACKLOG)  # by ourselves: a peer is told who called it
        spec = AppSpec.from_json(read_sealed(birth.spec_fd))
        with (
            mmap.mmap(birth.stats_fd, mmap.PAGESIZE) as stats,
            _engine(birth, spec, stats) as engine,
        ):
            close_fds((birth.spec_fd, birth.stats_fd))
            probe = Probe(spec)
            seal = seal_process(spec, birth.fork.seal, sandbox, layers)
            worker = Worker(birth.fork, engine, faults)
            async with asyncio.timeout(PROBE_SECONDS):
                await probe.run(engine, worker.turn)
            await faults.before_ready()
            born_ms = (time.monotonic() - birth.born) * 1000
            await channel.send(Ready(pid=os.getpid(), seal=seal, born_ms=born_ms))
            faults.after_ready()
            gc.enable()  # the zygote had it off, so that what it shares with us stays as it is
            return await worker.run(channel, control)
    except Exception as error:  # noqa: BLE001 - a process's top: say it, end, be replaced
        if not isinstance(error, DataplaneError | SpecError):
            traceback.print_exc()
        try:
            await channel.send(Failed(error=_text(error)))
        except ControlError:
            pass  # nobody is there to be told
        return FAILED


def _engine(birth: Birth, spec: AppSpec, stats: mmap.mmap) -> Engine:
    engine = Engine(spec, stats=stats, seed=_seed(), tick_ms=TICK_MS)
    for name, fd in zip(birth.fork.listeners, birth.listener_fds, strict=True):
        engine.attach(name, fd)
    return engine


def seal_process(
    spec: AppSpec, left_out: tuple[str, ...], sandbox: Sandbox, layers: list[Layer]
) -> Seal:
    """Takes from this process what serving does not need; adds each layer to `layers`.

    `left_out` names layers that a test wants off.
    """
    limit_resources(descriptors_needed(spec))
    undumpable, no_new_privileges = sandbox.undump(), sandbox.no_new_privileges()
    layers += [undumpable, no_new_privileges]
    landlock_abi = 0
    if "landlock" not in left_out:
        ports = {endpoint.port for upstream in spec.upstreams for endpoint in upstream.endpoints}
        landlock_abi, layer = sandbox.landlock(ports)
        layers.append(layer)
    seccomp = False
    if "seccomp" not in left_out:
        layer = sandbox.filter_calls(os.getpid())
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
    )


def descriptors_needed(spec: AppSpec) -> int:
    """How many descriptors serving can take: what the user's limit allows where there is none."""
    if not spec.limits.connections:
        return 2**20
    pools = sum(upstream.keepalive * len(upstream.endpoints) for upstream in spec.upstreams)
    # Both sides of each connection, and what the process itself and connections on their way need.
    return 2 * spec.limits.connections + pools + 1024


def _seed() -> tuple[int, int]:
    """Drawn after the fork: the zygote's would be every worker's."""
    drawn = os.getrandom(16)
    return int.from_bytes(drawn[:8], "little"), int.from_bytes(drawn[8:], "little")


def _text(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_text(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
