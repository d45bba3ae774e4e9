"""Sockets: groups that nobody else can join, and sockets between our own processes."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from dataplane.model.errors import LaunchError
from dataplane.system.sockets import (
    bind_another,
    bind_first,
    bind_packet_socket,
    bound_address,
    connect_packet_socket,
    packet_pair,
    parse_bind,
    peer_credentials,
)


def test_group_shares_one_address_and_every_member_gets_connections() -> None:
    first = bind_first("127.0.0.1:0")
    others = [bind_another(first) for _ in range(3)]
    group = [first, *others]
    address = first.getsockname()
    assert {member.getsockname() for member in group} == {address}
    clients = [socket.create_connection(address) for _ in range(200)]
    counts = []
    for member in group:
        count = 0
        while True:
            try:
                accepted, _ = member.accept()
            except BlockingIOError:
                break
            accepted.close()
            count += 1
        counts.append(count)
    assert sum(counts) == 200
    assert min(counts) > 0
    for sock in [*clients, *group]:
        sock.close()


def test_second_program_gets_address_in_use() -> None:
    first = bind_first("127.0.0.1:0")
    another = bind_another(first)
    with pytest.raises(LaunchError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*in use"):
        bind_first(bound_address(first))
    first.close()
    another.close()


def test_listener_hands_its_options_to_connections() -> None:
    first = bind_first("127.0.0.1:0")
    client = socket.create_connection(first.getsockname())
    first.setblocking(True)
    accepted, _ = first.accept()
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for sock in (client, accepted, first):
        sock.close()


def test_ipv6_address_leaves_ipv4_alone() -> None:
    try:
        first = bind_first("[::1]:0")
    except LaunchError as error:
        pytest.skip(str(error))
    assert first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert bound_address(first).startswith("[::1]:")
    first.close()


@pytest.mark.parametrize(
    "bind", ["", "8080", "127.0.0.1", "localhost:80", "1.2.3.4:x", "::1:99999"]
)
def test_what_is_no_address_is_told(bind: str) -> None:
    with pytest.raises(LaunchError, match="not an address with a port"):
        parse_bind(bind)


def test_address_of_another_machine_is_told() -> None:
    with pytest.raises(LaunchError, match=r"cannot listen on 192\.0\.2\.1:80: "):
        bind_first("192.0.2.1:80")


def test_packet_pair_keeps_the_borders_of_messages() -> None:
    ours, theirs = packet_pair()
    ours.send(b"one")
    ours.send(b"two")
    assert theirs.recv(100) == b"one"
    assert theirs.recv(100) == b"two"
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    assert not ours.get_inheritable()
    ours.close()
    theirs.close()


def test_control_socket_is_its_owners_and_names_who_listens(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    bound = bind_packet_socket(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(LaunchError, match="refused"):
        connect_packet_socket(path)
    bound.listen()
    client = connect_packet_socket(path)
    server, _ = bound.accept()
    assert peer_credentials(client)[:2] == (os.getpid(), os.getuid())
    assert peer_credentials(server)[:2] == (os.getpid(), os.getuid())
    for sock in (client, server, bound):
        sock.close()
    path.unlink()


def test_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"too long for a socket: \d+ bytes, at most 107"):
        bind_packet_socket(tmp_path / ("x" * 120))


def test_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot make the socket"):
        bind_packet_socket(tmp_path / "none" / "x.sock")
