"""The C library, for the few calls that Python has no name for.

One object for all of them, made once: what it holds is shared by all workers of a zygote.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any, Final

_ARGUMENTS: Final = 5


def syscall(number: int, *arguments: int) -> int:
    """A system call by its number, with up to five numbers or addresses. Raises `OSError`."""
    return _checked(_function("syscall"), number, arguments)


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one argument. Raises `OSError`."""
    return _checked(_function("prctl"), option, (value,))


def madvise(address: int, length: int, advice: int) -> int:
    """madvise(2) by address. Raises `OSError`."""
    return _checked(_function("madvise"), address, (length, advice))


def mallopt(option: int, value: int) -> bool:
    """mallopt(3). False: the C library has none, or refuses."""
    try:
        return bool(_function("mallopt")(option, value, *(0,) * (_ARGUMENTS - 1)))
    except AttributeError:
        return False


def _checked(function: Callable[..., Any], first: int, rest: tuple[int, ...]) -> int:
    result: int = function(first, *rest, *(0,) * (_ARGUMENTS - len(rest)))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    function = _library()[name]
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long] * (1 + _ARGUMENTS)
    return function


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
