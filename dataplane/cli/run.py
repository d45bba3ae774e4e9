"""The verbs that start and end a supervisor: run, up, down."""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dataplane.cli.folders import Folders, app_name, find_folders
from dataplane.cli.keys import ensure_keys
from dataplane.cli.resolvers import add_resolver_flag, resolver_words, resolvers
from dataplane.model.errors import ControlError, LaunchError
from dataplane.model.names import AppName

if TYPE_CHECKING:
    from dataplane.supervisor.report import ReadyApp

# How a line of the supervisor's log begins that tells an event, and no error.
_EVENT_LINE: Final = re.compile(r"\d{4}-\d\d-\d\dT")


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds run, up and down."""
    run = verbs.add_parser(
        "run",
        parents=[common],
        help="put an app on this host",
        description="Builds the app and runs it. Without a supervisor, starts one here, in the "
        "foreground, until it is told to end; with one, starts or swaps the app in it.",
        epilog="example: dataplane run --app billing",
    )
    run.add_argument("--app", type=app_name, required=True, metavar="NAME", help="the app to run")
    _add_start_flags(run)
    run.set_defaults(run=run_run)

    up = verbs.add_parser(
        "up",
        parents=[common],
        help="start a supervisor with all apps, as they served last",
        description="Starts a supervisor in the foreground with all apps (or these), each as it "
        "served last; apps that never ran are built from the config folder.",
        epilog="example: dataplane up --detach",
    )
    up.add_argument(
        "--app",
        type=app_name,
        action="append",
        default=[],
        metavar="NAME",
        help="this app (again)",
    )
    _add_start_flags(up)
    up.set_defaults(run=run_up)

    down = verbs.add_parser(
        "down",
        parents=[common],
        help="drain and stop all apps, then the supervisor",
        description="Drains and stops all apps, then the supervisor. Also ends the workers of a "
        "supervisor that is dead.",
        epilog="example: dataplane down",
    )
    down.set_defaults(run=run_down)


def _add_start_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detach", action="store_true", help="in the background; return when it is ready"
    )
    add_resolver_flag(parser)
    # For our own child and our own tests.
    parser.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--allow-faults", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hang-seconds", type=float, default=None, help=argparse.SUPPRESS)


def run_run(args: argparse.Namespace) -> int:
    """In a running supervisor, or as one."""
    from dataplane.cli.ask import ask, tell_ledger, wish_of
    from dataplane.control.client import NotRunning

    folders = find_folders(args)
    app: AppName = args.app
    body = wish_of(folders, app, None, force=False)
    try:
        answer = ask(folders, "PUT", f"/v1/apps/{app}", body, seconds=None)
    except NotRunning:
        return _start(args, folders, (app,), build=True)
    return tell_ledger(args, answer)


def run_up(args: argparse.Namespace) -> int:
    """As the supervisor."""
    from dataplane.cli.ask import supervisor_socket
    from dataplane.control.client import Client, NotRunning

    folders = find_folders(args)
    try:
        with Client(supervisor_socket(folders)) as client:
            raise LaunchError(f"a supervisor already runs on {folders.run}, pid {client.pid}")
    except NotRunning:
        return _start(args, folders, tuple(args.app), build=False)


def run_down(args: argparse.Namespace) -> int:
    """Ends the supervisor, and then whoever it did not know or left behind."""
    from dataplane.supervisor.folders import RunFolder, clear_stale
    from dataplane.supervisor.former import end_former, find_former

    folders = find_folders(args)
    pid = _end_supervisor(folders)
    workers = find_former(RunFolder(path=folders.run).workers)
    end_former(workers)
    clear_stale(folders.run)
    told = {"supervisor": pid, "workers": [worker.pid for worker in workers]}
    if args.json:
        print(json.dumps(told))
    elif pid is None and not workers:
        print("nothing ran")
    else:
        if pid is not None:
            print(f"supervisor stopped, pid {pid}")
        for worker in workers:
            print(f"worker stopped, app {worker.app}, pid {worker.pid}")
    return 0


def _end_supervisor(folders: Folders) -> int | None:
    from dataplane.cli.ask import supervisor_socket
    from dataplane.control.client import Client, NotRunning
    from dataplane.system.process import signal_pidfd

    try:
        with Client(supervisor_socket(folders)) as client:
            pid = client.pid
            pidfd = os.pidfd_open(pid)
    except (NotRunning, ProcessLookupError):
        return None
    try:
        signal_pidfd(pidfd, signal.SIGTERM)
        select.select([pidfd], [], [])
    except PermissionError as error:
        raise ControlError(f"the supervisor, pid {pid}, is another user's") from error
    finally:
        os.close(pidfd)
    return pid


# --- starting ----------------------------------------------------------------------------------


def _start(
    args: argparse.Namespace, folders: Folders, apps: tuple[AppName, ...], *, build: bool
) -> int:
    if not args.detached:  # else whoever started us has told it
        ensure_keys(folders)
    if args.detach:
        return _start_detached(args, folders)
    from dataplane.supervisor.heartbeat import HANG_SECONDS
    from dataplane.supervisor.main import Options, run_supervisor
    from dataplane.system.notify import SERVICE_VARIABLES, NotifySocket

    def tell_ready(apps: Sequence[ReadyApp]) -> None:
        for line in ready_lines(apps, as_json=args.json):
            print(line)
        sys.stdout.flush()
        if args.detached:  # whoever waits for us sees the end of what we say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return run_supervisor(
        Options(
            run_dir=folders.run,
            state_dir=folders.state,
            config_dir=folders.config,
            environment={
                name: value for name, value in os.environ.items() if name not in SERVICE_VARIABLES
            },
            notify=NotifySocket.from_environment(os.environ, os.getpid()),
            apps=apps,
            build=build,
            tell_ready=tell_ready,
            resolvers=resolvers(args),
            hang_seconds=args.hang_seconds or HANG_SECONDS,
            allow_faults=args.allow_faults,
        )
    )


def ready_lines(apps: Sequence[ReadyApp], *, as_json: bool) -> list[str]:
    """One line for each app that serves."""
    lines = []
    for one in apps:
        if as_json:
            told = {"app": one.app, "addresses": one.addresses, "image": one.image}
            lines.append(json.dumps({"ready": True, **told, "pid": os.getpid()}))
        else:
            lines.append(
                f"ready app={one.app} address={','.join(one.addresses)} image={one.image} "
                f"pid={os.getpid()}"
            )
    return lines or [json.dumps({"ready": True, "pid": os.getpid()}) if as_json
                     else f"ready pid={os.getpid()}"]  # fmt: skip


def _start_detached(args: argparse.Namespace, folders: Folders) -> int:
    """Starts this command again in the background, and says what it said until it was ready."""
    from dataplane.system.process import PIPE, spawn

    log = folders.state / "logs" / "supervisor.log"
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        errors = log.open("ab")
    except OSError as error:
        raise LaunchError(f"cannot write {log}: {error.strerror}") from error
    with errors:
        begin = errors.tell()
        child = spawn(
            _again(args, folders), environment=dict(os.environ), stdout=PIPE, stderr=errors
        )
    assert child.output is not None
    said = child.output.read()
    if said:
        sys.stdout.write(said.decode())
        child.close()  # it goes on without us
        return 0
    select.select([child.pidfd], [], [])
    status = child.reap()
    child.close()
    _tell_errors(log, begin)
    return status if status is not None and status > 0 else 1


def _again(args: argparse.Namespace, folders: Folders) -> list[str]:
    from dataplane.system.process import OWN_COMMAND

    apps = [args.app] if isinstance(args.app, str) else args.app
    verb = "run" if isinstance(args.app, str) else "up"
    argv = [*OWN_COMMAND, verb, "--detached"]
    argv += ["--config", str(folders.config), "--run-dir", str(folders.run)]
    argv += ["--state-dir", str(folders.state)]
    for app in apps:
        argv += ["--app", app]
    argv += resolver_words(resolvers(args))
    if args.json:
        argv.append("--json")
    if args.allow_faults:
        argv.append("--allow-faults")
    if args.hang_seconds:
        argv += ["--hang-seconds", str(args.hang_seconds)]
    return argv


def _tell_errors(log: Path, begin: int) -> None:
    """What the supervisor said in its log that is no event."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if not _EVENT_LINE.match(line)]
    print("\n".join(errors) or f"dataplane: it ended; see {log}", file=sys.stderr)
