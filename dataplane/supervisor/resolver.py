"""Host names to numeric addresses: /etc/hosts, then DNS, in a bounded time.

Whatever a file or a server says, nothing is raised but `ResolveError`, and only addresses that
somebody can be at are given back. Nothing is remembered here; see `following`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from dataplane.image.values import join_address, shown
from dataplane.model.errors import DataplaneError
from dataplane.supervisor.host_files import (
    HOSTS,
    RESOLV_CONF,
    ResolvConf,
    WatchedFile,
    parse_hosts,
    parse_resolv_conf,
)
from dataplane.supervisor.nameserver import (
    Kind,
    Outcome,
    Reply,
    Server,
    Silent,
    Unanswered,
    ask,
)

MAX_ADDRESSES: Final = 64
MIN_TTL_SECONDS: Final = 1.0
MAX_TTL_SECONDS: Final = 86_400.0
HOSTS_TTL_SECONDS: Final = 10.0
RESOLVE_SECONDS: Final = 5.0  # over all servers and tries
TRY_SECONDS: Final = 2.0  # where resolv.conf says nothing
MAX_ALIASES: Final = 8  # questions, each of which may be answered by a chain
# Lookups at once: each has a socket. The bound of time counts from when its turn comes.
MAX_LOOKUPS: Final = 64
DNS_PORT: Final = 53

# RFC 1123 2.1, with the underscore that is in use; a name of digits alone is a mistyped address.
_NAME: Final = re.compile(
    r"(?=.*[a-z])(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*"
    r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
MAX_NAME: Final = 253


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a name stands for.

    `addresses` are numeric, unique, in numeric order, from 1 to 64; `ttl_seconds` is from 1 to
    86,400.
    """

    addresses: tuple[str, ...]
    ttl_seconds: float


class ResolveError(DataplaneError):
    """A name that has no addresses now, and what to do about it: which server said what."""


class Resolver:
    """Mutable: what is being looked up now, and the host's files as they were last read.

    `servers` are asked in their order in place of those of resolv.conf, and then for the names as
    they stand: the search list of resolv.conf belongs to its servers.
    """

    def __init__(
        self,
        *,
        servers: tuple[Server, ...] = (),
        hosts: Path = HOSTS,
        resolv_conf: Path = RESOLV_CONF,
        seconds: float = RESOLVE_SECONDS,
        rng: random.Random | None = None,
    ) -> None:
        self._servers = servers
        self._hosts = WatchedFile(hosts, parse_hosts)
        self._resolv_conf = WatchedFile(resolv_conf, parse_resolv_conf)
        self._resolv_conf_path = resolv_conf
        self._seconds = seconds
        self._rng = rng or random.SystemRandom()
        self._turns = asyncio.Semaphore(MAX_LOOKUPS)
        self._asked: dict[str, asyncio.Future[Answer]] = {}

    async def resolve(self, name: str) -> Answer:
        """The name's addresses now. Raises `ResolveError`.

        From /etc/hosts if the name is there (TTL 10 s), and `localhost` in any case (RFC 6761 6.3);
        else from DNS. Those of A records; only where there is no A, those of AAAA records. Aliases
        (CNAME) are followed, and the least TTL of the chain counts. A final dot keeps the search
        list away. More than 64 addresses are cut to the lowest 64. Addresses that nobody can be
        connected to (unspecified, multicast, broadcast) are left out; if there are no others, that
        is an error. Who asks for a name that is being looked up gets the same answer.
        """
        key = name.lower()
        while (running := self._asked.get(key)) is not None:
            await asyncio.wait([running])
            if not running.cancelled():  # else its asker was, and it is our turn
                return running.result()
        return await self._lead(key)

    async def _lead(self, name: str) -> Answer:
        """Looks up for all who ask meanwhile."""
        running: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[name] = running
        try:
            async with self._turns:
                answer = await self._look_up(name)
            running.set_result(answer)
            return answer
        except ResolveError as error:
            running.set_exception(error)
            running.exception()  # it may be that nobody else asked
            raise
        finally:
            del self._asked[name]
            running.cancel()  # unless it is done

    async def _look_up(self, name: str) -> Answer:
        bare = name.removesuffix(".")
        if len(bare) > MAX_NAME or _NAME.fullmatch(name) is None:
            raise ResolveError(f"cannot resolve {shown(name)}: that is not a host name")
        known = self._hosts.read().get(bare)
        if known is None and _is_localhost(bare):
            known = ("127.0.0.1",)
        if known is not None:
            return _answer(name, "/etc/hosts", _of_one_kind(known), HOSTS_TTL_SECONDS)
        lookup = _Lookup(name, *self._settings(), self._seconds, self._rng)
        return await lookup.answer()

    def _settings(self) -> tuple[tuple[Server, ...], ResolvConf]:
        if self._servers:
            return self._servers, ResolvConf()
        settings = self._resolv_conf.read()
        return tuple((address, DNS_PORT) for address in settings.servers), settings


