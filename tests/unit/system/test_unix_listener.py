"""A socket's file: made for whom it is, taken away when stale or ours, never when another's."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.model.errors import LaunchError
from dataplane.system.unix_listener import SocketAccess, bind_unix


def access(mode: int = 0o660, owner: str | None = None, group: str | None = None) -> SocketAccess:
    return SocketAccess(mode=mode, owner=owner, group=group)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.sock"


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture
def stranger(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(1)
        yield sock


def test_it_listens_with_its_mode_whatever_the_umask_and_goes_at_its_end(path: Path) -> None:
    before = os.umask(0o077)
    try:
        sock, file = bind_unix(path, access(0o666))
    finally:
        os.umask(before)
    with sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert connects(path)
        file.grant(access(0o600))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert connects(path)
        file.remove()
        assert not path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_owner_and_group_are_given_by_name_or_number(path: Path) -> None:
    daemon, group = pwd.getpwnam("daemon"), grp.getgrnam("daemon")
    sock, file = bind_unix(path, access(owner="daemon", group=str(group.gr_gid)))
    with sock:
        assert (path.stat().st_uid, path.stat().st_gid) == (daemon.pw_uid, group.gr_gid)
        file.remove()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (access(owner="nobody-of-that-name"), "there is no user nobody-of-that-name"),
        (access(group="nobody-of-that-name"), "there is no group nobody-of-that-name"),
    ],
)
def test_who_is_not_there_is_told_and_nothing_is_left(
    path: Path, wanted: SocketAccess, told: str
) -> None:
    with pytest.raises(LaunchError, match=told):
        bind_unix(path, wanted)
    assert not path.exists()


def test_a_stale_file_is_taken_away(path: Path, stranger: socket.socket) -> None:
    stranger.close()
    assert path.exists()
    sock, file = bind_unix(path, access())
    with sock:
        assert connects(path)
        file.remove()


def test_a_socket_that_somebody_listens_on_is_never_taken(
    path: Path, stranger: socket.socket
) -> None:
    before = path.lstat().st_ino
    with pytest.raises(LaunchError, match="the address is in use"):
        bind_unix(path, access())
    assert path.lstat().st_ino == before
    assert connects(path)
    with pytest.raises(LaunchError, match="the address is in use"):  # its queue may be full by now
        bind_unix(path, access())


def test_a_socket_of_another_kind_is_somebody_elses(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(LaunchError, match="the address is in use"):
            bind_unix(path, access())


def test_a_file_that_is_no_socket_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(LaunchError, match="no socket is there"):
        bind_unix(path, access())
    assert path.read_text() == "precious"


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LaunchError, match="no socket is there"):
        bind_unix(path, access())


def test_a_missing_folder_and_one_that_is_being_bound_in_are_told(path: Path) -> None:
    missing = path.parent / "no" / "app.sock"
    with pytest.raises(LaunchError, match=re.escape(f"in {missing.parent}: no such file")):
        bind_unix(missing, access())
    held = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LaunchError, match="somebody else makes a socket"):
            bind_unix(path, access())
    finally:
        os.close(held)


def test_what_took_its_name_is_neither_removed_nor_changed(path: Path) -> None:
    sock, file = bind_unix(path, access())
    with sock:
        kept = path.with_suffix(".kept")  # its inode is not used again meanwhile
        path.rename(kept)
        path.write_text("another's")
        with pytest.raises(LaunchError, match="replaced by somebody"):
            file.grant(access(0o600))
        file.remove()
        assert path.read_text() == "another's"
