"""Several builders at once, in a state folder that is new to all of them: one key, sound images."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.image.keys import Keys
from dataplane.image.signing import provenance_of, signatures_of, verify_image
from dataplane.image.store import Store
from dataplane.model.names import Digest
from tests.support.dataplane import ROOT, app_config

pytestmark = pytest.mark.slow


def build(state: Path, config: Path, app: str) -> subprocess.CompletedProcess[str]:
    folders = ("--config", str(config), "--state-dir", str(state))
    return subprocess.run(
        [sys.executable, "-m", "dataplane", "build", "--app", app, *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )


def test_builders_that_come_at_once_share_one_key_and_lose_no_signature(tmp_path: Path) -> None:
    state, config = tmp_path / "state", tmp_path / "configs"
    (config / "apps").mkdir(parents=True)
    apps = [f"app-{number}" for number in range(4)]
    for app in apps:
        text = json.dumps(app_config(app=app, mark=app))
        (config / "apps" / f"{app}.yaml").write_text(text)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda app: build(state, config, app), apps * 2))
    assert sum("made a signing key" in one.stderr for one in done) == 1
    store, keys = Store.open(state), Keys(state)
    own = keys.own()
    assert own is not None
    assert keys.trusted() == (own,)
    digests = [Digest(one.stdout.strip()) for one in done]
    assert sorted(store.digests()) == sorted(set(digests))
    for app, digest in zip(apps, digests, strict=False):
        assert verify_image(store, keys, digest) == own.id
        assert len(signatures_of(store, digest)) == 1
        told = provenance_of(store, keys, digest)
        assert told is not None
        (source,) = told.provenance.files
        assert (source.path, source.lines, told.keyid) == (f"apps/{app}.yaml", 1, own.id)
