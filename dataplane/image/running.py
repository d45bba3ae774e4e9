"""What a running worker is, found out from outside: from /proc, the store and the host's files.

The worker is asked nothing, and the supervisor's word is only where the search begins. Each point
is proven, refuted, or cannot be proven, and then it says why: a worker is not dumpable, so that
only root may look into it. Changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import re
import select
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from dataplane.image.keys import SHORT, Keys
from dataplane.image.proofs import Proofs
from dataplane.image.signing import verify_image
from dataplane.image.store import Image, Store, digest_of
from dataplane.model.errors import ControlError, ImageError
from dataplane.system.memfd import read_sealed

PROC: Final = Path("/proc")
# What no look from outside can tell, on any host.
LIMITS: Final = (
    "the kernel and root are believed: either could show what is not so",
    "the host's interpreter and libraries are named here, not compared with anything",
    "the secrets and addresses that a worker was given were handed over once: nobody can read them "
    "back, and the supervisor alone knows which they are",
    "tables and Python objects in the worker's memory are not read: that they follow from the "
    "config rests on the code being the image's",
)
_ROOT_ONLY: Final = "the worker is not dumpable, so only root may look: run this as root"
_SYSTEM_FOLDERS: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_KERNELS_OWN: Final = ("[vdso]", "[vsyscall]", "[uprobes]")
_HEAD: Final = re.compile(
    r"([0-9a-f]+-[0-9a-f]+) ([-r][-w][-x][ps]) [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)
_DELETED: Final = " (deleted)"
# A file's time is the kernel's tick at that moment, a process's start is in ticks since boot.
CLOCK_SLACK_SECONDS: Final = 1.0


class Verdict(enum.Enum):
    PROVEN = "proven"
    UNPROVEN = "unproven"
    REFUTED = "refuted"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One thing that was looked at, and how it turned out."""

    what: str
    verdict: Verdict
    detail: str

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "verdict": self.verdict.value, "detail": self.detail}


class _Unfit(Exception):
    """It is not what it should be."""


class _Hidden(Exception):
    """It cannot be seen."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Mapping:
    place: str  # "start-end", as in map_files
    permissions: str
    device: tuple[int, int]
    inode: int
    path: str
    changed_bytes: int  # of its pages, those that are no longer the file's


def prove_worker(store: Store, keys: Keys, image: Image, pid: int) -> tuple[Point, ...]:
    """Whether this process is a worker of that image. Raises `ImageError` if it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ImageError(f"the process {pid} is gone") from None
    try:
        tree = store.state_dir / "code" / image.code_layer.removeprefix("sha256:")
        points = (
            _point("image", lambda: _image(store, keys, image)),
            _point("code on disk", lambda: _tree(store, keys, image, tree, pid)),
            _point("command", lambda: _command(pid, tree)),
            _point("config", lambda: _config(store, image, pid)),
            _point("code in memory", lambda: _mappings(pid, tree)),
            _point("seal", lambda: _seal(pid)),
        )
        if select.select([pidfd], [], [], 0)[0]:
            raise ImageError(f"the process {pid} ended while it was being looked at")
    finally:
        os.close(pidfd)
    return points


def _point(what: str, look: Callable[[], str]) -> Point:
    try:
        return Point(what=what, verdict=Verdict.PROVEN, detail=look())
    except (_Unfit, ImageError) as error:
        return Point(what=what, verdict=Verdict.REFUTED, detail=str(error))
    except _Hidden as error:
        return Point(what=what, verdict=Verdict.UNPROVEN, detail=str(error))
    except PermissionError:
        return Point(what=what, verdict=Verdict.UNPROVEN, detail=_ROOT_ONLY)
    except OSError as error:
        text = f"cannot read {error.filename}: {error.strerror}"
        return Point(what=what, verdict=Verdict.UNPROVEN, detail=text)


def _image(store: Store, keys: Keys, image: Image) -> str:
    key = verify_image(store, keys, image.digest)
    return f"every digest is right, and the trusted key {key[:SHORT]} signed it"


def _tree(store: Store, keys: Keys, image: Image, tree: Path, pid: int) -> str:
    Proofs(store, keys).prove_tree(tree, image.code_layer)
    zygote = _zygote(pid)
    if zygote is None:
        raise _Hidden(
            f"{tree} holds the image's code now; its zygote, which read it, is gone, so what was "
            "there at that time cannot be told"
        )
    latest = max(path.lstat().st_ctime for path in _all_of(tree))
    if latest > started_at(zygote) + CLOCK_SLACK_SECONDS:
        raise _Hidden(
            f"{tree} holds the image's code now, but something in it was changed after its zygote "
            "began: what was there before cannot be told"
        )
    return f"{tree} holds the image's code, unchanged since before its zygote began"


