"""What became of every generation: STATE_DIR/history/APP.jsonl, a line each, appended and synced.

A thread writes, so the loop never waits for a disk, and a disk that takes nothing stops nobody:
what could not be written is kept for a while and tried again. What is missing in the end is told
by whoever reads, from the numbers that were left out. Nothing is ever decided by what stands here
but which image a rollback without a name goes back to.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from dataplane.image.files import sync_folder, write_atomically
from dataplane.image.store import Image, disk_failure
from dataplane.model.errors import ControlError
from dataplane.model.inputs import NO_INPUTS
from dataplane.model.ledger import Ledger
from dataplane.model.names import APP_NAME, AppName, Digest, Generation
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import AppGeneration, Caller, Rollout
from dataplane.system.clock import Clock, timestamp

GENERATIONS: Final = (
    100  # of an app; of what is no generation (restarts, builds that failed) as many
)
LINES: Final = 4 * GENERATIONS  # a file that has more is cut down to what is bounded
RETRY_SECONDS: Final = 10.0
SUFFIX: Final = ".jsonl"

# Outcomes of a line. A rollout that changed nothing leaves none.
FIRST, STARTED, SWAPPED, ROLLED_BACK = "first start", "started", "swapped", "rolled back"
FAILED, STOPPED, RESTARTED = "failed", "stopped", "restarted"
ADOPTED = "adopted"  # a supervisor died, and the next one found it serving
# Only told, never written.
UNDER_WAY, NOT_RECORDED = "under way", "not recorded"
_SERVED: Final = (FIRST, STARTED, SWAPPED, ROLLED_BACK, ADOPTED)

Entry: TypeAlias = dict[str, Any]


class History:
    """Mutable: what is still to be written, and how long the files are."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        events: Events,
        provenance: Callable[[Digest], Entry | None] | None = None,
    ) -> None:
        self._folder, self._clock, self._events = folder, clock, events
        self._provenance = provenance
        self._waiting: dict[AppName, collections.deque[Entry]] = {}
        self._lines: dict[AppName, int] = {}  # as far as they were counted
        self._failing: set[AppName] = set()
        self._version = 0
        self._tried = 0
        self._changed = asyncio.Event()
        self._saved = asyncio.Condition()

    # --- what happens -------------------------------------------------------------------------

    def ended(self, rolling: Rollout, ledger: Ledger) -> None:
        """A rollout is over. One that found nothing to do is no part of history."""
        if ledger.outcome == "unchanged":
            return
        if ledger.outcome == "failed":
            outcome = FAILED
        elif rolling.wish.verb == "rollback":
            outcome = ROLLED_BACK
        elif rolling.is_first:
            outcome = FIRST
        else:
            outcome = SWAPPED if ledger.before else STARTED
        if rolling.undoes and rolling.blue is not None:
            self._of(rolling.blue, FAILED, None, rolling.wish.verb, error=ledger.error)
            return
        image = rolling.image
        self._add(
            rolling.app.name,
            outcome=outcome,
            generation=rolling.green.number if rolling.green else None,
            image=image.digest if image else rolling.wish.image,
            code=image.code_version if image else None,
            by=_by(rolling.wish.caller),
            asked=rolling.wish.verb,
            inputs=_inputs(rolling.green) if rolling.green else None,
            error=ledger.error or rolling.wish.because,
            ledger=ledger.to_json(),
        )

    def stopped(self, rolling: Rollout) -> None:
        """An app was stopped, on somebody's word or because the supervisor ends."""
        if rolling.blue is not None:
            self._of(rolling.blue, STOPPED, rolling.wish.caller, rolling.wish.verb, error=None)

    def restarted(self, generation: AppGeneration, error: str) -> None:
        """A process of what serves died, and another takes its place."""
        self._of(generation, RESTARTED, None, "restart", error=error)

    def adopted(self, generation: AppGeneration) -> None:
        """A former supervisor left it serving; it is this one's now."""
        self._of(generation, ADOPTED, None, "adopt", error=None)

    def undone(self, app: AppName, number: Generation, image: Image | None, error: str) -> None:
        """A former supervisor died before this generation had served anybody."""
        self._add(
            app,
            outcome=FAILED,
            generation=number,
            image=image.digest if image else None,
            code=image.code_version if image else None,
            by=_by(None),
            asked="adopt",
            inputs=None,
            error=error,
            ledger=None,
        )

    def _of(
        self,
        generation: AppGeneration,
        outcome: str,
        caller: Caller | None,
        verb: str,
        *,
        error: str | None,
    ) -> None:
        self._add(
            generation.app.name,
            outcome=outcome,
            generation=generation.number,
            image=generation.image.digest,
            code=generation.image.code_version,
            by=_by(caller),
            asked=verb,
            inputs=_inputs(generation),
            error=error,
            ledger=None,
        )

    def _add(self, app: AppName, **entry: Any) -> None:
        waiting = self._waiting.setdefault(app, collections.deque(maxlen=GENERATIONS))
        waiting.append({"time": timestamp(self._clock.now()), **entry})
        self._version += 1
        self._changed.set()

    # --- writing ------------------------------------------------------------------------------

    def repair(self) -> None:
        """To be called before anything is written: whatever a crash left half-written is cut."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(self._folder.glob(f"*{SUFFIX}"))
        except OSError as error:
            self._events.tell("history.not_written", error=disk_failure(self._folder, error))
            return
        for path in paths:
            if APP_NAME.fullmatch(path.stem) is None:
                continue
            try:
                cut = repair(path)
            except OSError as error:
                text = disk_failure(path, error)
                self._events.tell("history.not_written", app=path.stem, error=text)
            else:
                if cut:
                    self._events.tell("history.repaired", app=path.stem, bytes_cut=cut)

    async def keep(self) -> None:
        """Writes what has happened, until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._failing else None):
                    await self._changed.wait()
            self._changed.clear()
            version = self._version
            batch = {app: tuple(entries) for app, entries in self._waiting.items() if entries}
            failures = await asyncio.to_thread(self._write, batch)
            for app, entries in batch.items():
                if app not in failures:
                    self._forget(app, entries)
            for app, text in failures.items():
                if app not in self._failing:  # once, not at every try
                    self._events.tell("history.not_written", app=app, error=text)
            for app in self._failing & batch.keys() - failures.keys():
                self._events.tell("history.written_again", app=app)
            self._failing = set(failures)
            async with self._saved:
                self._tried = version
                self._saved.notify_all()

    async def saved(self) -> None:
        """Returns when all that happened up to now is on disk, or was told not to be."""
        version = self._version
        async with self._saved:
            await self._saved.wait_for(lambda: self._tried >= version)

    def _forget(self, app: AppName, written: Sequence[Entry]) -> None:
        # Whatever came meanwhile may have pushed some of them out already.
        known = {id(entry) for entry in written}
        waiting = self._waiting[app]
        while waiting and id(waiting[0]) in known:
            waiting.popleft()
        if not waiting:
            del self._waiting[app]

    def _write(self, batch: dict[AppName, tuple[Entry, ...]]) -> dict[AppName, str]:
        """In a thread. Returns what failed, by app."""
        failures = {}
        for app, entries in batch.items():
            path = self._path(app)
            try:
                lines = b"".join(_line(self._complete(entry)) for entry in entries)
                append(path, lines)
                count = self._lines.get(app, 0) + len(entries)
                if app not in self._lines:
                    count = path.read_bytes().count(b"\n")
                self._lines[app] = count
            except OSError as error:
                failures[app] = disk_failure(path, error)
                continue
            if count > LINES:
                with contextlib.suppress(OSError):  # it is longer for now; nothing is lost
                    self._lines[app] = shorten(path)
        return failures

    def _complete(self, entry: Entry) -> Entry:
        """With what may have to be read from somewhere: only in a thread."""
        if entry.get("by") is not None:
            entry["by"].setdefault("user", _user(entry["by"]["uid"]))
        if "provenance" not in entry:
            image = entry.get("image")
            entry["provenance"] = self._provenance(image) if self._provenance and image else None
        return entry

    def _path(self, app: AppName) -> Path:
        return self._folder / f"{app}{SUFFIX}"

    # --- telling ------------------------------------------------------------------------------

    async def entries(self, app: AppName, last_generation: int) -> tuple[Entry, ...]:
        """All that is known of the app, oldest first; generations up to `last_generation` that are
        missing are told as such. Raises `ControlError` where it cannot be read."""
        waiting = tuple(self._waiting.get(app, ()))
        return await asyncio.to_thread(self._read, app, waiting, last_generation)

    def _read(self, app: AppName, waiting: Sequence[Entry], last: int) -> tuple[Entry, ...]:
        try:
            lines = self._path(app).read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise ControlError(f"cannot read {self._path(app)}: {error.strerror}") from error
        read = [entry for entry in map(_entry, lines) if entry is not None]
        # What was written while we were asked is not told twice.
        known = {(entry["time"], entry["outcome"], entry["generation"]) for entry in read[-LINES:]}
        for entry in waiting:
            if (entry["time"], entry["outcome"], entry["generation"]) not in known:
                read.append(self._complete(entry))
        return tuple(with_gaps(bounded(read), last))


def under_way(rolling: Rollout) -> Entry:
    """A rollout that is not over, as history will have it."""
    green = rolling.green
    assert green is not None
    by = _by(rolling.wish.caller)
    return {
        "time": timestamp(green.since),
        "outcome": UNDER_WAY,
        "generation": green.number,
        "image": green.image.digest,
        "code": green.image.code_version,
        "by": {"user": _user(by["uid"]), **by},
        "asked": rolling.wish.verb,
        "inputs": _inputs(green),
        "error": None,
        "ledger": None,
        "provenance": None,
    }


def served_before(entries: Iterable[Entry], serving: Digest | None) -> Digest | None:
    """The last image that served and is another than what serves now."""
    served: Digest | None = None
    for entry in entries:
        if entry["outcome"] in _SERVED and entry["image"] not in (None, serving):
            served = Digest(entry["image"])
    return served


def bounded(entries: Sequence[Entry]) -> list[Entry]:
    """The last generations, and as many of the other lines, in their order."""
    kept: list[Entry] = []
    room = {True: GENERATIONS, False: GENERATIONS}
    for entry in reversed(entries):
        kind = _is_generation(entry)
        if room[kind]:
            room[kind] -= 1
            kept.append(entry)
    return kept[::-1]


def with_gaps(entries: Sequence[Entry], last_generation: int) -> Iterator[Entry]:
    """The entries, and between them what the numbers say is missing."""
    numbers = {entry["generation"] for entry in entries if _is_generation(entry)}
    # Where all are kept that may be, what is older was let go on purpose.
    expected = min(numbers) if len(numbers) >= GENERATIONS else 1
    for entry in entries:
        if _is_generation(entry) and entry["generation"] >= expected:
            missing = [n for n in range(expected, entry["generation"]) if n not in numbers]
            yield from _gaps(missing, entry["time"])
            expected = entry["generation"] + 1
        yield entry
    yield from _gaps([n for n in range(expected, last_generation + 1) if n not in numbers], None)


def _gaps(missing: Sequence[int], before: str | None) -> Iterator[Entry]:
    if missing:
        yield {
            "time": before,  # at that time at the latest
            "outcome": NOT_RECORDED,
            "generation": None,
            "generations": [missing[0], missing[-1]],
            "image": None,
            "code": None,
            "by": None,
            "asked": None,
            "error": "its lines could not be written, or were lost",
            "ledger": None,
            "provenance": None,
        }


def append(path: Path, lines: bytes) -> None:
    """Adds whole lines and syncs them. Raises OSError, and then leaves the file as it was."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        before = os.fstat(fd).st_size
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, before)
            raise
    finally:
        os.close(fd)
    if before == 0:
        sync_folder(path.parent)


def repair(path: Path) -> int:
    """Cuts off a last line that was not written to its end; how many bytes. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
            return 0
        content = os.pread(fd, size, 0)
        whole = content.rfind(b"\n") + 1
        if _entry(content[whole:]) is not None:
            os.pwrite(fd, b"\n", size)  # only its end is missing
            cut = 0
        else:
            os.ftruncate(fd, whole)
            cut = size - whole
        os.fsync(fd)
        return cut
    finally:
        os.close(fd)


def shorten(path: Path) -> int:
    """Keeps what is bounded and drops the rest, atomically: the number of lines then."""
    entries = [entry for entry in map(_entry, path.read_bytes().splitlines()) if entry is not None]
    kept = bounded(entries)
    write_atomically(path, b"".join(map(_line, kept)), 0o600)
    return len(kept)


def _entry(line: bytes) -> Entry | None:
    """A line's entry; None for one that is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("outcome"), str):
        return None
    number = entry.setdefault("generation", None)
    if not isinstance(entry.get("time"), str) or not isinstance(number, int | None):
        return None
    return dict.fromkeys(("image", "code", "by", "asked", "error", "ledger", "provenance")) | entry


def _is_generation(entry: Entry) -> bool:
    return entry["generation"] is not None and entry["outcome"] not in (RESTARTED, STOPPED)


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _by(caller: Caller | None) -> Entry:
    """Who asked; the name of a user is looked up later, since that may take a while."""
    if caller is None:
        return {"user": "supervisor", "uid": os.geteuid(), "pid": os.getpid()}
    return {"uid": caller.uid, "pid": caller.pid}


def _inputs(generation: AppGeneration) -> Entry | None:
    """What it was given beside its image; of secrets no more than their names."""
    inputs = generation.inputs
    if inputs == NO_INPUTS:
        return None
    return {
        "identity": generation.identity,
        "names": {name: list(addresses) for name, addresses in inputs.addresses},
        "secrets": [reference for reference, _ in inputs.secrets],
    }


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
