"""The ledger: what whoever asked for a swap is told about how it ended. Frozen facts alone."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal, TypeAlias

from dataplane.model.names import AppName, Digest, Generation

Outcome: TypeAlias = Literal["swapped", "unchanged", "failed"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A generation as the ledger names it."""

    generation: Generation
    image: Digest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Milliseconds of each step; 0: the swap did not get there, or the step was not needed."""

    build: float = 0.0
    spawn: float = 0.0  # asking for the forks, to all of them done
    ready: float = 0.0  # from there to every slot's own word
    switch: float = 0.0
    drain: float = 0.0
    total: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MovedCounts:
    """What became of blue's connections. `closed`: told politely; `reset`: cut."""

    moved_idle: int = 0
    moved_after_request: int = 0
    moved_streaming: int = 0
    moved_tunnel: int = 0
    finished: int = 0
    closed: int = 0
    reset: int = 0

    def __add__(self, other: MovedCounts) -> MovedCounts:
        names = (field.name for field in dataclasses.fields(self))
        return MovedCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """How long moved connections stood still, in milliseconds; over slots the worst of each."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    def worst(self, other: Stall) -> Stall:
        return Stall(
            p50=max(self.p50, other.p50), p99=max(self.p99, other.p99), max=max(self.max, other.max)
        )


NO_CONNECTIONS: Final = MovedCounts()
NO_STALL: Final = Stall()
NO_TIME: Final = Durations()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """How one rollout ended. `before` and `after` are the ledger's "from" and "to"."""

    app: AppName
    outcome: Outcome
    before: Side | None  # None: nothing served
    after: Side | None  # None: nothing was started
    ms: Durations = NO_TIME
    connections: MovedCounts = NO_CONNECTIONS
    stall_ms: Stall = NO_STALL
    declined: tuple[tuple[str, int], ...] = ()  # why green's rules let some not move, how many
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, figures rounded to a hundredth."""
        return {
            "app": self.app,
            "outcome": self.outcome,
            "from": _side(self.before),
            "to": _side(self.after),
            "ms": _rounded(self.ms),
            "connections": dataclasses.asdict(self.connections),
            "stall_ms": _rounded(self.stall_ms),
            "declined": dict(self.declined),
            "error": self.error,
        }


def _side(side: Side | None) -> dict[str, Any] | None:
    return None if side is None else {"generation": side.generation, "image": side.image}


def _rounded(figures: Durations | Stall) -> dict[str, float]:
    return {name: round(value, 2) for name, value in dataclasses.asdict(figures).items()}


def ledger_text(ledger: dict[str, Any]) -> str:
    """A decoded ledger as a person reads it, a few lines."""
    before, after = ledger["from"], ledger["to"]
    place = " -> ".join(
        f"generation {side['generation']} {side['image'].removeprefix('sha256:')[:12]}"
        for side in (before, after)
        if side
    )
    if ledger["outcome"] == "unchanged":
        return f"{ledger['app']}: unchanged, {place or 'nothing runs'}"
    if ledger["outcome"] == "failed":
        return f"{ledger['app']}: failed: {ledger['error']}"
    steps = " ".join(f"{name}={value:g}" for name, value in ledger["ms"].items() if value)
    done = "swapped" if before else "started"
    lines = [f"{ledger['app']}: {done} {place}", f"  ms: {steps}"]
    counts = " ".join(f"{name}={count}" for name, count in ledger["connections"].items() if count)
    if before:
        lines.append(f"  connections: {counts or 'none'}")
    if ledger.get("declined"):  # a stored one may be of code that had no such key
        reasons = " ".join(f"{name}={count}" for name, count in ledger["declined"].items())
        lines.append(f"  declined: {reasons}")
    if any(ledger["stall_ms"].values()):
        stall = " ".join(f"{name}={value:g}" for name, value in ledger["stall_ms"].items())
        lines.append(f"  stall ms: {stall}")
    return "\n".join(lines)
