"""`dataplane bench`: load on an app that runs here, on no other address, with a report."""

from __future__ import annotations

import json

import pytest

from tests.support.dataplane import APP, Dataplane, app_config
from tests.support.load import token_upstream
from tests.support.rig import unused_port

pytestmark = pytest.mark.usefixtures("load_tools")


def test_a_running_app_is_loaded_and_the_report_adds_up(plane: Dataplane) -> None:
    with token_upstream() as port:
        plane.configure(app_config(port))
        plane.start()
        ran = plane.cli("bench", "--app", APP, "--seconds", "1", "--connections", "8", "--json")
        told = json.loads(ran.out)
        assert (told["failed"], told["connects"], told["open_at_end"]) == (0, 8, 8)
        assert told["ok"] == told["statuses"]["2xx"] > 0
        assert 0 < told["latency_us"]["p50"] <= told["latency_us"]["p999"]
        worker = plane.workers()[0]
        assert worker["requests"] == told["ok"]
        assert told["generations"] == [1]


def test_requests_are_sent_at_the_rate_and_progress_is_told(plane: Dataplane) -> None:
    with token_upstream() as port:
        plane.configure(app_config(port))
        plane.start()
        ran = plane.cli("bench", "--app", APP, "--seconds", "2", "--rate", "200")
    assert "400 answers in 2.0 s" in ran.out
    assert "failed     0" in ran.out
    assert "1 of 2 s" in ran.err


def test_an_address_that_is_not_the_apps_own_is_refused(plane: Dataplane) -> None:
    with token_upstream() as port:
        plane.configure(app_config(port))
        plane.start()
        words = ("bench", "--app", APP, "--seconds", "1")
        ran = plane.cli(*words, "--address", f"127.0.0.1:{port}", code=1)
        assert "is no address of the app" in ran.err
        host, own = plane.address()
        assert plane.cli(*words, "--address", f"{host}:{own}").code == 0


def test_answers_of_the_server_side_of_errors_fail_the_run(plane: Dataplane) -> None:
    plane.configure(app_config(unused_port()))
    plane.start()
    ran = plane.cli("bench", "--app", APP, "--seconds", "1", "--json", code=1)
    told = json.loads(ran.out)
    assert told["statuses"]["5xx"] == told["ok"] > 0


def test_without_a_supervisor_it_says_so(plane: Dataplane) -> None:
    assert "no supervisor runs" in plane.cli("bench", "--app", APP, code=1).err
