"""What stands in front of and behind an app, by the installed command with the seal on: upgrades,
trusted proxies and the PROXY protocol, one form of a path.
"""

from __future__ import annotations

import json

from tests.support.dataplane import Dataplane, app_config
from tests.support.origin import Origin, echoing, parroting
from tests.support.wire import Wire, request

ASK = ("connection: upgrade", "upgrade: websocket")


def switching(origin: Origin, peer: Wire) -> None:
    """Answers an upgrade with 101 and echoes from there on."""
    origin.read_request(peer)
    peer.send(b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    parroting(origin, peer)


def test_a_websocket_passes_and_outlives_a_swap(plane: Dataplane) -> None:
    with Origin(switching) as api:
        config = app_config()
        config["upstreams"] = {"api": {"endpoints": [api.address]}}
        config["routes"] = [{"match": {"path": "/"}, "upstream": "api"}]
        plane.configure(config)
        plane.start()
        with Wire.connect(plane.address()) as client:
            client.send(request("/chat", *ASK))
            start, fields = client.head()
            assert start.startswith("HTTP/1.1 101 ")
            assert dict(fields)["upgrade"] == "websocket"
            client.send(b"\x81\x05hello")
            assert client.exactly(7) == b"\x81\x05hello"
            config["routes"][0]["request_timeout"] = "9s"
            plane.configure(config)
            plane.swap(wait="switch")
            client.send(b"and after")
            assert client.exactly(9) == b"and after"


def test_only_trusted_proxies_are_believed(plane: Dataplane) -> None:
    with Origin(echoing) as api:
        config = app_config()
        config["upstreams"] = {"api": {"endpoints": [api.address]}}
        config["routes"] = [{"match": {"path": "/"}, "upstream": "api"}]
        config["listeners"][0] |= {"trusted_proxies": ["127.0.0.0/8"], "proxy_protocol": True}
        plane.configure(config)
        plane.start()
        said = ("x-forwarded-for: 203.0.113.9", "x-forwarded-proto: https")
        for header, chain, proto in (
            (b"PROXY UNKNOWN\r\n", "203.0.113.9, 127.0.0.1", "https"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "192.0.2.1", "http"),
        ):
            with Wire.connect(plane.address()) as client:
                client.send(header + request("/a/../%62", *said))
                told = json.loads(client.answer().body)
                fields = dict(told["fields"])
                assert told["start"] == "GET /b HTTP/1.1"
                assert (fields["x-forwarded-for"], fields["x-forwarded-proto"]) == (chain, proto)
        with Wire.connect(plane.address()) as client:
            client.send(request("/"))
            assert client.at_end()
