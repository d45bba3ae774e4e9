"""A small DNS server on 127.0.0.1, by UDP and TCP on one port, that says what a test scripts.

What a test has not named does not exist (NXDOMAIN). Every question is counted, and can be waited
for. A forgery goes out before the right answer; with `Silence` nothing follows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import ipaddress
import select
import socket
import threading
from types import TracebackType
from typing import Final, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

SECONDS: Final = 10.0
FORGED: Final = "127.66.66.66"  # what nobody may ever believe


class Forgery(enum.Enum):
    """What is sent by UDP before the right answer."""

    OTHER_ID = "another transaction id"
    OTHER_QUESTION = "another question"
    OTHER_SOURCE = "another port"
    NO_RESPONSE = "a question instead of an answer"
    GARBAGE = "bytes without sense"
    CUT = "the right answer without its end"
    EMPTY = "an empty datagram"


class Manner(enum.Enum):
    """How the right answer is sent."""

    PLAIN = "plain"
    SILENT = "never"
    HELD = "when the test says so"
    TRUNCATED = "by TCP alone"
    TRUNCATED_THEN_CLOSED = "not even by TCP"
    TRUNCATED_THEN_GARBAGE = "by TCP, without sense"
    ALIAS_ALONE = "an alias without what it stands for"
    WITHOUT_EDNS = "only if the question has no EDNS"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One that arrived."""

    name: str
    kind: str
    transport: str


@dataclasses.dataclass(slots=True)
class _Entry:
    """What is said of one name. Mutable."""

    addresses: tuple[str, ...] = ()
    alias: str | None = None
    ttl_seconds: int = 60
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    manner: Manner = Manner.PLAIN
    forgeries: tuple[Forgery, ...] = ()


