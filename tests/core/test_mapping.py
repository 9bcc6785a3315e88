"""Partition mappings: which upstream partitions one partition reads."""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.errors import BadMapping, BadPartition
from flowstone.mapping import (
    AllKeys,
    SameKey,
    TimeWindow,
    WholeAsset,
    default_mapping,
)
from flowstone.partition import (
    UNPARTITIONED,
    CronPartitions,
    DailyPartitions,
    HourlyPartitions,
    Moment,
    Month,
    MonthlyPartitions,
    PartitionSet,
    StaticPartitions,
    UnpartitionedSet,
)
from tests.strategies import NOW, ZONES, days

LATE = Moment(datetime(2039, 1, 1, tzinfo=UTC))
NONE = UnpartitionedSet()
DAILY = DailyPartitions("1970-01-01", "2038-12-31")


@settings(deadline=None, max_examples=200)
@given(days(), st.sampled_from(ZONES))
def test_a_month_reads_exactly_the_days_of_the_calendar(day: date, tz: str) -> None:
    daily = DailyPartitions("1970-01-01", "2038-12-31", tz=tz)
    monthly = MonthlyPartitions("1970-01", "2038-12", tz=tz)
    month = Month.of(day)
    found = TimeWindow().upstream_keys(month, monthly, daily, LATE)
    length = calendar.monthrange(month.year, month.month)[1]
    assert list(found) == [month.first_day() + timedelta(days=i) for i in range(length)]


@settings(deadline=None, max_examples=200)
@given(days(), st.sampled_from(ZONES))
def test_a_day_reads_the_month_in_which_it_lies(day: date, tz: str) -> None:
    daily = DailyPartitions("1970-01-01", "2038-12-31", tz=tz)
    monthly = MonthlyPartitions("1970-01", "2038-12", tz=tz)
    found = TimeWindow().upstream_keys(day, daily, monthly, LATE)
    # Apia's 2011-12-30 is an empty day at the start of the 31st.
    assert found == (Month.of(day),)


@pytest.mark.parametrize(
    ("month", "tz"),
    [
        (Month(2012, 3), "America/Havana"),
        (Month(2023, 9), "America/Asuncion"),
        (Month(2014, 7), "Africa/Cairo"),
        (Month(2016, 3), "Asia/Amman"),
    ],
)
def test_a_month_that_ends_where_midnight_is_skipped_reads_no_day_of_the_next(
    month: Month, tz: str
) -> None:
    daily = DailyPartitions("1970-01-01", "2038-12-31", tz=tz)
    monthly = MonthlyPartitions("1970-01", "2038-12", tz=tz)
    found = TimeWindow().upstream_keys(month, monthly, daily, LATE)
    assert {Month.of(day) for day in found if isinstance(day, date)} == {month}


def test_a_month_reads_only_the_days_that_the_upstream_set_has() -> None:
    daily = DailyPartitions("2024-01-30", "2024-02-02")
    monthly = MonthlyPartitions("2023-12", "2024-03")
    inside = TimeWindow()
    assert inside.upstream_keys(Month(2024, 1), monthly, daily, NOW) == (
        date(2024, 1, 30),
        date(2024, 1, 31),
    )
    assert inside.upstream_keys(Month(2024, 2), monthly, daily, NOW) == (
        date(2024, 2, 1),
        date(2024, 2, 2),
    )
    assert inside.upstream_keys(Month(2024, 3), monthly, daily, NOW) == ()
    assert inside.upstream_keys(Month(2023, 12), monthly, daily, NOW) == ()


def test_the_current_month_reads_the_days_that_there_are_so_far() -> None:
    monthly, daily = MonthlyPartitions("2024-01"), DailyPartitions("2024-01-01")
    found = TimeWindow().upstream_keys(Month(2024, 6), monthly, daily, NOW)
    assert (found[0], found[-1], len(found)) == (date(2024, 6, 1), date(2024, 6, 15), 15)


def test_a_day_whose_month_the_upstream_set_lacks_is_refused() -> None:
    with pytest.raises(BadPartition, match="2024-03 lies outside 2024-01 to 2024-02"):
        TimeWindow().upstream_keys(
            date(2024, 3, 1), DAILY, MonthlyPartitions("2024-01", "2024-02"), NOW
        )


def test_the_same_key_is_refused_where_the_upstream_set_lacks_it() -> None:
    upstream = DailyPartitions("2024-01-01", "2024-01-31")
    assert SameKey().upstream_keys(date(2024, 1, 2), DAILY, upstream, NOW) == (date(2024, 1, 2),)
    with pytest.raises(BadPartition, match="2024-02-01 lies outside"):
        SameKey().upstream_keys(date(2024, 2, 1), DAILY, upstream, NOW)


def test_all_keys_come_in_the_order_of_the_upstream_set() -> None:
    upstream = StaticPartitions(["us", "eu", "asia"])
    assert AllKeys().upstream_keys(UNPARTITIONED, NONE, upstream, NOW) == ("us", "eu", "asia")


