"""Nothing starts that is not what a trusted key signed: not by a swap, not after a crash."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest

from dataplane.image.keys import Keys
from dataplane.image.signing import sign_image
from dataplane.image.store import Store
from dataplane.model.names import Digest
from tests.support.dataplane import (
    APP,
    Dataplane,
    app_config,
    eventually,
    wait_gone,
)
from tests.support.wire import Wire


def blob(plane: Dataplane, digest: str) -> Path:
    return plane.state_dir / "images" / "blobs" / "sha256" / digest.removeprefix("sha256:")


def damage(path: Path) -> bytes:
    """One bit, in place."""
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return content


def layers(plane: Dataplane, digest: str) -> dict[str, str]:
    manifest = json.loads(blob(plane, digest).read_bytes())
    config, code = (layer["digest"] for layer in manifest["layers"])
    return {"manifest": digest, "config": config, "code": code, "abi": manifest["config"]["digest"]}


def answers(plane: Dataplane) -> bytes:
    with Wire.connect(plane.address()) as wire:
        return wire.get().body


def crash(plane: Dataplane) -> None:
    pid = plane.worker_pid()
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


# --- keys -------------------------------------------------------------------------------------


def test_first_use_makes_a_key_and_says_so_once(plane: Dataplane) -> None:
    assert "none yet" in plane.cli("keys", "show").out
    plane.configure(app_config())
    first = plane.cli("build", "--app", APP)
    assert first.err.startswith("dataplane: made a signing key")
    assert plane.cli("build", "--app", APP).err == ""
    told = plane.cli("keys", "show", "--json").fact()
    assert told["signing"] in told["trusted"]
    assert told["signing"]["key"][:16] in first.err
    assert not plane.cli("keys", "init", "--json").fact()["made"]


def test_run_makes_a_key_and_says_so(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    assert "dataplane: made a signing key" in plane.log()
    plane.swap(force=True)  # and what was built is signed by it


def test_keys_refuses_what_is_none(plane: Dataplane) -> None:
    plane.cli("keys", "init")
    private = plane.state_dir / "keys" / "signing.pem"
    assert "this is a private key" in plane.cli("keys", "trust", str(private), code=1).err
    assert "cannot read" in plane.cli("keys", "trust", "nowhere", code=1).err
    assert "no key" in plane.cli("keys", "revoke", "0123456789abcdef", code=1).err
    plane.cli("keys", code=64)
    plane.cli("keys", "forget", code=64)
    shown = plane.cli("keys", "show").out + plane.cli("keys", "show", "--json").out
    assert private.read_text().splitlines()[1] not in shown


def test_another_hosts_image_runs_once_its_key_is_trusted(plane: Dataplane, tmp_path: Path) -> None:
    plane.configure(app_config())
    plane.start()
    other = Dataplane(tmp_path / "other")
    foreign = other.build(app_config(mark="foreign"))
    line = other.cli("keys", "show", "--json").fact()["signing"]["public"]
    _carry(other, plane, foreign)
    assert "is not trusted" in plane.swap(foreign, code=422)["error"]
    assert answers(plane) == b"blue"
    plane.cli("keys", "trust", line)
    assert plane.swap(foreign)["outcome"] == "swapped"
    assert answers(plane) == b"foreign"


def _carry(source: Dataplane, target: Dataplane, digest: str) -> None:
    """By hand, as somebody with a shell on the store would: blobs and lines of the index."""
    for path in (source.state_dir / "images" / "blobs" / "sha256").iterdir():
        (target.state_dir / "images" / "blobs" / "sha256" / path.name).write_bytes(
            path.read_bytes()
        )
    indexes = [plane.state_dir / "images" / "index.json" for plane in (source, target)]
    theirs, ours = (json.loads(path.read_bytes()) for path in indexes)
    known = {entry["digest"] for entry in ours["manifests"]}
    ours["manifests"] += [one for one in theirs["manifests"] if one["digest"] not in known]
    assert any(entry["digest"] == digest for entry in ours["manifests"])
    indexes[1].write_text(json.dumps(ours))


# --- swaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["manifest", "config", "code", "abi"])
def test_a_swap_to_a_damaged_image_is_refused_and_names_the_blob(
    plane: Dataplane, which: str
) -> None:
    plane.configure(app_config())
    plane.start()
    green = plane.build(app_config(mark="green"))
    damaged = layers(plane, green)[which]
    damage(blob(plane, damaged))
    failed = plane.swap(green, code=422)
    assert failed["outcome"] == "failed"
    assert damaged.removeprefix("sha256:") in failed["error"]
    assert answers(plane) == b"blue"


def test_an_image_of_an_older_store_is_refused_until_it_is_built_again(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    green = plane.build(app_config(mark="green"))
    index = plane.state_dir / "images" / "index.json"
    content = json.loads(index.read_bytes())
    content["manifests"] = [one for one in content["manifests"] if "artifactType" in one]
    index.write_text(json.dumps(content))
    error = plane.swap(green, code=422)["error"]
    assert "it has no signature; build it again" in error
    assert plane.build() == green
    assert plane.swap(green)["outcome"] == "swapped"


def test_up_tells_which_app_was_refused_and_starts_the_others(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.configure(app_config(mark="shop", app="shop"))
    plane.start("up")
    serving = plane.report()["generations"][0]["image"]
    plane.signal(signal.SIGTERM)
    plane.wait_end()
    config = layers(plane, serving)["config"]
    content = damage(blob(plane, config))
    ready = plane.start("up")
    assert "app=shop" in ready
    assert config.removeprefix("sha256:") in plane.report()["error"]
    assert f"{APP}: " in plane.cli("ps").out
    assert plane.report("shop")["state"] == "serving"
    blob(plane, config).write_bytes(content)
    plane.cli("run", "--app", APP)
    assert "error" not in plane.report()
    assert answers(plane) == b"blue"


def test_a_revoked_key_ends_every_start_until_there_is_another(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    key = plane.cli("keys", "show", "--json").fact()["signing"]["key"]
    plane.cli("keys", "revoke", key[:16])
    assert answers(plane) == b"blue"  # what runs goes on
    assert "is revoked" in plane.swap(plane.report()["wanted"], code=422, force=True)["error"]
    crash(plane)
    refused = plane.event("image.refused", app=APP)
    assert f"the key {key[:16]} is revoked" in refused["error"]
    assert "is revoked" in plane.cli("build", "--app", APP, code=1).err
    plane.cli("keys", "init")
    plane.build()
    eventually(lambda: plane.report()["state"] == "serving")
    assert answers(plane) == b"blue"


# --- crashes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["manifest", "config", "code"])
def test_a_crashed_worker_of_a_damaged_image_is_not_started_until_it_is_whole(
    plane: Dataplane, which: str
) -> None:
    plane.configure(app_config())
    plane.start()
    damaged = blob(plane, layers(plane, plane.report()["wanted"])[which])
    content = damage(damaged)
    crash(plane)
    refused = plane.event("image.refused", app=APP)
    assert damaged.name in refused["error"]
    assert damaged.name in (eventually(lambda: plane.report().get("error")) or "")
    assert plane.workers()[0]["pid"] is None
    assert damaged.name in plane.cli("ps").out
    damaged.write_bytes(content)
    eventually(lambda: plane.report()["state"] == "serving")
    assert "error" not in plane.report()
    assert answers(plane) == b"blue"


def test_a_zygote_is_not_started_from_code_that_is_not_the_layers(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    (tree,) = (plane.state_dir / "code").iterdir()
    folder = tree / "dataplane" / "worker"
    folder.chmod(0o755)
    (folder / "planted.py").write_text("")
    (zygote,) = plane.zygote_pids()
    os.kill(zygote, signal.SIGKILL)
    failed = plane.event("zygote.failed")
    assert f"{folder / 'planted.py'} is not in the image's code" in failed["error"]
    crash(plane)
    assert "planted.py" in plane.event("image.refused", app=APP)["error"]
    assert plane.zygote_pids() == []
    # The hint is true: the folder is made anew.
    for path in (tree, *tree.rglob("*/")):
        path.chmod(0o755)
    tree.rename(plane.folder / "aside")
    eventually(lambda: plane.report()["state"] == "serving")
    assert answers(plane) == b"blue"


# --- mapped files -----------------------------------------------------------------------------


def test_a_zygote_whose_mapped_files_changed_is_replaced_before_it_forks(
    plane: Dataplane,
) -> None:
    plane.configure(app_config())
    plane.start()
    (old,) = plane.zygote_pids()
    (tree,) = (plane.state_dir / "code").iterdir()
    (library,) = (tree / "dataplane" / "engine").glob("_native*.so")
    os.utime(library)  # the same content: trusted, but not the file that the zygote loaded
    with Wire.connect(plane.address()) as wire:
        assert wire.get().body == b"blue"
        assert plane.swap(force=True)["connections"]["reset"] == 0
        assert wire.get().body == b"blue"
    stale = plane.event("zygote.stale", pid=old)
    assert stale["files"] == [str(library)]
    wait_gone(old)
    (new,) = plane.zygote_pids()
    assert new != old
    crash(plane)  # and it is that one's worker
    eventually(lambda: plane.report()["state"] == "serving" and answers(plane) == b"blue")
    assert plane.zygote_pids() == [new]


def test_workers_of_replaced_files_are_marked_until_they_are_replaced(plane: Dataplane) -> None:
    """Before anybody asks for a fork: an operator sees what an upgrade of the host calls for."""
    plane.configure(app_config())
    plane.configure(app_config(mark="shop", app="shop"))
    plane.start("up")
    gauge = "dataplane_workers_stale"
    assert [plane.metric(gauge, app) for app in (APP, "shop")] == [0, 0]
    assert "stale" not in plane.cli("ps").out
    (tree,) = (plane.state_dir / "code").iterdir()
    (library,) = (tree / "dataplane" / "engine").glob("_native*.so")
    os.utime(library)
    assert [plane.metric(gauge, app) for app in (APP, "shop")] == [1, 1]
    assert [plane.workers(app)[0]["stale"] for app in (APP, "shop")] == [[str(library)]] * 2
    hint = f"{APP}: stale, since {library} changed on disk: dataplane swap --force --app {APP}\n"
    assert hint in plane.cli("ps").out
    plane.cli("swap", "--force", "--app", APP)
    assert [plane.metric(gauge, app) for app in (APP, "shop")] == [0, 1]
    (fresh,), (left,) = plane.workers(), plane.workers("shop")
    assert (fresh["stale"], left["stale"]) == ([], [str(library)])


def test_workers_outlive_a_stale_zygote_and_their_end_is_told(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.configure(app_config(mark="shop", app="shop"))
    plane.start("up")
    (old,) = plane.zygote_pids()
    (tree,) = (plane.state_dir / "code").iterdir()
    (library,) = (tree / "dataplane" / "engine").glob("_native*.so")
    os.utime(library)
    plane.swap(force=True)
    wait_gone(old)
    (worker,) = plane.workers("shop")
    assert worker["stale"] == [str(library)]  # also with its zygote gone
    os.kill(worker["pid"], signal.SIGKILL)
    ended = plane.event("worker.ended", app="shop")
    assert ended["status"] == "killed by SIGKILL"
    eventually(lambda: plane.report("shop")["state"] == "serving")


# --- another interpreter ----------------------------------------------------------------------


def of_another_python(plane: Dataplane, digest: str, *, signed: bool) -> Digest:
    """The same image as an upgrade of the host's Python leaves it: of an ABI that is gone."""
    store = Store(plane.state_dir)
    image = store.image(Digest(digest))
    abi = dataclasses.replace(image.abi, interpreter="cpython-27")
    made = store.add(image.spec, abi, image.code_layer, image.code_version)
    if signed:
        sign_image(store, Keys(plane.state_dir), made)
    return made


def test_an_image_of_another_python_is_made_anew_from_its_own_config(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    green = plane.build(app_config(mark="green"))
    plane.configure(app_config(mark="by now another"))
    old = of_another_python(plane, green, signed=True)
    ledger = plane.swap(old)
    assert (ledger["outcome"], ledger["to"]["image"]) == ("swapped", green)
    assert answers(plane) == b"green"
    assert plane.event("image.rebuilt", app=APP)["former"] == old


def test_an_image_of_another_python_that_nobody_signed_is_not_made_anew(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    old = of_another_python(plane, plane.report()["wanted"], signed=False)
    assert "it has no signature" in plane.swap(old, code=422, force=True)["error"]
