"""Partition sets: which keys there are, and which time each stands for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.errors import BadPartition, DefinitionError, FlowStoneError
from flowstone.key_map import KeyMap
from flowstone.partition import (
    UNPARTITIONED,
    DailyPartitions,
    Key,
    Moment,
    Month,
    MonthlyPartitions,
    PartitionSet,
    StaticPartitions,
    TimePartitions,
    UnpartitionedSet,
)
from flowstone.partition_key import encode_key
from tests.strategies import NOW, ZONES, days

HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)

time_sets = st.builds(
    lambda kind, day, tz: (
        DailyPartitions(day, tz=tz) if kind == "daily" else MonthlyPartitions(Month.of(day), tz=tz)
    ),
    st.sampled_from(["daily", "monthly"]),
    days(),
    st.sampled_from(ZONES),
)


@settings(deadline=None, max_examples=200)
@given(time_sets)
def test_windows_follow_each_other_without_gap_or_overlap(partitions: TimePartitions) -> None:
    now = datetime(2039, 1, 1, tzinfo=UTC)
    windows = [partitions.window(key) for key in islice(partitions.keys(Moment(now)), 40)]
    for before, after in pairwise(windows):
        assert before.end == after.start
    assert all(window.start.tzinfo is not None for window in windows)


@settings(deadline=None, max_examples=300)
@given(time_sets, st.integers(0, 999))
def test_the_key_at_any_moment_of_a_window_is_its_key(
    partitions: TimePartitions, thousandths: int
) -> None:
    window = partitions.window(partitions.first)
    start, end = window.start.astimezone(UTC), window.end.astimezone(UTC)
    if start == end:
        assert partitions.first == date(2011, 12, 30)  # the day that Apia did not have
        return
    moment = start + (end - start) * thousandths // 1000
    assert partitions.key_at(moment) == partitions.first
    assert partitions.key_at(start) == partitions.first
    assert partitions.key_at(end - MICROSECOND) == partitions.first
    assert partitions.key_at(end) != partitions.first


@pytest.mark.parametrize(
    ("day", "tz", "hours", "first_hour"),
    [
        (date(2024, 3, 31), "Europe/Berlin", 23, 0),
        (date(2024, 10, 27), "Europe/Berlin", 25, 0),
        (date(2024, 6, 15), "Europe/Berlin", 24, 0),
        (date(2024, 3, 10), "America/New_York", 23, 0),
        (date(2024, 11, 3), "America/New_York", 25, 0),
        (date(2018, 11, 4), "America/Sao_Paulo", 23, 1),
        (date(2018, 2, 17), "America/Sao_Paulo", 25, 0),
        (date(2024, 4, 26), "Africa/Cairo", 23, 1),
        (date(2024, 11, 3), "America/Havana", 25, 0),
    ],
)
def test_a_day_is_as_long_as_the_clocks_of_its_zone_make_it(
    day: date, tz: str, hours: int, first_hour: int
) -> None:
    partitions = DailyPartitions(day, tz=tz)
    window = partitions.window(day)
    assert window.end.astimezone(UTC) - window.start.astimezone(UTC) == hours * HOUR
    assert window.start.hour == first_hour
    assert window.start.date() == day
    assert window.start.astimezone(UTC).astimezone(window.start.tzinfo) == window.start


def test_a_month_lasts_from_its_first_midnight_to_the_next() -> None:
    window = MonthlyPartitions("2024-03", tz="Europe/Berlin").window(Month(2024, 3))
    assert window.start.isoformat() == "2024-03-01T00:00:00+01:00"
    assert window.end.isoformat() == "2024-04-01T00:00:00+02:00"


def test_a_set_without_an_end_grows_with_the_clock_of_its_zone() -> None:
    partitions = DailyPartitions("2024-06-14", tz="America/New_York")
    before = Moment(datetime(2024, 6, 16, 3, 59, 59, tzinfo=UTC))
    after = Moment(before.now + timedelta(seconds=1))
    assert list(partitions.keys(before)) == [date(2024, 6, 14), date(2024, 6, 15)]
    assert list(partitions.keys(after))[-1] == date(2024, 6, 16)
    with pytest.raises(BadPartition, match="2024-06-16 lies outside 2024-06-14 to 2024-06-15"):
        partitions.coerce("2024-06-16", before)
    assert partitions.coerce("2024-06-16", after) == date(2024, 6, 16)


def test_a_set_that_has_not_begun_is_empty() -> None:
    partitions = DailyPartitions("2024-06-16")
    assert list(partitions.keys(NOW)) == []
    with pytest.raises(BadPartition, match="none yet, as the first one, 2024-06-16, has not begun"):
        partitions.coerce("2024-06-16", NOW)


def test_a_set_with_an_end_holds_both_ends() -> None:
    assert list(MonthlyPartitions("2023-11", "2024-02").keys(NOW)) == [
        Month(2023, 11),
        Month(2023, 12),
        Month(2024, 1),
        Month(2024, 2),
    ]
    assert list(DailyPartitions("9999-12-30", "9999-12-31").keys(NOW)) == [
        date(9999, 12, 30),
        date(9999, 12, 31),
    ]


@pytest.mark.parametrize(
    ("partitions", "given_", "meant"),
    [
        (DailyPartitions("2013-01-01"), "2013-01-15", date(2013, 1, 15)),
        (DailyPartitions("2013-01-01"), date(2013, 1, 15), date(2013, 1, 15)),
        (MonthlyPartitions("2013-01"), "2013-02", Month(2013, 2)),
        (MonthlyPartitions("2013-01"), Month(2013, 2), Month(2013, 2)),
        (StaticPartitions(["eu", "us"]), "us", "us"),
        (StaticPartitions([1, 2]), "2", 2),
        (StaticPartitions([1, "1"]), "1", "1"),
        (StaticPartitions([1, "1"]), 1, 1),
        (StaticPartitions([None, "eu"]), None, None),
        (StaticPartitions([("eu", 1)]), "eu|1", ("eu", 1)),
        (StaticPartitions([{"env": "prod"}]), {"env": "prod"}, KeyMap({"env": "prod"})),
        (StaticPartitions([{"env": "prod"}]), "env=prod", KeyMap({"env": "prod"})),
        (UnpartitionedSet(), UNPARTITIONED, UNPARTITIONED),
    ],
)
def test_a_key_may_be_given_as_itself_or_as_a_person_writes_it(
    partitions: PartitionSet, given_: Key, meant: Key
) -> None:
    found = partitions.coerce(given_, NOW)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("partitions", "value", "message"),
    [
        (DailyPartitions("2013-01-01", "2013-12-31"), "2014-01-01", "lies outside 2013-01-01 to"),
        (DailyPartitions("2013-01-01"), "15.1.2013", "is not a day; write it as 2013-01-15"),
        (DailyPartitions("2013-01-01"), datetime(2013, 1, 2, tzinfo=UTC), "is not a day"),
        (DailyPartitions("2013-01-01"), Month(2013, 1), "is not a day"),
        (DailyPartitions("2013-01-01"), None, "is not a day"),
        (DailyPartitions("2013-01-01"), UNPARTITIONED, "is not a day"),
        (MonthlyPartitions("2013-01"), "2012-12", "lies outside 2013-01 to 2024-06"),
        (MonthlyPartitions("2013-01"), "2013-01-15", "is not a month; write it as 2013-01"),
        (MonthlyPartitions("2013-01"), date(2013, 1, 1), "is not a month"),
        (StaticPartitions(["europe", "asia"]), "eurpe", "did you mean 'europe'"),
        (StaticPartitions([1, 2]), True, "True is not one of 1, 2"),
        (StaticPartitions([("a", "b"), "a|b"]), "x", "is not one of a|b, a|b"),
        (UnpartitionedSet(), "2013-01-15", "has no partitions, so partition '2013-01-15'"),
        (UnpartitionedSet(), None, "has no partitions"),
    ],
)
def test_a_value_outside_the_set_is_refused_with_what_would_be_inside(
    partitions: PartitionSet, value: Key, message: str
) -> None:
    with pytest.raises(BadPartition) as caught:
        partitions.coerce(value, NOW)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "make",
    [
        lambda: StaticPartitions([]),
        lambda: StaticPartitions(["a", "a"]),
        lambda: StaticPartitions([1, True]),
        lambda: DailyPartitions("2013-01-02", "2013-01-01"),
        lambda: MonthlyPartitions("2013-02", "2013-01"),
        lambda: DailyPartitions("2013-01-01", tz="Europe/Atlantis"),
        lambda: DailyPartitions("2013-01-01", tz="Europe"),
        lambda: DailyPartitions("2013-01-01", tz=""),
        lambda: MonthlyPartitions("2013-01", tz="../UTC"),
        lambda: DailyPartitions("yesterday"),
        lambda: StaticPartitions([1.5]),  # type: ignore[list-item]
    ],
)
def test_a_set_that_makes_no_sense_is_refused_where_it_is_defined(
    make: Callable[[], PartitionSet],
) -> None:
    with pytest.raises(FlowStoneError) as caught:
        make()
    assert isinstance(caught.value, DefinitionError | BadPartition)


def test_finding_a_static_key_does_not_search_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    partitions = StaticPartitions(range(1000))
    encoded: list[Key] = []

    def counting(key: Key) -> str:
        encoded.append(key)
        return encode_key(key)

    monkeypatch.setattr("flowstone.partition_set.encode_key", counting)
    assert partitions.coerce(999, NOW) == 999
    assert len(encoded) == 1
