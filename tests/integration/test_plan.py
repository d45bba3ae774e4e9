"""Building all at once, and planning and applying at the supervisor's socket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dataplane.image.apps import Batch
from dataplane.image.batch import build_all
from dataplane.image.build import build_image
from dataplane.image.store import Store
from dataplane.model.errors import ConfigError, ImageError, LaunchError
from dataplane.model.names import Digest
from dataplane.model.spec import AppSpec
from dataplane.supervisor.images import Images
from tests.support.dataplane import ROOT, Dataplane, Json, app_config, eventually, wait_gone
from tests.support.wire import Wire

pytestmark = pytest.mark.slow


@pytest.fixture
def plane() -> Iterator[Dataplane]:
    """Folders of its own; what was started is ended, and nothing may be left of it."""
    folder = Path(tempfile.mkdtemp())
    made = Dataplane(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


# --- building all ------------------------------------------------------------------------------


class Builder:
    """Builds as the command does, without a signature, and counts. Mutable."""

    def __init__(self, folder: Path) -> None:
        self.config_dir = folder / "configs"
        (self.config_dir / "apps").mkdir(parents=True)
        self.store = Store.open(folder / "state")
        self.built: list[str] = []

    def write(self, app: str, **more: Any) -> Path:
        return self.write_text(app, json.dumps(app_config(app=app, **more)))

    def write_text(self, app: str, text: str, suffix: str = ".yaml") -> Path:
        path = self.config_dir / "apps" / f"{app}{suffix}"
        path.write_text(text)
        return path

    def build(self, *, take_known: bool = True) -> Batch:
        def build(spec: AppSpec) -> Digest:
            self.built.append(spec.app)
            return build_image(self.store, spec, ROOT)

        self.built.clear()
        return build_all(self.store, self.config_dir, {}, ROOT, build, take_known=take_known)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_only_what_the_store_does_not_list_is_built(builder: Builder) -> None:
    for app in ("a", "b", "c"):
        builder.write(app)
    first = builder.build()
    assert builder.built == ["a", "b", "c"]
    before = (builder.store.folder / "index.json").stat().st_mtime_ns
    assert builder.build() == first
    assert builder.built == []
    builder.write("b", mark="green")
    second = builder.build()
    assert builder.built == ["b"]
    assert (builder.store.folder / "index.json").stat().st_mtime_ns != before
    assert [one.image for one in second.apps][::2] == [one.image for one in first.apps][::2]
    assert second.apps[1].image != first.apps[1].image


def test_images_are_those_that_the_build_of_one_app_makes(builder: Builder) -> None:
    builder.write("a")
    builder.build()
    known = builder.build()
    assert builder.built == []
    assert builder.build(take_known=False) == known
    assert builder.built == ["a"]


@pytest.mark.parametrize("layer", ["manifest", "config"])
def test_image_whose_blob_is_gone_is_built_again(builder: Builder, layer: str) -> None:
    builder.write("a")
    (one,) = builder.build().apps
    assert one.image is not None
    image = builder.store.image(one.image)
    lost = image.digest if layer == "manifest" else image.config_layer
    builder.store.blob_path(lost).unlink()
    (again,) = builder.build().apps
    assert builder.built == ["a"]
    assert again == one
    assert builder.store.image(one.image) == image


def test_broken_file_costs_no_other_app_its_image(builder: Builder) -> None:
    builder.write("a")
    builder.write_text("b", "version: 1\napp: b\nlisteners: 3\n")
    builder.write("c")
    batch = builder.build()
    assert [one.app for one in batch.apps if one.image] == ["a", "c"]
    findings = batch.apps[1].findings
    assert findings
    assert (Path(findings[0].path).name, findings[0].line > 0) == ("b.yaml", True)


def test_store_that_fails_for_one_app_fails_for_no_other(builder: Builder) -> None:
    builder.write("a")
    builder.write("b")

    def build(spec: AppSpec) -> Digest:
        if spec.app == "a":
            raise ImageError("the disk is full")
        return build_image(builder.store, spec, ROOT)

    batch = build_all(builder.store, builder.config_dir, {}, ROOT, build, take_known=True)
    assert batch.apps[0].error == "the disk is full"
    assert batch.apps[1].image is not None


@pytest.mark.parametrize("is_there", [False, True])
def test_folder_without_an_app_is_no_word_to_remove_all(builder: Builder, is_there: bool) -> None:
    if not is_there:
        (builder.config_dir / "apps").rmdir()
    with pytest.raises(ConfigError):
        builder.build()


def test_file_under_another_suffix_is_a_broken_app_and_no_missing_one(builder: Builder) -> None:
    builder.write("a")
    builder.write_text("b", "version: 1", suffix=".yml")
    batch = builder.build()
    assert [(one.app, bool(one.findings)) for one in batch.apps] == [("a", False), ("b", True)]
    assert batch.findings == ()


def test_file_that_can_name_no_app_is_told_for_the_folder(builder: Builder) -> None:
    builder.write("a")
    builder.write_text("No_App", "version: 1")
    batch = builder.build()
    assert [one.app for one in batch.apps] == ["a"]
    (finding,) = batch.findings
    assert finding.path.endswith("No_App.yaml")


# --- the builder's word -------------------------------------------------------------------------


def asked(tmp_path: Path, says: str, status: int = 0) -> Batch:
    """What the supervisor makes of a builder that says so; it may be started only once."""
    script = tmp_path / "builder.py"
    script.write_text(
        "import os, sys\n"
        f"os.mkdir({str(tmp_path / 'started')!r})\n"
        f"print({says!r}); print('the reason', file=sys.stderr); sys.exit({status})\n"
    )
    images = Images(
        state_dir=tmp_path / "state", environment={}, build_command=(sys.executable, str(script))
    )
    return asyncio.run(images.build_all(tmp_path, {}))


def test_all_apps_are_checked_by_one_child(tmp_path: Path) -> None:
    image = f"sha256:{'a' * 64}"
    finding = {"path": "b.yaml", "line": 1, "column": 1, "message": "no", "hint": None}
    apps = [
        {"app": "a", "image": image, "findings": [], "error": None},
        {"app": "b", "image": None, "findings": [finding], "error": None},
    ]
    batch = asked(tmp_path, json.dumps({"apps": apps, "findings": []}), status=78)
    assert [one.image for one in batch.apps] == [image, None]
    assert batch.apps[1].findings[0].path == "b.yaml"


def test_findings_of_the_folder_are_a_config_error(tmp_path: Path) -> None:
    finding = {"path": "apps", "line": 0, "column": 0, "message": "no folder", "hint": None}
    with pytest.raises(ConfigError, match="no folder"):
        asked(tmp_path, json.dumps({"findings": [finding]}), status=78)


@pytest.mark.parametrize(
    ("says", "status", "error"),
    [
        ("", 1, ImageError),
        ("[]", 0, ImageError),
        ('{"apps": 3, "findings": []}', 0, LaunchError),
        ('{"apps": [{"app": "a"}], "findings": []}', 0, LaunchError),
    ],
)
def test_builder_that_breaks_is_an_error_and_no_empty_folder(
    tmp_path: Path, says: str, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        asked(tmp_path, says, status)


# --- at the socket -----------------------------------------------------------------------------


def plan(plane: Dataplane, **body: Any) -> Json:
    told = plane.call("POST", "/v1/plan", body)
    assert told.status == 200, told
    answer: Json = told.body
    return answer


def actions(answer: Json) -> dict[str, str]:
    return {step["app"]: step["action"] for step in answer["apps"]}


def results(answer: Json) -> dict[str, str]:
    return {one["app"]: one["result"] for one in answer["apps"]}


def answer_of(plane: Dataplane, app: str) -> bytes:
    with Wire.connect(plane.address(app=app)) as client:
        return client.get().body


def test_answers_are_as_the_document_describes_them(plane: Dataplane) -> None:
    for app in ("changed", "gone", "same", "broken"):
        plane.configure(app_config(app=app))
    plane.start("up")
    plane.configure(app_config(app="changed", mark="green"))
    plane.configure(app_config(app="new"))
    (plane.config_dir / "apps" / "broken.yaml").write_text("version: 1\nnonsense: 1\n")
    (plane.config_dir / "apps" / "gone.yaml").unlink()
    document = plane.call("GET", "/v1/openapi.json").body

    def holds(schema: str, value: Any) -> None:
        root = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
        jsonschema.Draft202012Validator(root).validate(value)

    planned = plan(plane)
    holds("Plan", planned)
    assert actions(planned) == {
        "broken": "broken", "changed": "replace", "gone": "remove", "new": "add", "same": "nothing",
    }  # fmt: skip
    applied = plane.call("POST", "/v1/apply", {"plan": planned["plan"]}).body
    holds("Applied", applied)
    assert results(applied) == {
        "broken": "broken", "changed": "swapped", "gone": "removed", "new": "started",
        "same": "nothing",
    }  # fmt: skip
    assert applied["plan"] == planned["plan"]
    assert actions(plan(plane)) == {
        "broken": "broken", "changed": "nothing", "new": "nothing", "same": "nothing",
    }  # fmt: skip


def test_plan_that_would_do_something_else_by_now_is_refused_whole(plane: Dataplane) -> None:
    for app in ("one", "two"):
        plane.configure(app_config(app=app))
    plane.start("up")
    plane.configure(app_config(app="one", mark="green"))
    planned = plan(plane)
    plane.configure(app_config(app="two", mark="green"))
    refused = plane.call("POST", "/v1/apply", {"plan": planned["plan"]})
    assert refused.status == 409
    assert (answer_of(plane, "one"), answer_of(plane, "two")) == (b"blue", b"blue")
    assert plan(plane)["plan"] != planned["plan"]


def test_plan_is_refused_after_a_swap_by_somebody_else(plane: Dataplane) -> None:
    other = plane.build(app_config(mark="other"))
    plane.configure(app_config())
    plane.start("up")
    plane.configure(app_config(mark="green"))
    planned = plan(plane)
    plane.swap(other)
    assert plane.call("POST", "/v1/apply", {"plan": planned["plan"]}).status == 409


def test_failed_swap_stops_no_other(plane: Dataplane) -> None:
    for app in ("one", "two"):
        plane.configure(app_config(app=app))
    plane.start("up")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        plane.configure(app_config(app="one", mark="green", bind=taken))
        plane.configure(app_config(app="two", mark="green"))
        applied = plane.call("POST", "/v1/apply", {}).body
    assert results(applied) == {"one": "failed", "two": "swapped"}
    assert taken in next(one["error"] for one in applied["apps"] if one["app"] == "one")
    assert (answer_of(plane, "one"), answer_of(plane, "two")) == (b"blue", b"green")


def test_another_folder_adds_and_replaces_but_removes_nothing(plane: Dataplane) -> None:
    for app in ("one", "two"):
        plane.configure(app_config(app=app))
    plane.start("up")
    other = plane.folder / "other"
    (other / "apps").mkdir(parents=True)
    (other / "apps" / "one.yaml").write_text(json.dumps(app_config(app="one", mark="green")))
    assert actions(plan(plane, config_dir=str(other))) == {"one": "replace", "two": "nothing"}
    assert plane.report("one")["pending"] is False


def test_environment_is_the_askers(plane: Dataplane) -> None:
    config = app_config()
    config["routes"][0]["respond"]["body"] = "${WORD}"
    plane.configure(config)
    plane.configure(app_config(app="other"))
    plane.start("up", "--app", "other")
    body = {"environment": {"WORD": "asked"}}
    assert plane.call("POST", "/v1/apply", body).status == 200
    assert answer_of(plane, "billing") == b"asked"


def test_image_that_was_damaged_in_the_store_is_built_again(plane: Dataplane) -> None:
    green = plane.build(app_config(mark="green"))
    plane.configure(app_config())
    plane.start("up")
    blob = plane.state_dir / "images" / "blobs" / "sha256" / green.removeprefix("sha256:")
    layer = json.loads(blob.read_bytes())["layers"][0]["digest"].removeprefix("sha256:")
    damaged = blob.with_name(layer)
    damaged.chmod(0o644)
    damaged.write_bytes(b"{}")
    plane.configure(app_config(mark="green"))
    assert actions(plan(plane)) == {"billing": "replace"}
    assert results(plane.call("POST", "/v1/apply", {}).body) == {"billing": "swapped"}
    assert answer_of(plane, "billing") == b"green"


def test_removed_app_is_told_in_no_list_and_its_numbers_go_on(plane: Dataplane) -> None:
    for app in ("stays", "goes"):
        plane.configure(app_config(app=app))
    plane.start("up")
    pid = plane.worker_pid("goes")
    file = plane.config_dir / "apps" / "goes.yaml"
    text = file.read_text()
    file.unlink()
    assert results(plane.call("POST", "/v1/apply", {}).body)["goes"] == "removed"
    wait_gone(pid)
    assert [app["app"] for app in plane.call("GET", "/v1/apps").body["apps"]] == ["stays"]
    file.write_text(text)
    assert results(plane.call("POST", "/v1/apply", {}).body)["goes"] == "started"
    (generation,) = plane.report("goes")["generations"]
    assert generation["generation"] == 2


def test_hangup_after_hangup_applies_what_the_files_say_at_last(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start("up")
    for mark in ("one", "two", "three"):
        plane.configure(app_config(mark=mark))
        os.kill(plane.pid, signal.SIGHUP)
    eventually(lambda: answer_of(plane, "billing") == b"three")
    plane.event("apply.ended", failed=0)


def test_hangup_with_a_folder_that_is_gone_changes_nothing(plane: Dataplane) -> None:
    plane.configure(app_config())
    plane.start("up")
    pid = plane.worker_pid()
    plane.config_dir.rename(plane.folder / "away")
    os.kill(plane.pid, signal.SIGHUP)
    assert "no such folder" in plane.event("apply.failed")["error"]
    assert plane.worker_pid() == pid
