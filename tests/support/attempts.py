"""Run as a program: seals itself as a worker does, then tries what a sealed worker must not do.

Prints one JSON object: for each attempt "done", or the name of the error that stopped it. The first
argument names layers to leave out, the second is a port that the spec names, the third one it does
not, the fourth a process to signal. Further arguments: the attempts to make, where not all.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable

from dataplane.system.sandbox import Sandbox
from dataplane.worker.main import seal_process
from tests.support.specs import app_spec, route_to, upstream

IO_URING_SETUP = 425
MSG_FASTOPEN = 0x20000000
IPPROTO_MPTCP = 262
MAP_FIXED = 0x10


def main() -> None:
    left_out = tuple(name for name in sys.argv[1].split(",") if name)
    named, other, victim = (int(word) for word in sys.argv[2:5])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    listening = socket.create_server(("127.0.0.1", 0))
    passwords = os.open("/etc/passwd", os.O_RDONLY)
    victim_fd = os.pidfd_open(victim)
    table = libc.mmap(None, mmap.PAGESIZE, 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)

    def syscall(number: int, *arguments: object) -> None:
        if libc.syscall(number, *arguments) == -1:
            raise OSError(ctypes.get_errno(), str(number))

    def map_over(address: int | None, protection: int, flags: int) -> None:
        result = libc.mmap(address, mmap.PAGESIZE, protection, flags, -1, 0)
        if result == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")

    def tcp() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def fast_open_by_sendmsg() -> None:
        tcp().sendmsg([b"x"], [], MSG_FASTOPEN, ("127.0.0.1", other))

    def filter_on_listener() -> None:
        program = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0), 8)
        given = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(program))
        listening.setsockopt(socket.SOL_SOCKET, 26, given)  # SO_ATTACH_FILTER

    def connect_to_named() -> None:
        with tcp() as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", named))

    def splice_through_a_pipe() -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 256 * 1024)
        os.write(writer, b"x")
        with tcp() as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", named))
            if os.splice(reader, sock.fileno(), 1) != 1:
                raise OSError(errno.EIO, "splice")

    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    attempts: dict[str, Callable[[], object]] = {
        "open a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "create a file": lambda: os.open("/tmp/made", os.O_WRONLY | os.O_CREAT),
        "list a folder": lambda: os.listdir("/"),
        "open through proc": lambda: os.open(f"/proc/self/fd/{passwords}", os.O_RDONLY),
        "look at a file": lambda: os.stat("/etc/passwd"),
        "remove a file": lambda: os.unlink("/tmp/made"),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork() or os._exit(0),
        "start a thread": lambda: threading.Thread(target=int).start(),
        "make a UNIX socket": lambda: socket.socket(socket.AF_UNIX),
        "make a socket pair": socket.socketpair,
        "make a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "make a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "make a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "make an MPTCP socket": lambda: socket.socket(
            socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP
        ),
        "connect to another port": lambda: tcp().connect(("127.0.0.1", other)),
        "fast open by sendto": lambda: tcp().sendto(b"x", MSG_FASTOPEN, ("127.0.0.1", other)),
        "fast open by sendmsg": fast_open_by_sendmsg,
        "bind": lambda: tcp().bind(("127.0.0.1", 0)),
        "listen": lambda: tcp().listen(),
        "filter the shared listener": filter_on_listener,
        "make an io_uring": lambda: syscall(IO_URING_SETUP, 8, ctypes.create_string_buffer(120)),
        "signal another process": lambda: os.kill(victim, signal.SIGCONT),
        "signal by pidfd": lambda: signal.pidfd_send_signal(victim_fd, signal.SIGCONT),
        "leave a namespace": lambda: call("unshare", 0x10000000),  # CLONE_NEWUSER
        "become another user": lambda: os.setuid(65534),
        "trace another process": lambda: call("ptrace", 16, victim, None, None),  # ATTACH
        "read another's memory": lambda: call("process_vm_readv", victim, None, 0, None, 0, 0),
        "map code": lambda: map_over(None, 5, anonymous),
        "make a table writable": lambda: call("mprotect", ctypes.c_void_p(table), 4096, 3),
        "map over a table": lambda: map_over(table, 3, anonymous | MAP_FIXED),
        "load a program into the kernel": lambda: syscall(321, 5, None, 0),  # bpf
        # and what must go on working
        "connect to the named port": connect_to_named,
        "read what was open": lambda: os.read(passwords, 1),
        "splice through a pipe": splice_through_a_pipe,
        "take memory": lambda: bytearray(8 * 1024 * 1024),
    }
    sandbox = Sandbox()
    layers = [] if "seccomp" in left_out else [sandbox.hide_io_uring()]
    spec = app_spec(route_to("api"), upstreams=(upstream("api", named),))
    seal = seal_process(spec, left_out, sandbox, layers)
    names = sys.argv[5:] or list(attempts)
    told: dict[str, object] = {name: outcome(attempts[name]) for name in names}
    told["seal"] = [seal.seccomp, seal.landlock, seal.no_new_privs, seal.dumpable]
    os.write(1, json.dumps(told).encode())


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except RuntimeError:
        return "EPERM"  # a thread: Python tells no errno
    return "done"


if __name__ == "__main__":
    main()
