"""The verb demo: an app of the config folder, with small upstream servers where it has endpoints.

Everything is real: the upstreams are processes of their own, the app is started by the verb `run`.
The demo's own part is only to start what an operator would already have running.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dataplane.cli.folders import Folders, app_name, find_folders
from dataplane.model.errors import LaunchError
from dataplane.model.spec import AppSpec, EndpointSpec, ListenerSpec, RouteSpec
from dataplane.system.process import OWN_COMMAND, Child, spawn

EX_USAGE: Final = 64

_BACKLOG: Final = 1024
_END_SECONDS: Final = 5.0
_LOCAL: Final = Path(".dataplane")
_CATCH_ALL: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Adds demo."""
    demo = verbs.add_parser(
        "demo",
        parents=[common],
        help="run an app with small upstream servers of our own",
        description="Starts a small HTTP server on each loopback endpoint of the app, then runs "
        "the app in the foreground. The servers answer what they were asked, as JSON; "
        "/slow?ms=N answers late, /stream?ticks=N&ms=M bit by bit.",
        epilog="example: dataplane demo --app billing",
    )
    what = demo.add_mutually_exclusive_group(required=True)
    what.add_argument("--app", type=app_name, metavar="NAME", help="the app to run")
    what.add_argument("--upstream", metavar="HOST:PORT", help="only one server, at this address")
    demo.add_argument("--name", default="demo", help="what that one server calls itself")
    # How the demo starts its servers: a socket that listens already, and a pipe that ends with it.
    demo.add_argument("--listener", type=int, help=argparse.SUPPRESS)
    demo.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)
    demo.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Runs the app, or one server, until it is told to end."""
    if args.upstream is not None:
        return _run_upstream(args)
    # YAML and JSON Schema take longer to load than most commands take to run.
    from dataplane.image.config import load_app

    folders = _writable_folders(args)
    spec = load_app(folders.config, args.app, os.environ)
    with contextlib.ExitStack() as servers:
        _start_servers(spec, servers)
        return _run_app(spec, folders)


def _run_upstream(args: argparse.Namespace) -> int:
    from dataplane.cli.demo_upstream import serve_upstream
    from dataplane.image.values import Unfit, endpoint_address

    try:
        address, port = endpoint_address(args.upstream)
    except Unfit as unfit:
        print(f"dataplane: {unfit.message}", file=sys.stderr)
        return EX_USAGE
    if args.listener is not None:
        listener = socket.socket(fileno=args.listener)
    else:
        listener = _listen(EndpointSpec(address=address, port=port))
    with listener:
        serve_upstream(listener, args.name, args.lifeline)
    return 0


def _writable_folders(args: argparse.Namespace) -> Folders:
    """The folders as always, but below the current one where a default may not be written to."""
    found = find_folders(args)
    chosen = {}
    for name, folder in (("run", found.run), ("state", found.state)):
        is_told = getattr(args, f"{name}_dir") or os.environ.get(f"DATAPLANE_{name.upper()}_DIR")
        usable = is_told or _is_writable(folder)
        chosen[name] = folder if usable else (_LOCAL / name).absolute()
    return Folders(config=found.config, run=chosen["run"], state=chosen["state"])


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _start_servers(spec: AppSpec, servers: contextlib.ExitStack) -> None:
    """A server for each loopback endpoint. They end with the stack, or with this process."""
    lifeline, kept = os.pipe2(os.O_CLOEXEC)
    servers.callback(os.close, lifeline)
    children: list[Child] = []
    servers.callback(_wait_for_all, children)
    servers.callback(os.close, kept)  # first of all: it ends the servers
    for name, endpoint in _endpoints(spec):
        told = f"{endpoint.address}:{endpoint.port}"
        if ":" in endpoint.address:
            told = f"[{endpoint.address}]:{endpoint.port}"
        if not ipaddress.ip_address(endpoint.address).is_loopback:
            print(f"demo: upstream {name} at {told} is not on this host: left alone")
            continue
        with _listen(endpoint) as listener:
            argv = [*OWN_COMMAND, "demo", "--upstream", told, "--name", name]
            argv += ["--listener", str(listener.fileno()), "--lifeline", str(lifeline)]
            fds = (listener.fileno(), lifeline)
            children.append(spawn(argv, environment=os.environ, fds=fds))
        print(f"demo: upstream {name} at {told}, pid {children[-1].pid}")


def _endpoints(spec: AppSpec) -> Iterator[tuple[str, EndpointSpec]]:
    """Each address once, with the name that its server answers with: api-1, api-2."""
    seen = set()
    for upstream in spec.upstreams:
        for number, endpoint in enumerate(upstream.endpoints, 1):
            if endpoint not in seen:
                seen.add(endpoint)
                yield f"{upstream.name}-{number}", endpoint


def _listen(endpoint: EndpointSpec) -> socket.socket:
    """Raises `LaunchError` that names the address."""
    family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((endpoint.address, endpoint.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        place = f"{endpoint.address} port {endpoint.port}"
        raise LaunchError(
            f"no demo upstream at {place}: {error.strerror}; end what listens there, "
            "or use `dataplane run`, which leaves upstreams alone"
        ) from error
    return listener


def _run_app(spec: AppSpec, folders: Folders) -> int:
    from dataplane.cli.main import main  # which knows this module: a cycle at the top

    places = ("--config", folders.config, "--run-dir", folders.run, "--state-dir", folders.state)
    print(f"demo: run folder {folders.run}, state folder {folders.state}")
    print(f"demo: when it is ready, try\n\n    {curl_line(spec)}\n", flush=True)
    joined = _is_answering(folders.run / "supervisor.sock")
    status = main(["run", "--app", spec.app, *map(str, places)])
    if joined and status == 0:
        print(
            "demo: the app runs in the supervisor that was there. Ctrl-C ends the upstreams",
            flush=True,
        )
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return status


def curl_line(spec: AppSpec) -> str:
    """A command that gets an answer from the app, from an upstream if it has a route to one."""
    listener = next((one for one in spec.listeners if one.protocol == "http"), spec.listeners[0])
    route = next((one for one in spec.routes if one.upstream), None) or next(
        iter(spec.routes), None
    )
    words = ["curl"]
    path = "/"
    if route is not None and listener.protocol == "http":
        words += _options(route)
        path = route.match.path or "/"
    return shlex.join([*words, f"http://{_reachable(listener)}{path}"])


def _options(route: RouteSpec) -> Iterator[str]:
    if route.match.methods and "GET" not in route.match.methods:
        yield from ("-X", route.match.methods[0])
    if route.match.host is not None:
        yield from ("-H", f"host: {route.match.host.replace('*.', 'www.')}")
    for name, value in route.match.headers:
        yield from ("-H", f"{name}: {value}")


def _reachable(listener: ListenerSpec) -> str:
    address, _, port = listener.bind.rpartition(":")
    return f"{_CATCH_ALL.get(address, address)}:{'PORT' if port == '0' else port}"


def _is_answering(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _wait_for_all(children: list[Child]) -> None:
    """Reaps the servers, and kills one that does not end."""

    async def wait(child: Child) -> None:
        try:
            async with asyncio.timeout(_END_SECONDS):
                await child.wait()
        except TimeoutError:
            child.signal(signal.SIGKILL)
            await child.wait()
        child.close()

    async def wait_for_each() -> None:
        async with asyncio.TaskGroup() as tasks:
            for child in children:
                tasks.create_task(wait(child))

    asyncio.run(wait_for_each())
