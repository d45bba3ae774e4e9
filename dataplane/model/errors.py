"""One tree of errors, split by who must act."""

from __future__ import annotations

import dataclasses


class DataplaneError(Exception):
    """The root: anything that is told to a person as one message, without a traceback."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing wrong with a config file. Line and column count from 1; 0: the file as a whole."""

    path: str
    line: int
    column: int
    message: str
    hint: str | None

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        text = f"{place}: {self.message}"
        return f"{text}\n    hint: {self.hint}" if self.hint else text


class ConfigError(DataplaneError):
    """The operator's files: all findings at once."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


class ImageError(DataplaneError):
    """A store or an image that cannot be trusted, read or written."""


class ControlError(DataplaneError):
    """A message that breaks a protocol between our processes, or a peer that is not there."""


class LaunchError(DataplaneError):
    """A process that could not be started, or never got ready."""
