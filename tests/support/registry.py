"""A registry of images in this process: as much of the OCI distribution specification as tools need
to push and pull. It holds what it is given against its digest, as a real one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qs, urlsplit

_UPLOAD: Final = "/v2/upload/session"


class _Server(http.server.ThreadingHTTPServer):
    """Mutable: what was pushed, by digest, and which digest each tag names."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._show()

    def do_GET(self) -> None:
        self._show()

    def do_POST(self) -> None:
        self._body()
        self._tell(202, location=_UPLOAD)

    def do_PUT(self) -> None:
        """A blob at the place that its POST was told, or a manifest under its digest or a tag."""
        url = urlsplit(self.path)
        content = self._body()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        name = parse_qs(url.query).get("digest", [url.path.rpartition("/")[2]])[0]
        if name.startswith("sha256:") and name != digest:
            self._tell(400)
            return
        self.server.content[digest] = content
        self.server.tags[name] = digest
        self._tell(201, docker_content_digest=digest, location=f"/v2/it/blobs/{digest}")

    def _show(self) -> None:
        digest = self.server.tags.get(self.path.rpartition("/")[2])
        if digest is None:
            self._tell(404)
        else:
            self._tell(200, self.server.content[digest], docker_content_digest=digest)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _tell(self, status: int, content: bytes = b"", **fields: str) -> None:
        self.send_response(status)
        for name, value in {**fields, "content-length": str(len(content))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def registry() -> Iterator[tuple[int, dict[str, bytes]]]:
    """One that runs: its port, and all that was pushed, by digest."""
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="registry")
        thread.start()
        try:
            yield server.server_address[1], server.content
        finally:
            server.shutdown()
            thread.join()
