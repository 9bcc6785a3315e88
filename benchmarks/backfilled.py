"""50,000 days, read twice over, and the reports of their months."""

from __future__ import annotations

from datetime import date

from flowstone import Context, DailyPartitions, MonthlyPartitions, asset

DAYS = DailyPartitions("1850-01-01", "1986-11-22")
MONTHS = MonthlyPartitions("1850-01", "1986-11")
PARTITIONS = 50_000
SMALL = "1850-01-01..1863-09-08"
"""A tenth of the days."""


@asset(partitions=DAYS)
def raw(context: Context) -> int:
    """Return the number of the day."""
    return int(context.partition.day)


@asset(partitions=DAYS)
def clean(raw: int) -> int:
    """Return what it reads."""
    return raw


@asset(partitions=DAYS)
def joined(clean: int) -> int:
    """Return what it reads."""
    return clean


@asset(partitions=MONTHS)
def report(joined: dict[date, int]) -> int:
    """Return the sum of the days."""
    return sum(joined.values())
