"""What `ps` shows of an app, as the contract's JSON: read from the fleet, the pages and /proc."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Final

from dataplane.control.messages import Seal
from dataplane.model.lifecycle import Life
from dataplane.model.names import AppName, Digest
from dataplane.supervisor.fleet import App, AppGeneration, WorkerSlot
from dataplane.supervisor.staleness import Staleness
from dataplane.supervisor.wanted import WantedApp
from dataplane.system.clock import timestamp

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGESIZE")
STALE_NAMED: Final = 8  # files: a new Python replaces all of its own


def app_report(app: App, wanted: WantedApp, staleness: Staleness) -> dict[str, Any]:
    """The whole app, its generations oldest first."""
    shown = app.serving or (app.generations[-1] if app.generations else None)
    return {
        "app": app.name,
        "state": app_state(app, wanted),
        "wanted": wanted.image,
        "pending": app.pending is not None,
        "addresses": [
            {"listener": listener, "bind": bind}
            for listener, bind in (shown.lent.addresses if shown else ())
        ],
        "generations": [_generation(one, staleness) for one in app.generations],
        **({"error": error} if (error := app_error(app)) is not None else {}),
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadyApp:
    """What is told of an app once it serves."""

    app: AppName
    addresses: tuple[str, ...]
    image: Digest


def ready_app(app: App) -> ReadyApp | None:
    """None where it does not serve. Costs no look at any process: a host has many apps."""
    if app.serving is None:
        return None
    binds = tuple(bind for _, bind in app.serving.lent.addresses)
    return ReadyApp(app=app.name, addresses=binds, image=app.serving.image.digest)


def app_state(app: App, wanted: WantedApp) -> str:
    """One word: the generation that serves speaks for the app."""
    if app.stopping is not None:
        return "stopping"
    if app.serving is not None:
        return app.serving.state
    if app.generations or app.rollouts:
        return "starting"
    return "stopped" if wanted.stopped else "down"


def app_error(app: App) -> str | None:
    """Why a part of it does not run, or all; None where it runs as it should."""
    for generation in app.generations:
        for slot in generation.slots:
            if slot.error is not None and slot.life in (Life.PAUSING, Life.REFORKING):
                return f"slot {slot.number}: {slot.error}"
    return None if app.serving is not None else app.error


def _generation(generation: AppGeneration, staleness: Staleness) -> dict[str, Any]:
    seals = [slot.seal for slot in generation.slots if slot.seal is not None]
    return {
        "generation": generation.number,
        "image": generation.image.digest,
        "code": generation.image.code_version,
        "code_layer": generation.image.code_layer,
        "state": generation.state,
        "since": timestamp(generation.since),
        "seal": _seal(seals[0]) if seals else None,
        "names": {name: list(found) for name, found in generation.inputs.addresses},
        "secrets": [reference for reference, _ in generation.inputs.secrets],
        "workers": [_worker(slot, staleness) for slot in generation.slots],
    }


def _seal(seal: Seal) -> dict[str, Any]:
    """Layers that no worker has yet are told as off."""
    return {
        "seccomp": seal.seccomp,
        "landlock": seal.landlock,
        "no_new_privs": seal.no_new_privs,
        "dumpable": seal.dumpable,
        "unix": seal.unix,
        "uid": None,
        "cgroup": None,
        "egress": False,
    }


def _worker(slot: WorkerSlot, staleness: Staleness) -> dict[str, Any]:
    stats = slot.figures()
    return {
        "slot": slot.number,
        "pid": slot.pid,
        "state": slot.state,
        "connections": stats.connections,
        "requests": stats.requests_total,
        "cpu_seconds": cpu_seconds(slot.pid) if slot.pid else 0.0,
        "memory_bytes": memory_bytes(slot.pid) if slot.pid else 0,
        "restarts": slot.restarts,
        "stale": list(staleness.files(slot)[:STALE_NAMED]),
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / _TICKS, 2)


def memory_bytes(pid: int) -> int:
    """What the process has to itself, and its share of the rest (PSS); 0 for one that is gone.

    A worker is not dumpable, so only root may read that; others get what is resident and is no
    file.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
        return int(sizes["Pss"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        pass
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return max(0, int(pages[1]) - int(pages[2])) * _PAGE
