"""Messages between the supervisor, zygotes and workers: one JSON object in each SEQPACKET datagram.

Every message carries the protocol's version and its type. Decoding is strict and happens here
alone: what cannot be decoded is a `ControlError`, and the channel is closed. Descriptors travel
beside a message (SCM_RIGHTS) in the order that the message's comment names.

Zygotes and workers run their image's code, so a supervisor speaks to older code for as long as that
serves, and to newer code after a rollback of its own. What that asks of a change:

- A field that is added has a plain default that means what code before it did. A field at its
  default is not sent, and one that did not come has its default: so either side understands the
  other, and `PROTOCOL` stays. Another value is an unknown field to older code. Whoever sends one
  knows that the peer's code has it: a zygote tells its code in `ZygoteHello`, and its workers run
  the same; what answers a message that only newer code sends has a reader that knows it.
- A type that is added leaves `PROTOCOL` as it is, and is sent on the same condition.
- To take a field or a type away, to rename it, or to change its values, meaning, descriptors or
  default, raises `PROTOCOL`. An image's ABI names it, so one of another version is not started but
  made anew from its own config with the installed code: its hot fix or rollback of code is lost.
- An unknown version, type or field is never passed over, because what it asked for would not be
  done: it is a `ControlError`, and the channel ends. The supervisor then replaces the zygote, or
  the worker, as if it had crashed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, Final, TypeAlias

from dataplane.model.errors import ControlError
from dataplane.model.spec import SpecError, decode, learn

PROTOCOL: Final = 1
# A datagram longer than this is refused: the longest, a ledger's counts, has some 600 bytes.
MESSAGE_LIMIT: Final = 64 * 1024


# --- supervisor and zygote -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteHello:
    """zygote to supervisor, once: everything is imported, forks may be asked for."""

    pid: int
    code: str  # version of the code in its tree
    tree: str  # the folder it runs from
    abi: int  # the engine's DP_ABI


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """supervisor to zygote: make a worker.

    Descriptors: spec (sealed memfd), stats (memfd), channel (SEQPACKET, the worker's end), control
    (SEQPACKET, bound, for the worker itself to listen on), with `shared` the app's memory file of
    `control.shared`, then the listening sockets, one for each entry of `listeners`, with `log` the
    writing end of the access log's pipe; with `has_inputs` last a stream socket that holds
    `model.inputs.Inputs` as JSON and then ends: whoever holds it looks into it and leaves it whole.
    """

    request: int
    app: str
    generation: int
    slot: int
    image: str
    listeners: tuple[str, ...]  # the listener's name for each listening socket, names may repeat
    seal: tuple[str, ...]  # layers to leave out, for tests: "seccomp", "landlock"
    faults: tuple[str, ...]  # failures to show on purpose, for tests; see worker/faults.py
    has_inputs: bool = False
    shared: bool = False  # with it, the supervisor also hears `UpstreamChanged`
    log: bool = False  # the image writes an access log


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """zygote to supervisor. Descriptors: a pidfd of the worker."""

    request: int
    pid: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForkFailed:
    request: int
    error: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """zygote to supervisor, instead of a fork: what it has mapped is no longer what is on disk."""

    request: int
    files: tuple[str, ...]  # the first few of them


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """zygote to supervisor: a worker was reaped. `status` is as of waitpid(2)."""

    pid: int
    status: int


# --- supervisor and worker -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Which layers of the seal are on. landlock: the ABI in use, 0: off."""

    seccomp: bool
    landlock: int
    no_new_privs: bool
    dumpable: bool
    unix: bool = False  # it may connect to UNIX sockets: its image has such an upstream


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """worker to supervisor: sealed, tables loaded, listeners in hand, one request answered."""

    pid: int
    seal: Seal
    born_ms: float  # from the fork to this message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """worker to supervisor: it cannot serve and ends."""

    error: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """supervisor to worker: accept. Ends a drain that is under way, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    pass


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamChanged:
    """worker to supervisor: something happened to an endpoint. Told by the worker that saw it."""

    kind: str  # "down", "up", "ejected"; "lost": more happened than could be told
    upstream: str
    endpoint: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Receive:
    """supervisor to green: connections come. Descriptors: SEQPACKET move socket, pidfd of blue."""

    slot: int  # blue's


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Receiving:
    slot: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """green to supervisor: blue ended its side, all is started or dropped."""

    slot: int
    started: int
    declined: int
    stall_us: tuple[int, int, int]  # p50, p99, max


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """supervisor to blue: accept no more, move or finish what is open, then exit 0.

    Descriptors: move socket (SEQPACKET) and pidfd of green, or none where nobody takes over: then
    idle connections are closed.
    """

    deadline_ms: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrainCounts:
    moved_idle: int
    moved_after_request: int
    finished: int
    closed: int
    reset: int
    moved_streaming: int = 0  # in the middle of a response
    moved_tunnel: int = 0
    declined: tuple[tuple[str, int], ...] = ()  # why green did not take some, and how many


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """blue to supervisor, its last word."""

    connections: DrainCounts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """supervisor to worker: cut what is left, tell it by `Drained`, and exit 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A (new) supervisor to a worker, over its control socket: who are you?"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    pid: int
    app: str
    generation: int
    slot: int
    image: str
    state: str
    listeners: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """A new supervisor to a worker, after its `Identity`: lend me what you hold.

    A worker of older code does not know it, ends the line and serves on: its end is the answer.
    """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """worker to supervisor: copies of what it was born with, so that it can be kept as before.

    Descriptors: spec, stats, with `shared` the app's memory file, the listening sockets in the
    order of `Identity.listeners`, with `log` the writing end of the access log's pipe, with
    `has_inputs` last the stream socket of `Fork`, to be looked into and never read.
    """

    pid: int
    seal: Seal
    born: float  # of the monotonic clock
    shared: bool = False
    log: bool = False
    has_inputs: bool = False


Message: TypeAlias = (
    ZygoteHello
    | Fork
    | Forked
    | ForkFailed
    | Stale
    | Exited
    | Ready
    | Failed
    | Serve
    | Serving
    | UpstreamChanged
    | Receive
    | Receiving
    | Received
    | Drain
    | Drained
    | End
    | Ask
    | Identity
    | Adopt
    | Holdings
)

_KINDS: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (
        ZygoteHello, Fork, Forked, ForkFailed, Stale, Exited, Ready, Failed, Serve, Serving,
        UpstreamChanged, Receive, Receiving, Received, Drain, Drained, End, Ask, Identity,
        Adopt, Holdings,
    )
}  # fmt: skip


