"""The seal of a worker: what the kernel takes from a process, layer by layer, for good.

Each layer is optional, because kernels and rights differ; what is on is asked from the kernel
afterwards and told, never assumed. Everything here works through objects that `Sandbox` makes
beforehand: when the seal is half on, no file can be opened and no module imported any more, and
what all workers share is made once for all of them.

Order: `hide_io_uring` before the event loop exists (libuv opens a ring, which would evade the
filter) → limits → `undump` → `no_new_privileges` → `landlock` → `filter_calls`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import resource
import struct
from collections.abc import Iterable
from typing import Final

from dataplane.system.bpf import (
    Machine,
    SeccompLayout,
    for_process,
    hiding_program,
    machine_layout,
    worker_program,
)
from dataplane.system.libc import prctl, syscall

PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39

_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1

# include/uapi/linux/landlock.h. The rights that each ABI knows, all of them handled (so: denied).
_LANDLOCK_FILES: Final = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
_LANDLOCK_FILES_ALL: Final = 0xFFFF  # from ABI 5 on: and ioctl on devices
_LANDLOCK_BIND_CONNECT: Final = 0x3
_LANDLOCK_CONNECT: Final = 0x2
_LANDLOCK_SCOPES: Final = 0x3  # abstract UNIX sockets, signals
_LANDLOCK_CREATE_VERSION: Final = 1
_LANDLOCK_RULE_NET_PORT: Final = 2

_CODE_AT: Final = 32  # where a program stands in the buffer, behind the structure that names it


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer as it turned out. `reason` says why it is off, or weaker than it could be."""

    name: str
    on: bool
    reason: str | None


class Sandbox:
    """Applies the layers to the process that calls it. Made once, before any fork.

    Whatever it does to the process goes through `_prctl`, `_call` and `_limit`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray(_CODE_AT + 8 * 4096)  # BPF_MAXINSNS
        self._given = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._machine: Final[Machine | None] = machine_layout(os.uname().machine)
        if self._machine is not None:
            self._hiding = hiding_program(self._machine)
            self._allowing = {
                unix: worker_program(self._machine, unix=unix) for unix in (False, True)
            }

    def hide_io_uring(self) -> Layer:
        """From now on this kernel has no io_uring (ENOSYS), for children neither."""
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)  # a filter needs it, unless one has CAP_SYS_ADMIN
        if self._machine is None:
            return _off("io_uring", f"no call numbers for {os.uname().machine}")
        return self._install("io_uring", self._hiding)

    def no_new_privileges(self) -> Layer:
        """No exec can give rights that are not here now. Cannot be taken back."""
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)
        on = self._prctl(_PR_GET_NO_NEW_PRIVS) == 1
        return Layer(name="no_new_privs", on=on, reason=None if on else "the kernel refused")

    def undump(self) -> Layer:
        """No core file, and no other process of this user may look into this one's memory."""
        self._prctl(_PR_SET_DUMPABLE, 0)
        on = self._prctl(PR_GET_DUMPABLE) == 0
        return Layer(name="undumpable", on=on, reason=None if on else "the kernel refused")

    def landlock(self, connect_ports: Iterable[int]) -> tuple[int, Layer]:
        """No file system; TCP connects to these ports only; no bind.

        Returns the ABI in use, 0: off. ABI 1 to 3 know files alone; 4 and later ports, 6 and later
        signals and abstract sockets.
        """
        if self._machine is None:
            return 0, _off("landlock", f"no call numbers for {os.uname().machine}")
        try:
            abi = self._call(
                self._machine.calls["landlock_create_ruleset"], 0, 0, _LANDLOCK_CREATE_VERSION
            )
        except OSError as error:
            return 0, _off("landlock", _landlock_reason(error))
        try:
            self._restrict(self._machine, abi, sorted(set(connect_ports)))
        except OSError as error:
            return 0, _off("landlock", (error.strerror or str(error)).lower())
        weaker = (
            None
            if abi >= 6
            else f"this kernel has ABI {abi}: "
            + ("ports are not limited" if abi < 4 else "signals are not limited")
        )
        return abi, Layer(name="landlock", on=True, reason=weaker)

    def filter_calls(self, own_pid: int, *, unix: bool = False) -> Layer:
        """Only the calls that serving needs, with the arguments that serving uses.

        `unix`: connecting to UNIX sockets is among them. Landlock does not limit to which ones:
        whoever owns a socket's file says who may.
        """
        if self._machine is None:
            return _off("seccomp", f"no call numbers for {os.uname().machine}")
        return self._install("seccomp", for_process(self._allowing[unix], own_pid))

    def limit_resources(self, descriptors: int) -> None:
        """No core file, and at most this many descriptors, or what the user may have if less."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY:
            descriptors = min(descriptors, hard)
        self._limit(resource.RLIMIT_CORE, 0)
        self._limit(resource.RLIMIT_NOFILE, descriptors)

    def _prctl(self, option: int, value: int = 0) -> int:
        return prctl(option, value)

    def _call(self, number: int, *arguments: int) -> int:
        return syscall(number, *arguments)

    def _limit(self, kind: int, value: int) -> None:
        resource.setrlimit(kind, (value, value))

    def _restrict(self, machine: Machine, abi: int, connect_ports: list[int]) -> None:
        files = _LANDLOCK_FILES.get(abi, _LANDLOCK_FILES_ALL)
        attributes = struct.pack(
            "<QQQ",
            files,
            _LANDLOCK_BIND_CONNECT if abi >= 4 else 0,
            _LANDLOCK_SCOPES if abi >= 6 else 0,
        )
        size = 24 if abi >= 6 else 16 if abi >= 4 else 8
        ruleset = self._call(
            machine.calls["landlock_create_ruleset"], self._give(attributes), size, 0
        )
        try:
            for port in connect_ports if abi >= 4 else ():
                rule = self._give(struct.pack("<QQ", _LANDLOCK_CONNECT, port))
                number = machine.calls["landlock_add_rule"]
                self._call(number, ruleset, _LANDLOCK_RULE_NET_PORT, rule, 0)
            self._call(machine.calls["landlock_restrict_self"], ruleset, 0)
        finally:
            os.close(ruleset)

    def _install(self, name: str, program: bytes) -> Layer:
        assert self._machine is not None
        length = len(program) // SeccompLayout.STEP
        code = self._give(
            struct.pack(SeccompLayout.PROGRAM, length, self._given + _CODE_AT), program
        )
        try:
            self._call(
                self._machine.calls["seccomp"],
                _SECCOMP_SET_MODE_FILTER,
                _SECCOMP_FILTER_FLAG_TSYNC,
                code,
            )
        except OSError as error:
            return _off(name, (error.strerror or str(error)).lower())
        return Layer(name=name, on=True, reason=None)

    def _give(self, structure: bytes, program: bytes = b"") -> int:
        """The address of a structure for the next call, with a program behind it."""
        self._buffer[: len(structure)] = structure
        self._buffer[_CODE_AT : _CODE_AT + len(program)] = program
        return self._given


def _off(name: str, reason: str) -> Layer:
    return Layer(name=name, on=False, reason=reason)


def _landlock_reason(error: OSError) -> str:
    if error.errno == errno.ENOSYS:
        return "this kernel has none"
    if error.errno == errno.EOPNOTSUPP:
        return "turned off when the kernel was started"
    return (error.strerror or str(error)).lower()
