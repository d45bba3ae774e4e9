"""The resolver against a real DNS server, by UDP and TCP, on the loop that the supervisor runs."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from dataplane.supervisor import host_files, nameserver
from dataplane.supervisor.resolver import Answer, ResolveError, Resolver
from tests.support.dns import FORGED, DnsServer, Forgery, Manner
from tests.support.upstream import refusing

NAME = "api.example"


def run(call: Callable[[], object]) -> object:
    """One coroutine on a fresh uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(call())  # type: ignore[arg-type]


def resolve(resolver: Resolver, name: str = NAME) -> Answer:
    answer = run(lambda: resolver.resolve(name))
    assert isinstance(answer, Answer)
    return answer


def refused(resolver: Resolver, name: str = NAME) -> str:
    """What the operator is told."""
    with pytest.raises(ResolveError) as caught:
        resolve(resolver, name)
    return str(caught.value)


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture
def silent(dns: DnsServer) -> Iterator[tuple[str, int]]:
    """A server that takes questions and says nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


def asking(*servers: tuple[str, int], tmp_path: Path, seconds: float = 5.0) -> Resolver:
    return Resolver(servers=servers, hosts=tmp_path / "hosts", seconds=seconds)


@pytest.fixture
def resolver(dns: DnsServer, tmp_path: Path) -> Resolver:
    return asking(dns.server, tmp_path=tmp_path)


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "addresses"),
    [
        (("127.0.0.1",), ("127.0.0.1",)),
        (("127.0.0.10", "127.0.0.9", "127.0.0.9"), ("127.0.0.9", "127.0.0.10")),
        (("::1", "127.0.0.1"), ("127.0.0.1",)),
        (("::2", "::1"), ("::1", "::2")),
        (("2001:DB8::0001",), ("2001:db8::1",)),
        (("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"), ("127.0.0.1",)),
        (tuple(f"10.0.0.{i}" for i in range(1, 71)), tuple(f"10.0.0.{i}" for i in range(1, 65))),
    ],
    ids=["one", "sorted", "A first", "AAAA alone", "normal form", "unusable left out", "64"],
)
def test_addresses_are_unique_usable_and_in_order(
    dns: DnsServer, resolver: Resolver, records: tuple[str, ...], addresses: tuple[str, ...]
) -> None:
    dns.answer(NAME, *records)
    assert resolve(resolver).addresses == addresses


@pytest.mark.parametrize(
    ("sent", "kept"), [(0, 1), (1, 1), (300, 300), (86_401, 86_400), (2**31 - 1, 86_400)]
)
def test_ttl_is_kept_within_bounds(
    dns: DnsServer, resolver: Resolver, sent: int, kept: float
) -> None:
    dns.answer(NAME, "127.0.0.1", ttl_seconds=sent)
    assert resolve(resolver).ttl_seconds == kept


@pytest.mark.parametrize("manner", [Manner.PLAIN, Manner.ALIAS_ALONE])
def test_aliases_are_followed_and_the_least_ttl_counts(
    dns: DnsServer, resolver: Resolver, manner: Manner
) -> None:
    dns.alias(NAME, "a.example", ttl_seconds=50)
    dns.alias("a.example", "b.example", ttl_seconds=20)
    dns.answer("b.example", "127.0.0.1", ttl_seconds=40)
    for name in (NAME, "a.example"):
        dns.behave(name, manner)
    assert resolve(resolver) == Answer(addresses=("127.0.0.1",), ttl_seconds=20)


def test_alias_of_a_name_that_has_ipv6_alone_is_followed(
    dns: DnsServer, resolver: Resolver
) -> None:
    dns.alias(NAME, "a.example")
    dns.answer("a.example", "::1")
    assert resolve(resolver).addresses == ("::1",)


@pytest.mark.parametrize("manner", [Manner.PLAIN, Manner.ALIAS_ALONE])
def test_aliases_in_a_circle_are_an_error(
    dns: DnsServer, resolver: Resolver, manner: Manner
) -> None:
    for name, target in ((NAME, "a.example"), ("a.example", NAME)):
        dns.alias(name, target)
        dns.behave(name, manner)
    assert NAME in refused(resolver)
    assert dns.count(NAME) + dns.count("a.example") <= 4


def test_truncated_answer_is_asked_for_by_tcp(dns: DnsServer, resolver: Resolver) -> None:
    dns.answer(NAME, *(f"10.0.{i}.1" for i in range(60)))
    dns.behave(NAME, Manner.TRUNCATED)
    assert len(resolve(resolver).addresses) == 60
    assert (dns.count(NAME, transport="udp"), dns.count(NAME, transport="tcp")) == (1, 1)


def test_server_without_edns_is_asked_without(dns: DnsServer, resolver: Resolver) -> None:
    dns.answer(NAME, "127.0.0.1")
    dns.behave(NAME, Manner.WITHOUT_EDNS)
    assert resolve(resolver).addresses == ("127.0.0.1",)


@pytest.mark.parametrize("forgery", Forgery)
def test_forged_or_broken_datagram_does_not_count(
    dns: DnsServer, resolver: Resolver, forgery: Forgery
) -> None:
    dns.answer(NAME, "127.0.0.1")
    dns.behave(NAME, Manner.PLAIN, forgery)
    assert resolve(resolver).addresses == ("127.0.0.1",)


@pytest.mark.parametrize("forgery", Forgery)
def test_forged_datagram_alone_is_no_answer(
    dns: DnsServer, tmp_path: Path, forgery: Forgery
) -> None:
    dns.answer(NAME, "127.0.0.1")
    dns.behave(NAME, Manner.SILENT, forgery)
    told = refused(asking(dns.server, tmp_path=tmp_path, seconds=0.1))
    assert f"{dns.address}: no answer in" in told
    assert FORGED not in told


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rcode", "told"),
    [
        ("NXDOMAIN", "says that there is no such name (NXDOMAIN)"),
        ("SERVFAIL", ": SERVFAIL (it failed to find out)"),
        ("REFUSED", ": REFUSED (it does not answer this host)"),
        ("FORMERR", ": FORMERR"),
        ("YXDOMAIN", ": YXDOMAIN"),
    ],
)
def test_refusal_names_the_server_and_its_reason(
    dns: DnsServer, resolver: Resolver, rcode: str, told: str
) -> None:
    dns.fail(NAME, rcode)
    assert refused(resolver).startswith(f"cannot resolve '{NAME}': {dns.address}")
    assert refused(resolver).endswith(told)


def test_name_without_addresses_is_an_error(dns: DnsServer, resolver: Resolver) -> None:
    dns.answer(NAME)
    assert "no addresses (neither A nor AAAA)" in refused(resolver)
    assert [asked.kind for asked in dns.questions] == ["A", "AAAA"]


def test_name_with_unusable_addresses_alone_is_an_error(dns: DnsServer, resolver: Resolver) -> None:
    dns.answer(NAME, "0.0.0.0", "224.0.0.1")
    assert "nobody can be connected to (0.0.0.0, 224.0.0.1)" in refused(resolver)


def test_mapped_unspecified_address_is_unusable(dns: DnsServer, resolver: Resolver) -> None:
    dns.answer(NAME, "::ffff:0.0.0.0")
    assert "nobody can be connected to" in refused(resolver)


@pytest.mark.parametrize("manner", [Manner.TRUNCATED_THEN_CLOSED, Manner.TRUNCATED_THEN_GARBAGE])
def test_broken_answer_by_tcp_is_an_error(
    dns: DnsServer, resolver: Resolver, manner: Manner
) -> None:
    dns.answer(NAME, "127.0.0.1")
    dns.behave(NAME, manner)
    assert dns.address in refused(resolver)


def test_unreachable_server_is_named_at_once(tmp_path: Path) -> None:
    with socket.socket() as sock:
        port = refusing(sock)
        assert refused(asking(("127.0.0.1", port), tmp_path=tmp_path)) == (
            f"cannot resolve '{NAME}': 127.0.0.1:{port}: Connection refused"
        )


def test_silent_server_is_given_up_within_the_bound(dns: DnsServer, tmp_path: Path) -> None:
    dns.behave(NAME, Manner.SILENT)

    async def measured() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(ResolveError, match="no answer in"):
            await asking(dns.server, tmp_path=tmp_path, seconds=0.2).resolve(NAME)
        return loop.time() - begun

    seconds = run(measured)
    assert isinstance(seconds, float)
    assert 0.15 < seconds < 1.0


def test_next_server_answers_for_one_that_does_not(
    dns: DnsServer, silent: tuple[str, int], tmp_path: Path
) -> None:
    dns.answer(NAME, "127.0.0.1")
    with socket.socket() as sock:
        servers = (("127.0.0.1", refusing(sock)), silent, dns.server)
        resolver = asking(*servers, tmp_path=tmp_path, seconds=0.4)
        assert resolve(resolver).addresses == ("127.0.0.1",)


def test_all_servers_are_named_if_none_answers(
    dns: DnsServer, silent: tuple[str, int], tmp_path: Path
) -> None:
    dns.fail(NAME, "SERVFAIL")
    told = refused(asking(silent, dns.server, tmp_path=tmp_path, seconds=0.2))
    assert f"127.0.0.1:{silent[1]}: no answer" in told
    assert f"{dns.address}: SERVFAIL" in told
    assert dns.count(NAME) == 1  # what failed is not asked again, what was silent is


@pytest.mark.parametrize(
    "name",
    ["", ".", "1.2.3.4", "::1", "a b", "a..b", "-a", "a" * 64, "a." * 127 + "ab", "ä", "a\n", "*"],
)
def test_what_is_no_host_name_is_asked_of_nobody(
    dns: DnsServer, resolver: Resolver, name: str
) -> None:
    assert "not a host name" in refused(resolver, name)
    assert not dns.questions


# --- the host's files -------------------------------------------------------------------------


def test_hosts_file_comes_first_and_is_read_again_when_it_changes(
    dns: DnsServer, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.3\tapi.example api # a comment\nnonsense api.example\n::1 API.example"
    )
    resolver = asking(dns.server, tmp_path=tmp_path)
    assert resolve(resolver, "API.example") == Answer(addresses=("127.0.0.3",), ttl_seconds=10)
    hosts.write_text("127.0.0.4 api.example\n127.0.0.30 api.example.\n")
    assert resolve(resolver).addresses == ("127.0.0.4", "127.0.0.30")
    assert resolve(resolver, "api.example.").addresses == ("127.0.0.4", "127.0.0.30")
    assert not dns.questions
    hosts.unlink()
    assert "NXDOMAIN" in refused(resolver)


def test_localhost_needs_neither_file_nor_server(dns: DnsServer, tmp_path: Path) -> None:
    resolver = asking(dns.server, tmp_path=tmp_path)
    for name in ("localhost", "LOCALHOST.", "a.localhost"):
        assert resolve(resolver, name).addresses == ("127.0.0.1",)
    (tmp_path / "hosts").write_text("::1 localhost\n")
    assert resolve(resolver, "localhost").addresses == ("::1",)
    assert not dns.questions


class Conf:
    """A resolver whose resolv.conf a test writes, of servers on the port of `dns`."""

    def __init__(self, folder: Path, dns: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dataplane.supervisor.resolver.DNS_PORT", dns.server[1])
        self.path = folder / "resolv.conf"
        self.resolver = Resolver(hosts=folder / "hosts", resolv_conf=self.path, seconds=1.0)

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)


@pytest.fixture
def conf(tmp_path: Path, dns: DnsServer, monkeypatch: pytest.MonkeyPatch) -> Conf:
    return Conf(tmp_path, dns, monkeypatch)


def test_servers_of_resolv_conf_are_asked_and_followed_when_it_changes(
    dns: DnsServer, conf: Conf
) -> None:
    dns.answer(NAME, "127.0.0.9")
    conf.write("nameserver 127.0.0.2\noptions timeout:1 attempts:1\n")
    assert f"127.0.0.2:{dns.server[1]}: Connection refused" in refused(conf.resolver)
    conf.write("nameserver 127.0.0.1\n")
    assert resolve(conf.resolver).addresses == ("127.0.0.9",)


@pytest.mark.parametrize(
    ("name", "ndots", "asked"),
    [
        ("api", 1, ["api.one.example", "api.two.example", "api"]),
        ("api.x", 1, ["api.x", "api.x.one.example", "api.x.two.example"]),
        ("api.x", 2, ["api.x.one.example", "api.x.two.example", "api.x"]),
        ("api.x.", 2, ["api.x"]),
    ],
)
def test_search_list_is_honoured(
    dns: DnsServer, conf: Conf, name: str, ndots: int, asked: list[str]
) -> None:
    conf.write(f"nameserver 127.0.0.1\nsearch one.example two.example.\noptions ndots:{ndots}\n")
    told = refused(conf.resolver, name)
    assert [question.name for question in dns.questions] == asked
    assert ", ".join(asked) in told


def test_search_ends_with_the_first_that_has_addresses(dns: DnsServer, conf: Conf) -> None:
    conf.write("nameserver 127.0.0.1\nsearch one.example two.example\n")
    dns.answer("api.one.example")
    dns.answer("api.two.example", "127.0.0.2")
    dns.answer("api", "127.0.0.3")
    assert resolve(conf.resolver, "api").addresses == ("127.0.0.2",)


def test_failure_ends_the_search_lest_another_host_answer(dns: DnsServer, conf: Conf) -> None:
    conf.write("nameserver 127.0.0.1\nsearch one.example two.example\n")
    dns.fail("api.one.example", "SERVFAIL")
    dns.answer("api.two.example", "127.0.0.2")
    assert "SERVFAIL" in refused(conf.resolver, "api")


def test_resolv_conf_is_read_as_its_manual_says() -> None:
    text = """
    ; comment
    nameserver 10.0.0.1 # another
    nameserver nonsense
    nameserver fe80::1%lo
    nameserver 10.0.0.3
    nameserver 10.0.0.4
    domain old.example
    search Corp.Example. b.example
    options ndots:99 rotate attempts:0 timeout:0 ndots:x
    """
    assert host_files.parse_resolv_conf(text) == host_files.ResolvConf(
        servers=("10.0.0.1", "fe80::1%lo", "10.0.0.3"),
        search=("corp.example", "b.example"),
        ndots=15,
        timeout_seconds=1,
        attempts=1,
    )
    assert host_files.parse_resolv_conf("").servers == ("127.0.0.1",)


# --- several at once --------------------------------------------------------------------------


def test_name_that_many_ask_for_is_asked_once(dns: DnsServer, resolver: Resolver) -> None:
    dns.answer(NAME, "127.0.0.1")
    dns.behave(NAME, Manner.HELD)

    async def many() -> list[Answer]:
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(resolver.resolve(NAME)) for _ in range(100)]
            await asyncio.to_thread(dns.wait_for, NAME)
            dns.release()
        return [task.result() for task in asking]

    answers = run(many)
    assert answers == [Answer(addresses=("127.0.0.1",), ttl_seconds=60)] * 100
    assert dns.count(NAME) == 1


def test_lookup_goes_on_for_others_when_its_first_asker_is_gone(
    dns: DnsServer, resolver: Resolver
) -> None:
    dns.answer(NAME, "127.0.0.1")
    dns.behave(NAME, Manner.HELD)

    async def two() -> Answer:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(resolver.resolve(NAME))
            await asyncio.to_thread(dns.wait_for, NAME)
            second = tasks.create_task(resolver.resolve(NAME))
            await asyncio.wait([first], timeout=0)
            first.cancel()
            await asyncio.to_thread(dns.wait_for, NAME, 2)
            dns.release()
        return second.result()

    answer = run(two)
    assert answer == Answer(addresses=("127.0.0.1",), ttl_seconds=60)


def test_many_names_are_resolved_side_by_side(dns: DnsServer, resolver: Resolver) -> None:
    names = [f"api{i}.example" for i in range(200)]
    for name in names:
        dns.answer(name, "127.0.0.1")

    async def all_of_them() -> int:
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(resolver.resolve(name)) for name in names]
        return len({task.result().addresses for task in asking})

    assert run(all_of_them) == 1


# --- what a server may send -------------------------------------------------------------------


class _Echo(asyncio.DatagramProtocol):
    """Answers every question with its own id and header, and then whatever the test gives."""

    def __init__(self, rest: bytes) -> None:
        self._rest = rest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data[:2] + self._rest, addr)


@pytest.mark.slow
@given(
    flags=st.sampled_from([b"\x81\x80", b"\x81\x83", b"\x85\x00", b"\x01\x00"]),
    counts=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    body=st.binary(max_size=80),
    asked=st.booleans(),
)
def test_whatever_a_server_sends_is_an_answer_or_an_error(
    flags: bytes, counts: list[int], body: bytes, asked: bool
) -> None:
    """No matter what a server sends, a reply comes or `Unanswered` is raised, nothing else."""
    question = b"\x03api\x07example\x00\x00\x01\x00\x01" if asked else b""
    rest = flags + b"".join(count.to_bytes(2) for count in counts) + question + body

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Echo(rest), local_addr=("127.0.0.1", 0)
        )
        try:
            server = transport.get_extra_info("sockname")
            await nameserver.ask(
                server, NAME, nameserver.Kind.A, seconds=0.005, rng=random.Random(1)
            )
        except nameserver.Unanswered:
            pass
        finally:
            transport.close()

    run(ask)
