"""What is decided about an app, and when two plans are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from dataplane.image.apps import BuiltApp
from dataplane.model.diff import Change
from dataplane.model.errors import Finding
from dataplane.model.names import AppName, Digest
from dataplane.supervisor.fleet import App, AppGeneration
from dataplane.supervisor.planning import Plan, Step, decide, in_turn
from dataplane.supervisor.wanted import WantedApp

NAME = AppName("billing")
BLUE = Digest(f"sha256:{'b' * 64}")
GREEN = Digest(f"sha256:{'9' * 64}")
FINDING = Finding(path="billing.yaml", line=3, column=1, message="no", hint=None)
BROKEN = BuiltApp(app=NAME, findings=(FINDING,))
UNWRITTEN = BuiltApp(app=NAME, error="the disk is full")
NEVER = WantedApp()
SERVED = WantedApp(image=BLUE)
STOPPED = WantedApp(image=BLUE, stopped=True)


class _Generation:
    """As much of one as is looked at."""

    def __init__(self, digest: Digest) -> None:
        self.image = cast(Any, type("Image", (), {"digest": digest}))


def built(digest: Digest) -> BuiltApp:
    return BuiltApp(app=NAME, image=digest)


def running(digest: Digest) -> App:
    return App(name=NAME, serving=cast(AppGeneration, _Generation(digest)))


@pytest.mark.parametrize(
    ("app", "entry", "made", "expected"),
    [
        (running(BLUE), SERVED, built(BLUE), ("nothing", BLUE, BLUE)),
        (running(BLUE), SERVED, built(GREEN), ("replace", BLUE, GREEN)),
        (None, NEVER, built(GREEN), ("add", None, GREEN)),
        (None, SERVED, built(BLUE), ("add", BLUE, BLUE)),
        (App(name=NAME), SERVED, built(GREEN), ("add", BLUE, GREEN)),
        (running(BLUE), SERVED, None, ("remove", BLUE, None)),
        (None, SERVED, None, ("remove", BLUE, None)),
        (running(BLUE), SERVED, BROKEN, ("broken", BLUE, None)),
        (None, NEVER, BROKEN, ("broken", None, None)),
        (running(BLUE), SERVED, UNWRITTEN, ("broken", BLUE, None)),
        # Whoever stopped it starts it.
        (None, STOPPED, built(GREEN), ("nothing", BLUE, None)),
        (None, STOPPED, BROKEN, ("nothing", BLUE, None)),
        # It serves: the word to stop it was followed by another.
        (running(BLUE), STOPPED, built(GREEN), ("replace", BLUE, GREEN)),
    ],
)
def test_decision(
    app: App | None, entry: WantedApp, made: BuiltApp | None, expected: tuple[Any, ...]
) -> None:
    step = decide(NAME, app, entry, made, may_remove=True)
    assert step is not None
    assert (step.action, step.before, step.after) == expected


@pytest.mark.parametrize("entry", [NEVER, STOPPED])
def test_app_without_a_file_that_is_not_to_run_is_not_told(entry: WantedApp) -> None:
    assert decide(NAME, None, entry, None, may_remove=True) is None


def test_folder_that_is_not_ours_removes_nothing() -> None:
    step = decide(NAME, running(BLUE), SERVED, None, may_remove=False)
    assert step is not None
    assert step.action == "nothing"
    assert step.note is not None


def test_broken_app_says_why() -> None:
    with_finding = decide(NAME, None, NEVER, BROKEN, may_remove=True)
    with_error = decide(NAME, None, NEVER, UNWRITTEN, may_remove=True)
    assert with_finding is not None
    assert with_finding.findings == (FINDING,)
    assert with_error is not None
    assert with_error.error == "the disk is full"


def plan(*steps: Step) -> Plan:
    return Plan(config_dir=Path("/configs"), steps=steps)


def test_plan_is_named_by_what_it_would_do_alone() -> None:
    replace = Step(app=NAME, action="replace", before=BLUE, after=GREEN)
    idle = Step(app=AppName("idle"), action="nothing", before=BLUE, after=BLUE)
    broken = Step(app=AppName("idle"), action="broken", before=BLUE, findings=(FINDING,))
    change = Change(kind="added", key="workers", before=None, after="2")
    told = Step(app=NAME, action="replace", before=BLUE, after=GREEN, changes=(change,))
    assert plan(replace).name == plan(replace, idle).name == plan(broken, told).name
    others = [
        plan(),
        plan(Step(app=NAME, action="replace", before=GREEN, after=BLUE)),
        plan(Step(app=NAME, action="add", before=BLUE, after=GREEN)),
        plan(Step(app=AppName("shop"), action="replace", before=BLUE, after=GREEN)),
        plan(replace, Step(app=AppName("shop"), action="remove", before=BLUE)),
    ]
    assert len({one.name for one in (*others, plan(replace))}) == len(others) + 1


def step(app: str, takes: str = "", frees: str = "") -> Step:
    return Step(
        app=AppName(app),
        action="replace",
        takes=frozenset(takes.split()),
        frees=frozenset(frees.split()),
    )


def order(*steps: Step) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.app, tuple(apps)) for one, apps in in_turn(steps)]


def test_step_goes_behind_those_whose_addresses_it_takes() -> None:
    assert order(step("a"), step("b")) == [("a", ()), ("b", ())]
    assert order(step("a", takes=":80"), step("b", frees=":80")) == [("b", ()), ("a", ("b",))]
    chain = step("a", takes=":1"), step("b", takes=":2", frees=":1"), step("c", frees=":2")
    assert order(*chain) == [("c", ()), ("b", ("c",)), ("a", ("b",))]


def test_steps_that_wait_for_each_other_are_all_done_once() -> None:
    circle = (
        step("a", takes=":1", frees=":2"),
        step("b", takes=":2", frees=":1"),
        step("c", takes=":2"),
    )
    assert order(*circle) == [("a", ()), ("b", ("a",)), ("c", ("a",))]
