"""The verb `image`: the store of this host, and the proof of what runs.

Works with and without a supervisor. What is removed is decided by the store's own rules; a
supervisor that runs is asked what it needs, and one that cannot be asked stops the removal.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dataplane.cli.folders import Folders, app_name, find_folders
from dataplane.model.errors import ControlError, ImageError
from dataplane.model.names import AppName, Digest

if TYPE_CHECKING:
    from dataplane.image.prune import Removed, Uses
    from dataplane.image.running import Point
    from dataplane.image.store import Store

EX_OK: Final = 0
EX_FAILED: Final = 1

_STDIO: Final = "-"
_SHORT: Final = 12  # hex digits of a digest in a table
_EXAMPLES: Final = """example: dataplane image ls --app billing

more examples:
  dataplane image inspect 3f9a1c0b77d2
  dataplane image verify --app billing
  dataplane image export 3f9a1c0b77d2 billing.tar
  ssh other dataplane image import - < billing.tar
  dataplane image prune --dry-run"""


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds image."""
    image = verbs.add_parser(
        "image",
        help="the images of this host: list, prove, remove, move to another host",
        description="The store of images. DIGEST is sha256:… or the first 4 or more digits of it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = image.add_subparsers(
        metavar="WHAT", required=True, title="what to do", parser_class=type(image)
    )

    def verb(name: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
        return what.add_parser(
            name,
            parents=[common],
            help=summary,
            description=description,
            epilog=f"example: dataplane image {example}",
        )

    ls = verb("ls", "list them, oldest first", "Lists the images and who needs them.", "ls")
    ls.add_argument("--app", type=app_name, metavar="NAME", help="this app's alone")
    ls.set_defaults(run=run_ls)

    inspect = verb(
        "inspect",
        "all that is known of one",
        "Shows an image: its layers, who signed it, where it comes from, its whole config.",
        "inspect 3f9a1c0b77d2",
    )
    inspect.add_argument("digest", metavar="DIGEST")
    inspect.set_defaults(run=run_inspect)

    verify = verb(
        "verify",
        "recompute digests and signatures; prove what runs",
        "Without a name: every blob, signature and unpacked file of the store. With --app: that "
        "the running workers are what their image says; what cannot be proven is told, with the "
        "reason, and is no failure.",
        "verify --app billing",
    )
    which = verify.add_mutually_exclusive_group()
    which.add_argument("digest", metavar="DIGEST", nargs="?", help="this image alone")
    which.add_argument(
        "--app", type=app_name, metavar="NAME", help="this app's workers, from outside"
    )
    verify.set_defaults(run=run_verify)

    rm = verb(
        "rm",
        "remove images",
        "Removes images and what only they need. What runs is refused; what may be rolled back "
        "to is, too, unless --force.",
        "rm 3f9a1c0b77d2",
    )
    rm.add_argument("digests", metavar="DIGEST", nargs="+")
    rm.add_argument("--force", action="store_true", help="also what may be rolled back to")
    rm.set_defaults(run=run_rm)

    prune = verb(
        "prune",
        "remove what nobody needs",
        "Keeps the last images of each app, and all that run, are wanted or may be rolled back "
        "to; removes the others, and blobs and unpacked code that no image needs.",
        "prune --dry-run",
    )
    prune.add_argument("--keep", type=number, metavar="N", help="of each app (10)")
    prune.add_argument("--dry-run", action="store_true", help="only tell what would go")
    prune.set_defaults(run=run_prune)

    export = verb(
        "export",
        "write one to a tar",
        "Writes an image, its signatures and its provenance as one tar in OCI layout. Others read "
        "it as well: skopeo inspect --raw oci-archive:FILE:APP.",
        "export 3f9a1c0b77d2 billing.tar",
    )
    export.add_argument("digest", metavar="DIGEST")
    export.add_argument("file", metavar="FILE", help="- is stdout")
    export.set_defaults(run=run_export)

    take = verb(
        "import",
        "take one from a tar",
        "Takes the image of a tar that `image export` wrote, if a key that is trusted here signed "
        "it. Whatever is not exactly such a tar is refused, and leaves nothing.",
        "import billing.tar",
    )
    take.add_argument("file", metavar="FILE", help="- is stdin")
    take.set_defaults(run=run_import)


def run_ls(args: argparse.Namespace) -> int:
    """A table, or all facts."""
    from dataplane.image.listing import image_facts, read_entries
    from dataplane.image.prune import merge_uses, wanted_images

    folders, store = _opened(args)
    uses = merge_uses(_runs(folders, must_answer=False), wanted_images(folders.state).all())
    facts = [
        image_facts(store, entry, uses.get(entry.digest, ()))
        for entry in read_entries(store)
        if args.app in (None, entry.app)
    ]
    if args.json:
        print(json.dumps({"images": facts}))
        return EX_OK
    head = ("IMAGE", "APP", "CODE VERSION", "CODE", "MB", "STORED", "NEEDED")
    rows = [head]
    for one in facts:
        size = f"{one['bytes'] / 1e6:.1f}"
        digests = [one[key].removeprefix("sha256:")[:_SHORT] for key in ("image", "code_layer")]
        rows.append((digests[0], one["app"] or "?", one["code"] or "?", digests[1], size,
                     one["stored"] or "?", "; ".join(one["uses"]) or "-"))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return EX_OK


def run_inspect(args: argparse.Namespace) -> int:
    """One image, always as JSON: it is nested, and most of it is config."""
    from dataplane.image.keys import Keys
    from dataplane.image.listing import find_image, find_line, image_facts, read_entry, read_index
    from dataplane.image.prune import merge_uses, wanted_images
    from dataplane.image.signing import check_signed, provenance_of, signatures_of

    folders, store = _opened(args)
    keys = Keys(folders.state)
    digest = find_image(store, args.digest)
    index = read_index(store)
    image = store.image(digest)
    uses = merge_uses(_runs(folders, must_answer=False), wanted_images(folders.state).all())
    entry = read_entry(store, index, find_line(index, digest))
    trusted: str | None = None
    fault: str | None = None
    try:
        trusted = check_signed(store, keys, digest)
    except ImageError as error:
        fault = str(error)
    told = provenance_of(store, keys, digest)
    facts = image_facts(store, entry, uses.get(digest, ())) | {
        "abi": dataclasses.asdict(image.abi),
        "signed": {
            "by": [signature.keyid for signature in signatures_of(store, digest)],
            "trusted": trusted,
            "fault": fault,
        },
        "provenance": None if told is None else dataclasses.asdict(told),
        "spec": json.loads(image.spec.to_json()),
    }
    print(json.dumps(facts, indent=None if args.json else 2))
    return EX_OK


def run_verify(args: argparse.Namespace) -> int:
    """1 where something is wrong. What only cannot be proven is told."""
    from dataplane.image.keys import SHORT, Keys
    from dataplane.image.listing import find_image
    from dataplane.image.signing import verify_image
    from dataplane.image.verify import UNSIGNED, verify_store

    folders, store = _opened(args)
    keys = Keys(folders.state)
    if args.app is not None:
        return _verify_app(args, folders, store)
    if args.digest is not None:
        digest = find_image(store, args.digest)
        key = verify_image(store, keys, digest)
        fact = {"image": digest, "key": key, "sound": True}
        print(json.dumps(fact) if args.json else f"{digest} is whole, signed by {key[:SHORT]}")
        return EX_OK
    account = verify_store(store, keys)
    if args.json:
        print(json.dumps(account.to_json()))
        return EX_OK if account.is_sound else EX_FAILED
    for image in account.images:
        if image.fault is not None:
            print(f"dataplane: {image.image}: {image.fault}", file=sys.stderr)
        else:
            text = UNSIGNED if image.key is None else f"whole, signed by {image.key[:SHORT]}"
            print(f"{image.image}  {image.app}  {text}")
    for fault in account.faults:
        print(f"dataplane: {fault}", file=sys.stderr)
    unneeded = f", {account.unneeded} that no image needs" if account.unneeded else ""
    print(f"{len(account.images)} images, {account.blobs} blobs{unneeded}")
    return EX_OK if account.is_sound else EX_FAILED


def run_rm(args: argparse.Namespace) -> int:
    """Each on its own: one that is refused keeps no other."""
    from dataplane.image.listing import find_image
    from dataplane.image.prune import Removed, remove_image

    folders, store = _opened(args)
    code = EX_OK
    total = Removed()
    for text in args.digests:
        try:
            digest = find_image(store, text)
            removed = remove_image(store, digest, lambda: _runs(folders), force=args.force)
        except ImageError as error:
            print(f"dataplane: {error}", file=sys.stderr)
            code = EX_FAILED
            continue
        total = total.and_also(removed)
    _tell_removed(args, total, "removed")
    return code


def run_prune(args: argparse.Namespace) -> int:
    """Tells what went."""
    from dataplane.image.prune import KEPT_IMAGES, prune

    folders, store = _opened(args)
    keep = KEPT_IMAGES if args.keep is None else args.keep
    removed = prune(store, lambda: _runs(folders), keep=keep, dry_run=args.dry_run)
    _tell_removed(args, removed, "would remove" if args.dry_run else "removed")
    return EX_OK


def run_export(args: argparse.Namespace) -> int:
    """To a file, whole or not at all, or to stdout."""
    from dataplane.image.listing import find_image
    from dataplane.image.transfer import export_image, write_image

    _, store = _opened(args)
    digest = find_image(store, args.digest)
    if args.file == _STDIO:
        try:
            write_image(store, digest, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ImageError(f"cannot write the tar: {error.strerror}") from error
        return EX_OK
    export_image(store, digest, Path(args.file).absolute())
    fact = {"image": digest, "file": args.file, "bytes": Path(args.file).stat().st_size}
    print(json.dumps(fact) if args.json else f"{digest}  {args.file}")
    return EX_OK


def run_import(args: argparse.Namespace) -> int:
    """From a file or stdin."""
    from dataplane.image.keys import SHORT, Keys
    from dataplane.image.transfer import import_image

    folders, store = _opened(args)
    keys = Keys(folders.state)
    if args.file == _STDIO:
        done = import_image(store, keys, sys.stdin.buffer, "stdin")
    else:
        try:
            with open(args.file, "rb") as file:
                done = import_image(store, keys, file, args.file)
        except OSError as error:
            raise ImageError(f"cannot read {args.file}: {error.strerror}") from error
    image = done.image
    if args.json:
        fact = {"image": image.digest, "app": image.app, "key": done.key, "new": done.is_new}
        print(json.dumps(fact))
    else:
        print(image.digest)
        known = "" if done.is_new else ", which was here before"
        print(
            f"an image of {image.app}{known}, signed by {done.key[:SHORT]}; run it by: "
            f"dataplane swap --app {image.app} --image {image.digest}",
            file=sys.stderr,
        )
    return EX_OK


# --- what they share ----------------------------------------------------------------------------


def _opened(args: argparse.Namespace) -> tuple[Folders, Store]:
    from dataplane.image.store import Store

    folders = find_folders(args)
    return folders, Store.open(folders.state)


def _runs(folders: Folders, *, must_answer: bool = True) -> Uses:
    """What the supervisor of this state folder runs, or is about to. None runs: nothing."""
    from dataplane.cli.ask import ask, fact
    from dataplane.control.client import NotRunning

    try:
        told = fact(ask(folders, "GET", "/v1/images"))
    except NotRunning as error:
        if must_answer and (pid := _supervised_by(folders.state)):
            raise ControlError(
                f"a supervisor uses {folders.state} (pid {pid}) and is not at {folders.run}: "
                "name its folder by --run-dir; nothing was removed"
            ) from error
        return {}
    except ControlError:
        if must_answer:
            raise
        return {}
    return {Digest(one["image"]): tuple(one["runs"]) for one in told["images"] if one["runs"]}


def _supervised_by(state: Path) -> str | None:
    """The pid that the lock of the state folder tells, if somebody holds it."""
    try:
        fd = os.open(state / "state.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(fd)
    return None


def _tell_removed(args: argparse.Namespace, removed: Removed, verb: str) -> None:
    if args.json:
        print(json.dumps(removed.to_json()))
        return
    for digest in removed.images:
        print(f"{verb} {digest}")
    counts = f"{len(removed.images)} images, {len(removed.blobs)} blobs, {len(removed.trees)} trees"
    print(f"{verb} {counts}: {removed.freed_bytes / 1e6:.1f} MB")


def _verify_app(args: argparse.Namespace, folders: Folders, store: Store) -> int:
    from dataplane.cli.ask import ask, fact
    from dataplane.image.keys import Keys
    from dataplane.image.running import LIMITS, Verdict, prove_worker

    report = fact(ask(folders, "GET", f"/v1/apps/{AppName(args.app)}"))
    keys = Keys(folders.state)
    proven: list[tuple[dict[str, Any], tuple[Point, ...]]] = []
    for generation in report["generations"]:
        image = store.image(Digest(generation["image"]))
        for worker in generation["workers"]:
            if worker["pid"] is None:
                continue
            points = prove_worker(store, keys, image, int(worker["pid"]))
            about = {"generation": generation["generation"], "image": generation["image"]}
            proven.append(({**about, "slot": worker["slot"], "pid": worker["pid"]}, points))
    if not proven:
        raise ImageError(f"{args.app} does not run, so there is nothing to prove")
    verdicts = {point.verdict for _, points in proven for point in points}
    if args.json:
        workers = [
            {**about, "points": [point.to_json() for point in points]} for about, points in proven
        ]
        is_proven = verdicts == {Verdict.PROVEN}
        told = {"app": args.app, "proven": is_proven, "workers": workers, "limits": LIMITS}
        print(json.dumps(told))
    else:
        for about, points in proven:
            generation = f"{args.app} generation {about['generation']} slot {about['slot']}"
            print(f"{generation}, pid {about['pid']}, {about['image']}")
            for point in points:
                print(f"  {point.verdict.value:9} {point.what}: {point.detail}")
        print("Not to be proven from outside:")
        for limit in LIMITS:
            print(f"  {limit}")
    return EX_FAILED if Verdict.REFUTED in verdicts else EX_OK


def number(text: str) -> int:
    """How many; argparse names this function where it is none."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number
