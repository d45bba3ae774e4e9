"""Where a zygote's process begins: it imports all that a worker needs, then `forking` takes over.

Nothing but `os` may be imported before `main` runs, so that it can decide what a fork costs: a
worker's share of memory is what it writes to, and every page less counts for each of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# What these do in a child after a fork is to make new the locks that other threads may have held.
# A zygote has no other threads; looking through their tables would wake some 350 KB a worker.
NEEDLESS_AFTER_FORK = ("threading", "logging")


def main() -> NoReturn:
    """The whole process: `... main() TREE CHANNEL_FD`."""
    with _without_needless_hooks():
        from dataplane.worker import forking
    forking.main(sys.argv[1], int(sys.argv[2]))


@contextmanager
def _without_needless_hooks() -> Iterator[None]:
    register = os.register_at_fork

    def register_needed(**hooks: Callable[[], Any]) -> None:
        if not any(hook.__module__ in NEEDLESS_AFTER_FORK for hook in hooks.values()):
            register(**hooks)

    os.register_at_fork = register_needed  # type: ignore[assignment]
    try:
        yield
    finally:
        os.register_at_fork = register
