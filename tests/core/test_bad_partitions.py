"""What makes no sense as keys, sets or mappings is refused when it is made, in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from flowstone.errors import BadPartition, DefinitionError
from flowstone.mapping import LastKeys, Mapped, PerDimension, TimeWindow
from flowstone.partition import (
    UNPARTITIONED,
    CronPartitions,
    DailyPartitions,
    DynamicPartitions,
    HourlyPartitions,
    Moment,
    MonthlyPartitions,
    ProductPartitions,
    StaticPartitions,
    WeeklyPartitions,
)
from flowstone.partition_key import encode_key
from flowstone.rollup import AtLeast, Ratio

HUGE = 10**5000
DAYS = DailyPartitions("2024-01-01", "2024-01-31")
FUTURE = DailyPartitions("2030-01-01")
NOW = Moment(datetime(2025, 1, 1, tzinfo=UTC))


def any_(value: object) -> Any:
    """Return what a caller gives who does not check types."""
    return value


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: encode_key(HUGE), "a number of 16610 bits"),
        (lambda: encode_key(("a", HUGE)), "a number of 16610 bits"),
        (lambda: DAYS.coerce(HUGE, NOW), "of so many digits is not a day"),
        (lambda: DailyPartitions("2024-01-01", tz=any_(None)), "None is not an IANA time zone"),
        (lambda: DailyPartitions("2024-01-01", tz=any_(5)), "5 is not an IANA time zone"),
        (
            lambda: DailyPartitions("2024-01-01", offset=any_(6)),
            "offset of daily partitions is 6;",
        ),
        (lambda: MonthlyPartitions(any_(None)), "None is not a month"),
        (lambda: WeeklyPartitions(any_(5)), "5 is not a day"),
        (lambda: HourlyPartitions(any_(5)), "5 is no time; give a datetime, a date, or write"),
        (lambda: CronPartitions(any_(None), "2024-01-01"), "None is not a cron expression"),
        (
            lambda: CronPartitions("0 6 * * 1", "2024-01-02", "2024-01-05"),
            (
                "no window of '0 6 * * 1' begins between the start and the end: the first one "
                "after the start is 2024-01-08T06:00:00+00:00, the last one before the end 2024-01"
            ),
        ),
        (lambda: DynamicPartitions(any_(5)), "5 is no name for dynamic partitions"),
        (
            lambda: ProductPartitions(any_([DAYS, DAYS])),
            "are a list; give each by",
        ),
        (lambda: ProductPartitions(any_({1: DAYS, 2: DAYS})), "1 is no name of a dimension"),
        (lambda: StaticPartitions("eu"), "give a list of keys, as in ['eu']"),
        (lambda: StaticPartitions({"eu": 1}), "give a list of keys, as in [{'eu': 1}]"),
        (lambda: StaticPartitions(any_(5)), "give a list of keys, as in [5]"),
        (lambda: StaticPartitions([UNPARTITIONED]), "UNPARTITIONED cannot be one of several"),
        (lambda: StaticPartitions(["eu", ""]), "'' cannot be one of several partitions"),
        (lambda: StaticPartitions([()]), "() cannot be one of several partitions"),
        (
            lambda: FUTURE.coerce("2030-01-01", NOW),
            "as the first one, 2030-01-01,",
        ),
        (lambda: TimeWindow(any_("x")), "the offset 'x' of TimeWindow is no whole number"),
        (lambda: TimeWindow(0, any_(1.5)), "the offset 1.5 of TimeWindow is no whole number"),
        (lambda: Mapped(any_(None), any_(None)), "Mapped takes two functions"),
        (lambda: Mapped(str, any_("reverse")), "and 'reverse' is none"),
        (lambda: PerDimension(day=any_(5)), "5 for 'day' is no mapping"),
        (lambda: PerDimension(any_([5])), "[5] is none"),
        (lambda: LastKeys(any_("3")), "LastKeys('3') reads nothing"),
        (lambda: AtLeast(any_("3")), "AtLeast('3'): say 1 or more"),
        (lambda: Ratio(any_("3")), "Ratio('3'): say more than 0"),
    ],
)
def test_it_is_refused_when_it_is_made(made: Callable[[], object], said: str) -> None:
    with pytest.raises((DefinitionError, BadPartition)) as error:
        made()
    assert said in error.value.message
    assert "\n" not in error.value.message
