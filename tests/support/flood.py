"""Bytes without end and what came of them, told by their hash, while connections move."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

from tests.support.upstream import Wire

BLOCK = 64 * 1024


class Speaker:
    """Sends blocks that are all different until it is told to stop, then ends its side."""

    def __init__(
        self,
        wire: Wire,
        seed: int,
        *,
        block: int = BLOCK,
        most: int | None = None,
        wrap: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """`wrap` frames a block; what it makes of b"" is sent at the end. Hashed is the content.

        After `most` blocks it waits for its end in silence.
        """
        self._wire = wire
        self._noise = random.Random(seed).randbytes(block)
        self._wrap = wrap
        self._most = most
        self._enough = threading.Event()
        self._hash = hashlib.sha256()
        self.sent = 0
        self.failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            number = 0
            while not self._enough.is_set():
                if number == self._most:
                    self._enough.wait()
                    break
                block = b"%08d" % number + self._noise[8:]
                self._wire.send(self._wrap(block))
                self._hash.update(block)
                self.sent += len(block)
                number += 1
            if end := self._wrap(b""):
                self._wire.send(end)
            self._wire.finish()
        except OSError as error:
            self.failure = error

    def digest(self) -> str:
        """Ends it: the hash of all that was sent."""
        self._enough.set()
        self._thread.join(20)
        assert not self._thread.is_alive(), "what it sends is not taken"
        assert self.failure is None, self.failure
        return self._hash.hexdigest()


class Listener:
    """Reads all that comes until the end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._hash = hashlib.sha256(wire.buffer)
        self.got = len(wire.buffer)
        wire.buffer = b""
        self.failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while data := self._wire.sock.recv(262_144):
                self._hash.update(data)
                self.got += len(data)
        except OSError as error:
            self.failure = error

    def digest(self) -> str:
        """Once the end has come: the hash of all that came before it."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "the end does not come"
        assert self.failure is None, self.failure
        return self._hash.hexdigest()