def learn_messages() -> None:
    """Makes the first of each message as quick as the later ones."""
    for kind in _KINDS.values():
        learn(kind)
        _defaults(kind)


def encode_message(message: Message) -> bytes:
    """The datagram that carries `message`."""
    fields = {"v": PROTOCOL, "type": type(message).__name__, **_fields(message)}
    return _ENCODER.encode(fields).encode()


def _fields(value: Any) -> dict[str, Any]:
    """All but what is at its default. Not dataclasses.asdict, which copies all that it finds."""
    told = {name: getattr(value, name) for name in value.__slots__}
    kind: Any = type(value)
    for name, default in _defaults(kind):
        if told[name] == default:
            del told[name]
    return told


@functools.cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    fields = dataclasses.fields(kind)
    return tuple(
        (one.name, one.default) for one in fields if one.default is not dataclasses.MISSING
    )


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), default=_fields)


def decode_message(datagram: bytes) -> Message:
    """Raises `ControlError` for another version, an unknown type, or a field that is off."""
    try:
        fields = json.loads(datagram)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"not a message: {error}") from error
    if not isinstance(fields, dict):
        raise ControlError("not a message: no object")
    version, name = fields.pop("v", None), fields.pop("type", None)
    if version != PROTOCOL:
        raise ControlError(f"protocol version {version!r}, expected {PROTOCOL}")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ControlError(f"unknown message {name!r}")
    try:
        message: Message = decode(kind, fields, kind.__name__)
    except SpecError as error:
        raise ControlError(str(error)) from error
    return message
