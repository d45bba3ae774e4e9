"""The verbs of infrastructure as code: plan, apply, diff."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dataplane.cli.folders import Folders, find_folders
from dataplane.model.errors import ConfigError, ControlError, Finding, ImageError
from dataplane.model.names import APP_NAME, DIGEST, AppName, Digest

if TYPE_CHECKING:
    from dataplane.image.store import Store

EX_OK: Final = 0
EX_FAILED: Final = 1
EX_DIFFER: Final = 2
EX_CONFIG: Final = 78

_SIGNS: Final = {"nothing": " ", "replace": "~", "add": "+", "remove": "-", "broken": "!"}
_SHORT: Final = 12


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds plan, apply and diff."""
    plan = verbs.add_parser(
        "plan",
        parents=[common],
        help="what apply would change on this host",
        description="Shows, app by app and key by key, what would change on this host if the "
        "config folder were applied: nothing, replace, add or remove. Exit code 0: nothing; "
        "2: there are changes; 1: a file is broken, or the plan failed.",
        epilog="example: dataplane plan --out billing.plan && dataplane apply billing.plan",
    )
    plan.add_argument("--out", type=Path, metavar="FILE", help="keep the plan for apply")
    plan.add_argument("--all", action="store_true", help="list apps without a change, too")
    plan.set_defaults(run=run_plan)

    apply = verbs.add_parser(
        "apply",
        parents=[common],
        help="do what plan shows",
        description="Does what plan shows, apps side by side: one app's broken file or failed "
        "swap stops no other. With a plan, refuses if anything else than it showed would be done. "
        "Exit code 1: something failed; 78: all that is wrong are config files.",
        epilog="example: dataplane apply",
    )
    apply.add_argument("plan", nargs="?", metavar="PLAN", help="a file of plan --out, or its name")
    apply.set_defaults(run=run_apply)

    diff = verbs.add_parser(
        "diff",
        parents=[common],
        help="what differs between two images",
        description="Compares two images of the store, key by key, with the code's version. Each "
        "is named by its digest, the beginning of one, or an app: then it is what that one serves. "
        "Exit code 0: they are equal; 2: they differ; 1: one cannot be read.",
        epilog="example: dataplane diff billing 3f2a",
    )
    diff.add_argument("before", metavar="A")
    diff.add_argument("after", metavar="B")
    diff.set_defaults(run=run_diff)


# --- plan ----------------------------------------------------------------------------------------


def run_plan(args: argparse.Namespace) -> int:
    """2 where there is something to do, 1 where a file is broken."""
    from dataplane.cli.ask import ask, fact

    folders = find_folders(args)
    try:
        plan = fact(ask(folders, "POST", "/v1/plan", _sources(folders), seconds=None))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_FAILED
    if args.out is not None:
        _write(args.out, plan)
    if args.json:
        print(json.dumps(plan))
    else:
        print(plan_text(plan, everything=args.all))
        _tell_findings(plan)
    counts = plan["counts"]
    if plan["findings"] or counts["broken"]:
        return EX_FAILED
    return EX_DIFFER if any(counts[name] for name in ("replace", "add", "remove")) else EX_OK


def plan_text(plan: dict[str, Any], *, everything: bool) -> str:
    """A paragraph for each app that would change, and one line that counts."""
    lines = []
    for step in plan["apps"]:
        if step["action"] != "nothing" or step["note"] or everything:
            lines += _step_lines(step)
    counts = plan["counts"]
    told = [
        f"{counts[action]} to {action}" for action in ("replace", "add", "remove") if counts[action]
    ]
    told.append(f"{counts['nothing']} unchanged")
    if counts["broken"]:
        told.append(f"{counts['broken']} broken")
    lines.append(f"plan: {', '.join(told)}")
    return "\n".join(lines)


def _step_lines(step: dict[str, Any]) -> list[str]:
    action = step["action"]
    sides = [_short(side) for side in (step["from"], step["to"]) if side]
    place = " -> ".join(sides) if action == "replace" else "".join(sides[-1:])
    words = [_SIGNS[action], step["app"], action, *([place] if place else ())]
    if step["note"]:
        words.append(f"({step['note']})")
    lines = [" ".join(words)]
    changes = step["changes"]
    if action in ("add", "remove"):  # of what is new or goes as a whole: where it listens
        whole = {change["kind"] for change in changes} in ({"added"}, {"removed"})
        changes = [one for one in changes if not whole or one["key"].endswith("].bind")]
    return lines + [f"    {_change_text(change)}" for change in changes]


def _change_text(told: dict[str, Any]) -> str:
    from dataplane.model.diff import Change

    return str(Change(kind=told["kind"], key=told["key"], before=told["from"], after=told["to"]))


def _write(path: Path, plan: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(plan, indent=1))
    except OSError as error:
        raise ControlError(f"cannot write {path}: {error.strerror}") from error


# --- apply ---------------------------------------------------------------------------------------


