"""Old code and new code understand each other, both ways: datagrams of version 1, as recorded.

`RECORDED` is never edited: it is what code that serves somewhere sends and takes. A field or a
message that comes later is tested beside it.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, Final

import pytest

from dataplane.control import messages
from dataplane.control.messages import Message, decode_message, encode_message
from dataplane.model.errors import ControlError
from dataplane.model.spec import decode

RECORDED: Final[dict[bytes, Message]] = {
    b'{"v":1,"type":"ZygoteHello","pid":7,"code":"0.1.0","tree":"/s/code/ab","abi":1}':
        messages.ZygoteHello(pid=7, code="0.1.0", tree="/s/code/ab", abi=1),
    b'{"v":1,"type":"Fork","request":3,"app":"billing","generation":2,"slot":0,'
    b'"image":"sha256:ab","listeners":["web","web"],"seal":[],"faults":[]}':
        messages.Fork(
            request=3, app="billing", generation=2, slot=0, image="sha256:ab",
            listeners=("web", "web"), seal=(), faults=(),
        ),
    b'{"v":1,"type":"Forked","request":3,"pid":8}': messages.Forked(request=3, pid=8),
    b'{"v":1,"type":"ForkFailed","request":3,"error":"no"}':
        messages.ForkFailed(request=3, error="no"),
    b'{"v":1,"type":"Stale","request":3,"files":["/lib/libssl.so.3"]}':
        messages.Stale(request=3, files=("/lib/libssl.so.3",)),
    b'{"v":1,"type":"Exited","pid":8,"status":9}': messages.Exited(pid=8, status=9),
    b'{"v":1,"type":"Ready","pid":8,"seal":{"seccomp":true,"landlock":4,"no_new_privs":true,'
    b'"dumpable":false},"born_ms":11.5}':
        messages.Ready(
            pid=8, born_ms=11.5,
            seal=messages.Seal(seccomp=True, landlock=4, no_new_privs=True, dumpable=False),
        ),
    b'{"v":1,"type":"Failed","error":"no"}': messages.Failed(error="no"),
    b'{"v":1,"type":"Serve"}': messages.Serve(),
    b'{"v":1,"type":"Serving"}': messages.Serving(),
    b'{"v":1,"type":"Receive","slot":0}': messages.Receive(slot=0),
    b'{"v":1,"type":"Receiving","slot":0}': messages.Receiving(slot=0),
    b'{"v":1,"type":"Received","slot":0,"started":5,"declined":0,"stall_us":[30,40,50]}':
        messages.Received(slot=0, started=5, declined=0, stall_us=(30, 40, 50)),
    b'{"v":1,"type":"Drain","deadline_ms":30000}': messages.Drain(deadline_ms=30000),
    b'{"v":1,"type":"Drained","connections":{"moved_idle":0,"moved_after_request":0,"finished":0,'
    b'"closed":0,"reset":1,"moved_streaming":5,"moved_tunnel":6,"declined":[["denied",1]]}}':
        messages.Drained(
            connections=messages.DrainCounts(
                moved_idle=0, moved_after_request=0, finished=0, closed=0, reset=1,
                moved_streaming=5, moved_tunnel=6, declined=(("denied", 1),),
            )
        ),
    b'{"v":1,"type":"Drained","connections":{"moved_idle":4,"moved_after_request":3,"finished":2,'
    b'"closed":1,"reset":0}}':
        messages.Drained(
            connections=messages.DrainCounts(
                moved_idle=4, moved_after_request=3, finished=2, closed=1, reset=0
            )
        ),
    b'{"v":1,"type":"End"}': messages.End(),
    b'{"v":1,"type":"Ask"}': messages.Ask(),
    b'{"v":1,"type":"Identity","pid":8,"app":"billing","generation":2,"slot":0,'
    b'"image":"sha256:ab","state":"serving","listeners":["web"]}':
        messages.Identity(
            pid=8, app="billing", generation=2, slot=0, image="sha256:ab", state="serving",
            listeners=("web",),
        ),
}  # fmt: skip


@pytest.mark.parametrize(("datagram", "message"), RECORDED.items(), ids=lambda one: str(one)[:40])
def test_recorded_message_is_understood_and_what_is_sent_is_what_was_recorded(
    datagram: bytes, message: Message
) -> None:
    """Old code to new, then new code to old: whose decoding takes these keys, and no other."""
    assert decode_message(datagram) == message
    assert json.loads(encode_message(message)) == json.loads(datagram)


# --- a field that comes later ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaterCounts:
    """`DrainCounts`, as later code has it."""

    moved_idle: int
    moved_after_request: int
    finished: int
    closed: int
    reset: int
    moved_later: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """`messages.Drained`, with a field more, and one more below."""

    connections: LaterCounts
    notes: tuple[str, ...] = ()


OLD: Final[Message] = messages.Drained(
    connections=messages.DrainCounts(
        moved_idle=4, moved_after_request=0, finished=2, closed=1, reset=0
    )
)
NEW: Final = Drained(
    connections=LaterCounts(moved_idle=4, moved_after_request=0, finished=2, closed=1, reset=0)
)


def encode_later(message: Drained) -> bytes:
    return encode_message(typing.cast(Message, message))


def test_later_field_at_its_default_is_not_sent_so_that_older_code_understands() -> None:
    assert encode_later(NEW) == encode_message(OLD)
    assert decode_message(encode_later(NEW)) == OLD


def test_what_older_code_sends_has_later_fields_at_their_default() -> None:
    fields: dict[str, Any] = json.loads(encode_message(OLD))
    del fields["v"], fields["type"]
    assert decode(Drained, fields, "Drained") == NEW


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (dataclasses.replace(NEW, notes=("x",)), "Drained: unknown notes"),
        (
            dataclasses.replace(
                NEW, connections=dataclasses.replace(NEW.connections, moved_later=1)
            ),
            "Drained.connections: unknown moved_later",
        ),
    ],
)
def test_other_value_of_a_later_field_is_never_passed_over_by_older_code(
    message: Drained, named: str
) -> None:
    with pytest.raises(ControlError, match=named):
        decode_message(encode_later(message))


def test_value_equal_to_no_default_is_sent_whatever_it_is() -> None:
    """Zero, empty, false: only a later field may stay away, not one that always was."""
    empty = messages.Stale(request=0, files=())
    assert json.loads(encode_message(empty)) == {"v": 1, "type": "Stale", "request": 0, "files": []}


# --- what is no message of version 1 ------------------------------------------------------------


@pytest.mark.parametrize(
    ("datagram", "error"),
    [
        (b'{"v":2,"type":"Serve"}', "protocol version 2, expected 1"),
        (b'{"type":"Serve"}', "protocol version None, expected 1"),
        (b'{"v":1,"type":"Freeze"}', "unknown message 'Freeze'"),
        (b'{"v":1,"type":["Serve"]}', "unknown message"),
        (b'{"v":1,"type":"Drain","deadline_ms":1,"softly":true}', "unknown softly"),
        (b'{"v":1,"type":"Drain"}', "missing deadline_ms"),
        (b"[" * 60_000, "not a message"),
    ],
)
def test_unknown_version_type_or_field_is_an_error(datagram: bytes, error: str) -> None:
    with pytest.raises(ControlError, match=error):
        decode_message(datagram)


def classes() -> list[Any]:
    found = [type(message) for message in RECORDED.values()]
    return [*typing.get_args(Message), messages.Seal, messages.DrainCounts, *found]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_defaults_of_messages_are_plain(kind: Any) -> None:
    """One that is made for each message is not left out, so older code would refuse it."""
    assert all(field.default_factory is dataclasses.MISSING for field in dataclasses.fields(kind))
    assert set(typing.get_args(Message)) >= {type(message) for message in RECORDED.values()}
