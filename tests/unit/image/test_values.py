"""What single values mean, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dataplane.image import values
from dataplane.image.values import Unfit, overlap


@pytest.mark.parametrize(
    ("read", "text", "meaning"),
    [
        (values.duration_ms, "250ms", 250),
        (values.duration_ms, "5s", 5_000),
        (values.duration_ms, "1m", 60_000),
        (values.duration_ms, "1h", 3_600_000),
        (values.duration_ms, "0s", 0),
        (values.duration_ms, "24h", 86_400_000),
        (values.size_bytes, "16KiB", 16_384),
        (values.size_bytes, "1MiB", 1 << 20),
        (values.size_bytes, "2GiB", 2 << 30),
        (values.size_bytes, "7B", 7),
        (values.size_bytes, 12, 12),
        (values.listen_address, "127.0.0.1:8080", "127.0.0.1:8080"),
        (values.listen_address, "0.0.0.0:0", "0.0.0.0:0"),
        (values.listen_address, "[::1]:80", "[::1]:80"),
        (values.listen_address, "[2001:DB8:0:0::1]:65535", "[2001:db8::1]:65535"),
        (values.endpoint_address, "127.0.0.1:9001", ("127.0.0.1", 9001)),
        (values.endpoint_address, "[0:0::1]:1", ("::1", 1)),
        (values.endpoint_address, "DB.Internal:5432", ("db.internal", 5432)),
        (values.endpoint_address, "db.internal.:5432", ("db.internal.", 5432)),
        (values.endpoint_address, "_db._tcp.x:1", ("_db._tcp.x", 1)),
        (values.set_field_value, "file:/run/secrets/token", "file:/run/secrets/token"),
        (values.set_field_value, "env:API_TOKEN", "env:API_TOKEN"),
        (values.set_field_value, "file", "file"),
        (values.host_pattern, "Example.COM", "example.com"),
        (values.host_pattern, "*.Example.com", "*.example.com"),
        (values.host_pattern, "my_host", "my_host"),
        (values.host_pattern, "127.0.0.1", "127.0.0.1"),
        (values.host_pattern, "[0:0::1]", "[::1]"),
        (values.path_pattern, "/", "/"),
        (values.path_pattern, "/a/b%20c/.well-known/..x", "/a/b%20c/.well-known/..x"),
        (values.redirect_target, "/new/", "/new/"),
        (values.redirect_target, "https://example.com", "https://example.com"),
        (values.redirect_target, "http://[::1]:80/x?y=z", "http://[::1]:80/x?y=z"),
        (values.field_name, "X-Beta", "x-beta"),
        (values.edited_field_name, "Cache-Control", "cache-control"),
        (values.field_value, "", ""),
        (values.field_value, 'a\tb; c="d"', 'a\tb; c="d"'),
        (values.method_name, "PATCH", "PATCH"),
        (values.app_name, "a", "a"),
        (values.app_name, "a-1", "a-1"),
        (values.app_name, "a" * 40, "a" * 40),
    ],
)
def test_meaning(read: Callable[[Any], object], text: object, meaning: object) -> None:
    assert read(text) == meaning


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (values.duration_ms, "5", "is not a duration"),
        (values.duration_ms, "5 s", "is not a duration"),
        (values.duration_ms, "-5s", "is not a duration"),
        (values.duration_ms, "1.5s", "is not a duration"),
        (values.duration_ms, "05s", "is not a duration"),
        (values.duration_ms, "\u0665s", "is not a duration"),
        (values.duration_ms, "5s\n", "is not a duration"),
        (values.duration_ms, "25h", "is too long"),
        (values.size_bytes, "16KB", "is not a size"),
        (values.size_bytes, "1e6", "is not a size"),
        (values.listen_address, "", "is not an address"),
        (values.listen_address, "8080", "write 127.0.0.1:8080"),
        (values.listen_address, ":8080", "write 0.0.0.0:8080"),
        (values.listen_address, "*:8080", "write 0.0.0.0:8080"),
        (values.listen_address, "127.0.0.1", "write 127.0.0.1:8080"),
        (values.listen_address, "localhost:8080", "use 127.0.0.1:8080"),
        (values.listen_address, "example.com:80", "binds to a numeric address"),
        (values.listen_address, "::1:80", "in brackets"),
        (values.listen_address, "[::1]", "lacks a port"),
        (values.listen_address, "[127.0.0.1]:80", "brackets are for IPv6"),
        (values.listen_address, "[fe80::1%eth0]:80", "zone"),
        (values.listen_address, "127.0.0.1:65536", "is not a port"),
        (values.listen_address, "127.0.0.1:080", "is not a port"),
        (values.listen_address, "127.0.0.1:+80", "is not a port"),
        (values.listen_address, "127.0.0.1:\u0668\u0660", "is not a port"),
        (values.listen_address, "127.0.0.01:80", "is not an address"),
        (values.listen_address, "256.0.0.1:80", "is not an address"),
        (values.listen_address, "127.1:80", "is not an address"),
        (values.listen_address, "224.0.0.1:80", "nobody can listen"),
        (values.listen_address, "unix:/run/x.sock", "not supported yet"),
        (values.endpoint_address, "127.0.0.1:0", "needs a port from 1"),
        (values.endpoint_address, "0.0.0.0:80", "use 127.0.0.1:80"),
        (values.endpoint_address, "db..internal:5432", "is not an address"),
        (values.endpoint_address, "-db:5432", "'-db' is not a host name"),
        (values.endpoint_address, f"{'a' * 64}.b:1", "is not a host name"),
        (values.endpoint_address, "db:0", "needs a port from 1"),
        (values.endpoint_address, "db", "is not an address"),
        (values.set_field_value, "file:token", "named by its whole path"),
        (values.set_field_value, "file:/a b", "no space"),
        (values.set_field_value, "env:", "does not name a variable"),
        (values.set_field_value, "env:A-B", "does not name a variable"),
        (values.set_field_value, " a", "begins or ends with a space"),
        (values.endpoint_address, "http://127.0.0.1:80", "is not an address"),
        (values.endpoint_address, "unix:run/x", "no absolute path"),
        (values.endpoint_address, "unix:/a b", "not the path of a socket"),
        (values.endpoint_address, "unix:/" + "a" * 107, "at most 107 characters"),
        (values.host_pattern, "", "is not a host"),
        (values.host_pattern, "*", "leave `host` out"),
        (values.host_pattern, "a.*.com", "may only stand alone in front"),
        (values.host_pattern, "*example.com", "may only stand alone in front"),
        (values.host_pattern, "example.com:80", "without its port"),
        (values.host_pattern, "[::1]:80", "without a port"),
        (values.host_pattern, "example.com.", "without the last dot"),
        (values.host_pattern, "a..b", "is not a host"),
        (values.host_pattern, "-a.com", "is not a host"),
        (values.host_pattern, "a b", "is not a host"),
        (values.host_pattern, "bücher.de", "xn--"),
        (values.host_pattern, "a" * 64 + ".com", "is not a host"),
        (values.path_pattern, "api/", "begins with '/'"),
        (values.path_pattern, "/a?b", "no '?'"),
        (values.path_pattern, "/a#b", "no '#'"),
        (values.path_pattern, "/a b", "characters that no path has"),
        (values.path_pattern, "/a\\b", "characters that no path has"),
        (values.path_pattern, "/ü", "characters that no path has"),
        (values.path_pattern, "/%zz", "characters that no path has"),
        (values.path_pattern, "/a/../b", "'.' and '..'"),
        (values.path_pattern, "/a/%2E%2e/b", "'.' and '..'"),
        (values.path_pattern, "/.", "'.' and '..'"),
        (values.redirect_target, "//evil.example/", "leads to another host"),
        (values.redirect_target, "javascript:x", "is not a place"),
        (values.redirect_target, "https://user@host/", "is not a place"),
        (values.redirect_target, "new/", "is not a place"),
        (values.redirect_target, "/a\r\nb: c", "characters that no URL has"),
        (values.redirect_target, "", "characters that no URL has"),
        (values.field_name, "", "is not the name"),
        (values.field_name, "a b", "is not the name"),
        (values.field_name, "x:", "is not the name"),
        (values.field_name, "a\n", "is not the name"),
        (values.edited_field_name, "Content-Length", "cannot be edited"),
        (values.edited_field_name, "transfer-encoding", "cannot be edited"),
        (values.edited_field_name, "HOST", "cannot be edited"),
        (values.field_value, "a\r\nb", "no header field may have"),
        (values.field_value, "a\0", "no header field may have"),
        (values.field_value, "ü", "no header field may have"),
        (values.field_value, " a", "begins or ends with a space"),
        (values.method_name, "get", "write GET"),
        (values.method_name, "CONNECT", "tcp listener"),
        (values.method_name, "FETCH", "known are DELETE, GET"),
        (values.app_name, "", "is not an app's name"),
        (values.app_name, "Billing", "is not an app's name"),
        (values.app_name, "../x", "is not an app's name"),
        (values.app_name, "-a", "is not an app's name"),
        (values.app_name, "a" * 41, "is not an app's name"),
        (values.app_name, "a\n", "is not an app's name"),
    ],
)
def test_refusal(read: Callable[[str], object], text: str, told: str) -> None:
    with pytest.raises(Unfit) as caught:
        read(text)
    assert told in f"{caught.value.message} / {caught.value.hint}"
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("[::]:80", "[::1]:80", True),
        ("[::]:80", "127.0.0.1:80", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_addresses_that_cannot_both_be_bound(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected
