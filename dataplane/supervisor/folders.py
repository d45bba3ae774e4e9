"""The supervisor's claim on its folders: one supervisor for a run folder, one for a state folder.

The locks are the truth; socket and pid files of a dead supervisor mean nothing and are replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from dataplane.model.errors import LaunchError
from dataplane.system.sockets import check_unix_path

SOCKET_MODE: Final = 0o660
API_BACKLOG: Final = 64
SECRET_BYTES: Final = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The names in a run folder."""

    path: Path

    @property
    def socket(self) -> Path:
        return self.path / "supervisor.sock"

    @property
    def lock(self) -> Path:
        return self.path / "supervisor.lock"

    @property
    def pid(self) -> Path:
        return self.path / "supervisor.pid"

    @property
    def workers(self) -> Path:
        return self.path / "workers"

    @property
    def totals(self) -> Path:
        return self.path / "totals"


class Claim:
    """Both folders are ours. A context: leaving it gives them back."""

    def __init__(self, run_dir: Path, state_dir: Path) -> None:
        """Raises `LaunchError`: too long a path, no right to write, another supervisor."""
        self.run = RunFolder(path=run_dir)
        check_socket_path(run_dir)
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as until_done:
            until_done.push(self._open)
            _make(run_dir, "--run-dir")
            _make(self.run.workers, "--run-dir")
            _make(state_dir, "--state-dir")
            self._lock(self.run.lock, f"a supervisor already runs on {run_dir}")
            self._lock(state_dir / "state.lock", f"a supervisor already uses {state_dir}")
            self.secret: Final = _secret(state_dir / "sticky.key")
            # Other run folders where supervisors of this state folder left workers.
            self.others: Final = _other_runs(state_dir / "runs", run_dir)
            _write(self.run.pid, f"{os.getpid()}\n")
            self._open.callback(_remove, self.run.pid)
            until_done.pop_all()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def listen(self) -> socket.socket:
        """The API's listening socket, in place of what a dead supervisor left."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove(self.run.socket)
            os.fchmod(sock.fileno(), SOCKET_MODE)
            sock.bind(str(self.run.socket))
            self.run.socket.chmod(SOCKET_MODE)
            sock.listen(API_BACKLOG)
        except OSError as error:
            sock.close()
            raise LaunchError(
                f"cannot make the socket {self.run.socket}: {error.strerror}"
            ) from error
        self._open.callback(_remove, self.run.socket)
        return self._open.enter_context(sock)

    def _lock(self, path: Path, taken: str) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._open.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise LaunchError(f"{taken}, pid {pid or 'unknown'}") from None
        except OSError as error:
            raise LaunchError(f"cannot lock {path}: {error.strerror}") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def check_socket_path(run_dir: Path) -> None:
    """Raises `LaunchError` where the supervisor's socket could not be made in this folder."""
    try:
        check_unix_path(RunFolder(path=run_dir).socket)
    except LaunchError as error:
        raise LaunchError(f"{error}; name a shorter folder by --run-dir") from error


def _make(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(mode=0o711 if flag == "--run-dir" else 0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
        if folder.stat().st_uid not in (0, os.geteuid()):
            raise PermissionError(1, "it belongs to another user")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LaunchError(f"cannot write to the folder {folder}: {reason}; see {flag}") from error


def _secret(path: Path) -> bytes:
    """Of the hashes that clients keep in cookies: drawn once, so that they outlive a supervisor."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if len(known := path.read_bytes()) == SECRET_BYTES:
                return known
        drawn, half = os.getrandom(SECRET_BYTES), path.with_suffix(".new")
        fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(drawn)
        half.replace(path)
    except OSError as error:
        raise LaunchError(f"cannot keep {path}: {error.strerror}") from error
    return drawn


def _other_runs(path: Path, run_dir: Path) -> tuple[Path, ...]:
    """Keeps a list of the run folders; of the others those that still have control sockets."""
    known = path.read_text().splitlines() if path.exists() else []
    here = run_dir.resolve()
    folders = sorted({Path(line) for line in known} - {here})
    others = tuple(one for one in folders if any(RunFolder(path=one).workers.glob("*.sock")))
    _write(path, "".join(f"{one}\n" for one in (here, *others)))
    return others


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise LaunchError(f"cannot write {path}: {error.strerror}") from error


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def clear_stale(run_dir: Path) -> None:
    """Removes the socket and pid file of a supervisor that is dead; a living one is left alone."""
    folder = RunFolder(path=run_dir)
    try:
        fd = os.open(folder.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # there never was one, or it is not ours to clear
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder.socket)
        _remove(folder.pid)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
