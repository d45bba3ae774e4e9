"""The store from a shell: what is told, proven and refused, and what others can read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.image.keys import Keys
from dataplane.image.running import (
    CLOCK_SLACK_SECONDS,
    Point,
    Verdict,
    prove_worker,
    started_at,
)
from dataplane.image.store import Store
from dataplane.model.names import Digest
from tests.support.dataplane import APP, Dataplane, app_config, eventually, wait_gone
from tests.support.registry import registry
from tests.support.wire import Wire

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a worker")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


@pytest.fixture
def other() -> Iterator[Dataplane]:
    """Another host."""
    folder = Path(tempfile.mkdtemp())
    made = Dataplane(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def trust(other: Dataplane, plane: Dataplane) -> None:
    """The other host runs what this one has built."""
    own = Keys(plane.state_dir).own()
    assert own is not None
    other.cli("keys", "trust", own.line())


# --- telling ----------------------------------------------------------------------------------


def test_every_verb_has_help_with_an_example(plane: Dataplane) -> None:
    for verb in ("ls", "inspect", "verify", "rm", "prune", "export", "import"):
        told = plane.cli("image", verb, "--help")
        assert f"example: dataplane image {verb}" in told.out
    assert "dataplane image prune" in plane.cli("image", "--help").out
    assert plane.cli("image", "frobnicate", code=64).err
    assert plane.cli("image", code=64, folders=False).err
    assert plane.cli("image", "prune", "--keep", "-1", code=64).err
    assert plane.cli("image", "verify", "--app", APP, "3f9a1c0b77d2", code=64).err


def test_images_are_listed_and_inspected_with_and_without_a_supervisor(plane: Dataplane) -> None:
    first = plane.build(app_config(mark="one"))
    second = plane.build(app_config(mark="two"))
    plane.build(app_config(app="shop"), app="shop")
    told = plane.cli("image", "ls", "--json").fact()["images"]
    assert [one["app"] for one in told] == [APP, APP, "shop"]
    table = plane.cli("image", "ls", "--app", APP).out.splitlines()
    assert [line.split()[0] for line in table[1:]] == [first[7:19], second[7:19]]

    facts = plane.cli("image", "inspect", first[7:17], "--json").fact()
    assert (facts["image"], facts["app"], facts["uses"]) == (first, APP, [])
    assert facts["signed"]["trusted"] in facts["signed"]["by"]
    assert facts["provenance"]["provenance"]["files"][0]["path"].endswith(f"{APP}.yaml")
    assert facts["spec"]["routes"][0]["respond"]["body"] == "one"
    assert "not a digest" in plane.cli("image", "inspect", "xyz", code=1).err
    assert "no image" in plane.cli("image", "inspect", "0" * 64, code=1).err

    plane.start()
    plane.swap(first)
    facts = plane.cli("image", "inspect", first, "--json").fact()
    assert any("runs it" in use for use in facts["uses"])


def test_the_socket_tells_of_images_and_never_of_their_config(plane: Dataplane) -> None:
    """Whoever may read the socket need not be one who may read the environment."""
    plane.configure(app_config(mark="confidential"))
    plane.start()
    told = plane.call("GET", "/v1/images")
    assert told.status == 200
    (image,) = told.body["images"]
    assert image["runs"]
    one = plane.call("GET", f"/v1/images/{image['image']}")
    assert (one.status, one.body) == (200, image)
    assert "confidential" not in json.dumps(told.body)
    assert plane.call("GET", "/v1/images/sha256:" + "0" * 64).status == 404
    assert plane.call("GET", "/v1/images/latest").status == 422
    assert plane.call("DELETE", f"/v1/images/{image['image']}").status == 405


# --- proving the store ------------------------------------------------------------------------


def test_a_sound_store_verifies_and_a_damaged_one_says_what_is_wrong(plane: Dataplane) -> None:
    digest = plane.build(app_config())
    assert "whole" in plane.cli("image", "verify").out
    assert plane.cli("image", "verify", "--json").fact()["sound"] is True
    assert digest in plane.cli("image", "verify", digest).out
    image = Store(plane.state_dir).image(Digest(digest))
    blob = Store(plane.state_dir).blob_path(image.config_layer)
    content = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(content.replace(b"billing", b"billinG"))
    for words in ((), (digest,)):
        assert image.config_layer[7:19] in plane.cli("image", "verify", *words, code=1).err
    facts = plane.cli("image", "verify", "--json", code=1).fact()
    assert facts["sound"] is False
    plane.build()  # what was damaged is put there again
    assert plane.cli("image", "verify").err == ""


def test_an_image_of_a_revoked_key_does_not_verify(plane: Dataplane) -> None:
    digest = plane.build(app_config())
    key = plane.cli("image", "inspect", digest, "--json").fact()["signed"]["trusted"]
    plane.cli("keys", "revoke", key)
    assert "revoked" in plane.cli("image", "verify", digest, code=1).err
    assert "revoked" in plane.cli("image", "verify", code=1).err


# --- removing ---------------------------------------------------------------------------------


def test_what_runs_is_never_removed_and_the_rest_is(plane: Dataplane) -> None:
    old = plane.build(app_config(mark="old"))
    plane.configure(app_config(mark="blue"))
    plane.start()
    blue = plane.report()["wanted"]
    plane.swap(plane.build(app_config(mark="green")))
    green = plane.report()["wanted"]
    refused = plane.cli("image", "rm", green, "--force", code=1)
    assert f"{APP} runs it" in refused.err
    refused = plane.cli("image", "rm", blue, old, "--json", code=1)
    assert "may be rolled back to" in refused.err
    assert refused.fact()["images"] == [old]  # one that is refused keeps no other
    unused = plane.build(app_config(mark="unused"))
    told = plane.cli("image", "prune", "--keep", "0", "--dry-run", "--json").fact()
    assert told["images"] == [unused]
    assert plane.cli("image", "prune", "--keep", "0", "--json").fact() == told
    assert plane.cli("image", "verify").err == ""
    plane.cli("rollback", "--app", APP)
    with Wire.connect(plane.address()) as client:
        assert client.get().body == b"blue"


def test_prune_refuses_where_the_supervisor_cannot_be_asked(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    elsewhere = ("--run-dir", str(plane.folder / "elsewhere"))
    words = ("image", "prune", *elsewhere, "--state-dir", str(plane.state_dir))
    told = plane.cli(*words, code=1, folders=False)
    assert f"pid {plane.pid}" in told.err
    assert "--run-dir" in told.err


def test_what_a_dead_supervisor_left_running_is_kept(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    serving = plane.report()["wanted"]
    worker = plane.worker_pid()
    zygotes = plane.zygote_pids()
    plane.signal(signal.SIGKILL)
    plane.wait_end()
    assert plane.cli("image", "prune", "--keep", "0", "--json").fact()["images"] == []
    assert "serves with it" in plane.cli("image", "rm", serving, code=1).err
    for pid in (worker, *zygotes):
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
    plane.cli("down")


# --- between hosts ----------------------------------------------------------------------------


def test_an_image_moves_to_another_host_and_runs_there(plane: Dataplane, other: Dataplane) -> None:
    digest = plane.build(app_config(mark="moved"))
    tar = plane.folder / "billing.tar"
    assert plane.cli("image", "export", digest, str(tar), "--json").fact()["image"] == digest
    assert tar.stat().st_mode & 0o077 == 0  # it holds what the environment was
    refused = other.cli("image", "import", str(tar), code=1)
    assert "not trusted" in refused.err
    assert other.cli("image", "ls", "--json").fact()["images"] == []
    trust(other, plane)
    assert other.cli("image", "import", str(tar)).out == f"{digest}\n"
    assert other.cli("image", "import", str(tar), "--json").fact()["new"] is False
    other.configure(app_config(mark="own"))
    other.start()
    other.swap(digest)
    with Wire.connect(other.address()) as client:
        assert client.get().body == b"moved"


def test_an_export_goes_through_a_pipe(plane: Dataplane, other: Dataplane) -> None:
    digest = plane.build(app_config())
    trust(other, plane)
    with subprocess.Popen(
        plane.command("image", "export", digest, "-"), stdout=subprocess.PIPE
    ) as export:
        taken = subprocess.run(
            other.command("image", "import", "-"), stdin=export.stdout, capture_output=True
        )
    assert (taken.returncode, taken.stdout.decode()) == (0, f"{digest}\n"), taken.stderr


def test_a_tar_that_was_tampered_with_is_refused(plane: Dataplane, other: Dataplane) -> None:
    digest = plane.build(app_config(mark="honest"))
    tar = plane.folder / "billing.tar"
    plane.cli("image", "export", digest, str(tar))
    trust(other, plane)
    tar.write_bytes(tar.read_bytes().replace(b"honest", b"wicked"))
    assert "not what its name says" in other.cli("image", "import", str(tar), code=1).err
    assert "cannot read" in other.cli("image", "import", "/nowhere.tar", code=1).err
    assert other.cli("image", "ls", "--json").fact()["images"] == []


@needs_skopeo
def test_skopeo_reads_and_copies_an_export_and_what_it_copied_is_taken(
    plane: Dataplane, other: Dataplane
) -> None:
    digest = plane.build(app_config())
    tar, copy, again = (plane.folder / name for name in ("billing.tar", "copy", "again.tar"))
    plane.cli("image", "export", digest, str(tar))
    raw = skopeo("inspect", "--raw", f"oci-archive:{tar}:{APP}")
    assert raw == Store(plane.state_dir).get(Digest(digest))
    assert skopeo("manifest-digest", "/dev/stdin", given=raw).decode().strip() == digest
    referrers = digest.replace(":", "-")
    skopeo("copy", f"oci-archive:{tar}:{APP}", f"oci:{copy}:{APP}")
    skopeo("copy", "--all", f"oci-archive:{tar}:{referrers}", f"oci:{copy}:{referrers}")
    subprocess.run(["tar", "-cf", again, "-C", copy, "."], check=True)
    trust(other, plane)
    assert other.cli("image", "import", str(again)).out == f"{digest}\n"
    assert other.cli("image", "verify", digest).err == ""
    # Without what refers to it, it is an image of nobody.
    alone = plane.folder / "alone.tar"
    skopeo("copy", f"oci-archive:{tar}:{APP}", f"oci-archive:{alone}:{APP}")
    assert "not signed" in other.cli("image", "import", str(alone), code=1).err


def skopeo(*words: str, given: bytes | None = None) -> bytes:
    """What it printed."""
    ended = subprocess.run(["skopeo", *words], input=given, capture_output=True, timeout=30)
    assert ended.returncode == 0, (words, ended.stderr)
    return ended.stdout


def test_oras_reads_and_copies_an_export_and_what_it_copied_is_taken(
    plane: Dataplane, other: Dataplane
) -> None:
    """Into a registry and out again, with the list of what refers to the image."""
    layout = pytest.importorskip("oras.layout")
    provider = pytest.importorskip("oras.provider")
    digest = plane.build(app_config())
    tar, read, copy, again = (plane.folder / name for name in ("it.tar", "read", "copy", "2.tar"))
    plane.cli("image", "export", digest, str(tar))
    with tarfile.open(tar) as opened:
        opened.extractall(read, filter="data")
    exported = layout.NewLayout(str(read))  # which validates it
    blobs = {f"sha256:{path.name}" for path in (read / "blobs" / "sha256").iterdir()}
    tags = (APP, digest.replace(":", "-"))
    needed = [exported.get_ordered_blobs(tag) for tag in tags]
    assert needed[0][-1] == digest
    assert set().union(*needed) == blobs

    lines = []
    with registry() as (port, pushed):
        there = provider.Registry(hostname=f"127.0.0.1:{port}", insecure=True)
        for tag in tags:
            exported.push_to_registry(there, f"127.0.0.1:{port}/it:{tag}", tag)
        assert pushed.keys() == blobs
        copied = layout.Layout(str(copy), validate=False)
        for tag in tags:
            copied.pull_from_registry(there, f"127.0.0.1:{port}/it:{tag}", tag)
            lines += json.loads((copy / "index.json").read_bytes())["manifests"]
    (copy / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": lines}))
    subprocess.run(["tar", "-cf", again, "-C", copy, "."], check=True)
    trust(other, plane)
    assert other.cli("image", "import", str(again)).out == f"{digest}\n"
    assert other.cli("image", "verify", digest).err == ""


# --- proving what runs ------------------------------------------------------------------------


def points(plane: Dataplane, code: int = 0) -> dict[str, tuple[str, str]]:
    """What is said of the only worker: by point, the verdict and the detail."""
    facts = plane.cli("image", "verify", "--app", APP, "--json", code=code).fact()
    (worker,) = facts["workers"]
    assert worker["pid"] == plane.worker_pid()
    assert facts["limits"]
    found = {one["what"]: (one["verdict"], one["detail"]) for one in worker["points"]}
    assert facts["proven"] == all(verdict == "proven" for verdict, _ in found.values())
    return found


@needs_root
def test_a_running_worker_is_proven_to_be_its_image(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    for _ in range(2):
        found = points(plane)
        assert {verdict for verdict, _ in found.values()} == {"proven"}, found
        assert found.keys() == {
            "image", "code on disk", "command", "config", "code in memory", "seal",
        }  # fmt: skip
        plane.swap(force=True)
    told = plane.cli("image", "verify", "--app", APP).out
    assert "Not to be proven from outside" in told
    assert re.search(r"proven +config: .*sealed memory file", told)


@needs_root
def test_code_that_was_changed_under_a_worker_is_told(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    (tree,) = (plane.state_dir / "code").glob("[0-9a-f]*")
    module = tree / "dataplane" / "worker" / "serving.py"
    content = module.read_bytes()
    module.chmod(0o644)
    module.write_bytes(content + b"# more\n")
    assert points(plane, code=1)["code on disk"][0] == "refuted"
    module.write_bytes(content)
    module.chmod(0o444)
    (zygote,) = plane.zygote_pids()

    def changed_later() -> bool:
        os.utime(module, (1, 1))  # its times can be set back, but for the kernel's own
        return module.stat().st_ctime > started_at(zygote) + CLOCK_SLACK_SECONDS

    eventually(changed_later)
    verdict, detail = points(plane)["code on disk"]
    assert (verdict, "was changed after" in detail) == ("unproven", True)


@needs_root
def test_a_worker_of_another_image_is_not_taken_for_it(plane: Dataplane) -> None:
    other = plane.build(app_config(mark="other"))
    plane.configure(app_config())
    plane.start()
    store = Store(plane.state_dir)
    image = store.image(Digest(other))
    found = by_name(prove_worker(store, Keys(plane.state_dir), image, plane.worker_pid()))
    assert found["config"].verdict is Verdict.REFUTED
    assert found["image"].verdict is Verdict.PROVEN


@needs_root
def test_another_program_is_not_taken_for_a_worker(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    store = Store(plane.state_dir)
    image = store.image(Digest(plane.report()["wanted"]))
    found = by_name(prove_worker(store, Keys(plane.state_dir), image, os.getpid()))
    for what in ("command", "code in memory", "seal"):
        assert found[what].verdict is Verdict.REFUTED, found[what]
    assert found["config"].verdict is Verdict.UNPROVEN


def by_name(found: tuple[Point, ...]) -> dict[str, Point]:
    return {point.what: point for point in found}


def test_an_app_that_does_not_run_has_nothing_to_prove(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start()
    plane.cli("stop", "--app", APP)
    assert "does not run" in plane.cli("image", "verify", "--app", APP, code=1).err
    assert plane.cli("image", "verify", "--app", "none", code=1).err
