"""Listening sockets: who holds an address, and that no queue is left without a reader."""

from __future__ import annotations

import dataclasses
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.model.errors import LaunchError
from dataplane.model.names import AppName
from dataplane.model.spec import AppSpec, ListenerSpec
from dataplane.supervisor.listeners import Lent, Listeners, check_adopted
from tests.support.specs import app_spec

BILLING, SHOP = AppName("billing"), AppName("shop")


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    held = Listeners()
    yield held
    held.close()


def spec(bind: str, workers: int = 1, name: str = "web") -> AppSpec:
    listener = ListenerSpec(name=name, bind=bind, protocol="http", upstream=None)
    return dataclasses.replace(app_spec(), listeners=(listener,), workers=workers)


def address(lent: Lent) -> str:
    ((_, bound),) = lent.addresses
    return bound


def connects(bound: str) -> bool:
    host, _, port = bound.rpartition(":")
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex((host, int(port))) == 0


def is_listening(fd: int) -> bool:
    with socket.socket(fileno=socket.dup(fd)) as sock:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_open(lent: Lent) -> bool:
    return all(sock.fileno() >= 0 for _, sock in lent.sockets)


def test_free_port_is_told_and_kept_for_the_next_generation(listeners: Listeners) -> None:
    blue = listeners.acquire(BILLING, spec("127.0.0.1:0"))
    green = listeners.acquire(BILLING, spec("127.0.0.1:0"))
    assert address(blue) == address(green) != "127.0.0.1:0"
    assert [sock for _, sock in blue.sockets] == [sock for _, sock in green.sockets]
    listeners.release(blue)
    assert connects(address(green))
    listeners.release(green)
    assert not connects(address(green))


def test_same_address_is_the_same_socket_whatever_the_listener_is_called(
    listeners: Listeners,
) -> None:
    free = listeners.acquire(BILLING, spec("127.0.0.1:0"))
    bound = address(free)
    listeners.release(free)
    blue = listeners.acquire(BILLING, spec(bound))
    green = listeners.acquire(BILLING, spec(bound, name="renamed"))
    assert blue.sockets[0][1] is green.sockets[0][1]
    assert green.sockets[0][0] == "renamed"


def test_address_of_another_app_is_refused_and_nothing_is_kept(listeners: Listeners) -> None:
    billing = listeners.acquire(BILLING, spec("127.0.0.1:0"))
    bound = address(billing)
    listeners.release(billing)
    held = listeners.acquire(BILLING, spec(bound))
    with pytest.raises(LaunchError, match=rf"{bound}: the app billing already does"):
        listeners.acquire(SHOP, spec(bound))
    listeners.release(held)
    listeners.release(listeners.acquire(SHOP, spec(bound)))


def test_address_of_a_stranger_is_refused_by_name(listeners: Listeners) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        free = ListenerSpec(name="a", bind="127.0.0.1:0", protocol="http", upstream=None)
        both = dataclasses.replace(spec(taken), listeners=(free, *spec(taken, name="b").listeners))
        with pytest.raises(LaunchError, match=f"cannot listen on {taken}: the address is in use"):
            listeners.acquire(BILLING, both)
    assert not listeners._groups


@pytest.mark.parametrize(("sockets", "slots"), [(1, 1), (2, 1), (3, 2), (4, 4), (5, 3)])
def test_every_socket_has_exactly_one_slot_that_reads_it(
    listeners: Listeners, sockets: int, slots: int
) -> None:
    lent = listeners.acquire(BILLING, spec("127.0.0.1:0", workers=sockets))
    read = [fd for slot in range(slots) for _, fd in lent.to_slot(slot, slots)]
    assert sorted(read) == sorted(sock.fileno() for _, sock in lent.sockets)
    assert len(read) == sockets


def test_new_sockets_take_no_connections_before_somebody_accepts(listeners: Listeners) -> None:
    blue = listeners.acquire(BILLING, spec("127.0.0.1:0", workers=1))
    green = listeners.acquire(BILLING, spec("127.0.0.1:0", workers=3))
    fds = [sock.fileno() for _, sock in green.sockets]
    assert [is_listening(fd) for fd in fds] == [True, False, False]
    green.start()
    assert [is_listening(fd) for fd in fds] == [True, True, True]
    listeners.release(blue)
    assert all(is_listening(fd) for fd in fds)


def test_what_was_grown_for_a_generation_that_failed_is_closed(listeners: Listeners) -> None:
    blue = listeners.acquire(BILLING, spec("127.0.0.1:0", workers=1))
    green = listeners.acquire(BILLING, spec("127.0.0.1:0", workers=3))
    green.start()
    listeners.release(green)
    assert [sock.fileno() >= 0 for _, sock in green.sockets] == [True, False, False]
    assert [sock.fileno() >= 0 for _, sock in blue.sockets] == [True]


