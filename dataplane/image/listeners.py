"""Listeners of a config file: what the schema cannot say of them, and their spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dataplane.image.typed import Place
from dataplane.image.upstreams import Fault
from dataplane.image.values import listen_address, network
from dataplane.model.spec import ListenerSpec

_ALL_IPV6: Final = "[::]:"


def listener_faults(place: Place, listener: dict[str, Any]) -> Iterator[Fault]:
    """What is wrong with where it listens. `listener` has a sound `bind`."""
    bind = listen_address(listener["bind"])
    for key in ("mode", "owner", "group"):
        if key in listener and not bind.startswith("unix:"):
            message = f"{key} is for unix: sockets, and {bind} is none"
            yield Fault(place=(*place, key), message=message, hint="remove it", key=True)
    if listener.get("dual_stack") and not bind.startswith(_ALL_IPV6):
        message = f"only [::] can take IPv4 as well, and this binds {bind}"
        hint = "bind to [::] and a port, or add a listener for the IPv4 address"
        yield Fault(place=(*place, "dual_stack"), message=message, hint=hint, key=True)


def bound_addresses(listener: dict[str, Any]) -> tuple[str, ...]:
    """All that nobody else can bind beside it: its own first."""
    bind = listen_address(listener["bind"])
    if listener.get("dual_stack") and bind.startswith(_ALL_IPV6):
        return bind, f"0.0.0.0:{bind.removeprefix(_ALL_IPV6)}"
    return (bind,)


def listener_spec(listener: dict[str, Any]) -> ListenerSpec:
    mode = listener.get("mode", "0660")
    return ListenerSpec(
        name=listener["name"],
        bind=listen_address(listener["bind"]),
        protocol=listener["protocol"],
        upstream=listener.get("upstream"),
        mode=f"{int(mode, 8):04o}",
        owner=listener.get("owner"),
        group=listener.get("group"),
        dual_stack=listener["dual_stack"],
        proxy_protocol=listener["proxy_protocol"],
        trusted_proxies=tuple(sorted(map(network, listener["trusted_proxies"]))),
    )
