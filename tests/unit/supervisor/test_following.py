"""Names are followed by their TTL, an app is told once in its pause, an outage changes nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from dataplane.model.names import AppName
from dataplane.supervisor.events import Events
from dataplane.supervisor.following import QUESTIONS, Following
from dataplane.supervisor.resolver import Answer, ResolveError
from tests.support.virtual_time import VirtualLoop, let_pass, run_virtually

BILLING, SHOP = AppName("billing"), AppName("shop")


def answer(*addresses: str, ttl: float = 30.0) -> Answer:
    return Answer(addresses=addresses, ttl_seconds=ttl)


OLD, NEW, NEWEST = answer("10.0.0.1"), answer("10.0.0.2"), answer("10.0.0.3")


class Still(random.Random):
    """No jitter."""

    def random(self) -> float:
        return 0.0


class Fake:
    """A resolver that says what it is told to say, and what was done, with the time of each."""

    def __init__(self, loop: VirtualLoop, rng: random.Random | None = None) -> None:
        self.loop = loop
        self.began = loop.time()
        self.answers: dict[str, Answer | None] = {}  # None: an outage
        self.seconds = 0.0  # that an answer takes
        self.asked: list[tuple[float, str]] = []
        self.asked_now = self.asked_most = 0
        self.told: list[tuple[float, AppName]] = []
        self.on_told: Callable[[AppName], None] = lambda app: None
        self.events = Events(loop, lambda line: None)
        self.following = Following(
            resolver=self,
            clock=loop,
            events=self.events,
            changed=self._changed,
            rng=rng or Still(),
        )

    def seconds_passed(self) -> float:
        return round(self.loop.time() - self.began, 3)

    async def resolve(self, name: str) -> Answer:
        self.asked.append((self.seconds_passed(), name))
        self.asked_now += 1
        self.asked_most = max(self.asked_most, self.asked_now)
        if self.seconds:
            await let_pass(self.seconds)
        self.asked_now -= 1
        found = self.answers[name]
        if found is None:
            raise ResolveError(f"cannot resolve {name!r}: an outage")
        return found

    def _changed(self, app: AppName) -> None:
        self.told.append((self.seconds_passed(), app))
        self.on_told(app)

    def happened(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events.recent() if event["event"] == name]

    def times_asked(self) -> list[float]:
        return [when for when, _ in self.asked]

    def times_told(self) -> list[float]:
        return [when for when, _ in self.told]


def follow(test: Callable[[Fake], Awaitable[None]], rng: random.Random | None = None) -> Fake:
    """Runs a test beside `Following.run`, in virtual time."""

    async def both(loop: VirtualLoop) -> Fake:
        fake = Fake(loop, rng)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(fake.following.run())
            await test(fake)
            running.cancel()
        assert fake.asked_now == 0 or fake.seconds
        return fake

    return run_virtually(both)


# --- asking -----------------------------------------------------------------------------------


def test_name_is_asked_for_at_each_expiry_and_equal_addresses_change_nothing() -> None:
    async def test(fake: Fake) -> None:
        fake.answers["api"] = answer("10.0.0.1", ttl=10)
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(55)

    fake = follow(test)
    assert fake.times_asked() == [30, 40, 50]
    assert not fake.told
    assert not fake.events.recent()


def test_name_of_many_apps_is_asked_for_once_and_each_is_told() -> None:
    apps = [AppName(f"app{number}") for number in range(100)]

    async def test(fake: Fake) -> None:
        fake.answers["api"] = NEW
        for app in apps:
            fake.following.watch(app, {"api": OLD})
        await let_pass(31)

    fake = follow(test)
    assert fake.asked == [(30, "api")]
    assert sorted(fake.told) == sorted((30, app) for app in apps)


def test_nothing_is_asked_while_nothing_is_watched() -> None:
    async def test(fake: Fake) -> None:
        fake.following.watch(BILLING, {})
        await let_pass(100_000)
        fake.following.watch(BILLING, {"api": OLD})
        fake.following.watch(SHOP, {"api": OLD, "db": OLD})
        fake.following.forget(BILLING)
        fake.following.watch(SHOP, {})
        fake.following.forget(BILLING)
        await let_pass(100_000)

    fake = follow(test)
    assert not fake.asked
    assert fake.loop.clock_reads < 20


def test_names_are_asked_for_side_by_side_within_a_bound() -> None:
    names = [f"api{number}" for number in range(3 * QUESTIONS)]

    async def test(fake: Fake) -> None:
        fake.seconds = 2
        fake.answers = dict.fromkeys(names, OLD)
        fake.following.watch(BILLING, dict.fromkeys(names, OLD))
        await let_pass(30 + 3 * 2 + 1)

    fake = follow(test)
    assert fake.asked_most == QUESTIONS
    assert fake.loop.clock_reads < 10 * len(names)  # who waits for its turn waits for an answer
    assert sorted(fake.times_asked()) == [30] * QUESTIONS + [32] * QUESTIONS + [34] * QUESTIONS


def test_names_that_were_learned_together_are_not_asked_for_together() -> None:
    names = [f"api{number}" for number in range(50)]

    async def test(fake: Fake) -> None:
        fake.answers = dict.fromkeys(names, OLD)
        fake.following.watch(BILLING, dict.fromkeys(names, OLD))
        await let_pass(33.1)

    times = follow(test, random.Random(7)).times_asked()
    assert len(set(times)) > 40
    assert min(times) >= 30
    assert max(times) <= 33


def test_name_that_is_forgotten_while_it_is_asked_for_tells_nobody() -> None:
    async def test(fake: Fake) -> None:
        fake.seconds = 2
        fake.answers["api"] = NEW
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(31)
        fake.following.forget(BILLING)
        await let_pass(100)

    fake = follow(test)
    assert fake.asked == [(30, "api")]
    assert not fake.told


# --- telling ----------------------------------------------------------------------------------


def switching(fake: Fake, pause_seconds: float = 5.0) -> Callable[[AppName], None]:
    """An owner that puts the last good answers to serve at once."""

    def switch(app: AppName) -> None:
        latest = fake.following.last_good("api")
        assert latest is not None
        fake.following.watch(app, {"api": latest}, pause_seconds)

    return switch


def test_first_change_is_told_at_once_and_the_next_after_the_pause() -> None:
    async def test(fake: Fake) -> None:
        fake.on_told = switching(fake)
        fake.answers["api"] = answer("10.0.0.2", ttl=1)
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(30.5)
        for number in range(3, 20):  # another answer at each question
            fake.answers["api"] = answer(f"10.0.0.{number}", ttl=1)
            await let_pass(1)

    fake = follow(test)
    assert fake.times_told() == [30, 35, 40, 45]
    # The latest answer wins.
    assert [event["names"]["api"] for event in fake.happened("names.changed")] == [
        ("10.0.0.2",),
        ("10.0.0.6",),
        ("10.0.0.11",),
        ("10.0.0.16",),
    ]


@pytest.mark.parametrize(("pause", "times"), [(1.0, [30, 31, 32]), (2.0, [30, 32]), (60.0, [30])])
def test_pause_is_the_apps_own(pause: float, times: Sequence[float]) -> None:
    async def test(fake: Fake) -> None:
        fake.on_told = switching(fake, pause)
        fake.answers["api"] = answer("10.0.0.2", ttl=1)
        fake.following.watch(BILLING, {"api": OLD}, pause)
        await let_pass(30.5)
        for number in (3, 4):
            fake.answers["api"] = answer(f"10.0.0.{number}", ttl=1)
            await let_pass(1)

    assert follow(test).times_told() == times


def test_addresses_that_come_back_within_the_pause_are_no_change() -> None:
    async def test(fake: Fake) -> None:
        fake.on_told = switching(fake)
        fake.answers["api"] = answer("10.0.0.2", ttl=1)
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(30.5)
        fake.answers["api"] = answer("10.0.0.3", ttl=1)
        await let_pass(1)
        fake.answers["api"] = answer("10.0.0.2", ttl=1)
        await let_pass(60)

    assert follow(test).times_told() == [30]


def test_change_during_a_rollout_is_told_after_its_switch() -> None:
    async def test(fake: Fake) -> None:
        fake.answers["api"] = answer("10.0.0.2", ttl=5)
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(31)  # told of .2, and about to switch to it
        fake.answers["api"] = answer("10.0.0.1", ttl=100)
        await let_pass(5)  # for the old generation, all is as it was again
        assert fake.times_told() == [30]
        fake.following.watch(BILLING, {"api": NEW})
        await let_pass(1)

    fake = follow(test)
    assert fake.times_asked() == [30, 35, 36]
    assert fake.times_told() == [30, 36]
    assert fake.happened("names.changed")[-1]["names"] == {"api": ("10.0.0.1",)}


def test_app_whose_rollout_failed_is_told_again_more_and_more_seldom() -> None:
    async def test(fake: Fake) -> None:
        fake.answers["api"] = NEW
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(30 + 60 + 120 + 240 + 1)

    assert follow(test).times_told() == [30, 90, 210, 450]


def test_one_telling_is_for_all_names_of_an_app() -> None:
    async def test(fake: Fake) -> None:
        fake.answers.update(api=NEW, db=NEWEST, unchanged=OLD)
        fake.following.watch(BILLING, {"unchanged": OLD})
        fake.following.watch(SHOP, {"api": OLD, "db": OLD, "unchanged": OLD}, 10)
        await let_pass(45)

    fake = follow(test)
    assert fake.told == [(30, SHOP)]
    assert fake.happened("names.changed")[0]["names"] == {
        "api": ("10.0.0.2",),
        "db": ("10.0.0.3",),
    }


def test_callback_may_forget_the_app() -> None:
    async def test(fake: Fake) -> None:
        fake.on_told = fake.following.forget
        fake.answers["api"] = NEW
        for app in (BILLING, SHOP):
            fake.following.watch(app, {"api": OLD})
        await let_pass(1000)

    fake = follow(test)
    assert sorted(fake.told) == [(30, BILLING), (30, SHOP)]
    assert fake.asked == [(30, "api")]


# --- outages ----------------------------------------------------------------------------------


def test_outage_changes_nothing_and_is_told_once() -> None:
    async def test(fake: Fake) -> None:
        fake.answers["api"] = None
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(230)
        assert fake.following.last_good("api") == OLD
        assert fake.following.latest("api") is None
        fake.answers["api"] = OLD
        await let_pass(60)
        assert fake.following.latest("api") == OLD

    fake = follow(test)
    # 1 s, doubled up to 60 s
    assert fake.times_asked() == [30, 31, 33, 37, 45, 61, 93, 153, 213, 273]
    assert not fake.told
    assert [event["event"] for event in fake.events.recent()] == [
        "names.unresolved",
        "names.resolved_again",
    ]
    (unresolved,) = fake.happened("names.unresolved")
    assert unresolved["name"] == "api"
    assert "an outage" in unresolved["error"]


def test_second_outage_is_told_again_and_begins_with_short_waits() -> None:
    async def test(fake: Fake) -> None:
        fake.following.watch(BILLING, {"api": OLD})
        for found in (None, answer("10.0.0.1", ttl=10), None):
            fake.answers["api"] = found
            await let_pass(32)

    fake = follow(test)
    assert fake.times_asked() == [30, 31, 33, 43, 53, 63, 73, 74, 76, 80, 88]
    assert len(fake.happened("names.unresolved")) == 2


def test_change_that_an_outage_hid_is_told_at_its_end() -> None:
    async def test(fake: Fake) -> None:
        fake.answers["api"] = None
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(32)
        fake.answers["api"] = NEW
        await let_pass(2)

    assert follow(test).times_told() == [33]


def test_outage_of_one_name_holds_up_no_other() -> None:
    async def test(fake: Fake) -> None:
        fake.answers.update(api=None, db=NEW)
        fake.following.watch(BILLING, {"api": OLD, "db": OLD})
        await let_pass(30.5)

    fake = follow(test)
    assert fake.times_told() == [30]
    assert fake.happened("names.changed")[0]["names"] == {"db": ("10.0.0.2",)}


# --- what is known ----------------------------------------------------------------------------


def test_latest_answer_is_known_within_its_ttl_and_while_an_app_has_the_name() -> None:
    async def test(fake: Fake) -> None:
        following = fake.following
        fake.seconds = 3
        fake.answers["api"] = NEW
        assert following.latest("api") is None
        following.watch(BILLING, {"api": OLD})
        assert following.latest("api") == OLD
        await let_pass(29.9)
        assert following.latest("api") == OLD
        await let_pass(1)
        assert following.latest("api") is None  # it is being asked for
        assert following.last_good("api") == OLD
        await let_pass(3)
        assert following.latest("api") == NEW
        following.forget(BILLING)
        assert following.latest("api") is None
        assert following.last_good("api") is None

    follow(test)


def test_app_with_other_addresses_has_the_name_asked_for_before_anybody_is_told() -> None:
    """Which of two answers is newer can only be known from a third."""

    async def test(fake: Fake) -> None:
        fake.answers["api"] = NEW
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(10)
        fake.following.watch(SHOP, {"api": NEW})
        assert fake.following.latest("api") is None
        await let_pass(1)

    fake = follow(test)
    assert fake.asked == [(10, "api")]
    assert fake.told == [(10, BILLING)]


def test_doubt_while_a_name_is_asked_for_asks_no_second_time() -> None:
    async def test(fake: Fake) -> None:
        fake.seconds = 4
        fake.answers["api"] = NEW
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(31)
        fake.following.watch(SHOP, {"api": NEW})
        await let_pass(10)

    fake = follow(test)
    assert fake.asked == [(30, "api")]
    assert fake.told == [(34, BILLING)]


def test_doubt_that_an_outage_meets_tells_nobody() -> None:
    async def test(fake: Fake) -> None:
        fake.answers["api"] = None
        fake.following.watch(BILLING, {"api": OLD})
        fake.following.watch(SHOP, {"api": NEW})
        await let_pass(1000)

    fake = follow(test)
    assert fake.times_asked()[:3] == [1, 2, 4]  # never two questions within a second
    assert not fake.told


def test_telling_that_is_due_waits_while_its_name_is_in_doubt() -> None:
    async def test(fake: Fake) -> None:
        fake.answers["api"] = answer("10.0.0.2", ttl=1)
        fake.following.watch(BILLING, {"api": OLD})
        await let_pass(30.5)
        fake.following.watch(BILLING, {"api": NEW})
        fake.answers["api"] = NEWEST
        await let_pass(3.5)  # learned at 31, to be told at 35
        fake.seconds = 3
        fake.following.watch(SHOP, {"api": NEW})
        await let_pass(10)

    fake = follow(test)
    assert fake.times_asked() == [30, 31, 34]
    assert fake.told == [(30, BILLING), (37, BILLING), (37, SHOP)]
