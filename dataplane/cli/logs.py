"""The verb logs: an app's access log, from its files, whether or not a supervisor runs.

It follows the log over rotations: what was set aside is read to its end before the next file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dataplane.cli.folders import app_name, find_folders
from dataplane.model.errors import ControlError

LINES: Final = 10
LINES_MAX: Final = 1_000_000
FILE: Final = "access.log"
BLOCK: Final = 64 * 1024


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds logs."""
    logs = verbs.add_parser(
        "logs",
        parents=[common],
        help="an app's access log",
        description="Prints the last lines of an app's access log as they are in its file; with "
        "--json each as an object, whatever the format.",
        epilog="example: dataplane logs --app billing -f",
    )
    logs.add_argument("--app", required=True, type=app_name, metavar="NAME")
    logs.add_argument("-f", "--follow", action="store_true", help="and all that come")
    logs.add_argument(
        "-n", "--lines", type=_count, default=LINES, metavar="N", help=f"so many ({LINES})"
    )
    logs.set_defaults(run=run_logs)


def run_logs(args: argparse.Namespace) -> int:
    """The last lines, and with -f all that come until it is interrupted."""
    folder = find_folders(args).state / "logs" / args.app
    log = _Log(folder)
    try:
        for line in log.last(args.lines):
            _print(line, as_json=args.json)
        if not args.follow and not log.is_there:
            raise ControlError(_nothing(args.app, folder))
        if args.follow:
            _follow(log, folder, as_json=args.json)
    except PermissionError as error:
        raise ControlError(f"cannot read {error.filename}: permission denied") from error
    return 0


def _follow(log: _Log, folder: Path, *, as_json: bool) -> None:
    from dataplane.system.inotify import FolderWatch

    while True:
        there = folder
        while not there.is_dir():  # until it is made, whoever will hold it is watched
            there = there.parent
        try:
            with FolderWatch(there) as watch:
                while True:
                    for line in log.more():
                        _print(line, as_json=as_json)
                    if there != folder and folder.is_dir():
                        break
                    watch.wait()
                    if not there.is_dir():
                        break
        except FileNotFoundError:
            continue  # gone in between


def _print(line: bytes, *, as_json: bool) -> None:
    """Nothing that a line should not hold, whoever wrote it, reaches a terminal."""
    text = line.decode("ascii", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if as_json and not text.startswith("{"):
        text = json.dumps({"line": text})
    print(text, flush=True)


def _nothing(app: str, folder: Path) -> str:
    return (
        f"{app} has no access log in {folder}; "
        f"set access_log: {{format: json}} in its file, then: dataplane swap --app {app}"
    )


def _count(text: str) -> int:
    count = int(text)
    if not 0 <= count <= LINES_MAX:
        raise argparse.ArgumentTypeError(f"from 0 to {LINES_MAX}")
    return count


class _Log:
    """The files of one log. Mutable: the one that is open, and what of a line was read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd: int | None = None
        self._part = b""
        self.is_there = False

    def last(self, count: int) -> list[bytes]:
        """The last lines, of older files too; what comes later is `more`'s."""
        self._open()
        lines: list[bytes] = []
        if self._fd is not None:
            size = os.fstat(self._fd).st_size
            lines, whole = _tail(self._fd, size, count)
            os.lseek(self._fd, whole, os.SEEK_SET)
        number = 1
        while len(lines) < count:
            try:
                fd = os.open(self._folder / f"{FILE}.{number}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                break
            self.is_there = True
            with contextlib.closing(os.fdopen(fd, "rb", buffering=0)):
                older, _ = _tail(fd, os.fstat(fd).st_size, count - len(lines))
            lines = [*older, *lines]
            number += 1
        return lines

    def more(self) -> Iterator[bytes]:
        """The whole lines that came since, over all files that came since."""
        while True:
            if self._fd is None:
                self._open()
                if self._fd is None:
                    return
            # Asked first: what is in the old file when the new one is there is all of it.
            replaced = not self._is_current(self._fd)
            yield from self._read(self._fd)
            if not replaced:
                return
            yield from self._skipped(self._fd)
            os.close(self._fd)
            self._fd, self._part = None, b""

    def _skipped(self, fd: int) -> Iterator[bytes]:
        """Lines of files that were begun and set aside since this one was the current one."""
        mine = os.fstat(fd)
        newer: list[Path] = []
        number = 1
        while (aside := self._folder / f"{FILE}.{number}").exists():
            told = aside.stat()
            if (told.st_dev, told.st_ino) == (mine.st_dev, mine.st_ino):
                break
            newer.append(aside)
            number += 1
        else:
            return  # not set aside by us, or so long ago that it is gone
        for path in reversed(newer):
            with contextlib.suppress(FileNotFoundError):
                yield from path.read_bytes().splitlines()

    def _read(self, fd: int) -> Iterator[bytes]:
        if os.lseek(fd, 0, os.SEEK_CUR) > os.fstat(fd).st_size:  # cut short in place
            os.lseek(fd, 0, os.SEEK_SET)
            self._part = b""
        while block := os.read(fd, BLOCK):
            *lines, self._part = (self._part + block).split(b"\n")
            yield from lines

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._fd = os.open(self._folder / FILE, os.O_RDONLY | os.O_CLOEXEC)
            self.is_there = True

    def _is_current(self, fd: int) -> bool:
        mine = os.fstat(fd)
        try:
            told = (self._folder / FILE).stat()
        except FileNotFoundError:
            return True  # the next one is not there yet
        return (told.st_dev, told.st_ino) == (mine.st_dev, mine.st_ino)


def _tail(fd: int, size: int, count: int) -> tuple[list[bytes], int]:
    """The last whole lines of a file of this size, and where the last of them ends."""
    begin, data = size, b""
    while begin > 0 and data.count(b"\n") <= count:
        step = min(BLOCK, begin)
        begin -= step
        data = os.pread(fd, step, begin) + data
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")[:-1]
    if begin > 0:
        lines = lines[1:]  # begins before what was read
    return lines[len(lines) - min(count, len(lines)) :], begin + end
