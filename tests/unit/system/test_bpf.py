"""Seccomp programs, run by a small interpreter of classic BPF for both machines."""

from __future__ import annotations

import socket
import struct

import pytest

from dataplane.system.bpf import (
    ALLOWED,
    HIDDEN,
    OWN_PID,
    SOCKET_OPTIONS,
    Machine,
    for_process,
    hiding_program,
    machine_layout,
    worker_program,
)

ALLOW = "allow"
KILL = "kill"


def machine(name: str) -> Machine:
    layout = machine_layout(name)
    assert layout is not None
    return layout


MACHINES = [machine("x86_64"), machine("aarch64")]
both = pytest.mark.parametrize("on", MACHINES, ids=["x86_64", "aarch64"])


def decide(program: bytes, on: Machine, number: int, *arguments: int) -> str | int:
    """What the kernel would do with a call: allow, kill, or the error it would answer."""
    words = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    call = struct.pack("<IIQ6Q", number, on.audit_arch, 0, *words)
    at = accumulator = 0
    while True:
        operation, yes, no, operand = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", call, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                at += yes if accumulator == operand else no
            case 0x35:
                at += yes if accumulator >= operand else no
            case 0x45:
                at += yes if accumulator & operand else no
            case 0x06:
                if operand == 0x7FFF0000:
                    return ALLOW
                return KILL if operand == 0x80000000 else operand & 0xFFFF
            case _:
                raise AssertionError(f"operation {operation:#x}")


@both
def test_plainly_allowed_calls_are_answered_whatever_their_arguments(on: Machine) -> None:
    program = worker_program(on)
    for name in ALLOWED:
        if name in on.calls:
            assert decide(program, on, on.calls[name], *[2**64 - 1] * 6) == ALLOW, name


@both
def test_every_call_that_has_no_number_here_is_known_elsewhere(on: Machine) -> None:
    known = {name for layout in MACHINES for name in layout.calls}
    assert set(ALLOWED) <= known


@both
def test_unknown_calls_are_refused(on: Machine) -> None:
    program = worker_program(on)
    named = set(on.calls.values())
    for number in range(500):
        if number not in named:
            assert decide(program, on, number) == 1, number


@both
def test_another_table_of_calls_kills(on: Machine) -> None:
    for program in (worker_program(on), hiding_program(on)):
        other = MACHINES[1 - MACHINES.index(on)]
        assert decide(program, other, 0) == KILL
    if on.x32:
        assert decide(worker_program(on), on, 0x40000000 | on.calls["read"]) == KILL


@both
def test_io_uring_is_hidden_and_nothing_else(on: Machine) -> None:
    program = hiding_program(on)
    for name in HIDDEN:
        assert decide(program, on, on.calls[name]) == 38
        assert decide(worker_program(on), on, on.calls[name]) == 38
    assert decide(program, on, on.calls["openat"]) == ALLOW


@both
def test_sockets_are_tcp_alone(on: Machine) -> None:
    def ask(family: int, kind: int, protocol: int) -> str | int:
        return decide(worker_program(on), on, on.calls["socket"], family, kind, protocol)

    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    for family in (socket.AF_INET, socket.AF_INET6):
        assert ask(family, socket.SOCK_STREAM | flags, 0) == ALLOW
        assert ask(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) == ALLOW
        assert ask(family, socket.SOCK_STREAM, 262) == 1  # MPTCP
        assert ask(family, socket.SOCK_DGRAM, 0) == 1
    assert ask(socket.AF_UNIX, socket.SOCK_STREAM, 0) == 97
    assert ask(socket.AF_VSOCK, socket.SOCK_STREAM, 0) == 97


@both
def test_fast_open_is_refused_in_any_company(on: Machine) -> None:
    program = worker_program(on)
    flag, no_signal = 0x20000000, 0x4000
    assert decide(program, on, on.calls["sendto"], 5, 0, 0, no_signal) == ALLOW
    assert decide(program, on, on.calls["sendto"], 5, 0, 0, flag | no_signal) == 95
    assert decide(program, on, on.calls["sendmsg"], 5, 0, no_signal) == ALLOW
    assert decide(program, on, on.calls["sendmsg"], 5, 0, flag) == 95


@both
def test_only_the_named_socket_options_are_set(on: Machine) -> None:
    program = worker_program(on)
    for level in range(300):
        for option in range(80):
            allowed = option in SOCKET_OPTIONS.get(level, ())
            told = decide(program, on, on.calls["setsockopt"], 5, level, option)
            assert told == (ALLOW if allowed else 1), (level, option)


@both
def test_no_code_and_no_fixed_place_is_mapped(on: Machine) -> None:
    program, number = worker_program(on), on.calls["mmap"]
    private = 0x22
    assert decide(program, on, number, 0, 4096, 3, private) == ALLOW
    assert decide(program, on, number, 0, 4096, 7, private) == 1
    assert decide(program, on, number, 4096, 4096, 3, private | 0x10) == 1
    assert decide(program, on, on.calls["mremap"], 0, 1, 2, 1) == ALLOW
    assert decide(program, on, on.calls["mremap"], 0, 1, 2, 3) == 1


@both
def test_process_may_signal_itself_alone(on: Machine) -> None:
    program = for_process(worker_program(on), 4711)
    assert OWN_PID.to_bytes(4, "little") not in program
    assert decide(program, on, on.calls["tgkill"], 4711, 4711, 6) == ALLOW
    assert decide(program, on, on.calls["tgkill"], 4712, 4712, 6) == 1


def test_unknown_machine_has_no_program() -> None:
    assert machine_layout("riscv64") is None
