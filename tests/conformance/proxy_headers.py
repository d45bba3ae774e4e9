"""PROXY protocol headers, one line each: what is taken, and what is found in it.

The section is that of the protocol's text (2.1 version 1, 2.2 version 2); "house" marks a bound of
our own.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, TypeAlias

from dataplane.engine.parser import Verdict

Address: TypeAlias = tuple[str, int] | None

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
TCP4, TCP6, UNIX, UNSPEC = 0x11, 0x21, 0x31, 0x00


def v2(
    family: int, addresses: bytes, tlvs: bytes = b"", *, command: int = 0x21, length: int = -1
) -> bytes:
    """A version 2 header; length -1: the right one."""
    body = addresses + tlvs
    told = len(body) if length < 0 else length
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", told) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def pair(source: str, destination: str, ports: tuple[int, int] = (1234, 80)) -> bytes:
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    return (
        socket.inet_pton(kind, source)
        + socket.inet_pton(kind, destination)
        + struct.pack("!HH", *ports)
    )


V4: Final = pair("192.0.2.1", "198.51.100.2")
V6: Final = pair("2001:db8::1", "2001:db8::2")

# fmt: off
TAKEN: Final[tuple[tuple[str, str, bytes, Address, Address], ...]] = (
    ("IPv4", "2.1", b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\r\n", ("192.0.2.1", 1234), ("198.51.100.2", 80)),
    ("largest IPv4", "2.1", b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ("port 0", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 0 0\r\n", ("192.0.2.1", 0), ("192.0.2.2", 0)),
    ("IPv6", "2.1", b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", ("2001:db8::1", 1), ("::1", 65535)),
    ("largest IPv6", "2.1", b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n", ("ffff:" * 7 + "ffff", 65535), ("ffff:" * 7 + "ffff", 65535)),
    ("unknown", "2.1", b"PROXY UNKNOWN\r\n", None, None),
    ("unknown with addresses", "2.1", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None, None),
    ("unknown with anything", "2.1", b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None, None),
    ("version 2, IPv4", "2.2", v2(TCP4, V4), ("192.0.2.1", 1234), ("198.51.100.2", 80)),
    ("version 2, IPv6", "2.2", v2(TCP6, V6), ("2001:db8::1", 1234), ("2001:db8::2", 80)),
    ("version 2, UNIX", "2.2", v2(UNIX, b"\0" * 216), None, None),
    ("version 2, unspecified", "2.2", v2(UNSPEC, b""), None, None),
    ("version 2, unspecified with TLVs", "2.2", v2(UNSPEC, b"", tlv(4, b"")), None, None),
    ("version 2, LOCAL", "2.2", v2(UNSPEC, b"", command=0x20), None, None),
    ("version 2, LOCAL with addresses", "2.2", v2(TCP4, V4, command=0x20), None, None),
    ("version 2, LOCAL with anything", "2.2", v2(0xff, b"\xff" * 99, command=0x20), None, None),
    ("version 2, unknown TLVs", "2.2.7", v2(TCP4, V4, tlv(1, b"h2") + tlv(0xee, b"\0" * 300) + tlv(4, b"")), ("192.0.2.1", 1234), ("198.51.100.2", 80)),
    ("version 2, as long as may be", "house", v2(TCP6, V6, tlv(4, b"\0" * (4096 - 16 - 36 - 3))), ("2001:db8::1", 1234), ("2001:db8::2", 80)),
)

REFUSED: Final[tuple[tuple[str, str, bytes, Verdict], ...]] = (
    ("a request", "2.1", b"GET / HTTP/1.1\r\n", Verdict.MALFORMED),
    ("lower case", "2.1", b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("a space first", "2.1", b" PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("two spaces", "2.1", b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("two spaces later", "2.1", b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("a space at the end", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", Verdict.MALFORMED),
    ("a tab", "2.1", b"PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("bare LF", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", Verdict.MALFORMED),
    ("bare CR", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r2\r\n", Verdict.MALFORMED),
    ("NUL", "2.1", b"PROXY TCP4 192.0.2.1\0192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("a high byte", "2.1", b"PROXY UNKNOWN \xff\r\n", Verdict.MALFORMED),
    ("UDP", "2.1", b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("TCP5", "2.1", b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("UNKNOWNS", "2.1", b"PROXY UNKNOWNS\r\n", Verdict.MALFORMED),
    ("IPv6 as IPv4", "2.1", b"PROXY TCP4 ::1 ::2 1 2\r\n", Verdict.MALFORMED),
    ("IPv4 as IPv6", "2.1", b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("a mix", "2.1", b"PROXY TCP6 ::1 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("octet 256", "2.1", b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("octet with zeros", "2.1", b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("three octets", "2.1", b"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("a zone", "2.1", b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", Verdict.MALFORMED),
    ("brackets", "2.1", b"PROXY TCP6 [::1] ::1 1 2\r\n", Verdict.MALFORMED),
    ("a name", "2.1", b"PROXY TCP4 localhost 192.0.2.2 1 2\r\n", Verdict.MALFORMED),
    ("port 65536", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", Verdict.MALFORMED),
    ("port with zeros", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", Verdict.MALFORMED),
    ("port with a sign", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", Verdict.MALFORMED),
    ("port of letters", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 http 2\r\n", Verdict.MALFORMED),
    ("no port", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", Verdict.MALFORMED),
    ("no address", "2.1", b"PROXY TCP4\r\n", Verdict.MALFORMED),
    ("nothing", "2.1", b"PROXY \r\n", Verdict.MALFORMED),
    ("one more word", "2.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", Verdict.MALFORMED),
    ("without end", "2.1", b"PROXY UNKNOWN " + b"x" * 200, Verdict.TOO_BIG),
    ("one byte too long", "2.1", b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", Verdict.TOO_BIG),
    ("version 2, a byte wrong", "2.2", b"\r\n\r\n\0\r\nQUIT\r\x21\x11\0\0", Verdict.MALFORMED),
    ("an empty line", "2.2", b"\r\nGET / HTTP/1.1\r\n", Verdict.MALFORMED),
    ("version 1 in version 2", "2.2", v2(TCP4, V4, command=0x11), Verdict.MALFORMED),
    ("version 3", "2.2", v2(TCP4, V4, command=0x31), Verdict.MALFORMED),
    ("command 2", "2.2", v2(TCP4, V4, command=0x22), Verdict.MALFORMED),
    ("UDP over IPv4", "2.2", v2(0x12, V4), Verdict.MALFORMED),
    ("no transport over IPv4", "2.2", v2(0x10, V4), Verdict.MALFORMED),
    ("TCP over nothing", "2.2", v2(0x01, V4), Verdict.MALFORMED),
    ("family 4", "2.2", v2(0x41, V4), Verdict.MALFORMED),
    ("version 2, addresses cut", "2.2", v2(TCP4, V4[:-1]), Verdict.MALFORMED),
    ("version 2, IPv4 told as IPv6", "2.2", v2(TCP6, V4), Verdict.MALFORMED),
    ("version 2, UNIX cut", "2.2", v2(UNIX, b"\0" * 215), Verdict.MALFORMED),
    ("TLV cut", "2.2.7", v2(TCP4, V4, b"\x01\0"), Verdict.MALFORMED),
    ("TLV longer than the header", "2.2.7", v2(TCP4, V4, b"\x01\0\x05abcd"), Verdict.MALFORMED),
    ("something behind the TLVs", "2.2.7", v2(TCP4, V4, tlv(1, b"a") + b"x"), Verdict.MALFORMED),
    ("version 2, longer than may be", "house", v2(TCP4, V4, length=4096 - 16 + 1), Verdict.TOO_BIG),
    ("version 2, as long as can be told", "house", v2(TCP4, V4, length=65535), Verdict.TOO_BIG),
)
# fmt: on
