"""Builds all apps of a config folder in one go; what the store lists need not be made again.

Apps are judged one by one, so that a broken file costs no other app anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dataplane.image.abi import host_abi
from dataplane.image.apps import Batch, BuiltApp, app_names
from dataplane.image.code import code_version, put_code
from dataplane.image.config import folder_findings, load_app
from dataplane.image.store import Store, digest_of
from dataplane.model.errors import ConfigError, ImageError
from dataplane.model.names import APP_NAME, AppName, Digest
from dataplane.model.spec import AppSpec


def build_all(
    store: Store,
    config_dir: Path,
    environment: Mapping[str, str],
    package_root: Path,
    build: Callable[[AppSpec], Digest],
    *,
    take_known: bool,
) -> Batch:
    """`build` makes the images; with `take_known` only of those that the store does not list.

    Raises `ConfigError` for a folder that cannot be read or has no app, `ImageError` for a store
    that takes nothing.
    """
    findings, strays = folder_findings(config_dir), {}
    names = app_names(config_dir)
    if not names:
        raise ConfigError(findings)
    for finding in findings:
        stem = Path(finding.path).stem
        is_app = Path(finding.path).parent == config_dir / "apps" and APP_NAME.fullmatch(stem)
        if is_app and AppName(stem) not in names:
            strays[AppName(stem)] = finding  # under another suffix: it is not gone
    known = _Known(store, package_root) if take_known else None
    built = [_build_one(config_dir, app, environment, known, build) for app in names]
    built += [BuiltApp(app=app, findings=(finding,)) for app, finding in strays.items()]
    return Batch(
        apps=tuple(sorted(built, key=lambda one: one.app)),
        findings=tuple(one for one in findings if one not in strays.values()),
    )


def _build_one(
    config_dir: Path,
    app: AppName,
    environment: Mapping[str, str],
    known: _Known | None,
    build: Callable[[AppSpec], Digest],
) -> BuiltApp:
    try:
        spec = load_app(config_dir, app, environment)
        image = known.image(spec) if known is not None else None
        return BuiltApp(app=app, image=image or build(spec))
    except ConfigError as error:
        return BuiltApp(app=app, findings=error.findings)
    except ImageError as error:
        return BuiltApp(app=app, error=str(error))


class _Known:
    """The images that the store had when this was made, and what names one of this code."""

    def __init__(self, store: Store, package_root: Path) -> None:
        self._store = store
        self._layer = put_code(store, package_root)
        self._version = code_version(package_root)
        self._abi = host_abi()
        self._digests = frozenset(store.digests())

    def image(self, spec: AppSpec) -> Digest | None:
        """The image's digest if it is there; whoever starts it proves that it is sound."""
        try:
            manifest = self._store.manifest(spec, self._abi, self._layer, self._version)
        except OSError:
            return None
        digest = digest_of(manifest)
        config = digest_of(spec.to_json())
        if digest not in self._digests:
            return None
        is_there = all(self._store.blob_path(blob).exists() for blob in (digest, config))
        return digest if is_there else None
