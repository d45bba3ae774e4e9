"""Waiting until a descriptor can be read or written, for what no stream of the loop stands for."""

from __future__ import annotations

import asyncio


async def readable(fd: int) -> None:
    """Returns when reading would not wait: data, end-of-file, an error, or a pidfd's death."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _set_ready, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Returns when writing would not wait."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, _set_ready, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _set_ready(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
