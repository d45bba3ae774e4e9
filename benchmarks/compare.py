"""CPU per request of dataplane beside HAProxy and nginx, in one interleaved run.

The proxy has CPU 0 to itself; the upstream and the load share CPU 1. Every peer runs all the time,
and the load goes round: A B C A B C. A figure of one run is never compared with one of another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rig

PROXY_CPU: Final = 0
LOAD_CPU: Final = 1
CHECKED_REQUESTS: Final = 2000

# The same fields as dp_load's --headers browser, for wrk.
BROWSER: Final = (
    "user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/126.0.0.0 Safari/537.36",
    "accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "accept-language: en-GB,en;q=0.9,de;q=0.7",
    "accept-encoding: gzip, deflate, br",
    "cookie: session=4f1c9f0e2b7d4c6a8e13579bdf02468a; theme=dark; consent=1",
    "referer: http://www.example.com/catalogue/",
    "cache-control: max-age=0",
    "upgrade-insecure-requests: 1",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is asked of every proxy, and how the peers are tuned for it."""

    name: str
    length: int
    connections: int = 64
    per_request: bool = False
    haproxy_tune: str = ""
    haproxy_option: str = ""
    nginx_tune: str = ""

    @property
    def path(self) -> str:
        return f"/b/{self.length}"


