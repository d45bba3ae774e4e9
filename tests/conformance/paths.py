"""The one form of a request's path: what comes, and what is routed and forwarded.

A section is an RFC and its part, as "3986 5.2.4"; "house" marks a rule of our own where readers
differ. native/src/dp_path.h says the rules in words.
"""

from __future__ import annotations

from typing import Final

# fmt: off
TAKEN: Final[tuple[tuple[bytes, bytes, str], ...]] = (
    # --- as it stands
    (b"/", b"/", "3986 6.2.2"),
    (b"/a/b;c=d,e/f.g", b"/a/b;c=d,e/f.g", "3986 6.2.2"),
    (b"/~user/-_.!$&'()*+,;=:@", b"/~user/-_.!$&'()*+,;=:@", "3986 3.3"),
    (b"/a|b^c{d}`[e]", b"/a|b^c{d}`[e]", "house"),
    (b"/A/b", b"/A/b", "3986 6.2.2.1"),
    # --- encodings
    (b"/%41%5a%61%7A%30%39", b"/AZaz09", "3986 6.2.2.2"),
    (b"/%2D%2e%5F%7ex", b"/-._~x", "3986 6.2.2.2"),
    (b"/%c3%bc", b"/%C3%BC", "3986 6.2.2.1"),
    (b"/%2f", b"/%2F", "3986 2.2"),
    (b"/a%2Fb", b"/a%2Fb", "3986 2.2"),
    (b"/%3a%40%21%24%26%27%28%29%2a%2b%2c%3b%3d", b"/%3A%40%21%24%26%27%28%29%2A%2B%2C%3B%3D", "3986 2.2"),
    (b"/%20%22%23%25%3c%3e%3f%5b%5c%5d", b"/%20%22%23%25%3C%3E%3F%5B%5C%5D", "3986 2.1"),
    (b"/%ff%80", b"/%FF%80", "3986 2.1"),
    # --- nothing is decoded twice
    (b"/%2541", b"/%2541", "3986 2.4"),
    (b"/%252e%252e/", b"/%252e%252e/", "3986 2.4"),
    (b"/%252f%25%32%65", b"/%252f%252e", "3986 2.4"),
    (b"/a/%25%32%65%25%32%65/b", b"/a/%252e%252e/b", "3986 2.4"),
    # --- dot segments
    (b"/.", b"/", "3986 5.2.4"),
    (b"/./", b"/", "3986 5.2.4"),
    (b"/./a", b"/a", "3986 5.2.4"),
    (b"/a/.", b"/a/", "3986 5.2.4"),
    (b"/a/..", b"/", "3986 5.2.4"),
    (b"/a/../", b"/", "3986 5.2.4"),
    (b"/a/../b", b"/b", "3986 5.2.4"),
    (b"/a/b/c/./../../g", b"/a/g", "3986 5.2.4"),
    (b"/mid/content=5/../6", b"/mid/6", "3986 5.2.4"),
    (b"/a/%2e%2e/b", b"/b", "3986 6.2.2.3"),
    (b"/a/.%2E/b", b"/b", "3986 6.2.2.3"),
    (b"/a/%2e/b", b"/a/b", "3986 6.2.2.3"),
    (b"/static/%2e%2e/admin", b"/admin", "3986 6.2.2.3"),
    (b"/a/../b/../c/..", b"/", "3986 5.2.4"),
    (b"/%61/..", b"/", "3986 5.2.4"),
    # --- empty segments are segments
    (b"//", b"//", "3986 3.3"),
    (b"//a//", b"//a//", "3986 3.3"),
    (b"/a//../b", b"/a/b", "3986 5.2.4"),
    (b"//../a", b"/a", "3986 5.2.4"),
    (b"/.//a", b"//a", "3986 5.2.4"),
    # --- dots that are names
    (b"/...", b"/...", "3986 3.3"),
    (b"/..a/a../.b/b./.well-known/x", b"/..a/a../.b/b./.well-known/x", "3986 3.3"),
    (b"/%2e%2e%2e", b"/...", "3986 3.3"),
    (b"/a;../b;.", b"/a;../b;.", "house"),
    (b"/..a;b", b"/..a;b", "house"),
)

REFUSED: Final[tuple[tuple[bytes, str], ...]] = (
    # --- beyond the root
    (b"/..", "house"),
    (b"/../", "house"),
    (b"/../a", "house"),
    (b"/a/../..", "house"),
    (b"/a/../../b", "house"),
    (b"/./../a", "house"),
    (b"/%2e%2e/a", "house"),
    (b"/a/%2E./%2e./b", "house"),
    # --- a way up that only some readers see
    (b"/a/..%2fb", "house"),
    (b"/a/..%2F..%2fb", "house"),
    (b"/a%2f..", "house"),
    (b"/a%2f%2e%2e/b", "house"),
    (b"/a%2f.%2fb", "house"),
    (b"/a/..%5cb", "house"),
    (b"/a%5C..%5Cb", "house"),
    (b"/a/%2e%2e%5c", "house"),
    (b"/a/..;/b", "house"),
    (b"/a/..;x=y/b", "house"),
    (b"/a/.;x/b", "house"),
    (b"/a/..%3b/b", "house"),
    (b"/a/%2e%2e;/b", "house"),
    (b"/;/..;", "house"),
    # --- control bytes
    (b"/%00", "house"),
    (b"/a%00.txt", "house"),
    (b"/%0a", "house"),
    (b"/%0D%0Ax:y", "house"),
    (b"/%09", "house"),
    (b"/%1f", "house"),
    (b"/%7F", "house"),
    # --- no encodings
    (b"/%", "3986 2.1"),
    (b"/%4", "3986 2.1"),
    (b"/%4g", "3986 2.1"),
    (b"/%u002e", "3986 2.1"),
    (b"/% 41", "3986 2.1"),
)
# fmt: on