def run_apply(args: argparse.Namespace) -> int:
    """1 where something failed, 78 where only config files are wrong."""
    from dataplane.cli.ask import ask, fact

    folders = find_folders(args)
    body = _sources(folders)
    if args.plan is not None:
        body["plan"], folder = _named_plan(args.plan)
        if folder is not None:
            body |= _sources(Folders(config=folder, run=folders.run, state=folders.state))
    applied = fact(ask(folders, "POST", "/v1/apply", body, seconds=None))
    if args.json:
        print(json.dumps(applied))
    else:
        print(applied_text(applied))
        _tell_findings(applied)
    counts = applied["counts"]
    if counts["failed"] or any(_is_failure(one) for one in applied["apps"]):
        return EX_FAILED
    return EX_CONFIG if counts["broken"] or applied["findings"] else EX_OK


def applied_text(applied: dict[str, Any]) -> str:
    """The ledger of each app that was changed, what failed, and one line that counts."""
    from dataplane.model.ledger import ledger_text

    lines = []
    for one in applied["apps"]:
        if one["result"] in ("swapped", "started") and one["ledger"]:
            lines.append(ledger_text(one["ledger"]))
        elif one["result"] == "removed":
            lines.append(f"{one['app']}: removed")
        elif one["result"] == "failed" or _is_failure(one):
            lines.append(f"{one['app']}: failed: {one['error']}")
        elif one["result"] == "broken":
            lines.append(f"{one['app']}: left as it was: its config file is broken")
    counts = applied["counts"]
    told = [f"{count} {name}" for name, count in counts.items() if count and name != "nothing"]
    told.append(f"{counts['nothing']} unchanged")
    lines.append(f"applied: {', '.join(told)}")
    return "\n".join(lines)


def _is_failure(one: dict[str, Any]) -> bool:
    """Broken, and not by its config file: the store could not give or take its image."""
    return one["result"] == "broken" and not one["findings"]


def _named_plan(text: str) -> tuple[str, Path | None]:
    """The plan's name, and of which folder it is where a file says so."""
    if DIGEST.fullmatch(text):
        return text, None
    try:
        plan = json.loads(Path(text).read_bytes())
        name, folder = plan["plan"], plan["config_dir"]
        if not DIGEST.fullmatch(name):
            raise ValueError("it names no plan")
        return str(name), Path(folder)
    except OSError as error:
        raise ControlError(f"cannot read the plan {text}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ControlError(f"{text} is not a plan: {error}") from error


# --- both ----------------------------------------------------------------------------------------


def _sources(folders: Folders) -> dict[str, Any]:
    """Where files are, and the variables that they name, as far as they are set here."""
    from dataplane.cli.ask import referenced_environment, secret_variables
    from dataplane.image.apps import app_names

    environment: dict[str, str] = {}
    variables: dict[str, str] = {}
    for app in app_names(folders.config):
        environment |= referenced_environment(folders.config, app)
        variables |= secret_variables(folders.config, app)
    return {
        "config_dir": str(folders.config),
        "environment": environment,
        "variables": variables,
    }


def _tell_findings(told: dict[str, Any]) -> None:
    from dataplane.model.spec import decode

    for one in told["apps"]:
        if one["error"] and not one["findings"] and one.get("action") == "broken":
            print(f"dataplane: {one['app']}: {one['error']}", file=sys.stderr)
        for finding in one["findings"]:
            print(decode(Finding, finding, "finding"), file=sys.stderr)
    for finding in told["findings"]:
        print(decode(Finding, finding, "finding"), file=sys.stderr)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_SHORT]


# --- diff ----------------------------------------------------------------------------------------


def run_diff(args: argparse.Namespace) -> int:
    """Needs no supervisor: images are in the store, and what serves is written beside it."""
    from dataplane.image.store import Store
    from dataplane.model.diff import Version, changes_text, differences

    folders = find_folders(args)
    try:
        store = Store.open(folders.state)
        images = [
            store.image(named_image(store, text, _serving(folders)))
            for text in (args.before, args.after)
        ]
    except ConfigError as error:  # 1 is promised for whatever cannot be compared
        raise ControlError(str(error)) from error
    versions = [
        Version(
            spec=image.spec,
            code=image.code_version,
            code_layer=image.code_layer,
            abi=str(image.abi),
        )
        for image in images
    ]
    changes = differences(*versions)
    if args.json:
        sides = [
            {"app": image.app, "image": image.digest, "code": image.code_version}
            for image in images
        ]
        told = [change.to_json() for change in changes]
        print(json.dumps({"from": sides[0], "to": sides[1], "changes": told}))
    elif changes:
        print(changes_text(changes))
    return EX_OK if images[0].digest == images[1].digest else EX_DIFFER


def named_image(store: Store, text: str, serving: dict[AppName, Digest]) -> Digest:
    """The image that a word means: an app's, by its name; else the one whose digest begins so.

    Raises `ImageError` where it means none, or several.
    """
    from dataplane.image.listing import MIN_PREFIX, find_image, is_beginning

    if text in serving:
        return serving[AppName(text)]
    if is_beginning(text):
        return find_image(store, text)
    if APP_NAME.fullmatch(text):
        raise ImageError(f"no app {text} serves or served here; name an image by its digest")
    raise ImageError(
        f"{text!r} is neither an app's name nor a digest, nor the first {MIN_PREFIX} or more of one"
    )


def _serving(folders: Folders) -> dict[AppName, Digest]:
    from dataplane.supervisor.wanted import read_wanted

    entries = read_wanted(folders.state / "apps.json")
    return {name: entry.image for name, entry in entries.items() if entry.image is not None}
