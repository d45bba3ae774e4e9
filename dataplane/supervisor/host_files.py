"""/etc/hosts and /etc/resolv.conf: read when they are needed, again when they changed.

A file that is not there is an empty one, and a line that makes no sense is passed over, as the C
library does. nsswitch.conf is not read: the order is hosts, then DNS.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

HOSTS: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
# More is not read: the loop waits while a file is parsed.
FILE_BYTES: Final = 1 << 20
MAX_SERVERS: Final = 3  # as resolv.conf(5)
MAX_SEARCH: Final = 32
MAX_NDOTS: Final = 15  # as resolv.conf(5)
MAX_ATTEMPTS: Final = 5  # as resolv.conf(5)

Parsed = TypeVar("Parsed")


class WatchedFile(Generic[Parsed]):
    """Mutable: what a file meant when it was last read, and which file that was."""

    def __init__(self, path: Path, parse: Callable[[str], Parsed]) -> None:
        self._path, self._parse = path, parse
        self._seen: tuple[int, int, int, int, int] | None = None
        self._parsed = parse("")

    def read(self) -> Parsed:
        """What the file means now."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (
                    status.st_dev,
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
                if seen != self._seen:
                    text = file.read(FILE_BYTES).decode("utf-8", errors="replace")
                    self._seen, self._parsed = seen, self._parse(text)
        except OSError:
            self._seen, self._parsed = None, self._parse("")
        return self._parsed


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Numeric addresses by lower-case name, in the order of the lines: hosts(5)."""
    hosts: dict[str, tuple[str, ...]] = {}
    for address, *names in _lines(text, "#"):
        numeric = _plain_address(address)
        if numeric is not None:
            for name in names:
                known = name.lower().rstrip(".")
                hosts[known] = (*hosts.get(known, ()), numeric)
    return hosts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvConf:
    """Which servers are asked for what. `timeout_seconds` is None where the file names none."""

    servers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout_seconds: int | None = None
    attempts: int = 2


def parse_resolv_conf(text: str) -> ResolvConf:
    """resolv.conf(5): nameserver, search, domain, and of the options ndots, timeout, attempts."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: dict[str, int] = {}
    for keyword, *values in _lines(text, "#;"):
        if keyword == "nameserver" and values and _is_address(values[0]):
            servers.append(values[0])
        elif keyword in ("search", "domain"):  # the last one counts
            search = tuple(value.lower().strip(".") for value in values if value.strip("."))
        elif keyword == "options":
            options.update(_numbers(values))
    defaults = ResolvConf()
    timeout = options.get("timeout")
    return ResolvConf(
        servers=tuple(servers[:MAX_SERVERS]) or defaults.servers,
        search=search[:MAX_SEARCH],
        ndots=min(options.get("ndots", defaults.ndots), MAX_NDOTS),
        timeout_seconds=None if timeout is None else max(timeout, 1),
        attempts=min(max(options.get("attempts", defaults.attempts), 1), MAX_ATTEMPTS),
    )


def _lines(text: str, comments: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        for mark in comments:
            line = line.partition(mark)[0]
        words = line.split()
        if words:
            yield words


def _numbers(options: list[str]) -> Iterator[tuple[str, int]]:
    for option in options:
        key, _, value = option.partition(":")
        if value.isascii() and value.isdigit() and len(value) < 10:
            yield key, int(value)


def _plain_address(text: str) -> str | None:
    """The address without a zone, normalised."""
    return str(ipaddress.ip_address(text)) if _is_address(text) and "%" not in text else None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
