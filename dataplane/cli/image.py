"""The verbs that need no supervisor: build an image, check config files, print their schema.

What reads YAML and knows JSON Schema is imported by the verbs that need it: it takes longer to load
than most other commands take to run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dataplane
from dataplane.cli.folders import Folders, app_name, find_folders
from dataplane.model.errors import ConfigError, Finding, ImageError
from dataplane.model.names import AppName, Digest
from dataplane.model.spec import AppSpec

if TYPE_CHECKING:
    from dataplane.image.apps import Batch

EX_OK: Final = 0
EX_FAILED: Final = 1
EX_USAGE: Final = 64
EX_CONFIG: Final = 78


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds build, validate and schema."""
    build = verbs.add_parser(
        "build",
        parents=[common],
        help="build an app's image into the store and print its digest",
        description="Builds the image of an app from its config file and the installed code. "
        "Stdout is the digest and nothing else; the same inputs give the same digest.",
        epilog="example: dataplane build --app billing",
    )
    which = build.add_mutually_exclusive_group(required=True)
    which.add_argument("--app", type=app_name, metavar="NAME", help="the app to build")
    which.add_argument("--all", action="store_true", help="all apps; a line each: digest, app")
    # For the supervisor, which proves each image before it starts: what is listed is not looked at.
    build.add_argument("--known", action="store_true", help=argparse.SUPPRESS)
    # For the supervisor, too: the spec of a stored image, whose ABI this host has not any more.
    build.add_argument("--rebuild", metavar="DIGEST", help=argparse.SUPPRESS)
    build.set_defaults(run=run_build)

    validate = verbs.add_parser(
        "validate",
        parents=[common],
        help="check config files and tell all that is wrong with them",
        description="Checks these files, or all of the config folder's, and changes nothing. "
        "Every finding is told as file:line:column: message, with a hint.",
        epilog="example: dataplane validate configs/apps/billing.yaml",
    )
    validate.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: all apps")
    validate.set_defaults(run=run_validate)

    schema = verbs.add_parser(
        "schema",
        parents=[common],
        help="print the JSON Schema of the config files",
        description="Prints the JSON Schema (2020-12) of configs/apps/NAME.yaml.",
        epilog="example: dataplane schema app > app.schema.json",
    )
    schema.add_argument("kind", nargs="?", default="app", choices=("app", "core"))
    schema.set_defaults(run=run_schema)


def run_build(args: argparse.Namespace) -> int:
    """Builds one image, or all; 78 for findings, 1 for a store that cannot be written."""
    if args.all:
        return _run_build_all(args)
    from dataplane.cli.keys import ensure_keys
    from dataplane.image.apps import app_file
    from dataplane.image.build import build_signed
    from dataplane.image.config import load_app
    from dataplane.image.provenance import provenance_from, rebuilt_from
    from dataplane.image.store import Store
    from dataplane.system.clock import SystemClock

    folders = find_folders(args)
    started = time.monotonic()
    try:
        app: AppName = args.app
        now = SystemClock().now()
        if args.rebuild is not None:
            store = Store.open(folders.state)
            keys = ensure_keys(folders)
            spec, source = rebuilt_from(store, keys, app, Digest(args.rebuild), now)
        else:
            spec = load_app(folders.config, app, os.environ)
            store = Store.open(folders.state)
            keys = ensure_keys(folders)
            source = provenance_from(folders.config, [app_file(folders.config, app)], now)
        digest = build_signed(store, keys, spec, package_root(), source)
        image = store.image(digest)
    except ConfigError as error:
        if args.json:  # whoever asked for facts gets the findings as such
            told = {"findings": [dataclasses.asdict(finding) for finding in error.findings]}
            print(json.dumps(told))
        else:
            print(error, file=sys.stderr)
        return EX_CONFIG
    except ImageError as error:
        print(f"dataplane: {error}", file=sys.stderr)
        return EX_FAILED
    if args.json:
        facts = {
            "app": image.app,
            "image": image.digest,
            "config_layer": image.config_layer,
            "code_layer": image.code_layer,
            "code": image.code_version,
            "ms": round((time.monotonic() - started) * 1000, 1),
        }
        print(json.dumps(facts))
    else:
        print(digest)
    return EX_OK


def _run_build_all(args: argparse.Namespace) -> int:
    """A broken file costs no other app its image."""
    try:
        batch = _built(find_folders(args), take_known=args.known)
    except ConfigError as error:
        if not args.json:
            raise
        print(json.dumps({"findings": [dataclasses.asdict(one) for one in error.findings]}))
        return EX_CONFIG
    if args.json:
        print(json.dumps(dataclasses.asdict(batch)))
    else:
        _print_batch(batch)
    if any(one.error is not None for one in batch.apps):
        return EX_FAILED
    return EX_CONFIG if batch.all_findings() else EX_OK


def _built(folders: Folders, *, take_known: bool) -> Batch:
    from dataplane.cli.keys import ensure_keys
    from dataplane.image.apps import app_file
    from dataplane.image.batch import build_all
    from dataplane.image.build import build_signed
    from dataplane.image.provenance import provenance_from
    from dataplane.image.store import Store
    from dataplane.system.clock import SystemClock

    store, root, now = Store.open(folders.state), package_root(), SystemClock().now()

    def build(spec: AppSpec) -> Digest:
        file = app_file(folders.config, AppName(spec.app))
        source = provenance_from(folders.config, [file], now)
        return build_signed(store, ensure_keys(folders), spec, root, source)

    return build_all(store, folders.config, os.environ, root, build, take_known=take_known)


def _print_batch(batch: Batch) -> None:
    """A line for each image; what is wrong goes to stderr."""
    for one in batch.apps:
        if one.image is not None:
            print(f"{one.image}  {one.app}")
        elif one.error is not None:
            print(f"dataplane: {one.app}: {one.error}", file=sys.stderr)
    for finding in batch.all_findings():
        print(finding, file=sys.stderr)


def run_validate(args: argparse.Namespace) -> int:
    """Tells every finding, 78 if there is one."""
    from dataplane.image.apps import SUFFIX, app_names
    from dataplane.image.config import check_files

    folders = find_folders(args)
    files: list[Path] | None = args.files or None
    findings = check_files(files, folders.config, os.environ)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(finding, file=sys.stderr)
    if findings:
        if not args.json:
            print(_summary(findings), file=sys.stderr)
        return EX_CONFIG
    if not args.json:
        names = files or [Path(f"{app}{SUFFIX}") for app in app_names(folders.config)]
        print(f"{len(names)} {'file' if len(names) == 1 else 'files'} ok")
    return EX_OK


def run_schema(args: argparse.Namespace) -> int:
    """Prints the schema, the same text with and without --json."""
    from dataplane.image.schema import app_schema

    if args.kind == "core":
        print("dataplane: schema core is not supported yet", file=sys.stderr)
        return EX_USAGE
    print(json.dumps(app_schema(), indent=2))
    return EX_OK


def package_root() -> Path:
    """The folder that holds the package which runs now."""
    assert dataplane.__file__ is not None  # a regular package
    return Path(dataplane.__file__).resolve().parent.parent


def _summary(findings: tuple[Finding, ...]) -> str:
    files = len({finding.path for finding in findings})
    counted = f"{len(findings)} {'finding' if len(findings) == 1 else 'findings'}"
    return f"{counted} in {files} {'file' if files == 1 else 'files'}"
