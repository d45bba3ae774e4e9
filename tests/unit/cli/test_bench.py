"""The verb bench chooses among an app's own addresses, and passes bounded words on."""

from __future__ import annotations

import pytest

from dataplane.cli.bench import choose_address, load_words, progress_text, report_text
from dataplane.cli.main import _parser
from dataplane.model.errors import ControlError

OWN = [
    {"listener": "web", "bind": "0.0.0.0:8080"},
    {"listener": "six", "bind": "[::]:8081"},
    {"listener": "local", "bind": "unix:/run/app.sock"},
]


@pytest.mark.parametrize(
    ("listener", "address", "chosen"),
    [
        (None, None, "127.0.0.1:8080"),
        ("six", None, "[::1]:8081"),
        ("local", None, "unix:/run/app.sock"),
        (None, "127.0.0.1:8080", "127.0.0.1:8080"),
        (None, "0.0.0.0:8080", "127.0.0.1:8080"),
        ("six", "[::1]:8081", "[::1]:8081"),
    ],
)
def test_the_address_is_one_of_the_apps_own(
    listener: str | None, address: str | None, chosen: str
) -> None:
    assert choose_address("billing", OWN, listener, address) == chosen


@pytest.mark.parametrize(
    ("listener", "address", "why"),
    [
        ("nonsense", None, "no listener 'nonsense'; it has web 127.0.0.1:8080"),
        (None, "127.0.0.1:22", "is no address of the app billing; it has"),
        (None, "192.0.2.1:8080", "is no address of the app billing"),
        ("web", "[::1]:8081", "is no address of the app billing"),
    ],
)
def test_any_other_address_is_refused(listener: str | None, address: str | None, why: str) -> None:
    with pytest.raises(ControlError) as refused:
        choose_address("billing", OWN, listener, address)
    assert why in str(refused.value)


def test_an_app_that_does_not_run_has_no_address() -> None:
    with pytest.raises(ControlError, match="does not run"):
        choose_address("billing", [], None, None)


def test_a_load_without_further_words_is_bounded() -> None:
    args = _parser(["bench"]).parse_args(["bench", "--app", "billing"])
    words = load_words("127.0.0.1:8080", args)
    assert words[words.index("--connections") + 1] == "64"
    assert words[words.index("--seconds") + 1] == "10"
    assert "--rate" not in words
    assert "--end-with-parent" in words


def test_failures_show_in_progress_and_report() -> None:
    line = {"seconds": 1.0, "requests_per_second": 1234.5, "p50_us": 100.0, "p99_us": 900.0}
    text = progress_text({**line, "max_us": 2000.0, "open": 63, "failed": 1}, 10)
    assert "1,234 requests/s" in text
    assert text.endswith("63 open  1 failed")
    report = {
        "ok": 10, "failed": 1, "seconds": 1.0, "requests_per_second": 10.0, "bytes_in": 100,
        "statuses": {"2xx": 10, "5xx": 0}, "connects": 2, "connections": 1, "unsent": 3,
        "latency_us": dict.fromkeys(("p50", "p90", "p99", "p999", "max"), 1000.0),
        "failures": {"reset": 1}, "generations": [1, 2],
        "first_failures": [{"connection": 0, "kind": "reset", "at_ms": 10.0, "detail": "gone"}],
    }  # fmt: skip
    lines = report_text(report)
    for part in (
        "failed     1: 1 reset",
        "connection 0: reset",
        "generations 1, 2",
        "not held   3",
    ):
        assert part in lines
