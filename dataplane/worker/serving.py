"""A worker that is ready: what the supervisor may ask of it, and how it carries that out.

It may be told to serve, to take connections, to give them away and to end: nothing else, by nobody.
Without a supervisor it goes on with what it was told last, and waits for the next one.

While it serves and nothing else is under way, the engine waits for the loop, and not the loop for
the engine: a batch of events then costs no step of Python, and whatever the loop has to do ends
the waiting at once. At all other times, and where the loop does not tell its descriptor, the loop
watches the engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import itertools
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from dataplane.control import messages
from dataplane.control.channel import Envelope, Heard, Line, receive_packet
from dataplane.control.move import Gave, Giver, Step, Taker, percentiles
from dataplane.engine.engine import NOTE_AGAIN, NOTE_EMPTY, NOTE_EVENTS, NOTE_MOVABLE, Engine
from dataplane.model.errors import ControlError
from dataplane.system.process import ended
from dataplane.system.sockets import peer_credentials
from dataplane.worker.birth import Birth
from dataplane.worker.faults import Faults
from dataplane.worker.moving import MovingEngine

# Batches of events in one turn, so that a message is never kept waiting by traffic.
TURN_ROUNDS: Final = 16
# A descriptor's callback may leave callbacks behind, which no descriptor tells of: they have so
# many passes of the loop before the engine waits, which it does for a second at most.
LOOP_PASSES: Final = 4
# A supervisor that connects says at once what it wants.
ASK_SECONDS: Final = 5.0


class State(enum.Enum):
    """Where a worker stands; `Identity` tells it in these words."""

    READY = "ready"  # sealed, not told to serve yet
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"  # all is said; the process ends


class Worker:
    """Mutable: its state, the line that counts, and the drain that is under way."""

    def __init__(
        self,
        birth: Birth,
        seal: messages.Seal,
        engine: Engine,
        faults: Faults,
        settle: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        fail: Callable[[BaseException], None],
    ) -> None:
        """`settle` is called once, when it begins to serve: its start is over then.

        `fail` is told what makes it impossible to go on; it stops the loop.
        """
        self._birth, self._seal = birth, seal
        self._fork = birth.fork
        self._engine = engine
        self._moving = MovingEngine(engine, self._turn_soon)
        self._faults = faults
        self._settle = settle
        self._own_uid = os.geteuid()
        self._state = State.READY
        self._line: Line | None = None
        self._batches = itertools.count(1)  # of all that is given and taken
        self._giver: Giver | None = None
        self._drain_over = asyncio.Event()
        self._drain_limit: asyncio.Timeout | None = None
        # No TaskGroup: the task that would hold it is one more thing that each idle worker keeps.
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn_due = False
        self._loop = loop
        self._others_fd = _backend_fd(loop)
        self._stays = False
        self._fail = fail

    def start(self, sock: socket.socket, control: socket.socket) -> None:
        """Begins to obey; stops the loop when it is over.

        `sock` is the supervisor's channel; at `control`, which listens, the next one will ask.
        """
        self._loop.add_reader(self._engine.fd, self.turn)
        self._loop.add_reader(control.fileno(), self._accept, control)
        self._line = Line(sock, self._hear, self._loop)

    def turn(self) -> None:
        """Has the engine handle what is ready."""
        notes = self._engine.turn(TURN_ROUNDS)
        if notes & NOTE_AGAIN:
            self._turn_soon()
        self._heed(notes)

    def _heed(self, notes: int) -> None:
        if notes & NOTE_EVENTS:
            self._tell_events()
        if self._state is State.DRAINING:
            if notes & NOTE_MOVABLE and self._giver is not None:
                self._giver.more()
            if notes & NOTE_EMPTY:
                self._end_drain()

    def _tell_events(self) -> None:
        for event in self._engine.events():
            if self._fork.shared:
                self._tell(
                    messages.UpstreamChanged(
                        kind=event.kind, upstream=event.upstream, endpoint=event.endpoint
                    )
                )

    def _turn_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn_again)

    def _turn_again(self) -> None:
        self._turn_due = False
        self.turn()

    def _stay_or_watch(self) -> None:
        """After what decides it has changed."""
        stays = (
            self._state is State.SERVING
            and not self._tasks  # they have timers, which no descriptor tells of
            and not self._faults.stops_turning
            and self._others_fd is not None
        )
        if stays and not self._stays:
            self._loop.remove_reader(self._engine.fd)
            self._loop.call_soon(self._stay, LOOP_PASSES)
        elif self._stays and not stays and not self._faults.stops_turning:
            self._loop.add_reader(self._engine.fd, self.turn)
        self._stays = stays

    def _stay(self, passes: int) -> None:
        """The engine waits, once the loop has passed over what it had to do so many times."""
        if not self._stays or self._others_fd is None:
            return
        if passes == 0:
            self._heed(self._engine.stay(self._others_fd))
            passes = LOOP_PASSES
        self._loop.call_soon(self._stay, passes - 1)

    def _start(self, life: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._task_over)
        self._stay_or_watch()

    def _task_over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._stay_or_watch()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # --- the supervisor --------------------------------------------------------------------------

    def _hear(self, heard: Heard) -> None:
        """From the line that counts. Without it, all goes on as it was told last."""
        if isinstance(heard, Envelope):
            try:
                self._do(heard)
            except ControlError as error:
                _log("worker.not_obeyed", error=str(error))
            return
        if heard is not None:
            _log("worker.line_broke", error=str(heard))
        self._line = None
        if self._state is State.READY:
            # Nobody is left who would say `Serve`: the next supervisor makes what it needs itself.
            self._state = State.GONE
            self._loop.stop()

    def _do(self, envelope: Envelope) -> None:
        if self._state is State.GONE:
            envelope.close_fds()
            return
        match envelope.message:
            case messages.Serve():
                is_first = self._state is State.READY
                self._go_on()
                if is_first:
                    self._settle()
                self._tell(messages.Serving())
            case messages.Receive(slot=slot) if len(envelope.fds) == 2:
                self._tell(messages.Receiving(slot=slot))
                self._start(self._receive(slot, *envelope.fds))
            case messages.Drain(deadline_ms=deadline_ms) if len(envelope.fds) in (0, 2):
                if self._state is State.DRAINING:
                    envelope.close_fds()
                    raise ControlError("Drain while draining")
                self._begin_drain()
                self._start(self._drain(deadline_ms / 1000, envelope.fds, self._drain_over))
            case messages.End():
                if self._state is not State.DRAINING:
                    self._begin_drain()
                self._engine.reset_all()
                self._drained()
            case messages.Ask():
                self._tell(self._identity())
            case messages.Adopt():
                self._tell(*self._birth.holdings(os.getpid(), self._seal))
            case other:
                envelope.close_fds()
                raise ControlError(f"{type(other).__name__} with {len(envelope.fds)} descriptors")

    def _tell(self, message: messages.Message, fds: Sequence[int] = ()) -> None:
        """To the supervisor, if there is one. The next one asks for what it needs to know."""
        if self._line is None:
            return
        try:
            self._line.send(message, fds)
        except ControlError as error:
            _log("worker.untold", message=type(message).__name__, error=str(error))

    def _accept(self, control: socket.socket) -> None:
        try:
            sock, _ = control.accept()
        except OSError:
            return  # whoever it was has gone again
        # The socket's file is its owner's alone; this holds where the file was opened wider.
        if peer_credentials(sock)[1] not in (0, self._own_uid):
            sock.close()
            return
        self._start(self._answer(sock))

    async def _answer(self, sock: socket.socket) -> None:
        """A connection to the control socket: after `Ask`, it is the supervisor's line."""
        sock.setblocking(False)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                packet = await receive_packet(sock, messages.MESSAGE_LIMIT)
            if packet is None or packet.fds or packet.truncated:
                raise ControlError("it did not ask")
            if not isinstance(messages.decode_message(packet.data), messages.Ask):
                raise ControlError("it did not ask")
        except (ControlError, OSError, TimeoutError) as error:
            _log("worker.not_asked", error=str(error))
            sock.close()
            return
        if self._line is not None:
            self._line.close()
        self._line = Line(sock, self._hear, self._loop)
        self._tell(self._identity())

    def _identity(self) -> messages.Identity:
        return messages.Identity(
            pid=os.getpid(),
            app=self._fork.app,
            generation=self._fork.generation,
            slot=self._fork.slot,
            image=self._fork.image,
            state=self._state.value,
            listeners=self._fork.listeners,
        )

    # --- serving, draining, moving ---------------------------------------------------------------

    def _go_on(self) -> None:
        """Accepts, from whatever state; a drain is over."""
        draining = self._state is State.DRAINING
        self._state = State.SERVING
        if draining:
            self._end_drain()
            if self._drain_limit is not None:
                # A batch that is open is settled by green's word or death, however late.
                self._drain_limit.reschedule(None)
        self._engine.serve()
        if self._faults.stops_turning:
            self._loop.remove_reader(self._engine.fd)
        self._stay_or_watch()

    def _begin_drain(self) -> None:
        """Accepts no more, and counts what becomes of each connection from now on."""
        self._state = State.DRAINING
        self._stay_or_watch()
        self._drain_over = asyncio.Event()
        self._drain_limit = None
        self._engine.pause()
        self._engine.drain()

    def _end_drain(self) -> None:
        self._drain_over.set()
        if self._giver is not None:
            self._giver.stop()

    async def _drain(self, seconds: float, peer: tuple[int, ...], over: asyncio.Event) -> None:
        """From `Drain` to `Drained`, or to the `Serve` that takes it back."""

        def counts() -> bool:
            """Not taken back, and no later drain has begun while a batch was still to settle."""
            return self._state is State.DRAINING and self._drain_over is over

        try:
            async with asyncio.timeout(seconds) as self._drain_limit:
                gave = Gave.REFUSED if not peer else await self._give(peer, over)
                if counts() and gave is Gave.REFUSED:
                    self._engine.close_idle()
                if counts() and gave is Gave.PEER_GONE and self._line is None:
                    self._go_on()  # no successor, and nobody to say so
                # What waits for nothing has no event that would make the engine look at it.
                self._loop.call_soon(self.turn)
                await over.wait()
        except TimeoutError:
            if counts():
                self._engine.reset_all()
        if counts():
            self._drained()

    async def _give(self, peer: tuple[int, ...], over: asyncio.Event) -> Gave:
        """Gives green what may move, until nothing is left or nobody takes it."""
        move_fd, pidfd = peer
        gone = functools.partial(ended, pidfd)
        with socket.socket(fileno=move_fd) as sock:
            sock.setblocking(False)
            giver = Giver(self._moving, sock, gone, self._batches, self._step("blue"))
            self._giver = giver
            if over.is_set():
                giver.stop()
            self._loop.call_soon(self.turn)
            try:
                return await giver.run()
            finally:
                if self._giver is giver:
                    self._giver = None
                os.close(pidfd)

    async def _receive(self, slot: int, move_fd: int, pidfd: int) -> None:
        """Takes what blue gives, until it ends its side; then says how that went."""
        gone = functools.partial(ended, pidfd)
        step = self._step("green")
        with socket.socket(fileno=move_fd) as sock:
            sock.setblocking(False)
            try:
                await step("receiving")
                took = await Taker(self._moving, sock, gone, self._batches, step).run()
            finally:
                os.close(pidfd)
        self._tell(
            messages.Received(
                slot=slot,
                started=took.started,
                declined=took.declined,
                stall_us=percentiles(took.stall_us),
            )
        )

    def _drained(self) -> None:
        """The last word, and the end."""
        self._state = State.GONE
        tally = self._engine.tally()
        self._tell(
            messages.Drained(
                connections=messages.DrainCounts(
                    moved_idle=tally.moved_idle,
                    moved_after_request=tally.moved_after_request,
                    finished=tally.finished,
                    closed=tally.closed,
                    reset=tally.reset,
                    moved_streaming=tally.moved_streaming,
                    moved_tunnel=tally.moved_tunnel,
                    declined=tally.declined,
                )
            )
        )
        self._loop.stop()

    def _step(self, side: str) -> Step:
        return lambda name: self._faults.step(f"{side}:{name}")


def _backend_fd(loop: asyncio.AbstractEventLoop) -> int | None:
    """The descriptor that is readable when the loop has something to do, where it tells that."""
    told: Callable[[], int] | None = getattr(loop, "_get_backend_id", None)
    return None if told is None else told()


def _log(event: str, **fields: str) -> None:
    told = " ".join(f"{name}={value!r}" for name, value in fields.items())
    with contextlib.suppress(OSError):  # a log whose disk is full must stop nobody
        print(f"{event} {told}", file=sys.stderr, flush=True)
