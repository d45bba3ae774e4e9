"""DNS servers named on the command line: by flag, else by the environment, else the host's own."""

from __future__ import annotations

import argparse
import ipaddress
import os

from dataplane.model.errors import LaunchError

VARIABLE = "DATAPLANE_RESOLVER"
DNS_PORT = 53


def add_resolver_flag(parser: argparse.ArgumentParser) -> None:
    """`--resolver`, which may be given several times."""
    parser.add_argument(
        "--resolver",
        action="append",
        default=[],
        type=resolver_address,
        metavar="ADDR[:PORT]",
        help="a DNS server for endpoints that are host names; may be given several times "
        f"(default: ${VARIABLE}, separated by commas, else /etc/resolv.conf)",
    )


def resolvers(args: argparse.Namespace) -> tuple[tuple[str, int], ...]:
    """The servers that the flags or the environment name. Raises `LaunchError`."""
    if args.resolver:
        return tuple(args.resolver)
    told = os.environ.get(VARIABLE, "")
    try:
        return tuple(resolver_address(one) for one in told.split(",") if one.strip())
    except argparse.ArgumentTypeError as error:
        raise LaunchError(f"{VARIABLE}: {error}") from None


def resolver_address(text: str) -> tuple[str, int]:
    """Address and port of `10.0.0.53`, `10.0.0.53:8600`, `[fd00::53]:8600` or `fd00::53`."""
    text = text.strip()
    address, port = text, str(DNS_PORT)
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        if rest:
            port = rest.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        number = int(port)
        if not 1 <= number <= 0xFFFF:
            raise ValueError
        return str(ipaddress.ip_address(address)), number
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the address of a DNS server: write 10.0.0.53 or 10.0.0.53:8600"
        ) from None


def resolver_words(servers: tuple[tuple[str, int], ...]) -> list[str]:
    """The same as flags, for a command that is started again."""
    return [
        word
        for address, port in servers
        for word in ("--resolver", f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
    ]
