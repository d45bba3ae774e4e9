"""Makes an image of a spec and the installed code. The same inputs give the same digest.

What is built here is signed here: an image without a signature starts nowhere.
"""

from __future__ import annotations

from pathlib import Path

from dataplane.image.abi import host_abi
from dataplane.image.code import code_version, put_code
from dataplane.image.keys import Keys
from dataplane.image.prune import builds_lock
from dataplane.image.signing import Provenance, sign_image
from dataplane.image.store import Store
from dataplane.model.names import Digest
from dataplane.model.spec import AppSpec


def build_image(store: Store, spec: AppSpec, package_root: Path) -> Digest:
    """The image's digest; when this returns, the image is on disk, whole. Raises `ImageError`, and
    then the store is as it was.

    package_root is the folder that holds the installed `dataplane` package.
    """
    # Between the two the code layer belongs to no image: nobody may take it for garbage.
    with builds_lock(store, shared=True):
        layer = put_code(store, package_root)
        return store.add(spec, host_abi(), layer, code_version(package_root))


def build_signed(
    store: Store, keys: Keys, spec: AppSpec, package_root: Path, provenance: Provenance
) -> Digest:
    """As `build_image`, and signed by this host's key, which must be there. Raises `ImageError`.

    An image that is there and signed already keeps the provenance of its first build.
    """
    with builds_lock(store, shared=True):
        digest = build_image(store, spec, package_root)
        sign_image(store, keys, digest, provenance)
    return digest
