"""What the supervisor and its log writer say to each other: short words in SEQPACKET datagrams.

Its own small protocol, because the writer loads next to nothing: a few words of text, each with the
protocol's version first. Decoding is strict; what cannot be decoded raises `ValueError`.

    supervisor: "1 pipe NUMBER APP ROTATE_BYTES KEEP", with the reading end of the pipe
    writer:     "1 report APP WRITTEN DROPPED STATE", counted since it was started
                "1 end NUMBER": all that was in this pipe is written, and nothing more will come
"""

from __future__ import annotations

VERSION = "1"
DATAGRAM_LIMIT = 1024

# The states of an app's file: as it should be, or why lines are dropped, in one word.
WRITING = "writing"


class PipeOrder:
    """A pipe to be read into an app's files."""

    __slots__ = ("app", "keep", "number", "rotate_bytes")

    def __init__(self, number: int, app: str, rotate_bytes: int, keep: int) -> None:
        self.number = number
        self.app = app
        self.rotate_bytes = rotate_bytes
        self.keep = keep


class Report:
    """How an app's file stands."""

    __slots__ = ("app", "dropped", "state", "written")

    def __init__(self, app: str, written: int, dropped: int, state: str) -> None:
        self.app = app
        self.written = written
        self.dropped = dropped
        self.state = state


class PipeEnd:
    """A pipe that is empty and has no writing end any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


def encode_order(order: PipeOrder) -> bytes:
    """As the supervisor sends it."""
    return f"{VERSION} pipe {order.number} {order.app} {order.rotate_bytes} {order.keep}".encode()


def decode_order(datagram: bytes) -> PipeOrder:
    """Raises `ValueError`."""
    version, word, number, app, rotate_bytes, keep = datagram.decode().split(" ")
    if version != VERSION or word != "pipe" or not app or "/" in app or app.startswith("."):
        raise ValueError("not an order of this protocol")
    return PipeOrder(int(number), app, int(rotate_bytes), int(keep))


def encode_told(told: Report | PipeEnd) -> bytes:
    """As the writer sends it."""
    if isinstance(told, PipeEnd):
        return f"{VERSION} end {told.number}".encode()
    return f"{VERSION} report {told.app} {told.written} {told.dropped} {told.state}".encode()


def decode_told(datagram: bytes) -> Report | PipeEnd:
    """Raises `ValueError`."""
    version, word, *rest = datagram.decode().split(" ")
    if version != VERSION or word not in ("report", "end"):
        raise ValueError("not a word of this protocol")
    if word == "end":
        (number,) = rest
        return PipeEnd(int(number))
    app, written, dropped, state = rest
    return Report(app, int(written), int(dropped), state)
