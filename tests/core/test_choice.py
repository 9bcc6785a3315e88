"""What callers write for many partitions, and the keys that a set makes of it."""

from __future__ import annotations

import json
from datetime import date, timedelta
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.choice import Choice, chosen, parse_choice
from flowstone.errors import BadPartition
from flowstone.partition import (
    UNPARTITIONED,
    DailyPartitions,
    Month,
    MonthlyPartitions,
    PartitionSet,
    StaticPartitions,
    UnpartitionedSet,
)
from flowstone.partition_key import Key
from tests.strategies import NOW

DAYS = DailyPartitions("2013-01-01", "2013-12-31", tz="Europe/Berlin")
MONTHS = MonthlyPartitions("2013-01", "2013-12")
REGIONS = StaticPartitions(["eu", "us", "asia", "all-of-it"])


def keys(partitions: PartitionSet, given_: Any) -> list[Key]:
    return list(chosen(partitions, parse_choice(given_), NOW))


def every(partitions: PartitionSet) -> list[Key]:
    return list(partitions.keys(NOW))


@pytest.mark.parametrize(
    ("partitions", "given_", "meant"),
    [
        (DAYS, "all", every(DAYS)),
        (DAYS, "*", every(DAYS)),
        (DAYS, "2013-01-15", [date(2013, 1, 15)]),
        (DAYS, date(2013, 1, 15), [date(2013, 1, 15)]),
        (DAYS, "2013-12-30..", [date(2013, 12, 30), date(2013, 12, 31)]),
        (DAYS, "..2013-01-02", [date(2013, 1, 1), date(2013, 1, 2)]),
        (DAYS, "2012..2013-01-01", [date(2013, 1, 1)]),
        (DAYS, "2013-W01", [date(2013, 1, d) for d in range(1, 7)]),
        (DAYS, "2013-02", [date(2013, 2, d) for d in range(1, 29)]),
        (DAYS, "2013-02-28T23..2013-03-01T00:30", [date(2013, 2, 28), date(2013, 3, 1)]),
        (
            DAYS,
            ["2013-03-02", "2013-03-01", date(2013, 3, 2)],
            [date(2013, 3, 1), date(2013, 3, 2)],
        ),
        (
            DAYS,
            ["2013-01-02..2013-01-04", "2013-01-01..2013-01-03", "2013-01-02"],
            [date(2013, 1, d) for d in range(1, 5)],
        ),
        (MONTHS, "2013-01-15..2013-03-01", [Month(2013, 1), Month(2013, 2), Month(2013, 3)]),
        (MONTHS, "2013", every(MONTHS)),
        (MONTHS, [Month(2013, 5), "2013-04"], [Month(2013, 4), Month(2013, 5)]),
        (REGIONS, "all", every(REGIONS)),
        (REGIONS, ["asia", "eu"], ["eu", "asia"]),
        (REGIONS, "us..asia", ["us", "asia"]),
        (REGIONS, "us..", ["us", "asia", "all-of-it"]),
        (StaticPartitions(["all", "eu..us", "*"]), "all", ["all"]),
        (StaticPartitions(["all", "eu..us", "*"]), ["*", "eu..us"], ["eu..us", "*"]),
        (StaticPartitions([1, 2, "1"]), [2, "1"], [2, "1"]),
        (StaticPartitions([("eu", 1), ("us", 1)]), ("us", 1), [("us", 1)]),
        (UnpartitionedSet(), "all", [UNPARTITIONED]),
        (UnpartitionedSet(), UNPARTITIONED, [UNPARTITIONED]),
    ],
)
def test_a_choice_means_keys_in_the_order_of_the_set(
    partitions: PartitionSet, given_: Any, meant: list[Key]
) -> None:
    assert keys(partitions, given_) == meant


@pytest.mark.parametrize(
    ("partitions", "given_", "said"),
    [
        (DAYS, [], "no partitions are chosen; give at least one key, or 'all'"),
        (DAYS, "2014-01-01", "partition 2014-01-01 lies outside 2013-01-01 to 2013-12-31"),
        (DAYS, ["2013-01-01", "yesterday"], "partition 'yesterday' is not a day"),
        (DAYS, "2013-13", "partition '2013-13' is not a day"),
        (DAYS, "2013-01..2013-13", "'2013-13' is not in the calendar"),
        (DAYS, "2013-01..now", "'now' is no time; write it as 2013"),
        (DAYS, "2013-02..2013-01", "the range 2013-02..2013-01 ends before it begins"),
        (DAYS, "2014..2015", "no partition lies in '2014..2015'; there are those from 2013-01-01"),
        (DAYS, "2014", "no partition lies in '2014'"),
        (DAYS, "2013-01-15T07", "partition '2013-01-15T07' is not a day"),
        (DAYS, "9999", "no partition lies in '9999'"),
        (MONTHS, Month(2014, 1), "partition 2014-01 lies outside"),
        (REGIONS, "us..eu", "the range us..eu ends before it begins"),
        (REGIONS, "us..aisa", "did you mean 'asia'"),
        (REGIONS, ["asai"], "did you mean 'asia'"),
        (UnpartitionedSet(), "2013", "it has no partitions"),
        (DAYS, 1.5, "a partition key cannot be a float"),
    ],
)
def test_what_is_no_choice_is_refused_before_the_first_key(
    partitions: PartitionSet, given_: Any, said: str
) -> None:
    with pytest.raises(BadPartition) as caught:
        chosen(partitions, parse_choice(given_), NOW)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


days_of_2013 = st.integers(0, 364).map(lambda n: date(2013, 1, 1) + timedelta(days=n))


@settings(deadline=None)
@given(st.lists(st.tuples(days_of_2013, days_of_2013), min_size=1, max_size=5))
def test_ranges_are_what_filtering_would_leave(ends: list[tuple[date, date]]) -> None:
    ranges = [(min(pair), max(pair)) for pair in ends]
    wanted = [day for day in every(DAYS) if any(a <= day <= b for a, b in ranges)]  # type: ignore[operator]
    assert keys(DAYS, [f"{a}..{b}" for a, b in ranges]) == wanted


@given(st.lists(st.sampled_from(every(REGIONS)), min_size=1))
def test_keys_come_once_and_in_their_order(some: list[Key]) -> None:
    assert keys(REGIONS, some) == [key for key in every(REGIONS) if key in some]


@given(st.lists(st.sampled_from(["eu", "2013-01..", 1, None, ("a", 2)]), min_size=1))
def test_a_choice_is_kept_as_json(some: list[Key]) -> None:
    choice = parse_choice(some)
    assert Choice.from_json(json.loads(json.dumps(choice.as_json()))) == choice
    assert parse_choice(choice) is choice


def test_a_choice_is_shown_as_it_is_written() -> None:
    assert str(parse_choice(["2013-01..", Month(2014, 1), ("eu", 1)])) == "2013-01.., 2014-01, eu|1"


def test_many_keys_are_not_all_made_for_the_first() -> None:
    days = DailyPartitions("0001-01-01", "9999-12-31")
    found = chosen(days, parse_choice("all"), NOW)
    assert list(islice(found, 2)) == [date(1, 1, 1), date(1, 1, 2)]
