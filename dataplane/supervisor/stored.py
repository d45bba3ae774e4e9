"""What the supervisor tells of the store, and what of it the supervisor needs.

Never the config of an image: it holds values of the environment, and whoever may read the socket
need not be one who may read those.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dataplane.image.listing import find_image, image_facts, read_entries
from dataplane.image.prune import Uses, merge_uses, wanted_images
from dataplane.image.store import Store
from dataplane.model.names import Digest
from dataplane.supervisor.fleet import Fleet


class Stored:
    """The store as it is whenever it is asked."""

    def __init__(self, *, store: Store, fleet: Fleet) -> None:
        self._store, self._fleet = store, fleet

    async def images(self) -> list[dict[str, Any]]:
        """All images, oldest first. Raises `ImageError`."""
        return await asyncio.to_thread(self._images, self.uses(), None)

    async def image(self, text: str) -> dict[str, Any]:
        """The image whose digest begins so. Raises `ImageError`."""
        (found,) = await asyncio.to_thread(self._images, self.uses(), text)
        return found

    def uses(self) -> Uses:
        """What runs, or is about to, by image."""
        uses: dict[Digest, tuple[str, ...]] = {}
        for app in self._fleet.apps.values():
            for generation in app.generations:
                text = f"{app.name} runs it (generation {generation.number}, {generation.state})"
                uses = {**merge_uses(uses, {generation.image.digest: (text,)})}
            for rolling in app.rollouts:
                coming = rolling.image.digest if rolling.image is not None else rolling.wish.image
                if coming is not None:
                    uses = {**merge_uses(uses, {coming: (f"{app.name} is about to run it",)})}
        return uses

    def _images(self, uses: Uses, text: str | None) -> list[dict[str, Any]]:
        only = None if text is None else find_image(self._store, text)
        every = merge_uses(uses, wanted_images(self._store.state_dir).all())
        return [
            image_facts(self._store, entry, every.get(entry.digest, ()))
            | {"runs": list(uses.get(entry.digest, ()))}
            for entry in read_entries(self._store)
            if only in (None, entry.digest)
        ]
