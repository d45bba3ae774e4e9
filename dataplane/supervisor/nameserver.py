"""One question to one DNS server: sent, awaited, and its answer judged before anything is believed.

UDP first (RFC 1035 4.2.1), TCP where the answer did not fit. The one place that knows dnspython,
which is loaded with the first question: a host that follows no names does not pay for it. Whatever
a server sends, nothing is raised but `Unanswered`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import random
import socket
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    import dns.message

Server: TypeAlias = tuple[str, int]  # numeric address, port

# What passes every path unfragmented (DNS flag day 2020).
UDP_BYTES: Final = 1232
READ_BYTES: Final = 65_535
HEADER_BYTES: Final = 12
TRUNCATED: Final = 0x02  # in the third byte: RFC 1035 4.1.1
IS_RESPONSE: Final = 0x80
# A question belongs to one try; whoever floods the port in this time gains nothing by more.
STRAY_DATAGRAMS: Final = 1000


class Kind(enum.Enum):
    """The record types that are asked for."""

    A = "A"
    AAAA = "AAAA"


class Outcome(enum.Enum):
    """What a server's answer says about a name and a kind."""

    FOUND = "found"
    ALIAS = "alias"  # it stands for another name, of which this answer says no more
    NO_RECORDS = "no records"  # the name exists (RFC 2308 2.2)
    NO_NAME = "no name"  # NXDOMAIN


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. `addresses` as sent, `ttl_seconds` the least of the chain, `alias` its end."""

    server: Server
    outcome: Outcome
    addresses: tuple[str, ...] = ()
    ttl_seconds: int = 0
    alias: str = ""


# What an operator should think of, beside the code's name.
_MEANINGS: Final = {
    "SERVFAIL": " (it failed to find out)",
    "REFUSED": " (it does not answer this host)",
}


class Unanswered(Exception):
    """A server did not help; the text is the reason, without its name."""


class Silent(Unanswered):
    """Nothing usable came in time: asked again, it may answer."""


async def ask(
    server: Server, name: str, kind: Kind, *, seconds: float, rng: random.Random
) -> Reply:
    """What this server says of the name's records, within so many seconds. Raises `Unanswered`."""
    import dns.exception  # loaded with the first question
    import dns.rcode

    try:
        async with asyncio.timeout(seconds):
            question = _question(name, kind, rng, edns=True)
            answer = await _exchange(server, question)
            # A server from before EDNS says one of these (RFC 6891 7).
            if answer.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS):
                question = _question(name, kind, rng, edns=False)
                answer = await _exchange(server, question)
            return _judged(server, kind, answer)
    except TimeoutError:
        raise Silent(f"no answer in {seconds:.3g} s") from None
    except OSError as error:
        raise Unanswered(error.strerror or str(error)) from error
    except (dns.exception.DNSException, ValueError) as error:
        raise Unanswered("an answer that makes no sense") from error


def _question(name: str, kind: Kind, rng: random.Random, *, edns: bool) -> dns.message.QueryMessage:
    import dns.message

    question = dns.message.make_query(
        name, kind.value, use_edns=0 if edns else False, payload=UDP_BYTES
    )
    question.id = rng.getrandbits(16)
    return question


async def _exchange(server: Server, question: dns.message.QueryMessage) -> dns.message.Message:
    return await _by_udp(server, question) or await _by_tcp(server, question)


async def _by_udp(server: Server, question: dns.message.QueryMessage) -> dns.message.Message | None:
    """The answer, or None if it did not fit."""
    loop = asyncio.get_running_loop()
    with socket.socket(_family(server), socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        # Connected: the kernel then passes on what comes from this server alone, from a port that
        # is new for each question, and tells at once if nobody listens there.
        sock.connect(server)
        await loop.sock_sendall(sock, question.to_wire())
        for _ in range(STRAY_DATAGRAMS):
            wire = await loop.sock_recv(sock, READ_BYTES)
            if _is_truncated(wire, question):
                return None
            answer = _matching(wire, question)
            if answer is not None:
                return answer
    raise Silent("only answers to other questions")


async def _by_tcp(server: Server, question: dns.message.QueryMessage) -> dns.message.Message:
    """Each message goes with its length in front, in two bytes (RFC 1035 4.2.2)."""
    loop = asyncio.get_running_loop()
    with socket.socket(_family(server), socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, server)
        wire = question.to_wire()
        await loop.sock_sendall(sock, len(wire).to_bytes(2) + wire)
        length = int.from_bytes(await _exactly(sock, 2))
        answer = _matching(await _exactly(sock, length), question)
    if answer is None:
        raise Unanswered("an answer by TCP that makes no sense")
    return answer


async def _exactly(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < length:
        more = await loop.sock_recv(sock, length - len(received))
        if not more:
            raise Unanswered("it closed the connection before its answer")
        received += more
    return bytes(received)


def _family(server: Server) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server[0] else socket.AF_INET


def _is_truncated(wire: bytes, question: dns.message.QueryMessage) -> bool:
    """Read from the header alone: what was cut off somewhere cannot be parsed."""
    if len(wire) < HEADER_BYTES or int.from_bytes(wire[:2]) != question.id:
        return False
    return bool(wire[2] & TRUNCATED and wire[2] & IS_RESPONSE)


def _matching(wire: bytes, question: dns.message.QueryMessage) -> dns.message.Message | None:
    """The message, if it answers this question: by its id, and by repeating the question."""
    import dns.exception
    import dns.message

    if len(wire) < HEADER_BYTES or int.from_bytes(wire[:2]) != question.id:
        return None
    try:
        answer = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return None
    return answer if question.is_response(answer) else None


def _judged(server: Server, kind: Kind, answer: dns.message.Message) -> Reply:
    import dns.message
    import dns.rcode
    import dns.rdatatype

    rcode = answer.rcode()
    if rcode == dns.rcode.NXDOMAIN:
        return Reply(server=server, outcome=Outcome.NO_NAME)
    if rcode != dns.rcode.NOERROR:
        code = dns.rcode.to_text(rcode)
        raise Unanswered(f"{code}{_MEANINGS.get(code, '')}")
    if not isinstance(answer, dns.message.QueryMessage):
        raise Unanswered("an answer that makes no sense")
    chain = answer.resolve_chaining()
    if chain.answer is not None:
        return Reply(
            server=server,
            outcome=Outcome.FOUND,
            addresses=tuple(str(record.address) for record in chain.answer),
            ttl_seconds=chain.minimum_ttl,
        )
    has_end = any(records.rdtype == dns.rdatatype.SOA for records in answer.authority)
    if chain.cnames and not has_end:
        return Reply(
            server=server,
            outcome=Outcome.ALIAS,
            ttl_seconds=min(records.ttl for records in chain.cnames),
            alias=chain.canonical_name.to_text(),
        )
    return Reply(server=server, outcome=Outcome.NO_RECORDS)
