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
        there = _existing(folder)  # until it is made, whoever will hold it is watched
        try:
            with FolderWatch(there) as watch:
                while there == _existing(folder):
                    for line in log.more():
                        _print(line, as_json=as_json)
                    watch.wait()
        except FileNotFoundError:
            continue  # gone in between


def _existing(folder: Path) -> Path:
    while not folder.is_dir():
        folder = folder.parent
    return folder


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
                fd = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
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
        if self._fd is None:
            self._open()
        while self._fd is not None:
            # Asked first: what is in a file once there is a next one is all of it.
            following = self._next(self._fd)
            yield from self._read(self._fd)
            if following is None:
                return
            os.close(self._fd)
            self._fd, self._part = following, b""

    def _next(self, fd: int) -> int | None:
        """The file that was begun after this one, opened; None: this one is the newest."""
        mine = os.fstat(fd).st_ino
        while True:
            files = self._files()
            inodes = [inode for _, inode in files]
            place = inodes.index(mine) if mine in inodes else len(inodes)
            if place == 0:
                return None  # or just set aside: the next one is not there yet
            number, inode = files[place - 1]
            try:
                following = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            # While files are set aside, a look at the folder may miss some: then once more.
            if os.fstat(following).st_ino == inode and self._files() == files:
                return following
            os.close(following)

    def _files(self) -> list[tuple[int, int]]:
        """Number and inode of the current file, which is 0, and of those set aside, by age.

        A number may lack: the older ones are moved before the newer ones.
        """
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                name, _, number = entry.name.partition(f"{FILE}.")
                if entry.name == FILE:
                    found.append((0, entry.inode()))
                elif not name and number.isdecimal():
                    found.append((int(number), entry.inode()))
        return sorted(found)

    def _path(self, number: int) -> Path:
        return self._folder / (f"{FILE}.{number}" if number else FILE)

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