_LARGE_BUFFERS: Final = (
    "proxy_buffers 8 128k; proxy_buffer_size 128k; proxy_busy_buffers_size 256k; "
    "proxy_max_temp_file_size 0;"
)
WORKS: Final = {
    work.name: work
    for work in (
        Work(name="small", length=128),
        Work(name="one", length=128, connections=1),
        Work(name="per-request", length=128, per_request=True),
        Work(name="16k", length=16384, nginx_tune=_LARGE_BUFFERS),
        Work(
            name="1m",
            length=1048576,
            connections=16,
            haproxy_tune="tune.bufsize 65536",
            haproxy_option="option splice-response",
            nginx_tune=_LARGE_BUFFERS,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A proxy that runs: where it listens, and which processes are its."""

    name: str
    version: str
    port: int
    root_pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One peer under load once."""

    requests: int
    seconds: float
    cpu_us: float  # a request
    own_share: float  # of PROXY_CPU, by the scheduler's own count
    busy_share: float  # of PROXY_CPU, by the kernel's ticks: must agree with the one above
    p50_us: float
    p99_us: float


Start = Callable[[contextlib.ExitStack, Work, int], Peer]


def main() -> int:
    args = options().parse_args()
    rig.take_precedence()
    work = WORKS[args.work]
    try:
        rig.build_tools()
        report = compare(args, work)
    except rig.RunFailed as problem:
        print(f"compare: {problem}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report))
    missed = report["lead"] is not None and report["lead"] <= 1.0
    return 1 if report["failed"] or (args.check and missed) else 0


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="CPU per request beside the peers, in one interleaved run.",
        epilog="example: python benchmarks/compare.py --rounds 3 --seconds 4",
    )
    parser.add_argument("--work", choices=sorted(WORKS), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each round")
    parser.add_argument(
        "--peers", default="dataplane,haproxy,nginx", help="which ones, with commas between"
    )
    parser.add_argument("--tool", choices=("wrk", "dp_load"), help="wrk if it is installed")
    parser.add_argument("--check", action="store_true", help="exit 1 if a peer needs less CPU")
    parser.add_argument("--json", action="store_true")
    return parser


def compare(args: argparse.Namespace, work: Work) -> rig.Json:
    """Starts the peers, goes round, prints the table (unless JSON is asked) and returns it."""
    tool = args.tool or ("wrk" if shutil.which("wrk") else "dp_load")
    absent: dict[str, str] = {}
    rounds: dict[str, list[Round]] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        upstream_port = stack.enter_context(rig.upstream(cpu=LOAD_CPU))
        peers = start_peers(stack, args.peers.split(","), work, upstream_port, absent, failed)
        for peer in peers:
            wrong = check_bytes(peer, work)
            if wrong:
                failed[peer.name] = wrong
        peers = [peer for peer in peers if peer.name not in failed]
        for number in range(args.rounds):
            for peer in peers:
                say(args, f"round {number + 1} of {args.rounds}: {peer.name}")
                rounds.setdefault(peer.name, []).append(measure(peer, work, args.seconds, tool))
    report = summary(args, work, tool, peers, rounds)
    report |= {"absent": absent, "failed": failed}
    if not args.json:
        print_table(report)
    return report


def say(args: argparse.Namespace, text: str) -> None:
    if not args.json and sys.stderr.isatty():
        print(text, file=sys.stderr)


def start_peers(
    stack: contextlib.ExitStack,
    names: list[str],
    work: Work,
    upstream_port: int,
    absent: dict[str, str],
    failed: dict[str, str],
) -> list[Peer]:
    """Those that are here; the others are told, and ours must be here."""
    peers = []
    for name in names:
        if name not in STARTS:
            raise rig.RunFailed(f"no peer {name!r}: there are {', '.join(STARTS)}")
        if name != "dataplane" and shutil.which(name, path=search_path()) is None:
            absent[name] = "not installed"
            continue
        try:
            peers.append(STARTS[name](stack, work, upstream_port))
        except rig.RunFailed as problem:
            (failed if name == "dataplane" else absent)[name] = str(problem)
    return peers


# ---- the peers -----------------------------------------------------------------------------------


def search_path() -> str:
    """Servers lie in sbin, which a user's path may leave out."""
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin"


def start_dataplane(stack: contextlib.ExitStack, _: Work, upstream_port: int) -> Peer:
    made = stack.enter_context(rig.dataplane(cpu=PROXY_CPU))
    port = rig.free_port()
    made.config(rig.APP, port=port, upstream_port=upstream_port, mark=None)
    made.run("run", "--app", rig.APP, "--detach")
    rig.wait_for_answer(port)
    return Peer(name="dataplane", version=rig.commit(), port=port, root_pid=made.supervisor_pid())


def start_haproxy(stack: contextlib.ExitStack, work: Work, upstream_port: int) -> Peer:
    port = rig.free_port()
    text = rig.filled(
        "haproxy.cfg",
        PORT=port,
        UPSTREAM=upstream_port,
        TUNE=work.haproxy_tune,
        OPTION=work.haproxy_option,
    )
    pid = start_server(stack, port, {"haproxy.cfg": text}, ["haproxy", "-db", "-f", "haproxy.cfg"])
    return Peer(name="haproxy", version=version_of("haproxy", "-v"), port=port, root_pid=pid)


def start_nginx(stack: contextlib.ExitStack, work: Work, upstream_port: int) -> Peer:
    port = rig.free_port()
    text = rig.filled(
        "nginx.conf",
        PORT=port,
        UPSTREAM=upstream_port,
        TUNE=work.nginx_tune,
        USER="user root;" if os.geteuid() == 0 else "",
    )
    command = ["nginx", "-p", ".", "-e", "stderr", "-c", "nginx.conf"]
    pid = start_server(stack, port, {"nginx.conf": text}, command)
    return Peer(name="nginx", version=version_of("nginx", "-v"), port=port, root_pid=pid)


def start_server(
    stack: contextlib.ExitStack, port: int, files: dict[str, str], command: list[str]
) -> int:
    """A server in a folder of its own, in the foreground, held to the proxy's CPU: its pid."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dpb-")))
    for name, text in files.items():
        (folder / name).write_text(text)
    log = stack.enter_context((folder / "log").open("w+"))
    child = subprocess.Popen(
        rig.pinned(command, PROXY_CPU),
        cwd=folder,
        stdout=log,
        stderr=log,
        env={"PATH": search_path()},
    )
    stack.callback(rig.end, child)
    try:
        rig.wait_for_answer(port, 10.0)
    except rig.RunFailed as problem:
        log.seek(0)
        raise rig.RunFailed(f"{problem}: {log.read()[:500]}") from None
    return child.pid


def version_of(program: str, flag: str) -> str:
    told = subprocess.run(
        [program, flag], capture_output=True, text=True, env={"PATH": search_path()}
    )
    found = re.search(r"\d+\.\d+\.\d+", told.stdout + told.stderr)
    return found.group() if found else "unknown"


STARTS: Final[dict[str, Start]] = {
    "dataplane": start_dataplane,
    "haproxy": start_haproxy,
    "nginx": start_nginx,
}


# ---- measuring -----------------------------------------------------------------------------------


def load_options(work: Work) -> list[str]:
    words = ["--headers", "browser", "--path", work.path, "--connections", str(work.connections)]
    return words + (["--mode", "per-request"] if work.per_request else [])


def check_bytes(peer: Peer, work: Work) -> str | None:
    """What is wrong with the peer's answers; a fast wrong answer must not win."""
    count = CHECKED_REQUESTS if work.length < 100_000 else CHECKED_REQUESTS // 20
    checks = ["--verify-body", "--expect-length", str(work.length), "--requests", str(count)]
    report = rig.load(peer.port, *load_options(work), *checks, cpu=LOAD_CPU)
    if report["failed"] or report["ok"] < count:
        return f"{report['failures']} {report['first_failures'][:1]}"
    return None


def measure(peer: Peer, work: Work, seconds: int, tool: str) -> Round:
    """One peer under load: what it cost."""
    counted = [*rig.tree(peer.root_pid), *rig.ksoftirqd(PROXY_CPU)]
    busy, spent, began = (
        rig.busy_seconds(PROXY_CPU),
        rig.cpu_ns(counted),
        time.monotonic(),
    )
    if tool == "wrk":
        requests, p50, p99 = run_wrk(peer, work, seconds)
    else:
        words = ["--no-token", "--expect-length", str(work.length), "--seconds", str(seconds)]
        told = rig.load(peer.port, *load_options(work), *words, cpu=LOAD_CPU)
        if told["failed"]:
            raise rig.RunFailed(f"{peer.name} failed under load: {told['failures']}")
        requests, p50, p99 = told["ok"], told["latency_us"]["p50"], told["latency_us"]["p99"]
    took = time.monotonic() - began
    spent = rig.cpu_ns(counted) - spent
    return Round(
        requests=requests,
        seconds=took,
        cpu_us=spent / 1e3 / requests,
        own_share=spent / 1e9 / took,
        busy_share=(rig.busy_seconds(PROXY_CPU) - busy) / took,
        p50_us=p50,
        p99_us=p99,
    )


def run_wrk(peer: Peer, work: Work, seconds: int) -> tuple[int, float, float]:
    """Requests, and the median and 99th percentile in us."""
    command = ["wrk", "-t1", f"-c{work.connections}", f"-d{seconds}s", "--latency"]
    fields = (*BROWSER, "connection: close") if work.per_request else BROWSER
    for one in ("Host: localhost", *fields):
        command += ["-H", one]
    command.append(f"http://127.0.0.1:{peer.port}{work.path}")
    told = subprocess.run(
        rig.pinned(command, LOAD_CPU), capture_output=True, text=True, timeout=seconds + 60
    ).stdout
    bad = re.search(r"Socket errors:.*|Non-2xx.*", told)
    count = re.search(r"(\d+) requests in", told)
    if bad or not count or int(count.group(1)) == 0:
        raise rig.RunFailed(f"{peer.name} under wrk: {bad.group() if bad else told}")
    return int(count.group(1)), wrk_latency(told, "50%"), wrk_latency(told, "99%")


def wrk_latency(told: str, share: str) -> float:
    found = re.search(rf"^\s+{share}\s+([\d.]+)(us|ms|s)\s*$", told, re.MULTILINE)
    if not found:
        return 0.0
    return float(found.group(1)) * {"us": 1.0, "ms": 1e3, "s": 1e6}[found.group(2)]


# ---- telling -------------------------------------------------------------------------------------


def summary(
    args: argparse.Namespace,
    work: Work,
    tool: str,
    peers: list[Peer],
    rounds: dict[str, list[Round]],
) -> rig.Json:
    """Medians of each peer; the ratio is its CPU to dataplane's."""
    rows: list[rig.Json] = []
    for peer in peers:
        taken = rounds[peer.name]
        rows.append(
            {
                "name": peer.name,
                "version": peer.version,
                "cpu_us": round(statistics.median(r.cpu_us for r in taken), 2),
                "cpu_us_rounds": [round(r.cpu_us, 2) for r in taken],
                "requests_per_second": round(
                    statistics.median(r.requests / r.seconds for r in taken)
                ),
                "own_share": round(statistics.median(r.own_share for r in taken), 3),
                "busy_share": round(statistics.median(r.busy_share for r in taken), 3),
                "p50_us": round(statistics.median(r.p50_us for r in taken), 1),
                "p99_us": round(statistics.median(r.p99_us for r in taken), 1),
            }
        )
    ours = next((row["cpu_us"] for row in rows if row["name"] == "dataplane"), None)
    best = min((row["cpu_us"] for row in rows if row["name"] == "haproxy"), default=None)
    for row in rows:
        row["ratio"] = round(row["cpu_us"] / ours, 3) if ours else None
    return {
        "figure": "cpu_us_per_request",
        "work": work.name,
        "tool": tool,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "machine": rig.machine(),
        "peers": rows,
        "lead": round(best / ours, 3) if ours and best else None,
    }


def print_table(report: rig.Json) -> None:
    where = report["machine"]
    print(
        f"CPU us per request, work {report['work']}, {report['rounds']} rounds of "
        f"{report['seconds']} s, {report['tool']}; commit {where['commit']}\n"
        f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}, {where['at']}\n"
    )
    head = ("proxy", "version", "CPU us", "ratio", "req/s", "own", "busy", "p50 us", "p99 us")
    print("{:<10} {:<26} {:>7} {:>6} {:>8} {:>6} {:>6} {:>8} {:>8}".format(*head) + "  rounds")
    for row in report["peers"]:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        print(
            f"{row['name']:<10} {row['version']:<26} {row['cpu_us']:>7.2f} {ratio:>6} "
            f"{row['requests_per_second']:>8,} {row['own_share']:>6.0%} {row['busy_share']:>6.0%} "
            f"{row['p50_us']:>8,.0f} {row['p99_us']:>8,.0f}  "
            + " ".join(f"{value:.2f}" for value in row["cpu_us_rounds"])
        )
        if abs(row["own_share"] - row["busy_share"]) > 0.1:
            print("           something else used the proxy's CPU: this row is worth little")
    for name, why in {**report["absent"], **report["failed"]}.items():
        print(f"{name:<10} left out: {why}")
    if report["lead"] is not None:
        judged = "ok" if report["lead"] > 1 else "NOT MET"
        print(f"\nbelow HAProxy: {judged} (HAProxy needs {report['lead']:.2f} times our CPU)")


if __name__ == "__main__":
    sys.exit(main())
