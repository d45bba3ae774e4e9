"""The command `dataplane`: finds the verb, runs it, turns failures into exit codes.

Decides nothing else. What a verb needs is loaded when it runs, so that a command starts quickly.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from dataplane.model.errors import ConfigError, DataplaneError

EX_OK: Final = 0
EX_FAILED: Final = 1
EX_USAGE: Final = 64
EX_CONFIG: Final = 78

# Which module adds a verb: only that one is loaded.
MODULES: Final = {
    "run": "run",
    "up": "run",
    "down": "run",
    "swap": "swap",
    "rollback": "swap",
    "stop": "swap",
    "history": "history",
    "plan": "plan",
    "apply": "plan",
    "diff": "plan",
    "ps": "facts",
    "events": "facts",
    "logs": "logs",
    "top": "top",
    "version": "facts",
    "build": "image",
    "validate": "image",
    "schema": "image",
    "keys": "keys",
    "image": "store",
    "demo": "demo",
    "bench": "bench",
}
NOT_YET: Final = ("supervisor",)


class _Parser(argparse.ArgumentParser):
    """Usage errors exit 64: argparse's own 2 has another meaning here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["-t"]:
        words[0] = "validate"
    if words[:1] and words[0] in NOT_YET:
        print(f"dataplane: {words[0]} is not supported yet", file=sys.stderr)
        return EX_USAGE
    args = _parser(words[:1]).parse_args(words)
    try:
        return int(args.run(args))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except DataplaneError as error:
        print(f"dataplane: {error}", file=sys.stderr)
        return EX_FAILED
    except BrokenPipeError:
        # Whoever read our facts has seen enough; nothing is left to be flushed to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK
    except KeyboardInterrupt:
        return 130


def _parser(verb: Sequence[str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="DIR", help="the config folder")
    common.add_argument("--run-dir", metavar="DIR", help="the folder of sockets and the pid")
    common.add_argument("--state-dir", metavar="DIR", help="the folder of images and history")
    common.add_argument("--json", action="store_true", help="facts as JSON")
    parser = _Parser(
        prog="dataplane",
        description="A reverse proxy whose apps run from sealed, immutable images.",
        epilog="example: dataplane run --app billing",
    )
    verbs = parser.add_subparsers(
        metavar="COMMAND", required=True, title="commands", parser_class=_Parser
    )
    wanted = [MODULES[word] for word in verb if word in MODULES] or dict.fromkeys(MODULES.values())
    for module in wanted:
        importlib.import_module(f"dataplane.cli.{module}").add_verbs(verbs, common)
    return parser
