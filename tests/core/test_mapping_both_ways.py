"""What a mapping says forwards, it says backwards: which partitions read one upstream partition."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.asset import Dep, asset
from flowstone.errors import BadMapping, BadPartition, DefinitionError
from flowstone.freshness import digest
from flowstone.mapping import (
    AllKeys,
    Keys,
    LastKeys,
    Mapped,
    PartitionMapping,
    PerDimension,
    SameKey,
    TimeWindow,
    WholeAsset,
    default_mapping,
    fit,
    may_read_itself,
    written,
)
from flowstone.mapping_check import MappingChecks
from flowstone.partition import (
    UNPARTITIONED,
    CronPartitions,
    DailyPartitions,
    DynamicPartitions,
    HourlyPartitions,
    Key,
    Moment,
    Month,
    MonthlyPartitions,
    PartitionSet,
    ProductPartitions,
    StaticPartitions,
    TimePartitions,
    UnpartitionedSet,
    WeeklyPartitions,
)
from flowstone.partition_key import encode_key, label
from flowstone.source import code_hash
from tests.strategies import ZONES, scalars

LATE = Moment(datetime(2039, 1, 1, tzinfo=UTC))

# Where clocks change, days are skipped, or a month begins at 1:00.
STARTS = (
    date(2011, 11, 20),
    date(2012, 2, 25),
    date(2016, 2, 27),
    date(2018, 10, 25),
    date(2024, 3, 1),
)


def told(keys: Iterable[Key]) -> list[str]:
    return [encode_key(key) for key in keys]


def forwards(
    mapping: PartitionMapping, key: Key, down: PartitionSet, up: PartitionSet, at: Moment
) -> list[str]:
    try:
        return told(mapping.upstream_keys(key, down, up, at))
    except BadPartition:
        return []


def agrees(
    mapping: PartitionMapping, down: PartitionSet, up: PartitionSet, at: Moment = LATE
) -> None:
    """Check for all pairs of keys that one reads the other in both directions or in none."""
    readers = list(down.keys(at))
    reads = {encode_key(d): forwards(mapping, d, down, up, at) for d in readers}
    there = told(up.keys(at))
    assert all(key in there for read in reads.values() for key in read)
    for key in up.keys(at):
        back = told(mapping.downstream_keys(key, down, up, at))
        assert back == [d for d, read in reads.items() if encode_key(key) in read], key


@st.composite
def time_sets(draw: st.DrawFn, tz: str) -> TimePartitions:
    start = draw(st.sampled_from(STARTS)) + timedelta(days=draw(st.integers(-20, 20)))
    length = draw(st.integers(0, 40))
    end = None if draw(st.booleans()) else start + timedelta(days=length)
    offset = timedelta(hours=draw(st.sampled_from([0, 0, 6])))
    match draw(st.sampled_from(["daily", "daily", "weekly", "monthly", "hourly", "cron"])):
        case "daily":
            return DailyPartitions(start, end, tz, offset=offset)
        case "weekly":
            monday = start - timedelta(days=start.weekday())
            end = end and monday + timedelta(weeks=length)
            return WeeklyPartitions(monday, end, tz, offset=offset)
        case "monthly":
            last = Month.of(start + timedelta(days=3 * length))
            return MonthlyPartitions(Month.of(start), last, tz, offset=offset)
        case "hourly":
            return HourlyPartitions(start, start + timedelta(days=length % 3), tz)
    schedule = draw(st.sampled_from(["0 6,18 * * *", "30 3 * * MON", "0 0 * * *"]))
    return CronPartitions(schedule, start, start + timedelta(days=14 + length), tz)


def moment_after(sets: Iterable[TimePartitions], days: int) -> Moment:
    return Moment(max(s.window(s.first).start for s in sets) + timedelta(days=days))


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_windows_of_time(data: st.DataObject) -> None:
    tz = data.draw(st.sampled_from(ZONES))
    down, up = data.draw(time_sets(tz)), data.draw(time_sets(tz))
    offset = data.draw(st.sampled_from([0, 0, -1, 1, -3, 2, -30]))
    end = data.draw(st.none() | st.integers(offset, offset + 4))
    is_one = end is None or end == offset
    fan_in = data.draw(st.sampled_from([None, True, False] if is_one else [None, True]))
    mapping = TimeWindow(offset, end, fan_in)
    at = moment_after((down, up), data.draw(st.integers(1, 100)))
    agrees(mapping, down, up, at)
    fitted = fit(mapping, down, up)
    assert fitted.fan_in is not None
    agrees(fitted, down, up, at)
    if not fitted.fan_in:
        assert all(len(forwards(fitted, d, down, up, at)) <= 1 for d in down.keys(at))
    for other in (SameKey(), LastKeys(data.draw(st.integers(1, 9)))):
        agrees(other, down, up, at)
    with contextlib.suppress(BadMapping):
        agrees(default_mapping(down, up), down, up, at)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(scalars().filter(lambda key: key != ""), min_size=1, max_size=6, unique=True),
    st.lists(scalars().filter(lambda key: key != ""), min_size=1, max_size=6, unique=True),
)
def test_sets_of_keys(one: list[Key], other: list[Key]) -> None:
    some = StaticPartitions([*one, *(k for k in other[:2] if k not in one)])
    others = StaticPartitions(other)
    none = UnpartitionedSet()
    for mapping in (SameKey(), AllKeys(), LastKeys(2), Keys(*other[-2:])):
        agrees(mapping, some, others)
        agrees(mapping, others, some)
    agrees(WholeAsset(), some, none)
    agrees(AllKeys(), none, some)
    agrees(LastKeys(3), none, some)


def test_a_text_is_not_the_key_that_it_is_the_text_of() -> None:
    texts = StaticPartitions(["2024-01-02", "other", date(2024, 1, 3)])
    days = DailyPartitions("2024-01-01", "2024-01-05")
    agrees(SameKey(), texts, days)
    agrees(SameKey(), days, texts)
    with pytest.raises(BadPartition, match="is written like"):
        SameKey().upstream_keys("2024-01-02", texts, days, LATE)


def test_the_last_keys_are_those_until_the_end_of_the_window() -> None:
    days, months = DailyPartitions("2024-01-10"), MonthlyPartitions("2023-12")
    at = Moment(datetime(2024, 3, 5, 12, tzinfo=UTC))

    def read(key: Key, down: PartitionSet, up: PartitionSet, count: int = 3) -> list[str]:
        return [str(k) for k in LastKeys(count).upstream_keys(key, down, up, at)]

    assert read(Month(2024, 1), months, days) == ["2024-01-29", "2024-01-30", "2024-01-31"]
    assert read(Month(2024, 3), months, days) == ["2024-03-03", "2024-03-04", "2024-03-05"]
    assert read(Month(2023, 12), months, days) == []
    assert read(date(2024, 1, 11), days, days) == ["2024-01-10", "2024-01-11"]
    assert read(date(2024, 2, 1), days, months) == ["2023-12", "2024-01", "2024-02"]
    assert read(UNPARTITIONED, UnpartitionedSet(), days, 1) == ["2024-03-05"]
    assert read("eu", StaticPartitions(["eu"]), StaticPartitions(list("abcd")), 2) == ["c", "d"]


def test_functions_of_a_user_map_both_ways() -> None:
    countries = StaticPartitions(["de", "fr", "us", "xx"])
    regions = StaticPartitions(["eu", "us"])
    region_of = {"de": "eu", "fr": "eu", "us": "us"}

    def region(country: str) -> str | list[str]:
        return region_of.get(country, [])

    def members(region: str) -> list[str]:
        return [c for c, r in region_of.items() if r == region] + ["elsewhere"]

    one = Mapped(region, members)
    agrees(one, countries, regions)
    agrees(Mapped(members_that_are(region_of), region, fan_in=True), regions, countries)
    assert str(one) == "mapped by region"
    assert repr(one) == "Mapped(region, members, fan_in=False)"


def members_that_are(region_of: dict[str, str]) -> Callable[[str], Iterable[str]]:
    return lambda region: (c for c, r in region_of.items() if r == region)


def test_what_a_function_gets_wrong_is_told_with_the_key() -> None:
    days, regions = DailyPartitions("2024-01-01"), StaticPartitions(["eu", "us"])
    region_of: dict[date, str] = {}

    def read(forward: Callable[[date], Any]) -> Sequence[Key]:
        def to(day: date) -> Any:
            return forward(day)

        return Mapped(to, lambda _: ()).upstream_keys(date(2024, 1, 2), days, regions, LATE)

    assert read(lambda _: "eu") == ("eu",)
    assert read(lambda _: []) == ()
    assert read(lambda _: ["eu", "eu"]) == ("eu",)
    with pytest.raises(
        BadPartition, match=r"^to\(2024-01-02\) returned 'asia': .*is not one of eu"
    ):
        read(lambda _: "asia")
    with pytest.raises(BadMapping, match=r"^to\(2024-01-02\) returned 2 keys, .*fan_in=True"):
        read(lambda _: ["eu", "us"])
    with pytest.raises(BadMapping, match=r"^to\(2024-01-02\) failed: KeyError"):
        read(region_of.__getitem__)
    with pytest.raises(BadMapping, match=r"^to\(2024-01-02\) did not return keys: .*a float"):
        read(lambda _: 1.5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TimeWindow(0, -6), "ends before it starts"),
        (lambda: TimeWindow(-1, 0, fan_in=False), "takes no end_offset"),
        (lambda: LastKeys(0), "say 1 or more"),
        (Keys, "name the keys"),
    ],
)
def test_mappings_that_make_no_sense_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        make()


def test_mappings_say_what_they_are() -> None:
    said = {
        TimeWindow(): "its window",
        TimeWindow(fan_in=True): "the windows inside",
        TimeWindow(-1, fan_in=False): "the window around, offset -1",
        TimeWindow(-6, 0): "the windows from offset -6 to +0",
        LastKeys(3): "the last 3",
        Keys("eu", date(2024, 1, 2)): "the keys eu, 2024-01-02",
        Keys(*range(9)): "the keys 0, 1, 2, 3, ...",
    }
    assert {mapping: str(mapping) for mapping in said} == said


def test_an_asset_may_read_others_of_its_own_partitions_only() -> None:
    for mapping in (TimeWindow(-1), TimeWindow(-7, -1), TimeWindow(1), Mapped(str, str)):
        assert may_read_itself(mapping)
    for itself in (SameKey(), AllKeys(), LastKeys(2), Keys("eu"), TimeWindow(), TimeWindow(-6, 0)):
        assert not may_read_itself(itself)


def test_the_hash_of_an_asset_holds_what_a_mapping_was_made_with() -> None:
    class Own(SameKey):
        pass

    # Those of an older version: a change of them would have all outputs computed again.
    def name(function: Any) -> str:
        return str(function.__name__)

    assert [written(m, name) for m in (SameKey(), AllKeys(), WholeAsset(), Own())] == [
        "SameKey",
        "AllKeys",
        "WholeAsset",
        "Own",
    ]
    assert written(TimeWindow(-1), name) == "TimeWindow(offset=-1, end_offset=None, fan_in=None)"
    assert written(Mapped(str, int), name) == "Mapped(str, int, fan_in=False) str int"

    def made(mapping: PartitionMapping, version: str | None = "1") -> str:
        return asset(name="a", deps=[Dep("up", mapping)], version=version)(lambda: 1).code_hash

    assert made(LastKeys(2)) == made(LastKeys(2)) != made(LastKeys(3))
    assert made(SameKey()) == digest([code_hash(lambda: 1, "1"), [[None, "up", "SameKey"]]])

    def mapped(forward: Any, reverse: Any = str) -> Mapped:
        forward.__name__ = "named"
        return Mapped(forward, reverse)

    def same(key: str) -> str:
        return key

    def listed(key: str) -> list[str]:
        return [key]

    ones = [mapped(same), mapped(listed), Mapped({}.get, str)]
    assert len({made(one, None) for one in ones}) == 3
    assert len({made(PerDimension(day=one), None) for one in ones}) == 3
    backwards = [Mapped(str, one.forward) for one in ones[:2]]
    assert len({made(one, None) for one in backwards}) == 2
    # Whoever gives a version says when the code is another.
    assert made(ones[0]) == made(ones[1])


DAYS = DailyPartitions("2024-02-27", "2024-03-02")
MONTHS = MonthlyPartitions("2024-02", "2024-03")
EU_US = StaticPartitions(["eu", "us"])
DAY_REGION = ProductPartitions(day=DAYS, region=EU_US)
CUSTOMERS = DynamicPartitions("customers")


@pytest.mark.parametrize(
    ("down", "up", "by", "fan_in", "key", "reads"),
    [
        # Both have several.
        (DAY_REGION, DAY_REGION, None, False, (date(2024, 3, 1), "eu"), ["2024-03-01|eu"]),
        (
            ProductPartitions(region=EU_US, day=DAYS),
            DAY_REGION,
            None,
            False,
            ("eu", date(2024, 3, 1)),
            ["2024-03-01|eu"],
        ),
        (
            ProductPartitions(day=MONTHS, region=EU_US),
            DAY_REGION,
            None,
            True,
            (Month(2024, 3), "us"),
            ["2024-03-01|us", "2024-03-02|us"],
        ),
        (
            DAY_REGION,
            DAY_REGION,
            PerDimension(day=TimeWindow(-1)),
            False,
            (date(2024, 3, 1), "eu"),
            ["2024-02-29|eu"],
        ),
        (
            DAY_REGION,
            DAY_REGION,
            PerDimension({"day": TimeWindow(-1), "region": AllKeys()}),
            True,
            (date(2024, 3, 1), "eu"),
            ["2024-02-29|eu", "2024-02-29|us"],
        ),
        # One has a dimension that the other lacks.
        (
            DAY_REGION,
            ProductPartitions(region=EU_US, size=StaticPartitions([1, 2])),
            None,
            True,
            (date(2024, 3, 1), "eu"),
            ["eu|1", "eu|2"],
        ),
        (
            DAY_REGION,
            ProductPartitions(region=EU_US, size=StaticPartitions([1, 2])),
            PerDimension(size=Keys(2)),
            False,
            (date(2024, 3, 1), "eu"),
            ["eu|2"],
        ),
        # One has a single dimension.
        (DAY_REGION, DAYS, None, False, (date(2024, 3, 1), "eu"), ["2024-03-01"]),
        (DAY_REGION, EU_US, None, False, (date(2024, 3, 1), "eu"), ["eu"]),
        (DAY_REGION, MONTHS, None, False, (date(2024, 3, 1), "eu"), ["2024-03"]),
        (
            DAY_REGION,
            DAYS,
            PerDimension(day=TimeWindow(-1, 0)),
            True,
            (date(2024, 3, 1), "eu"),
            ["2024-02-29", "2024-03-01"],
        ),
        (DAYS, DAY_REGION, None, True, date(2024, 3, 1), ["2024-03-01|eu", "2024-03-01|us"]),
        (EU_US, DAY_REGION, PerDimension(day=LastKeys(1)), True, "us", ["2024-03-02|us"]),
        (
            DAYS,
            DAY_REGION,
            PerDimension(region=Keys("eu")),
            False,
            date(2024, 3, 1),
            ["2024-03-01|eu"],
        ),
        (
            DAYS,
            ProductPartitions(booked=DAYS, flown=DAYS),
            PerDimension(flown=TimeWindow(-1), booked=Keys("2024-02-27")),
            False,
            date(2024, 3, 1),
            ["2024-02-27|2024-02-29"],
        ),
        (
            UnpartitionedSet(),
            DAY_REGION,
            PerDimension(day=Keys("2024-03-01")),
            True,
            UNPARTITIONED,
            ["2024-03-01|eu", "2024-03-01|us"],
        ),
        # Keys that are added at any time.
        (
            ProductPartitions(day=DAYS, customer=CUSTOMERS),
            ProductPartitions(customer=CUSTOMERS, month=MONTHS),
            None,
            True,
            (date(2024, 3, 1), "acme"),
            ["acme|2024-02", "acme|2024-03"],
        ),
        (CUSTOMERS, CUSTOMERS, None, False, "acme", ["acme"]),
    ],
)
def test_dimensions(
    down: PartitionSet,
    up: PartitionSet,
    by: PartitionMapping | None,
    fan_in: bool,
    key: Key,
    reads: list[str],
) -> None:
    at = Moment(LATE.now, lambda _: {encode_key(k): k for k in ("acme", "zeta")})
    mapping = fit(by, down, up)
    found = mapping.upstream_keys(key, down, up, at)
    assert [label(encode_key(one)) for one in found] == reads
    assert mapping.fan_in is fan_in
    agrees(mapping, down, up, at)
    MappingChecks()(mapping, down, up, optional=False)
    if by is not None:
        assert by.upstream_keys(key, down, up, at) == found
        assert list(by.downstream_keys(found[0], down, up, at)) == list(
            mapping.downstream_keys(found[0], down, up, at)
        )


@pytest.mark.parametrize(
    ("down", "up", "mapping", "said"),
    [
        (DAYS, ProductPartitions(booked=DAYS, flown=DAYS), None, "booked and flown suggest themse"),
        (EU_US, ProductPartitions(a=DAYS, b=MONTHS), None, "no dimension suggests itself; name"),
        (DAYS, EU_US, PerDimension(day=TimeWindow()), "needs several dimensions"),
        (
            DAYS,
            DAY_REGION,
            PerDimension(dya=TimeWindow()),
            "none of the dimensions day, region",
        ),
        (
            DAY_REGION,
            DAYS,
            PerDimension(day=SameKey(), region=SameKey()),
            "is read by one",
        ),
        (
            DAY_REGION,
            DAY_REGION,
            PerDimension(region=TimeWindow()),
            "needs time partitions",
        ),
        (
            DAY_REGION,
            ProductPartitions(day=DAYS, region=StaticPartitions(["asia"])),
            None,
            "no partition mapping from (1 static keys) to (2 static keys) suggests itself",
        ),
    ],
)
def test_dimensions_that_do_not_fit_are_told(
    down: PartitionSet, up: PartitionSet, mapping: PartitionMapping | None, said: str
) -> None:
    with pytest.raises(BadMapping, match=re.escape(said)):
        fit(mapping, down, up)


def test_dimensions_say_what_they_do() -> None:
    by = PerDimension(day=TimeWindow(-1), region=AllKeys())
    assert str(by) == "day: its window, offset -1, region: all partitions"
    assert str(fit(by, DAY_REGION, DAY_REGION)) == (
        "day: the window around, offset -1, region: all partitions"
    )
    assert (
        written(PerDimension(a=SameKey(), b=Keys(1)), str)
        == "PerDimension(a=SameKey, b=Keys(keys=(1,)))"
    )
    assert may_read_itself(fit(PerDimension(day=TimeWindow(-1)), DAY_REGION, DAY_REGION))
    assert not may_read_itself(fit(None, DAY_REGION, DAY_REGION))
