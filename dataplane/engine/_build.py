"""Builds the C library as `dataplane.engine._native`: a setuptools command around cffi's API mode,
and beside it the load generator, a program of its own that no worker ever loads.

What Python may call is cut from native/include/dp.h as it stands, so the header stays the single
source. The result depends on the sources alone (never on the folder, the day or the flags that
the interpreter was built with): an image's digest covers these bytes.

This module runs at build time only and must never be imported by the running program; it must
import nothing of dataplane, which is not there yet when it runs.

Environment:
    CC                   the compiler (default: cc)
    DATAPLANE_WERROR=1   our own sources are compiled with every warning on, as errors
    DATAPLANE_SANITIZE   for example "address,undefined": a sanitised library, for tests
"""

from __future__ import annotations

import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import cffi
from setuptools import Extension
from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.errors import SetupError

HEADER: Final = Path("native/include/dp.h")
INCLUDES: Final = ("native/include", "native/src")
SOURCES: Final = Path("native/src")
LOAD_SOURCES: Final = Path("native/load")
LOAD_PROGRAM: Final = "dp_load"  # of the package dataplane.cli, which is not in an image's code

_CDEF: Final = re.compile(r"/\* cdef: begin \*/\n(.*?)/\* cdef: end \*/", re.DOTALL)

COMPILE_FLAGS: Final = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O2",
    "-g0",  # no paths, no producer line: the bytes of two builds stay equal
    "-fPIC",
    "-fno-plt",
    "-fno-semantic-interposition",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-fno-strict-aliasing",  # bytes of a buffer are read as words
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2",
)
LINK_FLAGS: Final = ("-shared", "-Wl,-z,now", "-Wl,-z,relro", "-Wl,-z,noexecstack", "-Wl,-O1")
WARNINGS: Final = (
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wsign-conversion",
    "-Wshadow",
    "-Wcast-qual",
    "-Wpointer-arith",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wvla",
    "-Werror",
)


def read_cdef(header: Path) -> str:
    """The declarations between the marker comments of dp.h, unchanged."""
    found = _CDEF.findall(header.read_text(encoding="utf-8"))
    if not found:
        raise SetupError(f"{header}: no part between '/* cdef: begin */' and '/* cdef: end */'")
    return "\n".join(found)


def native_sources() -> list[str]:
    """Our own C files, in one order on every machine: it is the order they are linked in."""
    return _sources(SOURCES)


def _sources(folder: Path) -> list[str]:
    sources = sorted(str(path) for path in folder.glob("*.c"))
    if not sources:
        raise SetupError(f"{folder.absolute()}: no C sources there")
    return sources


class build_ext(_build_ext):
    """Compiles native/src/*.c and cffi's glue, each with its own flags, into one library."""

    def run(self) -> None:
        super().run()
        self._build_load()

    def build_extension(self, ext: Extension) -> None:
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)
        glue = temp / "_native.c"
        self._write_glue(ext.name, glue)

        cc = shlex.split(os.environ.get("CC", "cc"))
        sanitize = sanitizer_flags(os.environ.get("DATAPLANE_SANITIZE", ""))
        extra = shlex.split(os.environ.get("CFLAGS", ""))
        # The interpreter's own flags are not wanted: -DNDEBUG would turn our asserts off, and
        # another Python would give another library.
        self.compiler.set_executables(
            compiler_so=[*cc, *COMPILE_FLAGS, *prefix_maps(temp), *sanitize, *extra],
            linker_so=[*cc, *LINK_FLAGS, *sanitize, *shlex.split(os.environ.get("LDFLAGS", ""))],
            linker_exe=[*cc, "-pie", *sanitize, *shlex.split(os.environ.get("LDFLAGS", ""))],
        )
        sources = native_sources()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(lambda source: self._compile(source, warnings()), sources)
            glue_object = self._compile(str(glue), ("-Wno-unused-parameter",))
            ext.extra_objects = [*compiled, glue_object]

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file under a name of its own, then a rename: a process that has the old library
        # mapped keeps it whole.
        fresh = target.with_name(f".{target.name}.new")
        self.compiler.link_shared_object(ext.extra_objects, str(fresh), target_lang="c")
        fresh.replace(target)

    def get_source_files(self) -> list[str]:
        """Everything under native/ belongs to the source distribution."""
        return sorted(
            str(path)
            for path in Path("native").rglob("*")
            if path.is_file() and "build" not in path.parts
        )

    def _write_glue(self, name: str, target: Path) -> None:
        ffi = cffi.FFI()
        ffi.cdef(read_cdef(HEADER))
        ffi.set_source(name, f'#include "{HEADER.name}"\n')
        ffi.emit_c_code(str(target))

    def _build_load(self) -> None:
        """The load generator, in the folder of the package that starts it."""
        folder = Path("dataplane/cli") if self.inplace else Path(self.build_lib, "dataplane/cli")
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sources = _sources(LOAD_SOURCES)
            objects = list(pool.map(lambda source: self._compile(source, warnings()), sources))
        fresh = f".{LOAD_PROGRAM}.new"
        self.compiler.link_executable(objects, fresh, output_dir=str(folder))
        (folder / fresh).replace(folder / LOAD_PROGRAM)

    def _compile(self, source: str, flags: tuple[str, ...]) -> str:
        (result,) = self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            include_dirs=[*INCLUDES, *self.include_dirs],
            extra_postargs=list(flags),
        )
        return str(result)


def warnings() -> tuple[str, ...]:
    """All of them, as errors, where that is asked: a compiler of tomorrow may warn of more."""
    return WARNINGS if os.environ.get("DATAPLANE_WERROR") == "1" else ("-Wall",)


def prefix_maps(temp: Path) -> list[str]:
    """Flags that keep the folder of this build out of the library."""
    return [f"-ffile-prefix-map={folder}=." for folder in (temp, temp.absolute(), Path.cwd())]


def sanitizer_flags(names: str) -> list[str]:
    """Compiler and linker flags for a comma-separated list of sanitizers."""
    if not names:
        return []
    return [
        f"-fsanitize={names}",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-U_FORTIFY_SOURCE",
        "-O1",
        "-g",
    ]
