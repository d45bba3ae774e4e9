"""Listening UNIX sockets: a file that names one, who may connect to it, and its end.

A file whose socket nobody listens on any more is taken away; one that somebody does listen on, or
that is no socket, never is. Whoever binds or removes here holds a lock on the folder meanwhile, so
that two who find the same stale file do not take away each other's new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dataplane.model.errors import LaunchError
from dataplane.system.sockets import BACKLOG, check_unix_path

UNIX: Final = "unix:"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SocketAccess:
    """Who may connect: whoever may write to the file (unix(7))."""

    mode: int
    owner: str | None  # a user's name or number; None: the supervisor's own
    group: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SocketFile:
    """A socket's name in the file system, known again by its inode."""

    path: Path
    identity: tuple[int, int]  # device and inode

    def grant(self, access: SocketAccess) -> None:
        """Sets owner, group and mode. Raises `LaunchError`."""
        uid = -1 if access.owner is None else _uid(access.owner)
        gid = -1 if access.group is None else _gid(access.group)
        try:
            if not self._is_there():
                raise LaunchError(f"the socket {self.path} was replaced by somebody else's")
            if (uid, gid) != (-1, -1):
                os.chown(self.path, uid, gid, follow_symlinks=False)
            os.chmod(self.path, access.mode)
        except OSError as error:
            raise LaunchError(
                f"cannot give the socket {self.path} its owner, group and mode: {_reason(error)}"
            ) from error

    def remove(self) -> None:
        """Takes the file away, if it still is this one."""
        with contextlib.suppress(OSError, LaunchError), _locked(self.path.parent):
            if self._is_there():
                self.path.unlink()

    def _is_there(self) -> bool:
        try:
            return _identity(self.path) == self.identity
        except FileNotFoundError:
            return False


def bind_unix(path: Path, access: SocketAccess) -> tuple[socket.socket, SocketFile]:
    """A listening socket at `path`. Raises `LaunchError` naming it."""
    check_unix_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    file = None
    try:
        with _locked(path.parent):
            _make_way(path)
            os.fchmod(sock.fileno(), 0)  # until it has its owner, nobody may connect
            sock.bind(str(path))
            file = SocketFile(path=path, identity=_identity(path))
        file.grant(access)
        sock.setblocking(False)
        sock.listen(BACKLOG)
    except (OSError, LaunchError) as error:
        sock.close()
        if file is not None:
            file.remove()
        if isinstance(error, LaunchError):
            raise
        raise LaunchError(f"cannot listen on {UNIX}{path}: {_reason(error)}") from error
    return sock, file


def known_file(path: Path) -> SocketFile:
    """The file of a socket of ours that listens already. Raises `LaunchError` where it is gone."""
    try:
        status = path.lstat()
    except OSError as error:
        raise LaunchError(f"the socket {path} has no file any more: {_reason(error)}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise LaunchError(f"a file that is no socket is at {path}")
    return SocketFile(path=path, identity=(status.st_dev, status.st_ino))


def _make_way(path: Path) -> None:
    """Takes a stale socket's file away. Raises `LaunchError` for whatever else is there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise LaunchError(f"cannot listen on {UNIX}{path}: a file that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(str(path))
    if found == errno.ENOENT:
        return
    # Refused: nobody has it open any more. All else (a full queue, another kind of socket, no
    # rights) is somebody's.
    if found != errno.ECONNREFUSED:
        raise LaunchError(f"cannot listen on {UNIX}{path}: the address is in use")
    path.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(f"cannot make a socket in {folder}: {_reason(error)}") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LaunchError(f"somebody else makes a socket in {folder} right now") from error
        yield
    finally:
        os.close(held)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _uid(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise LaunchError(f"there is no user {name} on this host") from None


def _gid(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise LaunchError(f"there is no group {name} on this host") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
