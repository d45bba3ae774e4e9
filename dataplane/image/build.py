"""Makes an image of a spec and the installed code. The same inputs give the same digest."""

from __future__ import annotations

from pathlib import Path

from dataplane.image.abi import host_abi
from dataplane.image.code import code_version, put_code
from dataplane.image.store import Store
from dataplane.model.names import Digest
from dataplane.model.spec import AppSpec


def build_image(store: Store, spec: AppSpec, package_root: Path) -> Digest:
    """The image's digest; when this returns, the image is on disk, whole. Raises `ImageError`, and
    then the store is as it was.

    package_root is the folder that holds the installed `dataplane` package.
    """
    layer = put_code(store, package_root)
    return store.add(spec, host_abi(), layer, code_version(package_root))
