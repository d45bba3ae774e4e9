"""The verb `keys`: which key signs what is built here, and whose images this host runs.

Prints public keys only.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dataplane.cli.folders import Folders, find_folders
from dataplane.model.errors import ImageError

if TYPE_CHECKING:
    from dataplane.image.keys import Keys

_LIMIT: Final = 8192  # of a file with a public key
_EXAMPLES: Final = """example: dataplane keys show
         dataplane keys trust other-host.pub
         dataplane keys trust ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
         dataplane keys revoke 3f1c9a0b7d2e4f60"""


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds keys."""
    keys = verbs.add_parser(
        "keys",
        help="the signing key, and whose images this host runs",
        description="Images are signed where they are built, and a host runs images of the keys "
        "that it trusts, and no other. Whoever holds a trusted key may run code on this host.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = keys.add_subparsers(
        metavar="WHAT", required=True, title="what to do", parser_class=type(keys)
    )
    init = what.add_parser(
        "init",
        parents=[common],
        help="make this host's key pair",
        description="Makes the pair that signs images here, and trusts it. Does nothing where "
        "there is one that is not revoked.",
        epilog="example: dataplane keys init",
    )
    init.set_defaults(run=run_init)
    show = what.add_parser(
        "show",
        parents=[common],
        help="this host's public key, and the trusted and revoked ones",
        description="Shows this host's public key (a line for `keys trust` on another host) and "
        "the trusted and revoked ones. Never a private key.",
        epilog="example: dataplane keys show",
    )
    show.set_defaults(run=run_show)
    trust = what.add_parser(
        "trust",
        parents=[common],
        help="run images that another key signed",
        description="Trusts a public key: a file with its PEM or its line, that line itself, or - "
        "for stdin.",
        epilog="example: dataplane keys trust other-host.pub",
    )
    trust.add_argument("key", metavar="FILE-or-KEY")
    trust.set_defaults(run=run_trust)
    revoke = what.add_parser(
        "revoke",
        parents=[common],
        help="run nothing any more that a key signed",
        description="Revokes a key for good. What runs goes on, and is not started again: build "
        "it anew, with another key where this host's own was revoked (`keys init`).",
        epilog="example: dataplane keys revoke 3f1c9a0b7d2e4f60",
    )
    revoke.add_argument("keyid", metavar="KEYID", help="8 digits of it, or more")
    revoke.set_defaults(run=run_revoke)


def ensure_keys(folders: Folders) -> Keys:
    """The keys, with a pair to sign with; one that is made now is told on stderr."""
    from dataplane.image.keys import Keys

    keys = Keys(folders.state)
    made = keys.ensure()
    if made is not None:
        print(f"dataplane: made a signing key, {made.short}, in {keys.folder}", file=sys.stderr)
    return keys


def run_init(args: argparse.Namespace) -> int:
    """0 also where there is a key already."""
    from dataplane.image.keys import Keys

    keys = Keys(find_folders(args).state)
    made = keys.init()
    own = keys.own()
    assert own is not None
    if args.json:
        print(json.dumps({"key": own.id, "public": own.line(), "made": made is not None}))
    else:
        print(f"{'made' if made else 'there is'} a signing key, {own.short}, in {keys.folder}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """All that the folder says; 0 also where it is empty."""
    from dataplane.image.keys import Keys

    keys = Keys(find_folders(args).state)
    own, trusted, revoked = keys.own(), keys.trusted(), keys.revoked()
    if args.json:
        told = {
            "signing": None if own is None else {"key": own.id, "public": own.line()},
            "trusted": [{"key": key.id, "public": key.line()} for key in trusted],
            "revoked": list(revoked),
        }
        print(json.dumps(told))
        return 0
    if own is None:
        print("signing  none yet: the first build makes one, or `dataplane keys init`")
    else:
        note = "  REVOKED: make another by `dataplane keys init`" if own.id in revoked else ""
        print(f"signing  {own.short}  {own.line()}{note}")
    for key in trusted:
        print(f"trusted  {key.short}  {key.line()}")
    for name in revoked:
        print(f"revoked  {name[:16]}")
    return 0


def run_trust(args: argparse.Namespace) -> int:
    """1 for what is no public key, and for one that was revoked here."""
    from dataplane.image.keys import Keys, read_public_key

    key = read_public_key(_key_text(args.key))
    is_new = Keys(find_folders(args).state).trust(key)
    if args.json:
        print(json.dumps({"key": key.id, "public": key.line(), "new": is_new}))
    else:
        print(f"trusted {key.short}" if is_new else f"{key.short} was trusted already")
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    """1 for a name that is no key's, or that of several."""
    from dataplane.image.keys import Keys

    key = Keys(find_folders(args).state).revoke(args.keyid.lower())
    print(json.dumps({"key": key}) if args.json else f"revoked {key[:16]}")
    return 0


def _key_text(given: str) -> str:
    if given == "-":
        return sys.stdin.read(_LIMIT)
    if given.startswith(("ed25519:", "-----BEGIN")):
        return given
    try:
        with Path(given).open("rb") as file:
            return file.read(_LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"cannot read a public key from {given}: {error}") from error
