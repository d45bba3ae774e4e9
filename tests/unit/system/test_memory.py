"""Giving back empty pages changes nothing that anybody can see."""

from __future__ import annotations

import uvloop

from dataplane.system.memory import give_back_empty_pages


def test_loop_works_as_before_and_holds_less() -> None:
    loop = uvloop.new_event_loop()
    try:
        assert give_back_empty_pages(loop) > 200_000

        async def life() -> str:
            return "alive"

        assert loop.run_until_complete(life()) == "alive"
    finally:
        loop.close()


def test_small_object_has_nothing_to_give() -> None:
    assert give_back_empty_pages(object()) == 0
