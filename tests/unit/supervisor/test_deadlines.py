"""Deadlines, against the plainest thing that could be right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.supervisor.deadlines import SLACK, Deadlines

KEYS = st.sampled_from("abcde")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), KEYS, st.integers(0, 50)),
            st.tuples(st.just("drop"), KEYS, st.just(0)),
            st.tuples(st.just("take"), st.just(""), st.integers(0, 50)),
        ),
        max_size=60,
    )
)
def test_the_earliest_is_always_at_hand(steps: list[tuple[str, str, int]]) -> None:
    """After any steps, `next` is the least of what was set last, and `take` gives one of that."""
    deadlines: Deadlines[str] = Deadlines()
    plain: dict[str, float] = {}
    for step, key, when in steps:
        if step == "set":
            deadlines.set(key, when)
            plain[key] = when
        elif step == "drop":
            deadlines.drop(key)
            plain.pop(key, None)
        else:
            taken = deadlines.take(when)
            if taken is None:
                assert all(other > when for other in plain.values())
            else:
                assert plain[taken] == min(plain.values()) <= when
                del plain[taken]
        assert deadlines.next() == min(plain.values(), default=None)


def test_deadline_that_moves_for_ever_takes_no_more_room() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for when in range(10_000, 0, -1):
        deadlines.set("a", when)
    assert len(deadlines._heap) <= SLACK + 2
    assert deadlines.next() == 1
