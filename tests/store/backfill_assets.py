"""Days and the reports of their months, which may fail."""

from __future__ import annotations

from datetime import date

from flowstone import Context, DailyPartitions, MonthlyPartitions, asset

DAYS = DailyPartitions("2013-01-01", "2013-06-30")
MONTHS = MonthlyPartitions("2013-01", "2013-06")
BROKEN: set[date] = set()
"""The days that fail."""


@asset(partitions=DAYS)
def raw(context: Context) -> int:
    """The number of the day."""
    if context.partition in BROKEN:
        raise ValueError("no such day")
    return int(context.partition.day)


@asset(partitions=MONTHS)
def monthly_report(raw: dict[date, int]) -> int:
    """The sum of the days."""
    return sum(raw.values())
