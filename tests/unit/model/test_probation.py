"""What counts as worse: a difference that is not chance, and that matters."""

from __future__ import annotations

import pytest

from dataplane.model.probation import Answers, in_words, is_worse


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        ((1000, 0), (1000, 0), False),
        ((1000, 0), (100, 100), True),  # all of them
        ((1000, 0), (20, 10), True),  # few, and plain
        ((1000, 0), (9, 9), False),  # too few to say so
        ((1000, 0), (1000, 9), False),
        ((1000, 0), (1000, 40), True),
        ((1_000_000, 0), (1_000_000, 500), False),  # no chance, and matters to nobody
        ((1_000_000, 0), (1_000_000, 11_000), True),
        ((1000, 100), (1000, 110), False),  # chance
        ((1000, 100), (1000, 200), True),
        ((1000, 200), (1000, 100), False),  # better
        ((1000, 1000), (1000, 1000), False),  # no worse than all
        ((0, 0), (1000, 1000), False),  # nothing to compare with
        ((5, 0), (1000, 1000), True),
        ((1, 0), (20, 10), False),  # one good answer says little
    ],
)
def test_worse(before: tuple[int, int], after: tuple[int, int], worse: bool) -> None:
    was, now = (Answers(all=one[0], failed=one[1]) for one in (before, after))
    assert is_worse(now, was) is worse


def test_it_is_told_in_numbers() -> None:
    told = in_words(Answers(all=20, failed=10), Answers(all=1000, failed=1))
    assert told == "10 of 20 answers were 500 or above, 1 of 1000 before"
