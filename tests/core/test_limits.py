"""What an asset may say of its limits, and what is refused."""

from __future__ import annotations

import math

import pytest

from flowstone import Rate, Retry, Timeout, asset
from flowstone.errors import DefinitionError
from flowstone.limits import Policy


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
