"""Workers that have no supervisor: asks each who it is and for what it holds, all of them at once.

What they say is not believed here beyond what the kernel says of them; whether it fits is
`adoption`'s to judge. Blocking, for who has no loop yet; every wait has an end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dataplane.control.messages import (
    MESSAGE_LIMIT,
    Adopt,
    Ask,
    Holdings,
    Identity,
    Message,
    decode_message,
    encode_message,
)
from dataplane.model.errors import DataplaneError
from dataplane.system.fds import close_fds, receive_with_fds, send_with_fds
from dataplane.system.process import has_ended, signal_pidfd
from dataplane.system.sockets import connect_packet_socket, peer_credentials

ANSWER_SECONDS: Final = 2.0
# Who runs as a worker, by its command line: the interpreter, with a code tree as an argument.
WORKER_MODULE: Final = b"dataplane.worker.zygote"


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Orphan:
    """Mutable: what it has said. Socket and descriptors are the holder's.

    error: why it cannot be dealt with. Without one, it said who it is; holdings None: it is of code
    that cannot say what it holds.
    """

    path: Path
    sock: socket.socket
    pid: int
    uid: int
    pidfd: int
    identity: Identity | None = None
    holdings: Holdings | None = None
    fds: tuple[int, ...] = ()
    said: list[Message] = dataclasses.field(default_factory=list)  # beside its answers
    error: str | None = None

    @property
    def app(self) -> str:
        """By its word, else by its file."""
        return self.identity.app if self.identity else self.path.name.partition(".")[0]

    @property
    def generation(self) -> int:
        """As `app`; 0 where neither says."""
        if self.identity is not None:
            return self.identity.generation
        number = self.path.name.partition(".")[2].partition(".")[0]
        return int(number) if number.isdigit() else 0

    def close(self) -> None:
        """Lets go of it. It serves on."""
        self.sock.close()
        close_fds((self.pidfd, *self.fds))
        self.fds = ()


def find_orphans(workers_dir: Path) -> tuple[Orphan, ...]:
    """Every process that listens at a control socket, and what it said within a time for all.

    Socket files that nobody listens on are removed.
    """
    found = []
    for path in sorted(workers_dir.glob("*.sock")):
        orphan = _meet(path)
        if orphan is not None:
            found.append(orphan)
    _ask_all([orphan for orphan in found if orphan.error is None])
    return tuple(found)


def end_strays(code_dir: Path, known: Iterable[int]) -> tuple[int, ...]:
    """Kills what runs from these code trees and cannot be asked: zygotes and workers that were on
    their way when their supervisor died, and workers whose control socket somebody removed."""
    ended = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in known:
            continue
        with contextlib.suppress(OSError):
            if not _runs_from(entry, code_dir):
                continue
            pidfd = os.pidfd_open(int(entry.name))
            try:
                if _runs_from(entry, code_dir) and signal_pidfd(pidfd, signal.SIGKILL):
                    ended.append(int(entry.name))
            finally:
                os.close(pidfd)
    return tuple(ended)


def _runs_from(process: Path, code_dir: Path) -> bool:
    """Whether it is a zygote, or a fork of one, of this user and of a tree in this folder."""
    words = (process / "cmdline").read_bytes()
    if WORKER_MODULE not in words or _uid(process) != os.geteuid():
        return False
    trees = os.fsencode(code_dir) + b"/"
    return any(word.startswith(trees) for word in words.split(b"\0"))


def _uid(process: Path) -> int:
    """The effective one: a worker's files in /proc are root's, whoever it runs as."""
    lines = (process / "status").read_text().splitlines()
    return int(next(line.split()[2] for line in lines if line.startswith("Uid:")))


def is_worker(orphan: Orphan) -> bool:
    """Whether the kernel says that it is a worker of this user's, whatever it says itself."""
    if orphan.uid != os.geteuid():
        return False
    try:
        words = Path(f"/proc/{orphan.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return WORKER_MODULE in words and not has_ended(orphan.pidfd)


def _meet(path: Path) -> Orphan | None:
    """None where nobody listens any more."""
    try:
        sock = connect_packet_socket(path)
    except DataplaneError:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    pid, uid, _ = peer_credentials(sock)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        sock.close()
        return None
    orphan = Orphan(path=path, sock=sock, pid=pid, uid=uid, pidfd=pidfd)
    if uid != os.geteuid():
        orphan.error = f"it runs as user {uid}"
    return orphan


def _ask_all(some: list[Orphan]) -> None:
    """Has each say who it is, and then what it holds; nobody is held up by one who does not."""
    poll = select.poll()
    waiting = {}
    for orphan in some:
        _say(orphan, Ask())
        waiting[orphan.sock.fileno()] = orphan
        poll.register(orphan.sock, select.POLLIN)
    deadline = time.monotonic() + ANSWER_SECONDS
    while waiting:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            break
        for fd, _ in ready:
            if _is_done(waiting[fd]):
                poll.unregister(fd)
                del waiting[fd]
    for orphan in waiting.values():
        orphan.error = "it does not answer"


def _is_done(orphan: Orphan) -> bool:
    """After the next of its messages, whether nothing more is to come."""
    try:
        message, fds = _receive(orphan.sock)
    except BlockingIOError:
        return False
    if isinstance(message, Holdings) and orphan.identity and message.pid == orphan.pid:
        # It answered after its pidfd was opened: that one names it, and no later process.
        orphan.holdings, orphan.fds = message, fds
        return True
    close_fds(fds)
    if orphan.identity is None:
        if isinstance(message, Identity) and message.pid == orphan.pid:
            orphan.identity = message
            _say(orphan, Adopt())
            return False
        orphan.error = "it gave no answer that fits"
        return True
    if message is None:
        return True  # of older code, which does not know the question
    orphan.said.append(message)
    return False


def _say(orphan: Orphan, message: Message) -> None:
    with contextlib.suppress(OSError):  # it has ended: so has its line, which is read next
        send_with_fds(orphan.sock, encode_message(message), ())


def _receive(sock: socket.socket) -> tuple[Message | None, tuple[int, ...]]:
    try:
        packet = receive_with_fds(sock, MESSAGE_LIMIT)
    except ConnectionResetError:
        packet = None
    if packet is None:
        return None, ()
    try:
        if packet.truncated:
            raise DataplaneError("a message was cut")
        return decode_message(packet.data), packet.fds
    except DataplaneError:
        packet.close_fds()
        return None, ()
