"""The verbs that change a running app: swap, rollback, stop."""

from __future__ import annotations

import argparse
import json

from dataplane.cli.folders import app_name, find_folders


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds swap, rollback and stop."""
    swap = verbs.add_parser(
        "swap",
        parents=[common],
        help="replace an app's running generation",
        description="Builds the app's image from its config file (or takes a stored one), starts "
        "it beside the running one, moves the connections, and prints the ledger.",
        epilog="example: dataplane swap --app billing",
    )
    swap.add_argument("--app", type=app_name, required=True, metavar="NAME")
    swap.add_argument("--image", metavar="DIGEST", help="a stored image instead of a build")
    swap.add_argument("--force", action="store_true", help="also where nothing changed")
    swap.add_argument(
        "--wait",
        choices=("switch", "gone"),
        default="gone",
        help="return when green serves, or when blue is gone (default)",
    )
    swap.set_defaults(run=run_swap)

    rollback = verbs.add_parser(
        "rollback",
        parents=[common],
        help="swap back to the image that served before",
        description="Swaps to the image that served before the present one, or to the named one "
        "(its digest, or the first digits of it); it must be in the store.",
        epilog="example: dataplane rollback --app billing",
    )
    rollback.add_argument("--app", type=app_name, required=True, metavar="NAME")
    rollback.add_argument("image", nargs="?", metavar="DIGEST")
    rollback.set_defaults(run=run_rollback)

    stop = verbs.add_parser(
        "stop",
        parents=[common],
        help="drain and stop one app",
        description="Drains and stops one app. It stays stopped over restarts, until it is run.",
        epilog="example: dataplane stop --app billing",
    )
    stop.add_argument("--app", type=app_name, required=True, metavar="NAME")
    stop.set_defaults(run=run_stop)


def run_swap(args: argparse.Namespace) -> int:
    """0 with the ledger; 1: blue is untouched; 78: findings."""
    from dataplane.cli.ask import ask, tell_ledger, wish_of

    folders = find_folders(args)
    body = wish_of(folders, args.app, args.image, force=args.force)
    path = f"/v1/apps/{args.app}/swap?wait={args.wait}"
    return tell_ledger(args, ask(folders, "POST", path, body, seconds=None))


def run_rollback(args: argparse.Namespace) -> int:
    """0 with the ledger; 1: blue is untouched."""
    from dataplane.cli.ask import ask, tell_ledger

    body = {"image": args.image} if args.image else {}
    path = f"/v1/apps/{args.app}/rollback"
    return tell_ledger(args, ask(find_folders(args), "POST", path, body, seconds=None))


def run_stop(args: argparse.Namespace) -> int:
    """Returns when the app has stopped."""
    from dataplane.cli.ask import ask, fact

    path = f"/v1/apps/{args.app}/stop"
    report = fact(ask(find_folders(args), "POST", path, {}, seconds=None))
    print(json.dumps(report) if args.json else f"{args.app}: stopped")
    return 0