def test_a_unix_socket_is_kept_over_generations_and_all_slots_accept_from_it(
    listeners: Listeners, tmp_path: Path
) -> None:
    path = tmp_path / "a.sock"
    blue = listeners.acquire(BILLING, spec(f"unix:{path}", workers=2))
    inode = path.lstat().st_ino
    assert address(blue) == f"unix:{path}"
    assert [len(blue.to_slot(slot, 2)) for slot in range(2)] == [1, 1]
    wider = spec(f"unix:{path}", workers=3)
    opened = dataclasses.replace(wider.listeners[0], mode="0666")
    green = listeners.acquire(BILLING, dataclasses.replace(wider, listeners=(opened,)))
    assert stat.S_IMODE(path.lstat().st_mode) == 0o660  # until green is to serve
    green.start()
    assert stat.S_IMODE(path.lstat().st_mode) == 0o666
    listeners.release(blue)
    assert path.lstat().st_ino == inode
    with pytest.raises(LaunchError, match="the app billing already does"):
        listeners.acquire(SHOP, spec(f"unix:{path}"))
    listeners.release(green)
    assert not path.exists()


def test_all_of_ipv6_takes_ipv4_only_where_it_is_asked_to(listeners: Listeners) -> None:
    alone = spec("[::]:0")
    both = dataclasses.replace(
        alone, listeners=(dataclasses.replace(alone.listeners[0], name="b", dual_stack=True),)
    )
    for wanted, reached in ((alone, False), (both, True)):
        lent = listeners.acquire(BILLING, dataclasses.replace(wanted, workers=2))
        lent.start()
        port = address(lent).rpartition(":")[2]
        assert connects(f"127.0.0.1:{port}") is reached
        with socket.socket(socket.AF_INET6) as client:
            assert client.connect_ex(("::1", int(port))) == 0


def test_what_is_given_back_after_the_end_holds_nothing_and_breaks_nothing(
    listeners: Listeners,
) -> None:
    late = listeners.acquire(BILLING, spec("127.0.0.1:0", workers=2))
    listeners.close()
    assert not connects(address(late))
    listeners.release(late)
    after = listeners.acquire(BILLING, spec("127.0.0.1:0"))
    listeners.release(late)  # and nothing of what came after it
    assert is_open(after)


# --- adopting ---------------------------------------------------------------------------------


def left_behind(lent: Lent) -> list[socket.socket]:
    """The sockets as workers have them when their supervisor is dead."""
    return [sock.dup() for _, sock in lent.sockets]


def test_adopted_sockets_are_lent_as_before_and_none_is_bound_anew(listeners: Listeners) -> None:
    former = Listeners()
    lent = former.acquire(BILLING, spec("127.0.0.1:0", workers=3))
    lent.start()
    kept, bound = left_behind(lent), address(lent)
    former.close()
    (listener,) = spec(bound, workers=3).listeners
    listeners.adopt(BILLING, listener, kept)
    again = listeners.acquire(BILLING, spec(bound, workers=3))
    assert [sock for _, sock in again.sockets] == kept
    assert address(again) == bound
    with pytest.raises(LaunchError, match="it is held already"):
        listeners.adopt(BILLING, listener, kept)
    assert connects(bound)


def test_socket_that_went_with_its_worker_is_made_anew_in_its_place(listeners: Listeners) -> None:
    former = Listeners()
    lent = former.acquire(BILLING, spec("127.0.0.1:0", workers=3))
    lent.start()
    first, second, third = left_behind(lent)
    former.close()
    first.close()
    (listener,) = spec("127.0.0.1:0", workers=3).listeners
    listeners.adopt(BILLING, listener, [None, second, third])
    again = listeners.acquire(BILLING, spec("127.0.0.1:0", workers=3))
    made = [sock for _, sock in again.sockets]
    assert made[1:] == [second, third]
    assert made[0].getsockname() == second.getsockname()
    again.start()
    assert [again.to_slot(slot, 3)[0][1] for slot in range(3)] == [s.fileno() for s in made]


def test_what_was_adopted_and_is_not_used_is_closed(listeners: Listeners) -> None:
    former = Listeners()
    lent = former.acquire(BILLING, spec("127.0.0.1:0"))
    kept, bound = left_behind(lent), address(lent)
    former.close()
    (listener,) = spec(bound).listeners
    listeners.adopt(BILLING, listener, kept)
    listeners.forget(BILLING)
    assert kept[0].fileno() == -1
    assert not connects(bound)


def test_socket_that_is_not_its_listeners_is_refused() -> None:
    def refused(sock: socket.socket, bind: str, why: str, *, dual_stack: bool = False) -> None:
        (listener,) = spec(bind).listeners
        with pytest.raises(LaunchError, match=why):
            check_adopted(dataclasses.replace(listener, dual_stack=dual_stack), sock)

    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket() as silent:
        port = sock.getsockname()[1]
        check_adopted(spec("127.0.0.1:0").listeners[0], sock)
        check_adopted(spec(f"127.0.0.1:{port}").listeners[0], sock)
        refused(sock, f"127.0.0.2:{port}", f"is bound to 127.0.0.1:{port}")
        refused(sock, f"127.0.0.1:{port ^ 1}", "is bound to")
        refused(sock, "unix:/tmp/x", "is bound to")
        silent.bind(("127.0.0.1", 0))
        refused(silent, "127.0.0.1:0", "does not listen")
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        refused(datagrams, "127.0.0.1:0", "no stream socket")
    with socket.create_server(("::", 0), family=socket.AF_INET6) as six:
        check_adopted(spec("[::]:0").listeners[0], six)
        refused(six, "[::]:0", "takes other addresses", dual_stack=True)
