"""What a mapping says forwards, it says backwards: which partitions read one upstream partition."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.errors import BadPartition
from flowstone.mapping import (
    AllKeys,
    PartitionMapping,
    SameKey,
    TimeWindow,
    WholeAsset,
    default_mapping,
    fit,
)
from flowstone.partition import (
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
    start = draw(st.sampled_from(STARTS)) + timedelta(days=draw(st.integers(-40, 40)))
    length = draw(st.integers(0, 70))
    if draw(st.booleans()):
        end = None if draw(st.booleans()) else start + timedelta(days=length)
        return DailyPartitions(start, end, tz)
    return MonthlyPartitions(Month.of(start), Month.of(start + timedelta(days=3 * length)), tz)


def moment_after(sets: Iterable[TimePartitions], days: int) -> Moment:
    return Moment(max(s.window(s.first).start for s in sets) + timedelta(days=days))


@settings(deadline=None, max_examples=80)
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
    try:
        agrees(default_mapping(down, up), down, up, at)
    finally:
        agrees(SameKey(), down, up, at)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(scalars(), min_size=1, max_size=6, unique=True),
    st.lists(scalars(), min_size=1, max_size=6, unique=True),
)
def test_sets_of_keys(one: list[Key], other: list[Key]) -> None:
    some = StaticPartitions([*one, *(k for k in other[:2] if k not in one)])
    others = StaticPartitions(other)
    none = UnpartitionedSet()
    for mapping in (SameKey(), AllKeys()):
        agrees(mapping, some, others)
        agrees(mapping, others, some)
    agrees(WholeAsset(), some, none)
    agrees(AllKeys(), none, some)


def test_a_text_is_not_the_key_that_it_is_the_text_of() -> None:
    texts = StaticPartitions(["2024-01-02", "other", date(2024, 1, 3)])
    days = DailyPartitions("2024-01-01", "2024-01-05")
    agrees(SameKey(), texts, days)
    agrees(SameKey(), days, texts)
    with pytest.raises(BadPartition, match="is written like"):
        SameKey().upstream_keys("2024-01-02", texts, days, LATE)