def _command(pid: int, tree: Path) -> str:
    """What it was started with: a worker has its zygote's command line, being its fork."""
    words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    if os.fsencode(tree) not in words:
        raise _Unfit(f"its command line does not name {tree}")
    if words[1:4] != [b"-I", b"-S", b"-B"]:
        raise _Unfit("its interpreter was not started in isolation")
    zygote = _zygote(pid)
    if zygote is not None:
        return f"it is a fork of the zygote, pid {zygote}, which was started from {tree}"
    return f"it is a fork of a zygote, gone by now, which was started from {tree}"


def _zygote(pid: int) -> int | None:
    """Its parent, if that is the zygote: the two have one command line."""
    parent = int(_status(pid)["PPid"])
    try:
        words = (PROC / str(parent) / "cmdline").read_bytes()
    except FileNotFoundError:
        return None
    return parent if words == (PROC / str(pid) / "cmdline").read_bytes() else None


def _config(store: Store, image: Image, pid: int) -> str:
    folder = PROC / str(pid) / "fd"
    for fd in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        with contextlib.suppress(FileNotFoundError):
            if not os.readlink(fd).startswith("/memfd:spec-"):
                continue
            held = os.open(fd, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = read_sealed(held)
            except ControlError as error:
                raise _Unfit(f"its config is in {error}") from error
            finally:
                os.close(held)
            if digest_of(content) != image.config_layer:
                raise _Unfit(f"the config that it was given is not {image.config_layer}")
            return f"its sealed memory file, descriptor {fd.name}, is the config layer"
    raise _Hidden("it holds no memory file with its config: a worker of an older version closes it")


def _mappings(pid: int, tree: Path) -> str:
    interpreter = Path(os.readlink(PROC / str(pid) / "exe"))
    owner = interpreter.stat().st_uid
    folders = (*map(Path, _SYSTEM_FOLDERS), interpreter.parent.parent / "lib")
    ours: set[Path] = set()
    hosts: set[Path] = set()
    for mapping in _executable(pid):
        if mapping.path in _KERNELS_OWN:
            continue
        if "w" in mapping.permissions:
            raise _Unfit(f"memory that it can both write and run: {mapping.path or 'anonymous'}")
        if not mapping.path.startswith("/"):
            raise _Unfit(f"it runs code of no file: {mapping.path or 'anonymous memory'}")
        path = Path(mapping.path.removesuffix(_DELETED))
        is_ours = path.is_relative_to(tree)
        if not is_ours and path != interpreter and not any(map(path.is_relative_to, folders)):
            raise _Unfit(f"it runs code that is neither the image's nor the host's: {path}")
        if mapping.changed_bytes:
            raise _Unfit(f"code of {path} was changed in its memory")
        if not _is_mapped(pid, mapping, path):
            text = f"{path} was replaced on disk since the worker began"
            raise _Unfit(text) if is_ours else _Hidden(text)
        told = path.stat()
        if not is_ours and (
            told.st_uid not in (0, owner) or told.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            raise _Hidden(f"{path} can be written by others than root and the interpreter's owner")
        (ours if is_ours else hosts).add(path)
    if not ours:
        raise _Unfit("it runs no compiled code of the image")
    return (
        f"all that it runs is {len(ours)} libraries of the image and {len(hosts)} files of the "
        f"host ({interpreter} and what it loads), none changed in memory"
    )


def _seal(pid: int) -> str:
    told = _status(pid)
    if told.get("Seccomp") != "2" or told.get("NoNewPrivs") != "1":
        raise _Unfit("it runs without a filter of system calls")
    return "its system calls are filtered, for good, and it can gain no rights"


def _executable(pid: int) -> Iterator[_Mapping]:
    """Every mapping that can be run."""
    found: dict[str, Any] | None = None
    for line in (PROC / str(pid) / "smaps").read_text(errors="surrogateescape").splitlines():
        head = _HEAD.fullmatch(line)
        if head is not None:
            found = None
            if "x" in head[2]:
                found = {
                    "place": head[1],
                    "permissions": head[2],
                    "device": (int(head[3], 16), int(head[4], 16)),
                    "inode": int(head[5]),
                    "path": head[6],
                }
        elif found is not None and line.startswith("Anonymous:"):
            yield _Mapping(**found, changed_bytes=int(line.split()[1]) * 1024)
            found = None


def _is_mapped(pid: int, mapping: _Mapping, path: Path) -> bool:
    """Whether the file of that name is the one that is mapped."""
    try:
        told = path.stat()
    except FileNotFoundError:
        return False
    try:  # by the kernel's own handle, where our rights allow it
        mapped = (PROC / str(pid) / "map_files" / mapping.place).stat()
        return (mapped.st_dev, mapped.st_ino) == (told.st_dev, told.st_ino)
    except OSError:
        device = (os.major(told.st_dev), os.minor(told.st_dev))
        return (mapping.device, mapping.inode) == (device, told.st_ino)


def _status(pid: int) -> dict[str, str]:
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def started_at(pid: int) -> float:
    """When the process began, of the wall clock: as the kernel would stamp a file now."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    boot = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + since_boot


def _all_of(tree: Path) -> Iterator[Path]:
    for where, _, names in os.walk(tree):
        yield Path(where)
        yield from (Path(where, name) for name in names)