class _Lookup:
    """One name's questions, and when they must end."""

    def __init__(
        self,
        name: str,
        servers: tuple[Server, ...],
        settings: ResolvConf,
        seconds: float,
        rng: random.Random,
    ) -> None:
        self._name, self._servers, self._settings, self._rng = name, servers, settings, rng
        self._ends_at = asyncio.get_running_loop().time() + seconds

    async def answer(self) -> Answer:
        """Of the first candidate that has addresses.

        A server's failure ends the search: what another candidate stands for may be another host.
        """
        candidates = tuple(_candidates(self._name, self._settings))
        denied: Reply | None = None
        for candidate in candidates:
            reply = await self._addresses(candidate)
            if reply.outcome is Outcome.FOUND:
                server = join_address(*reply.server)
                return _answer(self._name, server, reply.addresses, reply.ttl_seconds)
            if denied is None or reply.outcome is Outcome.NO_RECORDS:
                denied = reply
        assert denied is not None
        if denied.outcome is Outcome.NO_NAME:
            what = "there is no such name (NXDOMAIN)"
        else:
            what = "the name has no addresses (neither A nor AAAA)"
        asked = "" if candidates == (self._name,) else f", asked for {', '.join(candidates)}"
        raise self._error(f"{join_address(*denied.server)} says that {what}{asked}")

    async def _addresses(self, candidate: str) -> Reply:
        reply = await self._records(candidate, Kind.A)
        if reply.outcome is Outcome.NO_RECORDS:
            reply = await self._records(candidate, Kind.AAAA)
        return reply

    async def _records(self, candidate: str, kind: Kind) -> Reply:
        """Follows the aliases whose end a server does not tell of its own accord."""
        name, ttl_seconds, passed = candidate + ".", int(MAX_TTL_SECONDS), set[str]()
        while name.lower() not in passed and len(passed) < MAX_ALIASES:
            passed.add(name.lower())
            reply = await self._ask(name, kind)
            ttl_seconds = min(ttl_seconds, reply.ttl_seconds)
            if reply.outcome is not Outcome.ALIAS:
                return dataclasses.replace(reply, ttl_seconds=ttl_seconds)
            name = reply.alias
        raise self._error("its aliases (CNAME) have no end")

    async def _ask(self, name: str, kind: Kind) -> Reply:
        """Asks one server after the other; those that were silent are asked again."""
        reasons: dict[Server, str] = {}
        waiting: Sequence[Server] = self._servers
        for _ in range(self._settings.attempts):
            silent: list[Server] = []
            for position, server in enumerate(waiting):
                seconds = self._seconds_of_try(len(waiting) - position)
                if seconds <= 0:
                    break
                try:
                    return await ask(server, name, kind, seconds=seconds, rng=self._rng)
                except Unanswered as error:
                    reasons[server] = str(error)
                    if isinstance(error, Silent):
                        silent.append(server)
            waiting = silent
        told = [f"{join_address(*server)}: {text}" for server, text in reasons.items()]
        raise self._error("; ".join(told) or "no time was left to ask")

    def _seconds_of_try(self, tries: int) -> float:
        """So that each server still has its turn."""
        left = self._ends_at - asyncio.get_running_loop().time()
        return min(self._settings.timeout_seconds or TRY_SECONDS, left / tries)

    def _error(self, reason: str) -> ResolveError:
        return ResolveError(f"cannot resolve {shown(self._name)}: {reason}")


def _candidates(name: str, settings: ResolvConf) -> Iterator[str]:
    """The absolute names to ask for, without their final dots: resolv.conf(5), ndots."""
    bare = name.removesuffix(".")
    searched = () if name != bare else (f"{bare}.{domain}" for domain in settings.search)
    fitting = [candidate for candidate in searched if len(candidate) <= MAX_NAME]
    yield from (bare, *fitting) if bare.count(".") >= settings.ndots else (*fitting, bare)


def _answer(name: str, source: str, addresses: Iterable[str], ttl_seconds: float) -> Answer:
    unique = {ipaddress.ip_address(address) for address in addresses}
    usable = sorted(filter(_is_connectable, unique), key=lambda ip: (ip.version, int(ip)))
    if not usable:
        useless = ", ".join(sorted(str(ip) for ip in unique)[:4])
        raise ResolveError(
            f"cannot resolve {shown(name)}: {source} names only addresses that nobody can be "
            f"connected to ({useless})"
        )
    return Answer(
        addresses=tuple(str(ip) for ip in usable[:MAX_ADDRESSES]),
        ttl_seconds=min(max(float(ttl_seconds), MIN_TTL_SECONDS), MAX_TTL_SECONDS),
    )


def _is_connectable(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """As for an endpoint of a config file: not unspecified, multicast or broadcast."""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return not (ip.is_unspecified or ip.is_multicast or str(ip) == "255.255.255.255")


def _of_one_kind(addresses: Sequence[str]) -> Sequence[str]:
    """IPv4 addresses, or IPv6 addresses where there are no others."""
    return [address for address in addresses if ":" not in address] or addresses


def _is_localhost(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")
