"""Seccomp programs: the classic BPF that decides on each system call of a sealed process.

Pure: bytes in, bytes out; who installs them is `sandbox`. A program answers calls with argument
rules first and plainly allowed ones after them: the kernel answers the latter from a bitmap and
does not run the program at all, which is why the hot path's calls must never carry a rule.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
from typing import Final

EPERM: Final = 1
EACCES: Final = 13
ENOSYS: Final = 38
EAFNOSUPPORT: Final = 97
EOPNOTSUPP: Final = 95

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000

_LD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_RET: Final = 0x06

# struct seccomp_data
_NUMBER: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16

_MSG_FASTOPEN: Final = 0x20000000
_PROT_EXEC: Final = 0x4
_MAP_FIXED: Final = 0x10
_MREMAP_FIXED: Final = 0x2
_SOCK_TYPE_MASK: Final = 0xF
_F_DUPFD_CLOEXEC: Final = 1030
_F_SETPIPE_SZ: Final = 1031
_X32_BIT: Final = 0x40000000

OWN_PID: Final = 0x7FABCDEF  # beyond any process number (2^22), and nowhere else in a program


class SeccompLayout:
    """How a program is handed to the kernel: struct sock_fprog and struct sock_filter."""

    PROGRAM: Final = "<HxxxxxxQ"
    STEP: Final = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The numbers that a processor's Linux gives its calls."""

    audit_arch: int
    x32: bool  # a second table of numbers, with a bit set, that must not be a way around
    calls: dict[str, int]


# Never an argument rule here: see the docstring.
ALLOWED: Final = (
    # the data path
    "read", "write", "readv", "writev", "recvfrom", "epoll_wait", "epoll_pwait",
    "epoll_pwait2", "epoll_ctl", "accept4", "connect", "close", "shutdown", "timerfd_settime",
    "getsockopt", "getsockname", "getpeername", "recvmsg", "splice", "pipe2",
    # memory
    "brk", "munmap", "madvise",
    # the interpreter and its loop
    "futex", "rt_sigreturn", "rt_sigaction", "rt_sigprocmask", "sigaltstack", "getpid", "gettid",
    "exit", "exit_group", "lseek", "fstat", "getrandom", "clock_gettime", "clock_nanosleep",
    "nanosleep", "restart_syscall", "sched_yield", "poll", "ppoll", "getrusage",
)  # fmt: skip

HIDDEN: Final = ("io_uring_setup", "io_uring_enter", "io_uring_register")

# What a proxy sets on its sockets. Not there, on purpose: SO_ATTACH_* (a filter on the listening
# socket that all generations share), TCP_REPAIR, TCP_ULP.
SOCKET_OPTIONS: Final = {
    socket.SOL_SOCKET: (
        socket.SO_LINGER, socket.SO_KEEPALIVE, socket.SO_SNDBUF, socket.SO_RCVBUF,
        socket.SO_RCVLOWAT,
    ),
    socket.IPPROTO_TCP: (
        socket.TCP_NODELAY, socket.TCP_CORK, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL,
        socket.TCP_KEEPCNT, socket.TCP_QUICKACK, socket.TCP_USER_TIMEOUT, socket.TCP_DEFER_ACCEPT,
        25,  # TCP_NOTSENT_LOWAT
    ),
}  # fmt: skip

# Descriptor and status flags, dup, the size of a pipe.
_FCNTL: Final = (1, 2, 3, 4, _F_DUPFD_CLOEXEC, _F_SETPIPE_SZ)
_IOCTL: Final = (0x5421, 0x541B, 0x5451, 0x5450)  # FIONBIO FIONREAD FIOCLEX FIONCLEX

_X86_64: Final = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16,
    "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35,
    "getpid": 39, "socket": 41, "connect": 42, "sendto": 44, "recvfrom": 45, "sendmsg": 46,
    "recvmsg": 47, "shutdown": 48, "getsockname": 51, "getpeername": 52, "setsockopt": 54,
    "getsockopt": 55, "exit": 60, "fcntl": 72, "getrusage": 98, "sigaltstack": 131, "gettid": 186,
    "futex": 202, "restart_syscall": 219, "clock_gettime": 228, "clock_nanosleep": 230,
    "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "openat": 257,
    "newfstatat": 262, "ppoll": 271, "splice": 275, "tee": 276, "epoll_pwait": 281,
    "timerfd_settime": 286, "accept4": 288, "pipe2": 293, "seccomp": 317, "getrandom": 318,
}  # fmt: skip
_AARCH64: Final = {
    "epoll_ctl": 21, "epoll_pwait": 22, "fcntl": 25, "ioctl": 29, "openat": 56, "close": 57,
    "pipe2": 59, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "ppoll": 73,
    "splice": 76, "tee": 77, "newfstatat": 79, "fstat": 80, "timerfd_settime": 86, "exit": 93,
    "exit_group": 94, "futex": 98, "nanosleep": 101, "clock_gettime": 113, "clock_nanosleep": 115,
    "sched_yield": 124, "restart_syscall": 128, "tgkill": 131, "sigaltstack": 132,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getrusage": 165,
    "getpid": 172, "gettid": 178, "socket": 198, "connect": 203, "getsockname": 204,
    "getpeername": 205, "sendto": 206, "recvfrom": 207, "setsockopt": 208, "getsockopt": 209,
    "shutdown": 210, "sendmsg": 211, "recvmsg": 212, "brk": 214, "munmap": 215, "mremap": 216,
    "mmap": 222, "madvise": 233, "accept4": 242, "seccomp": 277, "getrandom": 278,
}  # fmt: skip
_EVERYWHERE: Final = {  # numbers are the same on all machines since 5.1
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "epoll_pwait2": 441,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
}  # fmt: skip

