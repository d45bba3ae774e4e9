"""How every verb talks to the supervisor, and how its answers become text and exit codes."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

from dataplane.cli.folders import Folders
from dataplane.control.client import Answer, Client
from dataplane.model.errors import ConfigError, ControlError, Finding
from dataplane.model.ledger import ledger_text
from dataplane.model.spec import decode

EX_OK: Final = 0
EX_FAILED: Final = 1
EX_CONFIG: Final = 78

# A supervisor answers at once whatever needs no work; only rollouts take their time.
ANSWER_SECONDS: Final = 10.0

_REFERENCE: Final = re.compile(rb"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET: Final = re.compile(rb"\benv:([A-Za-z_][A-Za-z0-9_]*)")


def supervisor_socket(folders: Folders) -> Path:
    """Where the supervisor listens. Raises `LaunchError` for a path that no socket can have."""
    from dataplane.supervisor.folders import RunFolder, check_socket_path

    check_socket_path(folders.run)
    return RunFolder(path=folders.run).socket


def ask(
    folders: Folders,
    method: str,
    path: str,
    body: Any = None,
    *,
    seconds: float | None = ANSWER_SECONDS,
) -> Answer:
    """One call. Raises `NotRunning` or `ControlError`."""
    with Client(supervisor_socket(folders)) as client:
        return client.ask(method, path, body, seconds=seconds)


def fact(answer: Answer) -> Any:
    """What a call answered. Raises what its problem says: `ConfigError` or `ControlError`."""
    value = answer.value()
    if answer.status < 300:
        return value
    if not isinstance(value, dict):
        raise ControlError(f"the supervisor answered {answer.status}")
    if isinstance(value.get("findings"), list):
        raise ConfigError(
            tuple(decode(Finding, finding, "finding") for finding in value["findings"])
        )
    raise ControlError(str(value.get("detail") or f"the supervisor answered {answer.status}"))


def tell_ledger(args: argparse.Namespace, answer: Answer) -> int:
    """Prints how a rollout ended: the ledger to stdout, a failure's reason to stderr."""
    value = answer.value()
    ledger = value if answer.status == 200 else value.get("ledger")
    if args.json and isinstance(ledger, dict):
        print(json.dumps(ledger))
    try:
        fact(answer)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except ControlError as error:
        print(f"dataplane: {error}", file=sys.stderr)
        return EX_FAILED
    if not args.json:
        print(ledger_text(ledger))
    return EX_OK


def wish_of(folders: Folders, app: str, image: str | None, *, force: bool) -> dict[str, Any]:
    """The body of a call that starts or swaps an app, on behalf of whoever asks here."""
    if image is not None:
        return {"image": image, "force": force}
    return {
        "force": force,
        "config_dir": str(folders.config),
        "environment": referenced_environment(folders.config, app),
        "variables": secret_variables(folders.config, app),
    }


def referenced_environment(config: Path, app: str) -> dict[str, str]:
    """The variables that the app's file names as ${NAME}, as far as they are set: no others."""
    return _variables(config, app, _REFERENCE)


def secret_variables(config: Path, app: str) -> dict[str, str]:
    """The variables that the app's file names as env:NAME, as far as they are set: its secrets.

    They go to the supervisor alone, never to a builder.
    """
    return _variables(config, app, _SECRET)


def _variables(config: Path, app: str, pattern: re.Pattern[bytes]) -> dict[str, str]:
    try:
        content = (config / "apps" / f"{app}.yaml").read_bytes()
    except OSError:
        return {}  # the build tells what is wrong with it
    names = {name.decode() for name in pattern.findall(content)}
    return {name: os.environ[name] for name in sorted(names) if name in os.environ}