class DnsServer:
    """A context; mutable. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._tcp, self._udp = _one_port()
        self.server: Final[tuple[str, int]] = self._udp.getsockname()
        self.address: Final = f"127.0.0.1:{self.server[1]}"
        self.questions: list[Question] = []
        self._entries: dict[str, _Entry] = {}
        self._held: list[tuple[dns.message.Message, tuple[str, int]]] = []
        self._changed = threading.Condition()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True, name=self.address)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wake.close()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        for sock in (self._tcp, self._udp, self._woken):
            sock.close()

    # --- the script ---------------------------------------------------------------------------

    def answer(self, name: str, *addresses: str, ttl_seconds: int = 60) -> None:
        """A and AAAA records, each kind by the form of the address; none: the name has neither."""
        self._set(name, addresses=addresses, ttl_seconds=ttl_seconds, alias=None, rcode=0)

    def alias(self, name: str, target: str, *, ttl_seconds: int = 60) -> None:
        """A CNAME record. The target's records go along if they are known here."""
        self._set(name, alias=target, ttl_seconds=ttl_seconds, rcode=0)

    def fail(self, name: str, rcode: str) -> None:
        """NXDOMAIN, SERVFAIL, REFUSED, ... instead of records."""
        self._set(name, rcode=dns.rcode.from_text(rcode))

    def behave(self, name: str, manner: Manner, *forgeries: Forgery) -> None:
        """How its answers are sent from now on."""
        self._set(name, manner=manner, forgeries=forgeries)

    def release(self) -> None:
        """Sends all answers that were held, and holds no name any more."""
        with self._changed:
            for entry in self._entries.values():
                if entry.manner is Manner.HELD:
                    entry.manner = Manner.PLAIN
            held, self._held = self._held, []
        for message, sender in held:
            self._udp.sendto(message.to_wire(), sender)

    # --- what was asked -----------------------------------------------------------------------

    def count(self, name: str, *, kind: str | None = None, transport: str | None = None) -> int:
        """How many questions came for the name."""
        with self._changed:
            return sum(
                asked.name == name.lower()
                and kind in (None, asked.kind)
                and transport in (None, asked.transport)
                for asked in self.questions
            )

    def wait_for(self, name: str, count: int = 1, *, kind: str | None = None) -> None:
        """Until so many questions came for the name in all. Blocks: not for a loop's thread."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(name, kind=kind) >= count, SECONDS), (
                f"{self.count(name)} questions for {name}, not {count}"
            )

    # --- the server ---------------------------------------------------------------------------

    def _set(self, name: str, **changes: object) -> None:
        with self._changed:
            entry = self._entries.get(name.lower(), _Entry())
            self._entries[name.lower()] = dataclasses.replace(entry, **changes)  # type: ignore[arg-type]

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._tcp, self._udp, self._woken], [], [])
            if self._woken in ready:
                return
            with contextlib.suppress(OSError):  # whoever asked may be gone
                if self._udp in ready:
                    self._serve_datagram(*self._udp.recvfrom(65_535))
                if self._tcp in ready:
                    self._serve_connection()

    def _serve_datagram(self, wire: bytes, sender: tuple[str, int]) -> None:
        question = dns.message.from_wire(wire)
        entry = self._note(question, "udp")
        answer = self._right(question, entry)
        for forgery in entry.forgeries:
            self._forge(forgery, question, answer, sender)
        if entry.manner in (Manner.PLAIN, Manner.ALIAS_ALONE, Manner.WITHOUT_EDNS):
            self._udp.sendto(answer.to_wire(), sender)
        elif entry.manner is Manner.HELD:
            with self._changed:
                self._held.append((answer, sender))
        elif entry.manner is not Manner.SILENT:
            cut = dns.message.make_response(question)
            cut.flags |= dns.flags.TC
            # As some do: up to the limit, in the middle of a record.
            self._udp.sendto(cut.to_wire() + b"\xc0\x0c\x00\x01", sender)

    def _serve_connection(self) -> None:
        connection, _ = self._tcp.accept()
        with connection, connection.makefile("rb") as stream:
            connection.settimeout(SECONDS)
            question = dns.message.from_wire(stream.read(int.from_bytes(stream.read(2))))
            entry = self._note(question, "tcp")
            wire = self._right(question, entry).to_wire()
            if entry.manner is Manner.TRUNCATED_THEN_GARBAGE:
                wire = wire[:2] + b"\xff" * 40
            prefixed = len(wire).to_bytes(2) + wire
            if entry.manner is Manner.TRUNCATED_THEN_CLOSED:
                prefixed = prefixed[:10]
            connection.sendall(prefixed[:1])
            connection.sendall(prefixed[1:])

    def _note(self, message: dns.message.Message, transport: str) -> _Entry:
        (asked,) = message.question
        name = asked.name.to_text(omit_final_dot=True).lower()
        with self._changed:
            kind = dns.rdatatype.to_text(asked.rdtype)
            self.questions.append(Question(name=name, kind=kind, transport=transport))
            self._changed.notify_all()
            return self._entries.get(name, _Entry(rcode=dns.rcode.NXDOMAIN))

    def _right(self, question: dns.message.Message, entry: _Entry) -> dns.message.Message:
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        if entry.manner is Manner.WITHOUT_EDNS and question.edns >= 0:
            answer.use_edns(False)
            answer.set_rcode(dns.rcode.FORMERR)
            return answer
        answer.set_rcode(entry.rcode)
        (asked,) = question.question
        name, seen = asked.name, set[str]()
        alone = entry.manner is Manner.ALIAS_ALONE
        while entry.alias is not None and not entry.rcode:
            target = entry.alias.lower()
            answer.answer.append(
                dns.rrset.from_text(name, entry.ttl_seconds, "IN", "CNAME", target + ".")
            )
            name = dns.name.from_text(target)
            if alone or target not in self._entries or target in seen:
                return answer
            seen.add(target)
            entry = self._entries[target]
        kind = dns.rdatatype.to_text(asked.rdtype)
        addresses = [one for one in entry.addresses if _kind(one) == kind]
        if addresses and not entry.rcode:
            answer.answer.append(
                dns.rrset.from_text(name, entry.ttl_seconds, "IN", kind, *addresses)
            )
        elif answer.answer:  # the end of a chain is known to have no such records
            answer.authority.append(
                dns.rrset.from_text(name, 60, "IN", "SOA", "a. b. 1 60 60 60 60")
            )
        return answer

    def _forge(
        self,
        forgery: Forgery,
        question: dns.message.Message,
        answer: dns.message.Message,
        sender: tuple[str, int],
    ) -> None:
        (asked,) = question.question
        forged = dns.message.make_response(question)
        forged.answer.append(dns.rrset.from_text(asked.name, 60, "IN", "A", FORGED))
        match forgery:
            case Forgery.OTHER_ID:
                forged.id ^= 1
            case Forgery.OTHER_QUESTION:
                other = dns.name.from_text("other.example")
                forged.question = [dns.rrset.RRset(other, asked.rdclass, asked.rdtype)]
            case Forgery.NO_RESPONSE:
                forged.flags &= ~dns.flags.QR
            case Forgery.OTHER_SOURCE:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other_port:
                    other_port.sendto(forged.to_wire(), sender)
                return
        wire = forged.to_wire()
        if forgery is Forgery.GARBAGE:
            wire = wire[:2] + b"\x81\x80" + b"\xff" * 40
        elif forgery is Forgery.CUT:
            wire = answer.to_wire()[:-3]
        elif forgery is Forgery.EMPTY:
            wire = b""
        self._udp.sendto(wire, sender)


def _kind(address: str) -> str:
    return "A" if ipaddress.ip_address(address).version == 4 else "AAAA"


def _one_port() -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket with the same number, which is rarely taken on one side alone."""
    for _ in range(20):
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
            return tcp, udp
        except OSError:
            tcp.close()
            udp.close()
    raise AssertionError("no port is free by TCP and UDP")
