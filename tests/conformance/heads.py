"""Tables of HTTP/1.1 heads and chunked bodies, one line each, with the section that decides it.

A section is an RFC and its part, as "9112 6.3"; "house" marks a rule of our own where the RFCs
leave a choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from dataplane.engine.parser import Framing, Verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """Bytes that are taken, and what must be found in them. Whatever is left out may be anything."""

    name: str
    section: str
    data: bytes
    found: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """Bytes that are refused, whatever comes after them."""

    name: str
    section: str
    data: bytes
    verdict: Verdict = Verdict.MALFORMED


def get(*lines: bytes, target: bytes = b"/", version: bytes = b"HTTP/1.1") -> bytes:
    """A GET with a Host and these field lines."""
    return b"\r\n".join((b"GET " + target + b" " + version, b"Host: a", *lines, b"", b""))


def post(*lines: bytes) -> bytes:
    return b"\r\n".join((b"POST /submit HTTP/1.1", b"Host: a", *lines, b"", b""))


def answer(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((version + b" " + status, *lines, b"", b""))


def host(value: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n"


_CODING: Final = Verdict.CODING
_VERSION: Final = Verdict.VERSION

# fmt: off
REQUESTS: Final[tuple[Taken | Refused, ...]] = (
    # --- the request line
    Taken("plain", "9112 3", get(), {"method": b"GET", "path": b"/", "query": b"", "minor": 1, "keep_alive": True, "framing": Framing.NONE}),
    Taken("extension method", "9110 9.1", b"M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n", {"method": b"M-SEARCH"}),
    Taken("method with all token bytes", "9110 5.6.2", b"!#$%&'*+-.^_`|~09azAZ / HTTP/1.1\r\nHost: a\r\n\r\n", {"method": b"!#$%&'*+-.^_`|~09azAZ"}),
    Refused("method with a colon", "9110 5.6.2", b"GE:T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("method with a high byte", "9110 5.6.2", b"G\xc9T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("method with a NUL", "9110 5.6.2", b"GE\0T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("HTTP/0.9", "9112 2.3", b"GET /\r\n\r\n"),
    Refused("only a method", "9112 3", b"GET\r\n\r\n"),
    Refused("no target", "9112 3", b"GET HTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("empty target", "9112 3", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("space before the method", "9112 2.2", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("tab before the version", "9112 3", b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("VT before the version", "9112 3", b"GET /\x0bHTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("three parts too many", "9112 3", b"GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    Refused("no slash in version", "9112 2.3", b"GET / HTTP1.1\r\nHost: a\r\n\r\n"),
    Refused("version of letters", "9112 2.3", b"GET / HTTP/one.1\r\nHost: a\r\n\r\n"),
    Refused("version without minor", "9112 2.3", b"GET / HTTP/1\r\nHost: a\r\n\r\n"),
    Refused("version with plus", "9112 2.3", b"GET / HTTP/1.+1\r\nHost: a\r\n\r\n"),
    Refused("version with zeros", "9112 2.3", b"GET / HTTP/01.1\r\nHost: a\r\n\r\n"),
    Refused("major 3", "9112 2.3", get(version=b"HTTP/3.0"), _VERSION),
    Refused("minor 9", "9112 2.3", get(version=b"HTTP/1.9"), _VERSION),
    Refused("the HTTP/2 preface", "9113 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", _VERSION),
    Refused("a TLS hello", "9112 3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    # --- targets
    Taken("path and query", "9112 3.2.1", get(target=b"/a/b;c=1?d=%20&e"), {"path": b"/a/b;c=1", "query": b"?d=%20&e", "target": b"/a/b;c=1?d=%20&e"}),
    Taken("what browsers leave raw", "house", get(target=b"/a|[b]^?c={d}|`e\\"), {"path": b"/a|[b]^", "query": b"?c={d}|`e\\"}),
    Taken("a double encoding is left alone", "3986 2.4", get(target=b"/%252e%252e/"), {"path": b"/%252e%252e/"}),
    Refused("quotation mark", "3986 2", get(target=b'/"')),
    Refused("angle bracket", "3986 2", get(target=b"/<script>")),
    Refused("fragment", "9112 3.2", get(target=b"/a#b")),
    Refused("fragment in query", "9112 3.2", get(target=b"/?a#b")),
    Refused("control byte", "9112 3.2", get(target=b"/\x01")),
    Refused("DEL", "9112 3.2", get(target=b"/\x7f")),
    Refused("high byte in query", "3986 2", get(target=b"/?\xff")),
    Refused("NUL encoded in query", "house", get(target=b"/?a=%00")),
    Refused("percent at the end", "3986 2.1", get(target=b"/%")),
    Refused("percent u", "3986 2.1", get(target=b"/%u002e")),
    Taken("way up", "3986 6.2.2.3", get(target=b"/static/../admin"), {"path": b"/admin", "target": b"/static/../admin"}),
    Taken("way up, encoded", "3986 6.2.2.3", get(target=b"/static/%2e%2e/admin?x=%2e"), {"path": b"/admin", "query": b"?x=%2e"}),
    Refused("way up, encoded slash", "house", get(target=b"/static/..%2Fadmin")),
    Refused("way up, encoded backslash", "house", get(target=b"/static/..%5cadmin")),
    Refused("way up, parameter", "house", get(target=b"/static/..;a=b/admin")),
    Refused("way up at the start", "house", get(target=b"/..")),
    Taken("dot", "3986 6.2.2.3", get(target=b"/a/./b"), {"path": b"/a/b"}),
    Taken("dots that are names", "3986 3.3", get(target=b"/.well-known/...//a..b/..c"), {"path": b"/.well-known/...//a..b/..c"}),
    Taken("dots in a query", "3986 3.4", get(target=b"/?/../"), {"query": b"?/../"}),
    Taken("absolute-form", "9112 3.2.2", b"GET HTTP://A.example:8080/x?y HTTP/1.1\r\nHost: a.EXAMPLE:8080\r\n\r\n", {"host": b"A.example:8080", "host_name": b"A.example", "path": b"/x", "query": b"?y"}),
    Taken("absolute-form without path", "9110 4.2.3", b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", {"path": b"/", "query": b""}),
    Refused("absolute-form, other Host", "9112 3.2.2", get(target=b"http://b/")),
    Refused("absolute-form, other port", "9112 3.2.2", get(target=b"http://a:80/")),
    Refused("absolute-form, userinfo", "9110 4.2.4", get(target=b"http://a@a/")),
    Refused("absolute-form, one slash", "9110 4.2", get(target=b"http:/a/")),
    Refused("absolute-form, backslashes", "9110 4.2", get(target=b"http:\\\\a/")),
    Refused("absolute-form, ws", "9110 4.2", get(target=b"ws://a/")),
    Refused("absolute-form, port and no name", "9110 4.2.1", get(target=b"http://:80/")),
    Refused("a target that is a name", "9112 3.2", get(target=b"index.html")),
    Refused("asterisk-form without OPTIONS", "9112 3.2.4", get(target=b"*")),
    Taken("asterisk-form", "9112 3.2.4", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", {"path": b"*", "query": b""}),
    Refused("authority-form without CONNECT", "9112 3.2.3", get(target=b"a:443")),
    Refused("CONNECT", "9112 3.2.3", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Verdict.METHOD),
    # --- Host
    Refused("no Host", "9112 3.2", b"GET / HTTP/1.1\r\n\r\n"),
    Taken("no Host in HTTP/1.0", "9112 3.2", b"GET / HTTP/1.0\r\n\r\n", {"host": b"", "minor": 0, "keep_alive": False}),
    Refused("two Hosts, equal", "9112 3.2", get(b"Host: a")),
    Refused("two Hosts, differing", "9112 3.2", get(b"host: b")),
    Refused("two Hosts in HTTP/1.0", "9112 3.2", b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    Taken("a name and a port", "9110 7.2", host(b"a-b_c.example:65535"), {"host": b"a-b_c.example:65535", "host_name": b"a-b_c.example"}),
    Taken("a dot at the end", "9110 7.2", host(b"a.example."), {"host_name": b"a.example."}),
    Taken("an address", "9110 7.2", host(b"192.0.2.1:1"), {"host_name": b"192.0.2.1"}),
    Taken("an IPv6 address", "3986 3.2.2", host(b"[2001:db8::1]:8080"), {"host_name": b"[2001:db8::1]"}),
    Refused("an IPv6 address without brackets", "3986 3.2.2", host(b"2001:db8::1")),
    Refused("an IPv6 address, something after", "3986 3.2.2", host(b"[::1]a")),
    Refused("an address of the future", "house", host(b"[v1.a]")),
    Refused("empty", "9110 4.2.1", host(b"")),
    Refused("only a port", "9110 4.2.1", host(b":80")),
    Refused("port of letters", "9110 7.2", host(b"a:http")),
    Refused("port with a sign", "9110 7.2", host(b"a:+80")),
    Refused("port beyond", "9110 7.2", host(b"a:65536")),
    Refused("port far beyond", "9110 7.2", host(b"a:4294967376")),
    Refused("port and port", "9110 7.2", host(b"a:80:80")),
    Refused("userinfo", "9110 4.2.4", host(b"a@b")),
    Refused("URI", "9110 7.2", host(b"http://a")),
    Refused("path", "9110 7.2", host(b"a/../b")),
    Refused("query", "9110 7.2", host(b"a?b")),
    Refused("space", "9110 7.2", host(b"a b")),
    Refused("two in one", "9112 3.2", host(b"a,b")),
    Refused("encoded", "house", host(b"a%2eb")),
    Refused("high byte", "9110 7.2", host(b"\xc3\xa4")),
    Refused("NUL", "9110 7.2", host(b"a\0b")),
    Refused("empty label", "house", host(b"a..b")),
    # --- lines and fields
    Refused("bare LF ends the request line", "9112 2.2", b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    Refused("bare LF ends a field", "9112 2.2", get(b"X: a\nY: b")),
    Refused("bare LF ends the head", "9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    Refused("bare CR ends a field", "9112 2.2", get(b"X: a\rY: b")),
    Refused("CR CR LF", "9112 2.2", get(b"X: a\r")),
    Refused("CR in a name", "9112 5.1", get(b"X\rY: b")),
    Refused("fold", "9112 5.2", get(b"X: a", b" b")),
    Refused("fold with tab", "9112 5.2", get(b"X: a", b"\tb")),
    Refused("fold of nothing", "9112 5.2", get(b"X: a", b" ")),
    Refused("fold before the first field", "9112 2.2", b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n"),
    Refused("space before the colon", "9112 5.1", get(b"X : a")),
    Refused("tab before the colon", "9112 5.1", get(b"X\t: a")),
    Refused("space in a name", "9112 5.1", get(b"X Y: a")),
    Refused("no colon", "9112 5", get(b"X")),
    Refused("empty name", "9112 5", get(b": a")),
    Refused("NUL in a name", "9110 5.6.2", get(b"X\0: a")),
    Refused("high byte in a name", "9110 5.6.2", get(b"X\xe9: a")),
    Refused("quotes around a name", "9110 5.6.2", get(b'"X": a')),
    Refused("NUL in a value", "9110 5.5", get(b"X: a\0b")),
    Refused("BEL in a value", "9110 5.5", get(b"X: \x07")),
    Refused("ESC in a value", "9110 5.5", get(b"X: \x1b[0m")),
    Refused("DEL in a value", "9110 5.5", get(b"X: \x7f")),
    Taken("spaces around a value", "9112 5.1", get(b"X: \t a b\t "), {"fields": ((b"Host", b"a"), (b"X", b"a b"))}),
    Taken("no space before a value", "9112 5.1", get(b"X:a:b"), {"fields": ((b"Host", b"a"), (b"X", b"a:b"))}),
    Taken("empty value", "9110 5.5", get(b"X: "), {"fields": ((b"Host", b"a"), (b"X", b""))}),
    Taken("high bytes in a value", "9110 5.5", get(b"X: \x80\xff"), {"fields": ((b"Host", b"a"), (b"X", b"\x80\xff"))}),
    Taken("a field twice", "9110 5.3", get(b"X: a", b"x: b"), {"fields": ((b"Host", b"a"), (b"X", b"a"), (b"x", b"b"))}),
    # --- framing
    Taken("length", "9112 6.3", post(b"Content-Length: 42"), {"framing": Framing.LENGTH, "content_length": 42}),
    Taken("length of a GET", "9110 9.3.1", get(b"Content-Length: 1"), {"framing": Framing.LENGTH, "content_length": 1}),
    Taken("length with zeros", "9110 8.6", post(b"Content-Length: 0000000000000000000000007"), {"content_length": 7}),
    Taken("length at its bound", "9110 8.6", post(b"Content-Length: 9223372036854775807"), {"content_length": 2**63 - 1}),
    Refused("length beyond its bound", "9110 8.6", post(b"Content-Length: 9223372036854775808")),
    Refused("length that wraps to 5", "9110 8.6", post(b"Content-Length: 18446744073709551621")),
    Refused("length, plus", "9110 8.6", post(b"Content-Length: +5")),
    Refused("length, minus", "9110 8.6", post(b"Content-Length: -5")),
    Refused("length, minus zero", "9110 8.6", post(b"Content-Length: -0")),
    Refused("length, hex", "9110 8.6", post(b"Content-Length: 0x10")),
    Refused("length, hex digit", "9110 8.6", post(b"Content-Length: 1a")),
    Refused("length, point", "9110 8.6", post(b"Content-Length: 5.0")),
    Refused("length, exponent", "9110 8.6", post(b"Content-Length: 1e1")),
    Refused("length, underscore", "9110 8.6", post(b"Content-Length: 1_0")),
    Refused("length, quoted", "9110 8.6", post(b'Content-Length: "5"')),
    Refused("length, two numbers", "9110 8.6", post(b"Content-Length: 5 6")),
    Refused("length, empty", "9110 8.6", post(b"Content-Length: ")),
    Refused("length, list of equals", "9112 6.3", post(b"Content-Length: 5, 5")),
    Refused("length, list", "9112 6.3", post(b"Content-Length: 5,6")),
    Refused("length, comma", "9112 6.3", post(b"Content-Length: 5,")),
    Refused("length twice, equal", "9112 6.3", post(b"Content-Length: 5", b"Content-Length: 5")),
    Refused("length twice, differing", "9112 6.3", post(b"Content-Length: 5", b"content-length: 6")),
    Refused("length, Arabic digit", "9110 8.6", post(b"Content-Length: \xd9\xa5")),
    Refused("length, VT", "9110 8.6", post(b"Content-Length: \x0b5")),
    Refused("length, space before the colon", "9112 5.1", post(b"Content-Length : 5")),
    Taken("chunked", "9112 6.1", post(b"Transfer-Encoding: chunked"), {"framing": Framing.CHUNKED, "dropped": (b"Transfer-Encoding",)}),
    Taken("chunked, any case", "9112 7", post(b"tRANSFER-eNCODING:\tCHUNKED \t"), {"framing": Framing.CHUNKED}),
    Refused("CL.TE", "9112 6.1", post(b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    Refused("TE.CL", "9112 6.1", post(b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    Refused("TE.CL, length zero", "9112 6.1", post(b"Transfer-Encoding: chunked", b"Content-Length: 0")),
    Refused("TE.TE", "9112 6.1", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x")),
    Refused("TE.TE the other way round", "9112 6.1", post(b"Transfer-Encoding: x", b"Transfer-Encoding: chunked"), _CODING),
    Refused("TE, two of chunked", "9112 6.1", post(b"Transfer-Encoding: chunked", b"Transfer-encoding: chunked")),
    Refused("TE, list of chunked", "9112 6.1", post(b"Transfer-Encoding: chunked, chunked")),
    Refused("TE, identity after chunked", "9112 6.1", post(b"Transfer-Encoding: chunked, identity")),
    Refused("TE, identity before chunked", "9112 6.1", post(b"Transfer-Encoding: identity, chunked"), _CODING),
    Refused("TE, gzip", "9112 6.1", post(b"Transfer-Encoding: gzip"), _CODING),
    Refused("TE, gzip with a length", "9112 6.1", post(b"Transfer-Encoding: gzip", b"Content-Length: 5")),
    Refused("TE, xchunked", "9112 6.1", post(b"Transfer-Encoding: xchunked"), _CODING),
    Refused("TE, chunkedx", "9112 6.1", post(b"Transfer-Encoding: chunkedx"), _CODING),
    Refused("TE, chunk", "9112 6.1", post(b"Transfer-Encoding: chunk"), _CODING),
    Refused("TE, empty", "9112 6.1", post(b"Transfer-Encoding: ")),
    Refused("TE, comma first", "house", post(b"Transfer-Encoding: , chunked")),
    Refused("TE, comma last", "house", post(b"Transfer-Encoding: chunked,")),
    Refused("TE, parameter", "9112 7.1", post(b"Transfer-Encoding: chunked;a=b")),
    Refused("TE, semicolon", "9112 7.1", post(b"Transfer-Encoding: chunked;")),
    Refused("TE, quoted", "9112 6.1", post(b'Transfer-Encoding: "chunked"')),
    Refused("TE, single quotes", "9112 6.1", post(b"Transfer-Encoding: 'chunked'"), _CODING),
    Refused("TE, VT first", "9112 6.1", post(b"Transfer-Encoding: \x0bchunked")),
    Refused("TE, FF last", "9112 6.1", post(b"Transfer-Encoding: chunked\x0c")),
    Refused("TE, NUL last", "9112 6.1", post(b"Transfer-Encoding: chunked\0")),
    Refused("TE, high byte last", "9112 6.1", post(b"Transfer-Encoding: chunked\xff")),
    Refused("TE, no-break space first", "9112 6.1", post(b"Transfer-Encoding: \xa0chunked")),
    Refused("TE, folded", "9112 5.2", post(b"Transfer-Encoding:", b" chunked")),
    Refused("TE, space before the colon", "9112 5.1", post(b"Transfer-Encoding : chunked")),
    Refused("TE, space before the name", "9112 5.2", post(b" Transfer-Encoding: chunked")),
    Refused("TE, CR before the name", "9112 2.2", post(b"X: x\rTransfer-Encoding: chunked")),
    Refused("TE, LF before the name", "9112 2.2", post(b"X: x\nTransfer-Encoding: chunked")),
    Refused("TE, equals sign", "9112 5", post(b"Transfer-Encoding=chunked")),
    Refused("TE in HTTP/1.0", "9112 6.1", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    Taken("TE look-alike goes no further", "house", post(b"Transfer_Encoding: chunked"), {"framing": Framing.NONE, "dropped": (b"Transfer_Encoding",)}),
    Taken("length look-alike goes no further", "house", post(b"Content_Length: 5"), {"framing": Framing.NONE, "dropped": (b"Content_Length",)}),
    # --- Connection and hop by hop
    Taken("close", "9112 9.3", get(b"Connection: Close"), {"keep_alive": False, "dropped": (b"Connection",)}),
    Taken("close beats keep-alive", "9112 9.3", get(b"Connection: keep-alive", b"Connection: close"), {"keep_alive": False}),
    Taken("HTTP/1.0 keep-alive", "9112 9.3", get(b"Connection: keep-alive", version=b"HTTP/1.0"), {"keep_alive": True, "minor": 0}),
    Taken("empty elements", "9110 5.6.1.2", get(b"Connection: , close ,,"), {"keep_alive": False}),
    Taken("no options", "9110 7.6.1", get(b"Connection:"), {"keep_alive": True}),
    Refused("option with a space", "9110 7.6.1", get(b"Connection: close now")),
    Refused("option with a semicolon", "9110 7.6.1", get(b"Connection: close;q=1")),
    Refused("option with a high byte", "9110 7.6.1", get(b"Connection: \xff")),
    Refused("more options than anyone has", "house", get(b"Connection: " + b"a," * 33), Verdict.TOO_BIG),
    Taken("named fields go", "9110 7.6.1", get(b"Connection: x-a, X-B", b"x-b: 1", b"X-A: 2", b"X-C: 3"), {"dropped": (b"Connection", b"x-b", b"X-A")}),
    Taken("what is for all stays", "9110 7.6.1", get(b"Connection: host, authorization, cookie, cache-control, content-type, traceparent, x-request-id, expect", b"Authorization: b", b"Cookie: c", b"Cache-Control: d", b"Content-Type: e/f", b"traceparent: g", b"X-Request-ID: h"), {"dropped": (b"Connection",)}),
    Taken("what proxies say stays", "9110 7.6.1", get(b"Connection: x-forwarded-for, x-forwarded-proto, x-forwarded-host, forwarded, via, x-real-ip", b"X-Forwarded-For: b", b"X-Forwarded-Proto: c", b"X-Forwarded-Host: d", b"Forwarded: e", b"Via: f", b"X-Real-IP: g"), {"dropped": (b"Connection",)}),
    Taken("hop by hop goes unnamed", "9110 7.6.1", get(b"TE: trailers", b"Trailer: a", b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive"), {"dropped": (b"TE", b"Trailer", b"Keep-Alive", b"Proxy-Connection"), "keep_alive": True}),
    Taken("h2c goes no further", "9113 3.1", get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), {"has_upgrade": True, "dropped": (b"Connection", b"Upgrade", b"HTTP2-Settings")}),
    Taken("httpoxy goes no further", "house", get(b"Proxy: http://b/"), {"dropped": (b"Proxy",)}),
    # --- Expect
    Taken("continue", "9110 10.1.1", post(b"Expect: 100-CONTINUE", b"Content-Length: 1"), {"expects_continue": True}),
    Refused("another expectation", "9110 10.1.1", post(b"Expect: 200-ok"), Verdict.EXPECT),
    Refused("two expectations", "9110 10.1.1", post(b"Expect: 100-continue, gold"), Verdict.EXPECT),
    Refused("an empty expectation", "9110 10.1.1", post(b"Expect:"), Verdict.EXPECT),
    Taken("expectation in HTTP/1.0", "9110 10.1.1", get(b"Expect: 100-continue", version=b"HTTP/1.0"), {"expects_continue": False}),
)

RESPONSES: Final[tuple[Taken | Refused, ...]] = (
    Taken("plain", "9112 4", answer(b"Content-Length: 2"), {"status": 200, "reason": b"OK", "minor": 1, "framing": Framing.LENGTH, "content_length": 2, "keep_alive": True}),
    Taken("to close", "9112 6.3", answer(), {"framing": Framing.CLOSE, "content_length": None, "keep_alive": False}),
    Taken("chunked", "9112 6.3", answer(b"Transfer-Encoding: chunked"), {"framing": Framing.CHUNKED, "keep_alive": True}),
    Taken("reason of many words", "9112 4", answer(status=b"404 Not\tF\xf6und :("), {"status": 404, "reason": b"Not\tF\xf6und :("}),
    Taken("empty reason", "9112 4", answer(status=b"200 "), {"reason": b""}),
    Taken("no reason", "9112 4", answer(status=b"200"), {"reason": b""}),
    Refused("no status", "9112 4", answer(status=b"OK")),
    Refused("status of two digits", "9112 4", answer(status=b"20 OK")),
    Refused("status of four digits", "9112 4", answer(status=b"2000 OK")),
    Refused("status and a letter", "9112 4", answer(status=b"200K")),
    Refused("status 000", "9110 15", answer(status=b"000 No")),
    Refused("status 600", "9110 15", answer(status=b"600 No")),
    Refused("status with a sign", "9110 15", answer(status=b"+20 No")),
    Refused("two spaces", "9112 4", answer(status=b" 200 OK")),
    Refused("NUL in reason", "9112 4", answer(status=b"200 O\0K")),
    Refused("bare CR in reason", "9112 2.2", answer(status=b"200 O\rK")),
    Refused("bare LF after reason", "9112 2.2", b"HTTP/1.1 200 OK\n\n"),
    Refused("space first", "9112 2.2", b" HTTP/1.1 200 OK\r\n\r\n"),
    Refused("empty line first", "9112 2.2", b"\r\nHTTP/1.1 200 OK\r\n\r\n"),
    Refused("HTTP/2", "9112 2.3", answer(version=b"HTTP/2.0"), _VERSION),
    Refused("HTTP/1.2", "9112 2.3", answer(version=b"HTTP/1.2"), _VERSION),
    Refused("not HTTP at all", "9112 4", b"220 ready SMTP\r\n\r\n"),
    Refused("a request", "9112 4", get()),
    Refused("fold", "9112 5.2", answer(b"X: a", b" b")),
    Refused("space before the colon", "9112 5.1", answer(b"X : a")),
    Refused("NUL in a value", "9110 5.5", answer(b"X: \0")),
    Refused("length and chunked", "9112 6.1", answer(b"Content-Length: 2", b"Transfer-Encoding: chunked")),
    Refused("length twice", "9112 6.3", answer(b"Content-Length: 2", b"Content-Length: 2")),
    Refused("length list", "9112 6.3", answer(b"Content-Length: 2, 2")),
    Refused("length negative", "9112 6.3", answer(b"Content-Length: -2")),
    Refused("length too large", "9112 6.3", answer(b"Content-Length: 9223372036854775808")),
    Refused("chunked twice", "9112 6.1", answer(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    Refused("chunked not last", "9112 6.1", answer(b"Transfer-Encoding: chunked, gzip")),
    Refused("gzip, chunked", "9112 6.1", answer(b"Transfer-Encoding: gzip, chunked"), _CODING),
    Refused("chunked in HTTP/1.0", "9112 6.1", answer(b"Transfer-Encoding: chunked", version=b"HTTP/1.0")),
    Taken("HTTP/1.0", "9112 9.3", answer(b"Content-Length: 0", version=b"HTTP/1.0"), {"keep_alive": False}),
    Taken("HTTP/1.0 keep-alive", "9112 9.3", answer(b"Content-Length: 0", b"Connection: keep-alive", version=b"HTTP/1.0"), {"keep_alive": True}),
    Taken("HTTP/1.0 keep-alive, to close", "9112 9.3", answer(b"Connection: keep-alive", version=b"HTTP/1.0"), {"keep_alive": False}),
    Taken("close", "9112 9.3", answer(b"Content-Length: 0", b"Connection: close"), {"keep_alive": False}),
    Taken("204", "9112 6.3", answer(status=b"204 No Content"), {"framing": Framing.NONE, "keep_alive": True}),
    Taken("204 with a body told", "9110 8.6", answer(b"Content-Length: 5", status=b"204 No Content"), {"framing": Framing.NONE, "keep_alive": False, "dropped": (b"Content-Length",)}),
    Taken("304 with a length", "9110 8.6", answer(b"Content-Length: 5", status=b"304 Not Modified"), {"framing": Framing.NONE, "content_length": 5, "keep_alive": True, "dropped": ()}),
    Taken("100", "9110 15.2", answer(status=b"100 Continue"), {"status": 100, "framing": Framing.NONE}),
    Taken("103", "8297 2", answer(b"Link: </a>", status=b"103 Early Hints"), {"status": 103, "framing": Framing.NONE}),
    Refused("100 with a body told", "9110 8.6", answer(b"Content-Length: 5", status=b"100 Continue")),
    Refused("100 chunked", "9112 6.1", answer(b"Transfer-Encoding: chunked", status=b"100 Continue")),
    Taken("205", "9110 15.3.6", answer(b"Content-Length: 0", status=b"205 Reset Content"), {"framing": Framing.LENGTH}),
    Taken("hop by hop goes", "9110 7.6.1", answer(b"Connection: x, close", b"X: 1", b"Keep-Alive: timeout=5", b"Set-Cookie: a"), {"dropped": (b"Connection", b"X", b"Keep-Alive")}),
)

CHUNKED: Final[tuple[Taken | Refused, ...]] = (
    Taken("two chunks", "9112 7.1", b"4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n", {"body": b"Wikipedia", "framed": b"4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n"}),
    Taken("nothing", "9112 7.1", b"0\r\n\r\n", {"body": b"", "framed": b"0\r\n\r\n"}),
    Taken("zeros first", "9112 7.1", b"0003\r\nabc\r\n00\r\n\r\n", {"body": b"abc"}),
    Taken("upper case", "9112 7.1", b"A\r\n0123456789\r\n0\r\n\r\n", {"body": b"0123456789"}),
    Taken("line ends as data", "9112 7.1", b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", {"body": b"\r\n0\r\n\r\n"}),
    Taken("extensions go", "9112 7.1.1", b'3;a;b=c;d="\\"\xff; "\r\nabc\r\n0;e\r\n\r\n', {"body": b"abc", "framed": b"3\r\nabc\r\n0\r\n\r\n"}),
    Taken("trailers go", "9112 7.1.2", b"1\r\na\r\n0\r\nX: y\r\nHost: b\r\n\r\n", {"body": b"a", "framed": b"1\r\na\r\n0\r\n\r\n"}),
    Refused("no size", "9112 7.1", b"\r\nabc"),
    Refused("sign", "9112 7.1", b"+3\r\nabc\r\n"),
    Refused("minus", "9112 7.1", b"-3\r\nabc\r\n"),
    Refused("prefix", "9112 7.1", b"0x3\r\nabc\r\n"),
    Refused("space first", "9112 7.1", b" 3\r\nabc\r\n"),
    Refused("space last", "9112 7.1", b"3 \r\nabc\r\n"),
    Refused("tab last", "9112 7.1", b"3\t\r\nabc\r\n"),
    Refused("VT last", "9112 7.1", b"3\x0b\r\nabc\r\n"),
    Refused("underscore", "9112 7.1", b"1_0\r\n"),
    Refused("comma", "9112 7.1", b"3,3\r\nabc\r\n"),
    Refused("size beyond 64 bits", "9112 7.1", b"10000000000000003\r\nabc\r\n"),
    Refused("size beyond 62 bits", "9112 7.1", b"FFFFFFFFFFFFFFFF\r\nabc\r\n"),
    Refused("bare LF after size", "9112 2.2", b"3\nabc\r\n"),
    Refused("bare CR after size", "9112 2.2", b"3\rabc\r\n"),
    Refused("bare LF after data", "9112 7.1", b"3\r\nabc\n"),
    Refused("nothing after data", "9112 7.1", b"3\r\nabc0\r\n\r\n"),
    Refused("something after data", "9112 7.1", b"3\r\nabcd\r\n"),
    Refused("bare LF at the end", "9112 7.1", b"0\r\n\n"),
    Refused("bare CR at the end", "9112 7.1", b"0\r\n\rX"),
    Refused("extension of nothing", "9112 7.1.1", b"3;\r\nabc\r\n"),
    Refused("extension with spaces", "house", b"3 ; a = b\r\nabc\r\n"),
    Refused("extension with a bare LF", "9112 7.1.1", b"3;a\nabc\r\n"),
    Refused("extension with a bare CR", "9112 7.1.1", b"3;a\rabc\r\n"),
    Refused("extension with a line end quoted", "9112 7.1.1", b'3;a="\r\n"\r\nabc\r\n'),
    Refused("extension with a NUL", "9112 7.1.1", b"3;a\0\r\nabc\r\n"),
    Refused("extensions without end", "house", b"3;" + b"a" * 8192, Verdict.TOO_BIG),
    Refused("trailer folded", "9112 5.2", b"0\r\nX: y\r\n z\r\n\r\n"),
    Refused("trailer without colon", "9112 5", b"0\r\nX\r\n\r\n"),
    Refused("trailer that is a request", "9112 5", b"0\r\nGET / HTTP/1.1\r\n\r\n"),
    Refused("trailer with space before the colon", "9112 5.1", b"0\r\nX : y\r\n\r\n"),
    Refused("trailer with a bare LF", "9112 2.2", b"0\r\nX: y\n\r\n"),
    Refused("trailers without end", "house", b"0\r\nX:" + b"a" * 8192, Verdict.TOO_BIG),
)
# fmt: on
