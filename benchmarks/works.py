"""What is asked of every proxy: a table, one row a work, with what ours should need at most."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

CONNECTIONS: Final = 64
BULK_CONNECTIONS: Final = 16
RATE: Final = 20_000


class Protocol(Enum):
    HTTP = "http"
    TCP = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One row. Lengths in bytes; `target` and `floor_target` are ratios of CPU per request."""

    name: str
    title: str
    protocol: Protocol = Protocol.HTTP
    answer: int = 128
    upload: int = 0
    connections: int = CONNECTIONS
    per_request: bool = False
    rate: int | None = None
    logged: bool = False
    path: str | None = None  # else one that asks for the answer's length
    target: float | None = None
    floor_target: float | None = None

    @property
    def bulk(self) -> bool:
        """Bodies so large that a proxy's buffers and splicing decide."""
        return max(self.answer, self.upload) > 64 * 1024

    def load_options(self) -> list[str]:
        """The words of dp_load for it, the address and the length of the run left out."""
        words = ["--headers", "browser", "--path", self.path or f"/b/{self.answer}"]
        words += ["--connections", str(self.connections), "--expect-length", str(self.answer)]
        if self.upload:
            words += ["--method", "POST", "--body-bytes", str(self.upload)]
        if self.per_request:
            words += ["--mode", "per-request"]
        return words


_KB16: Final = 16 * 1024
_MB: Final = 1024 * 1024

WORKS: Final = {
    work.name: work
    for work in (
        Work(
            name="small",
            title="small, kept alive, 64 connections",
            target=0.80,
            floor_target=1.20,
        ),
        Work(name="one", title="small, kept alive, 1 connection", connections=1, target=1.05),
        Work(name="per-request", title="a connection per request", per_request=True, target=0.80),
        Work(name="16k", title="16 KB bodies", answer=_KB16, target=0.70),
        Work(name="1m", title="1 MB bodies", answer=_MB, connections=BULK_CONNECTIONS, target=0.65),
        Work(name="up-16k", title="16 KB uploads", upload=_KB16),
        Work(name="up-1m", title="1 MB uploads", upload=_MB, connections=BULK_CONNECTIONS),
        Work(name="tcp", title="tcp, small messages", protocol=Protocol.TCP, target=1.05),
        Work(
            name="tcp-1m",
            title="tcp, 1 MB transfers",
            protocol=Protocol.TCP,
            answer=_MB,
            connections=BULK_CONNECTIONS,
            target=0.85,
        ),
        Work(name="rate", title=f"{RATE:,} requests/s held", rate=RATE, target=0.90),
        Work(name="logged", title="small, with an access log", logged=True),
    )
}
