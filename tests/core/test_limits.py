"""What an asset may say of its limits, and what is refused."""

from __future__ import annotations

import math

import pytest

from flowstone import Rate, Retry, Timeout, asset
from flowstone.errors import DefinitionError
from flowstone.limits import Policy, is_pool, is_rate, rate_key, told_rate


def test_an_asset_without_limits_takes_nothing() -> None:
    @asset
    def plain() -> int:
        return 1

    assert plain.policy() == Policy({}, None, 3)
    assert plain.policy("nightly").takes == {"nightly": 1}


def test_all_limits_of_an_asset_are_in_its_policy() -> None:
    @asset(
        pool="warehouse",
        weight=2,
        max_running=3,
        rate=Rate(10, key="api"),
        timeout=60,
        retry=Retry(max_lost=1),
    )
    def heavy() -> int:
        return 1

    takes = {"warehouse": 2, "asset:heavy": 1, "rate:api": 1}
    assert heavy.policy() == Policy(takes, Timeout(60), 1)
    assert heavy.policy("warehouse").takes == takes
    assert heavy.policy("nightly").takes == {**takes, "nightly": 1}


def test_who_is_asked_to_stop_has_a_minute_before_it_is_killed() -> None:
    assert Timeout(30) == Timeout(30, 90)


@pytest.mark.parametrize(("soft", "hard"), [(0, 1), (-1, 1), (5, 4), (math.inf, math.inf)])
def test_a_timeout_that_makes_no_sense_is_refused(soft: float, hard: float) -> None:
    with pytest.raises(DefinitionError, match="0 < soft <= hard"):
        Timeout(soft, hard)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": 2}, "slots of the pool="),
        ({"pool": "p", "weight": 0}, "slots of the pool="),
        ({"pool": "no pool"}, "is not a name"),
        ({"max_running": 0}, "could never run"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):

        @asset(**options)  # type: ignore[call-overload]
        def bad() -> None: ...


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ({"count": 0}, "needs count > 0"),
        ({"count": math.inf}, "needs count > 0"),
        ({"count": math.nan}, "needs count > 0"),
        ({"count": 1, "per": "week"}, "per as one of second, minute, hour, day"),
        ({"count": 1, "burst": 0}, "1 or more whole tokens"),
        ({"count": 1, "burst": 1.5}, "1 or more whole tokens"),
        ({"count": 1, "key": "a key"}, "is no name for a key"),
        ({"count": 1, "key": "asset:orders"}, "is no name for a key"),
        ({"count": 1e-9}, "more than ten years"),
        ({"count": 1, "per": "day", "burst": 4000}, "more than ten years"),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused(rate: dict[str, object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        Rate(**rate)  # type: ignore[arg-type]


def test_the_rate_of_an_asset_is_not_that_of_a_key_with_the_name_of_the_asset() -> None:
    own, named = rate_key(Rate(1), "orders"), rate_key(Rate(1, key="orders"), "orders")
    assert (own, named) == ("rate:asset:orders", "rate:orders")
    assert is_rate(own)
    assert is_rate(named)
    assert not is_pool(own)
    assert not is_rate("asset:orders")


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (Rate(10), "10 per second"),
        (Rate(0.5), "30 per minute"),
        (Rate(10, per="hour", burst=3), "10 per hour, burst 3"),
        (Rate(90, per="minute"), "1.5 per second"),
        (Rate(0.25, per="day"), "0.25 per day"),
    ],
)
def test_a_rate_is_told_in_the_unit_that_fits(rate: Rate, told: str) -> None:
    assert told_rate(rate.interval, rate.burst) == told
