"""Sockets that outlive a process: listening groups, and the sockets between our own processes.

An address is bound once, as a group of SO_REUSEPORT sockets, one for each slot. The group's first
socket is bound without SO_REUSEPORT, so that a second program gets "address in use" instead of a
share of the traffic. A listening socket must never be closed and bound anew for a change.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Final

from dataplane.model.errors import LaunchError

BACKLOG: Final = 4096  # the kernel cuts it to net.core.somaxconn
# unix(7): sun_path has 108 bytes with its closing NUL.
UNIX_PATH_LIMIT: Final = 107

_CREDENTIALS: Final = struct.Struct("3i")


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8080" or "[::1]:8080". Raises `LaunchError`."""
    host, separator, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        number = int(port)
        ipaddress.ip_address(host)
    except ValueError:
        separator = ""
    if not separator or not 0 <= number <= 0xFFFF:
        raise LaunchError(f"cannot listen on {bind}: not an address with a port")
    return host, number


def bind_first(bind: str, *, dual_stack: bool = False) -> socket.socket:
    """The first listening socket of an address's group. Raises `LaunchError` naming the address.

    Port 0 takes a free one; `bound_address` tells which. With `dual_stack` [::] takes IPv4, too.
    """
    host, port = parse_bind(bind)
    sock = _tcp_socket(host, dual_stack=dual_stack)
    try:
        sock.bind((host, port))
        # Only now: with it set before bind, we would join a stranger's group of the same user.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise LaunchError(f"cannot listen on {bind}: {_reason(error)}") from error
    return sock


def bind_another(first: socket.socket, *, listen: bool = True) -> socket.socket:
    """One more socket of the group that `first` belongs to. Raises `LaunchError`.

    Without `listen` it gets no share of the traffic yet: `start_listening` gives it one.
    """
    host, port = first.getsockname()[:2]
    sock = _tcp_socket(host, dual_stack=is_dual_stack(first))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        if listen:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise LaunchError(f"cannot listen on {bound_address(first)}: {_reason(error)}") from error
    return sock


def start_listening(sock: socket.socket) -> None:
    """Has it take connections; one that does already is left as it is. Raises `LaunchError`."""
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise LaunchError(f"cannot listen on {bound_address(sock)}: {_reason(error)}") from error


def bound_address(sock: socket.socket) -> str:
    """Where it is bound, as a config writes it: "127.0.0.1:8080", "[::1]:8080", "unix:/path"."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected SEQPACKET sockets, non-blocking, close-on-exec. Raises `LaunchError`."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise LaunchError(f"cannot make a channel: {error.strerror}") from error
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def bind_packet_socket(path: Path) -> socket.socket:
    """A SEQPACKET socket bound at `path`, for its owner alone; it does not listen yet.

    The kernel names to a peer whoever called listen(2), so the process that answers must call it.
    """
    check_unix_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Before bind, the file's own mode is the socket's: there is no moment with a wider one.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise LaunchError(f"cannot make the socket {path}: {_reason(error)}") from error
    return sock


def connect_packet_socket(path: Path) -> socket.socket:
    """A connection to a worker's control socket, non-blocking. Raises `LaunchError`."""
    check_unix_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)  # a full backlog is told (EAGAIN), not waited for
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise LaunchError(f"cannot connect to {path}: {_reason(error)}") from error
    return sock


def check_unix_path(path: Path) -> None:
    """Raises `LaunchError` for a path that no UNIX socket can have."""
    length = len(os.fsencode(path))
    if length > UNIX_PATH_LIMIT:
        raise LaunchError(
            f"the path {path} is too long for a socket: {length} bytes, at most {UNIX_PATH_LIMIT}"
        )


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of whoever connected, or listened, at the other end."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def is_dual_stack(sock: socket.socket) -> bool:
    """Whether a socket of [::] takes IPv4 as well."""
    if sock.family != socket.AF_INET6:
        return False
    return not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _tcp_socket(host: str, *, dual_stack: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # a host without IPv6
        raise LaunchError(f"cannot listen on {host}: {_reason(error)}") from error
    # A restart must not wait for old connections in TIME_WAIT. It never allows a second listener.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Inherited by every accepted connection: a call less for each of them.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if family == socket.AF_INET6:
        # Said either way: the host's own default (net.ipv6.bindv6only) decides nothing.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    sock.setblocking(False)
    return sock


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use"
    return (error.strerror or str(error)).lower()