def test_an_unpartitioned_asset_is_read_whole() -> None:
    assert WholeAsset().upstream_keys("eu", StaticPartitions(["eu"]), NONE, NOW) == (UNPARTITIONED,)


def test_windows_need_time_on_both_sides() -> None:
    regions = StaticPartitions(["eu"])
    with pytest.raises(BadMapping, match="needs time partitions on both sides"):
        TimeWindow().upstream_keys(Month(2024, 1), MonthlyPartitions("2024-01"), regions, NOW)


MONTHLY = MonthlyPartitions("2013-01")
EU = StaticPartitions(["eu"])
EU_US = StaticPartitions(["eu", "us"])


@pytest.mark.parametrize(
    ("downstream", "upstream", "mapping", "fan_in"),
    [
        (NONE, NONE, WholeAsset(), False),
        (DAILY, NONE, WholeAsset(), False),
        (EU, NONE, WholeAsset(), False),
        (NONE, DAILY, AllKeys(), True),
        (NONE, EU, AllKeys(), True),
        (DAILY, DAILY, SameKey(), False),
        (DAILY, DailyPartitions("2020-01-01"), SameKey(), False),
        (MONTHLY, DAILY, TimeWindow(fan_in=True), True),
        (DAILY, MONTHLY, TimeWindow(fan_in=False), False),
        (EU, EU_US, SameKey(), False),
        (EU_US, EU_US, SameKey(), False),
    ],
)
def test_two_sets_suggest_a_mapping(
    downstream: PartitionSet, upstream: PartitionSet, mapping: object, fan_in: bool
) -> None:
    found = default_mapping(downstream, upstream)
    assert found == mapping
    assert type(found) is type(mapping)
    assert found.fan_in is fan_in


@pytest.mark.parametrize(
    ("downstream", "upstream"),
    [
        (EU_US, EU),
        (EU, DAILY),
        (DAILY, EU),
        (DAILY, DailyPartitions("1970-01-01", tz="Europe/Berlin")),
        (MONTHLY, DailyPartitions("1970-01-01", tz="Europe/Berlin")),
        (StaticPartitions([1]), StaticPartitions([True])),
        (StaticPartitions(["1"]), StaticPartitions([1])),
    ],
)
def test_two_sets_that_suggest_nothing_are_both_named(
    downstream: PartitionSet, upstream: PartitionSet
) -> None:
    with pytest.raises(BadMapping) as caught:
        default_mapping(downstream, upstream)
    assert str(downstream) in caught.value.message
    assert str(upstream) in caught.value.message


@pytest.mark.parametrize("start", ["2024-01-01", "2024-01-05"])
def test_windows_of_cron_lie_in_no_other_whenever_they_begin(start: str) -> None:
    at = Moment(datetime(2025, 1, 1, tzinfo=UTC))
    hours, days = HourlyPartitions(start, "2024-12-31"), DailyPartitions(start, "2024-12-31")
    market = CronPartitions("0 * * * 1-5", start, "2024-12-31")
    found = default_mapping(market, hours)
    assert found == TimeWindow(fan_in=True)
    # From Friday night to Monday.
    read = found.upstream_keys(market.parse("2024-01-12T23:00"), market, hours, at)
    assert len(read) == 49
    assert default_mapping(hours, market) == TimeWindow(fan_in=True)
    nights = CronPartitions("0 0 1-28 * *", start, "2024-12-31")
    assert default_mapping(nights, days) == TimeWindow(fan_in=True)
    assert default_mapping(nights, CronPartitions("0 0 1-28 * *", "2020-01-01")) == SameKey()
    assert TimeWindow(fan_in=False).fitted(nights, days).fan_in is False


@pytest.mark.parametrize("tz", ["America/Sao_Paulo", "Asia/Beirut", "America/Havana"])
def test_an_hour_that_reaches_over_a_border_belongs_to_the_day_in_which_it_begins(tz: str) -> None:
    at = Moment(datetime(2025, 1, 1, tzinfo=UTC))
    late = timedelta(minutes=15)
    hours = HourlyPartitions("2013-01-01", "2013-12-30", tz=tz, offset=late)
    days = DailyPartitions("2013-01-01", "2013-12-30", tz=tz, offset=late)
    found, back = default_mapping(hours, days), default_mapping(days, hours)
    reaching = 0
    for hour in hours.keys(at):
        (day,) = found.upstream_keys(hour, hours, days, at)
        window, own = hours.window(hour), days.window(day)
        assert own.start.astimezone(UTC) <= window.start.astimezone(UTC) < own.end.astimezone(UTC)
        if window.end.astimezone(UTC) > own.end.astimezone(UTC):
            reaching += 1
            # Both days read it.
            assert list(back.downstream_keys(hour, days, hours, at)) == [day, days.next_key(day)]
    assert reaching == 1
