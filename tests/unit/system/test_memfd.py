"""Memory files: what is sealed can never change again."""

from __future__ import annotations

import mmap
import os

import pytest

from dataplane.model.errors import ControlError
from dataplane.system.memfd import (
    new_memfd,
    read_sealed,
    sealed_memfd,
    shared_memfd,
    shared_size,
)


def test_sealed_file_is_read_back_whole() -> None:
    data = os.urandom(300_000)
    fd = sealed_memfd("spec", data)
    assert read_sealed(fd) == data
    assert read_sealed(fd) == data, "reading moves nothing"
    os.close(fd)


def test_sealed_file_cannot_be_changed_by_its_maker() -> None:
    fd = sealed_memfd("spec", b"fixed")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"X", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 1)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 100)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 5, mmap.MAP_SHARED, mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.execve(fd, ["x"], {})
    assert read_sealed(fd) == b"fixed"
    os.close(fd)


def test_shared_file_can_be_written_but_not_resized() -> None:
    fd = shared_memfd("stats", 4096)
    with mmap.mmap(fd, 4096) as one, mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as other:
        assert other[:] == bytes(4096)
        one[:4] = b"turn"
        assert other[:4] == b"turn"
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 8192)
    os.close(fd)


def test_file_that_could_still_change_is_refused() -> None:
    fd = shared_memfd("stats", 4096)
    with pytest.raises(ControlError, match="not sealed"):
        read_sealed(fd)
    os.close(fd)


def test_what_is_no_memory_file_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(ControlError, match="not a memory file"):
        read_sealed(reader)
    os.close(reader)
    os.close(writer)


def test_shared_file_is_known_by_its_seals() -> None:
    fds = [shared_memfd("shared", 8192), new_memfd("open"), sealed_memfd("spec", b"x")]
    with open("/etc/passwd", "rb") as file:
        fds.append(os.dup(file.fileno()))
    good, *others = fds
    assert shared_size(good) == 8192
    for fd in others:
        with pytest.raises(ControlError, match=r"memory file"):
            shared_size(fd)
    for fd in fds:
        os.close(fd)
