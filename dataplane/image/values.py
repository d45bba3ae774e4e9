"""What single values of a config file mean: durations, sizes, addresses, hosts, paths, fields.

Pure functions from text to a normalised value. What does not fit is an `Unfit` with a message that
quotes the value and a hint that shows a right one; nobody here knows files or lines.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from dataplane.model.inputs import FILE_REFERENCE, VARIABLE_REFERENCE
from dataplane.model.names import APP_NAME

MS_OF_UNIT: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
BYTES_OF_UNIT: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# The engine counts milliseconds in 32 bits; a day is more than any wait of a proxy needs.
MAX_DURATION_MS: Final = 24 * 3_600_000
MAX_UNIX_PATH: Final = 107  # unix(7)
MAPPED_BITS: Final = 96  # of ::ffff:0:0/96, where IPv4 addresses stand (RFC 4291 2.5.5.2)

DURATION: Final = re.compile(r"(0|[1-9][0-9]{0,8})(ms|s|m|h)")
SIZE: Final = re.compile(r"(0|[1-9][0-9]{0,11})(B|KiB|MiB|GiB)")
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
RETRY_CAUSES: Final = ("connect-failure", "reset")
# RFC 9110 9.2.2: done twice is as done once.
IDEMPOTENT: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE")
METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")

# Fields by which a message is framed, or which live for one hop: an edit would let two parties
# disagree about where a message ends. The proxy alone writes them.
FRAMING_FIELDS: Final = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_HOST_NAME: Final = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")
_PATH_FORM: Final = re.compile(r"(?:%[0-9A-Fa-f]{2}|[!$&'()*+,\-./0-9:;=@A-Z_a-z~])+")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED: Final = re.compile(r"[0-9A-Za-z._~-]")
_CONTROL: Final = re.compile(r"%(?:[01][0-9A-F]|7F)")
_SHOWN: Final = 60


class Unfit(ValueError):
    """A value that does not mean what its key needs."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def shown(value: object) -> str:
    """The value as a message quotes it: one line, plain characters, not too long."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > _SHOWN:
        text = text[: _SHOWN - 3] + "..."
    return ascii(text) if isinstance(value, str) else text


def duration_ms(text: str) -> int:
    """Whole milliseconds of `250ms`, `5s`, `1m`, `1h`."""
    found = DURATION.fullmatch(text)
    if found is None:
        raise Unfit(f"{shown(text)} is not a duration", "write 250ms, 5s, 1m or 1h")
    milliseconds = int(found[1]) * MS_OF_UNIT[found[2]]
    if milliseconds > MAX_DURATION_MS:
        raise Unfit(f"{shown(text)} is too long", "24h is the longest")
    return milliseconds


def size_bytes(value: int | str) -> int:
    """Bytes of `16KiB`, `1MiB`, or of a plain number."""
    if isinstance(value, int):
        return value
    found = SIZE.fullmatch(value)
    if found is None:
        raise Unfit(f"{shown(value)} is not a size", "write 16KiB, 1MiB, or a number of bytes")
    return int(found[1]) * BYTES_OF_UNIT[found[2]]


def listen_address(text: str) -> str:
    """`127.0.0.1:8080`, `[::1]:8080` or `unix:/path`, normalised; port 0 is allowed."""
    if text.startswith("unix:"):
        return unix_address(text)
    address, port = _split_address(text, "127.0.0.1:8080")
    ip = _numeric(address, text)
    if ip is None:
        hint = f"use 127.0.0.1:{port}" if address == "localhost" else "name the address itself"
        raise Unfit(f"{shown(text)}: a listener binds to a numeric address", hint)
    if ip.is_multicast or str(ip) == "255.255.255.255":
        raise Unfit(f"{shown(text)}: nobody can listen on that address")
    return join_address(str(ip), port)


def endpoint_address(text: str) -> tuple[str, int]:
    """(address without brackets or host name, port) of `127.0.0.1:9001`, `[::1]:9001`, `db:5432`.

    A host name is lower case; a dot at its end, which keeps it from being searched for, stays. Of
    `unix:/path` it is (`unix:/path`, 0).
    """
    if text.startswith("unix:"):
        return unix_address(text), 0
    address, port = _split_address(text, "127.0.0.1:9001")
    ip = _numeric(address, text)
    if port == 0:
        raise Unfit(f"{shown(text)}: an endpoint needs a port from 1 to 65535")
    if ip is None:
        labels = address.lower().removesuffix(".").split(".")
        if len(address) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
            raise Unfit(f"{shown(text)}: {shown(address)} is not a host name")
        return address.lower(), port
    if ip.is_unspecified or ip.is_multicast or str(ip) == "255.255.255.255":
        hint = f"use 127.0.0.1:{port}" if ip.is_unspecified else None
        raise Unfit(f"{shown(text)}: nobody can be connected to at that address", hint)
    return str(ip), port


def network(text: str) -> str:
    """`10.0.0.0/8` or `2001:db8::/32`, normalised; an address alone is a network of one.

    Of IPv6 networks within ::ffff:0:0/96 it is the network of IPv4 addresses that they stand for.
    """
    address, slash, bits = text.partition("/")
    ip = _numeric(address, text) if address else None
    if ip is None:
        raise Unfit(f"{shown(text)} is not a network", "write 10.0.0.0/8")
    if not slash:
        bits = str(ip.max_prefixlen)
    if re.fullmatch(r"0|[1-9][0-9]{0,2}", bits) is None or int(bits) > ip.max_prefixlen:
        hint = f"a prefix of this address has 0 to {ip.max_prefixlen} bits"
        raise Unfit(f"{shown(text)}: {shown(bits)} is not a prefix length", hint)
    found = ipaddress.ip_network(f"{ip}/{bits}", strict=False)
    if found.network_address != ip:
        raise Unfit(f"{shown(text)} has bits behind its prefix", f"write {found}")
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    if mapped is not None and found.prefixlen >= MAPPED_BITS:
        return f"{mapped}/{found.prefixlen - MAPPED_BITS}"
    return str(found)


def unix_address(text: str) -> str:
    """`unix:/path` of a UNIX socket."""
    path = text.removeprefix("unix:")
    if not path.startswith("/"):
        raise Unfit(f"{shown(text)} names no absolute path", "write unix:/run/app.sock")
    if not re.fullmatch(r"[!-~]+", path) or "//" in path or path.endswith("/"):
        raise Unfit(f"{shown(text)} is not the path of a socket", "write unix:/run/app.sock")
    if len(path) > MAX_UNIX_PATH:
        raise Unfit(f"{shown(text)}: a socket's path has at most {MAX_UNIX_PATH} characters")
    return text


def join_address(address: str, port: int) -> str:
    """`address:port`, with brackets around an IPv6 address; a UNIX socket's as it is."""
    if address.startswith("unix:"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def overlap(one: str, other: str) -> bool:
    """Whether two normalised listen addresses cannot both be bound on one host."""
    (address, _, port), (address_2, _, port_2) = one.rpartition(":"), other.rpartition(":")
    if port != port_2 or port == "0" or (":" in address) != (":" in address_2):
        return False
    return address == address_2 or bool({address, address_2} & {"0.0.0.0", "[::]"})


def host_pattern(text: str) -> str:
    """A host to match, lower case: a name, an address, or `*.` before a name."""
    host = text.lower()
    if host == "*":
        raise Unfit("'*' is not a host", "leave `host` out to match any")
    name = host.removeprefix("*.")
    if name.startswith("["):
        address, bracket, rest = name[1:].partition("]")
        ip = _numeric(address, text)
        if host == name and bracket and not rest and isinstance(ip, ipaddress.IPv6Address):
            return f"[{ip}]"
        raise Unfit(f"{shown(text)} is not a host", "write an IPv6 host as [::1], without a port")
    if ":" in name:
        raise Unfit(f"{shown(text)}: a host is matched without its port")
    if "*" in name:
        raise Unfit(f"{shown(text)}: '*' may only stand alone in front", "write *.example.com")
    if not name.isascii():
        raise Unfit(f"{shown(text)} is not a host", "write the name's ASCII form (xn--...)")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        hint = "write it without the last dot" if name.endswith(".") else "write www.example.com"
        raise Unfit(f"{shown(text)} is not a host", hint)
    return host


def path_pattern(text: str) -> str:
    """A path to match, in the one form that requests' paths are brought into (RFC 3986 6.2.2)."""
    if not text.startswith("/"):
        raise Unfit(f"{shown(text)}: a path begins with '/'")
    if "?" in text or "#" in text:
        raise Unfit(f"{shown(text)}: a path has no '?' and no '#'", "queries are not matched")
    if _PATH_FORM.fullmatch(text) is None:
        raise Unfit(f"{shown(text)} has characters that no path has", "write them as %20 and so on")
    path = _ENCODED.sub(_in_one_form, text)
    if _CONTROL.search(path):
        raise Unfit(f"{shown(text)}: a path with an encoded control character is never taken")
    # As in native/src/dp_path.h: with these beside it, some readers take dots for a way up.
    parts = (re.split(r";|%3B", part)[0] for part in re.split(r"/|%2F|%5C", path))
    if any(part in (".", "..") for part in parts):
        raise Unfit(f"{shown(text)}: '.' and '..' are no segments of a path that is matched")
    return path


def _in_one_form(found: re.Match[str]) -> str:
    """An encoded unreserved character stands for itself; other encodings have upper-case digits."""
    character = chr(int(found[0][1:], 16))
    return character if _UNRESERVED.fullmatch(character) else found[0].upper()


def redirect_target(text: str) -> str:
    """Where a redirect leads: a path of this host, or a whole http or https URL."""
    if not re.fullmatch(r"[!-~]+", text):
        raise Unfit(f"{shown(text)} has characters that no URL has", "write them as %20 and so on")
    if text.startswith("//"):
        raise Unfit(f"{shown(text)} leads to another host", "write https://... if that is meant")
    if not re.match(r"/|https?://[^/?#@]+(?:[/?#]|$)", text):
        raise Unfit(f"{shown(text)} is not a place to redirect to", "write /new/ or https://...")
    return text


def field_name(text: str) -> str:
    """A header field's name, lower case."""
    if TOKEN.fullmatch(text) is None or len(text) > 256:
        raise Unfit(f"{shown(text)} is not the name of a header field", "write, say, x-app")
    return text.lower()


def edited_field_name(text: str) -> str:
    """A header field's name that an edit may touch, lower case."""
    name = field_name(text)
    if name in FRAMING_FIELDS:
        raise Unfit(
            f"{name} cannot be edited",
            "it belongs to the framing of a message, which the proxy keeps itself",
        )
    return name


def field_value(text: str) -> str:
    """A header field's value, exactly as it will be sent or compared."""
    if re.search(r"[^\t -~]", text):
        raise Unfit(
            f"{shown(text)} has characters that no header field may have",
            "a value is printable ASCII; line breaks would begin another field",
        )
    if text != text.strip(" \t"):
        raise Unfit(f"{shown(text)} begins or ends with a space", "fields lose it on the way")
    return text


def set_field_value(text: str) -> str:
    """A value to be set: itself, or a reference to a secret, `file:/...` or `env:NAME`."""
    if text.startswith(FILE_REFERENCE):
        path = text.removeprefix(FILE_REFERENCE)
        if not path.startswith("/"):
            raise Unfit(
                f"{shown(text)}: a secret's file is named by its whole path",
                "write file:/run/secrets/token",
            )
        if re.search(r"[^!-~]", path):
            raise Unfit(f"{shown(text)}: a path has printable ASCII characters and no space")
    elif text.startswith(VARIABLE_REFERENCE):
        if _VARIABLE.fullmatch(text.removeprefix(VARIABLE_REFERENCE)) is None:
            raise Unfit(f"{shown(text)} does not name a variable", "write env:TOKEN")
    else:
        field_value(text)
    return text


def method_name(text: str) -> str:
    """A request method that a route can name."""
    if text in METHODS:
        return text
    if text == "CONNECT":
        raise Unfit("CONNECT is not served", "use a tcp listener for tunnels")
    if text.upper() in METHODS:
        raise Unfit(f"{shown(text)}: methods are upper case", f"write {text.upper()}")
    raise Unfit(f"{shown(text)} is not a known method", f"known are {', '.join(METHODS)}")


def cookie_name(text: str) -> str:
    """A cookie's name (RFC 6265 4.1.1)."""
    if TOKEN.fullmatch(text) is None or len(text) > 64:
        raise Unfit(f"{shown(text)} is not a cookie's name", "write, say, session")
    return text


def balance_key(text: str) -> str:
    """The one key of a consistent choice that needs no name."""
    if text != "source":
        raise Unfit(f"{shown(text)} is not a key", "write source, {header: NAME} or {cookie: NAME}")
    return text


def rate_key(text: str) -> str:
    """The one key of a rate that needs no name."""
    if text != "source":
        raise Unfit(f"{shown(text)} is not a key", "write source or {header: NAME}")
    return text


def retry_cause(text: str) -> str:
    """What a request is sent again for."""
    if text in RETRY_CAUSES or (re.fullmatch(r"[0-9]{3}", text) and 400 <= int(text) <= 599):
        return text
    hint = "write connect-failure, reset, or a status from 400 to 599"
    raise Unfit(f"{shown(text)} is nothing that a request is sent again for", hint)


def share_percent(text: str) -> int:
    """20 of `20%`."""
    found = re.fullmatch(r"(0|[1-9][0-9]{0,2})%", text)
    if found is None or int(found[1]) > 100:
        raise Unfit(f"{shown(text)} is not a share", "write 20%; 100% is the most")
    return int(found[1])


def status_range(text: str) -> tuple[int, int]:
    """The least and the greatest status of `200` or `200-399`."""
    found = re.fullmatch(r"([2-5][0-9]{2})(?:-([2-5][0-9]{2}))?", text)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise Unfit(f"{shown(text)} is not a range of statuses", "write 200, or 200-399")
    return int(found[1]), int(found[2] or found[1])


def health_path(text: str) -> str:
    """What a health check asks for: a path, perhaps with a query."""
    if not re.fullmatch(r"/[!-~]*", text) or "#" in text:
        raise Unfit(f"{shown(text)} is not a path to ask for", "write /healthz")
    return text


def app_name(text: str) -> str:
    """An app's name: a file's name, a label and part of a socket's path at once."""
    if APP_NAME.fullmatch(text) is None:
        raise Unfit(
            f"{shown(text)} is not an app's name",
            "up to 40 of a-z, 0-9 and '-', with a letter or digit at both ends",
        )
    return text


def _split_address(text: str, example: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        raise Unfit(f"{shown(text)} lacks a port", f"write {text}:{example.rpartition(':')[2]}")
    if not colon:
        hint = f"write {example}"
        if _PORT.fullmatch(text):
            hint = f"write 127.0.0.1:{text}"
        elif _is_ipv4(text):
            hint = f"write {text}:{example.rpartition(':')[2]}"
        raise Unfit(f"{shown(text)} is not an address", hint)
    if address.startswith("["):
        if not address.endswith("]") or ":" not in address:
            raise Unfit(f"{shown(text)} is not an address", "brackets are for IPv6: [::1]:8080")
        address = address[1:-1]
    elif ":" in address:
        hint = "write an IPv6 address in brackets: [::1]:8080"
        raise Unfit(f"{shown(text)} is not an address", hint)
    if address in ("", "*"):
        hint = f"write 0.0.0.0:{port} for all IPv4 addresses"
        raise Unfit(f"{shown(text)} lacks an address", hint)
    if _PORT.fullmatch(port) is None or int(port) > 65535:
        raise Unfit(f"{shown(text)}: {shown(port)} is not a port", "ports go from 0 to 65535")
    return address, int(port)


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _numeric(address: str, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, or None for what may be a name. Raises for what is neither."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        if _HOST_NAME.fullmatch(address) and not re.fullmatch(r"[0-9.]+", address):
            return None
        raise Unfit(f"{shown(text)}: {shown(address)} is not an address") from None
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id is not None:
        raise Unfit(f"{shown(text)}: addresses with a zone are not supported yet")
    return ip
