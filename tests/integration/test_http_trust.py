"""Who a request comes from: a stranger's word is dropped, a trusted proxy's is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.proxy_headers import REFUSED, TAKEN, TCP4, UNSPEC, V4, V6, tlv, v2
from tests.support.engine import Proxy, app, edits, route
from tests.support.upstream import Head, Upstream

START = Callable[..., Proxy]
SERVE = Callable[..., Upstream]

LOCAL = "127.0.0.1"
GET = b"GET / HTTP/1.1\r\nhost: a.example\r\n"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\r\n"
SAID = {
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "b.example:8443",
    "x-forwarded-port": "8443",
    "x-forwarded-prefix": "/app",
    "x-real-ip": "203.0.113.9",
    "forwarded": "for=203.0.113.9;proto=https",
}


def asked(said: dict[str, str] | list[tuple[str, str]]) -> bytes:
    pairs = said.items() if isinstance(said, dict) else said
    return GET + b"".join(f"{name}: {value}\r\n".encode() for name, value in pairs) + b"\r\n"


def forwarded(head: Head) -> dict[str, str | None]:
    return {name: head.get(name) for name in SAID}


# --- trusted_proxies -------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8", "::1/128", "127.0.0.2/32")])
def test_of_a_stranger_nothing_is_believed(
    trusted: tuple[str, ...], proxy: START, upstream: SERVE
) -> None:
    served = upstream()
    with proxy(served.port, trusted=trusted).client() as client:
        client.send(asked(SAID))
        assert client.answer().status == 200
    assert forwarded(served.next()) == {
        "x-forwarded-for": LOCAL,
        "x-forwarded-proto": "http",
        "x-forwarded-host": "a.example",
        "x-forwarded-port": None,
        "x-forwarded-prefix": None,
        "x-real-ip": None,
        "forwarded": None,
    }


def test_what_a_trusted_proxy_says_is_kept_and_its_address_added(
    proxy: START, upstream: SERVE
) -> None:
    served = upstream()
    with proxy(served.port, trusted=["127.0.0.0/8"]).client() as client:
        for _ in range(2):
            client.send(asked(SAID))
            assert client.answer().status == 200
            assert forwarded(served.next()) == SAID | {
                "x-forwarded-for": f"203.0.113.9, {LOCAL}",
                "forwarded": f"for=203.0.113.9;proto=https, for={LOCAL}",
            }


def test_what_a_trusted_proxy_does_not_say_is_said_by_us(proxy: START, upstream: SERVE) -> None:
    served = upstream()
    with proxy(served.port, trusted=["127.0.0.1/32"]).client() as client:
        client.send(asked({}))
        assert client.answer().status == 200
    assert forwarded(served.next()) == dict.fromkeys(SAID) | {
        "x-forwarded-for": LOCAL,
        "x-forwarded-proto": "http",
        "x-forwarded-host": "a.example",
    }


BROKEN = {
    "x-forwarded-proto": ["gopher", "https, http", "", "http\t"],
    "x-forwarded-host": ["b@c", "b/c", "b c", "a, b", ""],
    "x-forwarded-port": ["http", "+1", "123456", ""],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BROKEN.items() for value in values]
)
def test_what_is_malformed_or_there_twice_is_replaced(
    name: str, value: str, proxy: START, upstream: SERVE
) -> None:
    served = upstream()
    own = {"x-forwarded-proto": "http", "x-forwarded-host": "a.example", "x-forwarded-port": None}
    if value == "http\t":
        own = own | {name: "http"}  # blanks around a value are none of it
    with proxy(served.port, trusted=["127.0.0.1/32"]).client() as client:
        client.send(asked({name: value}))
        assert client.answer().status == 200
        assert served.next().get(name) == own[name]
        client.send(asked([(name, SAID[name]), (name, SAID[name])]))
        assert client.answer().status == 200
        expected = {"x-forwarded-proto": "http"}.get(name, own[name])
        assert served.next().get(name) == expected


def test_chains_in_several_fields_become_one(proxy: START, upstream: SERVE) -> None:
    served = upstream()
    with proxy(served.port, trusted=["127.0.0.1/32"]).client() as client:
        client.send(
            asked(
                [
                    ("x-forwarded-for", "a"),
                    ("forwarded", 'for="_a"'),
                    ("X-Forwarded-For", "b, c"),
                    ("x-forwarded-for", ""),
                    ("Forwarded", "for=b"),
                ]
            )
        )
        assert client.answer().status == 200
    head = served.next()
    assert head.get("x-forwarded-for") == f"a, b, c, {LOCAL}"
    assert head.get("forwarded") == f'for="_a", for=b, for={LOCAL}'


def test_a_routes_edits_go_before_what_a_proxy_says(proxy: START, upstream: SERVE) -> None:
    served = upstream()
    changes = edits([("x-forwarded-for", "hidden")], ["forwarded", "x-forwarded-prefix"])
    spec = app([served.port], routes=[route(request=changes)], trusted=["127.0.0.1/32"])
    with proxy(spec=spec).client() as client:
        client.send(asked(SAID))
        assert client.answer().status == 200
    assert forwarded(served.next()) == SAID | {
        "x-forwarded-for": "hidden",
        "forwarded": None,
        "x-forwarded-prefix": None,
    }


def test_an_https_target_needs_a_proxy_that_may_speak_for_it(proxy: START, upstream: SERVE) -> None:
    """RFC 9110 7.4: over a connection without TLS it is misdirected, unless the peer is trusted."""
    request = b"GET https://a.example/x HTTP/1.1\r\nhost: a.example\r\n\r\n"
    served = upstream()
    with proxy(served.port).client() as client:
        client.send(request)
        assert client.answer().status == 421
    with proxy(served.port, trusted=["127.0.0.1/32"]).client() as client:
        client.send(request)
        assert client.answer().status == 200
    assert served.next().get("x-forwarded-proto") == "https"


# --- proxy_protocol --------------------------------------------------------------------------


def introduced(proxy: START, port: int, **options: object) -> Proxy:
    return proxy(port, trusted=["127.0.0.0/8"], proxy_protocol=True, **options)


HEADERS = [case for case in TAKEN if case[3] is None or len(case[2]) < 300]


@pytest.mark.parametrize("case", HEADERS, ids=[case[0] for case in HEADERS])
def test_a_proxy_header_says_who_the_client_is(
    case: tuple[str, str, bytes, tuple[str, int] | None, object], proxy: START, upstream: SERVE
) -> None:
    _, _, header, source, _ = case
    served = upstream()
    running = introduced(proxy, served.port)
    with running.client() as client:
        client.send(header + asked(SAID))
        assert client.answer().status == 200
        client.send(asked({}))
        assert client.answer().status == 200
    first, second = served.next(), served.next()
    if source is None:  # the proxy itself, which is trusted
        assert first.get("x-forwarded-for") == f"203.0.113.9, {LOCAL}"
        assert second.get("x-forwarded-for") == LOCAL
    else:  # somebody else, whose words are nothing
        assert first.get("x-forwarded-for") == second.get("x-forwarded-for") == source[0]
        assert first.get("x-forwarded-proto") == "http"


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (v2(0x21, bytes(10) + b"\xff\xff\xc0\0\2\1" + bytes(16) + b"\0\1\0\2"), "192.0.2.1"),
        (v2(0x21, V6, tlv(0xEE, bytes(1000))), "2001:db8::1"),
    ],
)
def test_addresses_have_one_form(header: bytes, shown: str, proxy: START, upstream: SERVE) -> None:
    served = upstream()
    with introduced(proxy, served.port).client() as client:
        client.send(header + GET + b"\r\n")
        assert client.answer().status == 200
    assert served.next().get("x-forwarded-for") == shown


def test_a_proxy_header_that_names_a_trusted_proxy_lets_it_speak(
    proxy: START, upstream: SERVE
) -> None:
    served = upstream()
    with introduced(proxy, served.port).client() as client:
        client.send(b"PROXY TCP4 127.0.0.9 127.0.0.1 1 2\r\n" + asked(SAID))
        assert client.answer().status == 200
    assert served.next().get("x-forwarded-for") == "203.0.113.9, 127.0.0.9"


WRONG = [case for case in REFUSED if case[0] != "without end"]


@pytest.mark.parametrize("case", WRONG, ids=[case[0] for case in WRONG])
def test_a_wrong_header_ends_the_connection_without_a_word(
    case: tuple[str, str, bytes, object], proxy: START, upstream: SERVE
) -> None:
    served = upstream()
    with introduced(proxy, served.port).client() as client:
        client.send(case[2] + GET + b"\r\n")
        try:
            assert client.rest() == b""
        except ConnectionResetError:
            pass
    assert served.accepted == 0


@pytest.mark.parametrize("part", [b"", b"PROXY TCP4 192.0.2.1 ", v2(TCP4, V4)[:20]])
def test_a_header_that_does_not_come_in_time_ends_the_connection(
    part: bytes, proxy: START, upstream: SERVE
) -> None:
    running = introduced(proxy, upstream().port, header_ms=200)
    with running.client() as client:
        client.send(part)
        assert client.ends()


def test_a_header_half_sent_leaves_nothing_behind(proxy: START, upstream: SERVE) -> None:
    running = introduced(proxy, upstream().port)
    with running.client() as client:
        client.send(V1[:20])
        running.has_read(20)
        client.finish()
        assert client.ends()
    running.until(lambda stats: stats["buffer_bytes"] == 0)


def test_a_stranger_cannot_introduce_anybody(proxy: START, upstream: SERVE) -> None:
    """Its header is a malformed request; without one it is an ordinary client."""
    served = upstream()
    running = proxy(served.port, trusted=["10.0.0.0/8"], proxy_protocol=True)
    for header in (V1, v2(TCP4, V4)):
        with running.client() as client:
            client.send(header + GET + b"\r\n")
            assert client.answer().status == 400
    with running.client() as client:
        client.send(GET + b"\r\n")
        assert client.answer().status == 200
    assert served.next().get("x-forwarded-for") == LOCAL
    with proxy(served.port).client() as client:  # nor on a listener that expects none
        client.send(V1 + GET + b"\r\n")
        assert client.answer().status == 400


@pytest.mark.parametrize(
    "header", [V1, v2(TCP4, V4, tlv(3, b"abcd")), v2(UNSPEC, b"", command=0x20)]
)
def test_what_follows_a_header_is_a_tunnels_first_bytes(
    header: bytes, proxy: START, upstream: SERVE
) -> None:
    served = upstream(lambda peer: peer.send(peer.exactly(11)))
    with introduced(proxy, served.port).client("raw") as client:
        client.send(header + b"first ")
        client.send(b"words")
        assert client.exactly(11) == b"first words"
    with introduced(proxy, served.port).client("raw") as client:
        client.send(b"no header at all")
        try:
            assert client.rest() == b""
        except ConnectionResetError:
            pass
    assert served.accepted == 1
