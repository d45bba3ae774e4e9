"""The C library as cffi shows it: what dp.h declares, untyped. Only this package imports it."""

from typing import Any

ffi: Any
lib: Any