_MACHINES: Final = {
    "x86_64": Machine(audit_arch=0xC000003E, x32=True, calls=_X86_64 | _EVERYWHERE),
    "aarch64": Machine(audit_arch=0xC00000B7, x32=False, calls=_AARCH64 | _EVERYWHERE),
}


def machine_layout(machine: str) -> Machine | None:
    """The numbers of a processor as uname(2) names it, or None for one we do not know."""
    return _MACHINES.get(machine)


def hiding_program(machine: Machine) -> bytes:
    """io_uring's calls answer ENOSYS, as on a kernel without it; everything else goes on."""
    hidden = b"".join(_if_call(machine, name, _fail(ENOSYS)) for name in HIDDEN)
    return _prologue(machine) + hidden + _return(_ALLOW)


def worker_program(machine: Machine, *, unix: bool = False) -> bytes:
    """What a sealed worker may call. Anything else answers EPERM; another table of calls kills.

    `unix`: it may connect to UNIX sockets, too.
    Where it holds `OWN_PID` stands the process's own number, see `for_process`.
    """
    rules = {
        "sendto": _no_bits(3, _MSG_FASTOPEN, EOPNOTSUPP),  # it connects, and Landlock lets it pass
        "sendmsg": _no_bits(2, _MSG_FASTOPEN, EOPNOTSUPP),
        "setsockopt": _option_rule(),
        "socket": _socket_rule((socket.AF_UNIX,) if unix else ()),
        # No code can be made, and nothing laid over the engine's read-only tables. mprotect, which
        # could make them writable again, is not allowed at all: malloc needs it for threads only.
        "mmap": _no_bits(2, _PROT_EXEC, EPERM, then=_no_bits(3, _MAP_FIXED, EPERM)),
        "mremap": _no_bits(3, _MREMAP_FIXED, EPERM),
        "fcntl": _one_of(1, _FCNTL, EPERM),
        "ioctl": _one_of(1, _IOCTL, EPERM),
        "tgkill": _one_of(0, (OWN_PID,), EPERM),  # abort(3)
        # Python looks for sources when it prints a traceback: that must fail in the usual way.
        "openat": _fail(EACCES),
        "newfstatat": _fail(EACCES),
        **{name: _fail(ENOSYS) for name in HIDDEN},  # as the program before it says
    }
    ruled = b"".join(
        _if_call(machine, name, rule) for name, rule in rules.items() if name in machine.calls
    )
    allowed = b"".join(
        _if_call(machine, name, _return(_ALLOW)) for name in ALLOWED if name in machine.calls
    )
    return _prologue(machine) + ruled + allowed + _fail(EPERM)


def for_process(program: bytes, pid: int) -> bytes:
    """The program of one process, made from the common one in a moment."""
    return program.replace(OWN_PID.to_bytes(4, "little"), pid.to_bytes(4, "little"))


def _prologue(machine: Machine) -> bytes:
    """Kills what comes through another table of calls; leaves the call's number loaded."""
    steps = _step(_LD, _ARCH) + _jump(_JEQ, machine.audit_arch, 1, 0) + _return(_KILL)
    steps += _step(_LD, _NUMBER)
    if machine.x32:
        steps += _jump(_JGE, _X32_BIT, 0, 1) + _return(_KILL)
    return steps


def _socket_rule(more: tuple[int, ...]) -> bytes:
    """TCP over IPv4 or IPv6, and streams of more families.

    MPTCP is another protocol to Landlock, which does not limit it.
    """
    protocol = _one_of(2, (0, socket.IPPROTO_TCP), EPERM)
    stream = _argument(1) + _step(_AND, _SOCK_TYPE_MASK)
    stream += _jump(_JEQ, socket.SOCK_STREAM, 1, 0) + _fail(EPERM)
    families = (socket.AF_INET, socket.AF_INET6, *more)
    return _one_of(0, families, EAFNOSUPPORT, then=stream + protocol)


def _option_rule() -> bytes:
    steps = b""
    for level, options in SOCKET_OPTIONS.items():
        rule = _one_of(2, options, EPERM)
        steps += _argument(1) + _jump(_JEQ, level, 0, len(rule) // SeccompLayout.STEP) + rule
    return steps + _fail(EPERM)


def _if_call(machine: Machine, name: str, rule: bytes) -> bytes:
    # A rule may load arguments over the number, but then it always ends in an answer.
    return _jump(_JEQ, machine.calls[name], 0, len(rule) // SeccompLayout.STEP) + rule


def _one_of(argument: int, values: tuple[int, ...], code: int, *, then: bytes = b"") -> bytes:
    steps = _argument(argument)
    for index, value in enumerate(values):
        steps += _jump(_JEQ, value, len(values) - index, 0)
    return steps + _fail(code) + (then or _return(_ALLOW))


def _no_bits(argument: int, bits: int, code: int, *, then: bytes = b"") -> bytes:
    refuse = _jump(_JSET, bits, 0, 1) + _fail(code)
    return _argument(argument) + refuse + (then or _return(_ALLOW))


def _argument(index: int) -> bytes:
    # The low word (both machines are little-endian); the kernel, too, takes these as int.
    return _step(_LD, _ARGUMENTS + 8 * index)


def _fail(code: int) -> bytes:
    return _return(_ERRNO | code)


def _return(action: int) -> bytes:
    return _step(_RET, action)


def _step(operation: int, operand: int) -> bytes:
    return _jump(operation, operand, 0, 0)


def _jump(operation: int, operand: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("<HBBI", operation, if_true, if_false, operand)
