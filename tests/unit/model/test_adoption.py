"""Which generation serves after a supervisor's death, for every way in which it can have died."""

from __future__ import annotations

import itertools

import pytest

from dataplane.model.adoption import Fate, Found, Told, decide_fates
from dataplane.model.names import Generation

WORDS = {"r": Told.READY, "s": Told.SERVING, "d": Told.DRAINING, "g": Told.GONE}
FATES = {Fate.SERVE: "S", Fate.DRAIN: "D", Fate.END: "E"}


def found(*told: str, slots: int | None = None) -> list[Found]:
    """Generations 1, 2, ...; a letter for each living worker."""
    most = slots or max(map(len, told))
    return [
        Found(
            number=Generation(number),
            slots=most,
            told=tuple(WORDS[letter] for letter in letters if letter != "-"),
        )
        for number, letters in enumerate(told, 1)
    ]


# What lives ("-": a slot without a process), what was written down, and what is to become of it.
TABLE = {
    "idle": (("ss",), 1, "S"),
    "idle, a worker died": (("s-",), 1, "S"),
    "never written down": (("ss",), 0, "S"),
    "green is born or ready": (("ss", "rr"), 1, "SE"),
    "green is told to serve, in part": (("ss", "sr"), 1, "SD"),
    "green serves, not written down": (("ss", "ss"), 1, "SD"),
    "green serves and is written down": (("ss", "ss"), 2, "DS"),
    "green serves, lost a worker since": (("ss", "s-"), 2, "DS"),
    "blue begins to drain, not written down": (("sd", "ss"), 1, "DS"),
    "blue drains": (("dd", "ss"), 2, "DS"),
    "blue drains, green lost a worker": (("dd", "s-"), 2, "DS"),
    "blue is about to end": (("gg", "ss"), 2, "ES"),
    "blue is about to end, green died": (("gg",), 2, "E"),
    "blue drains, green died": (("dd",), 2, "S"),
    "green died, blue goes on": (("sd",), 2, "S"),
    "a third is ready while the first still drains": (("dd", "ss", "rr"), 2, "DSE"),
    "a third serves while the first still drains": (("dd", "ss", "ss"), 2, "DSD"),
    "neither is the one that was written down": (("ss", "ss"), 7, "SD"),
    "both in part, neither written down: the older": (("s-", "s-"), 0, "SD"),
    "one in part, neither written down: the whole one": (("s-", "ss"), 0, "DS"),
    "a first start is ready": (("rr",), 0, "E"),
    "a first start serves in part": (("sr",), 0, "S"),
    "all drain, the app is to end": (("dd", "dd"), 2, "DS"),
}


@pytest.mark.parametrize("name", TABLE)
def test_fates_follow_from_what_workers_say_and_what_was_written_down(name: str) -> None:
    told, promoted, expected = TABLE[name]
    some = found(*told)
    for order in itertools.permutations(some):
        fates = decide_fates(order, promoted=promoted, stopped=False)
        assert "".join(FATES[fates[one.number]] for one in some) == expected


@pytest.mark.parametrize("told", [("ss",), ("dd", "ss"), ("ss", "rr")])
def test_of_a_stopped_app_nothing_serves(told: tuple[str, ...]) -> None:
    fates = decide_fates(found(*told), promoted=1, stopped=True)
    assert Fate.SERVE not in fates.values()


def test_exactly_one_serves_wherever_one_could() -> None:
    slots = ["".join(pair) for pair in itertools.product("rsdg-", repeat=2)]
    for blue, green, promoted in itertools.product(slots, slots, range(3)):
        some = found(blue, green, slots=2)
        fates = decide_fates(some, promoted=promoted, stopped=False)
        could = any(one.has(Told.SERVING) or one.has(Told.DRAINING) for one in some)
        assert list(fates.values()).count(Fate.SERVE) == could, (blue, green, promoted)
        for one in some:
            never = not one.has(Told.SERVING) and not one.has(Told.DRAINING)
            assert (fates[one.number] is Fate.END) == never
