"""Assets for the tests of the command line."""

from __future__ import annotations

import time

from flowstone import Context, DailyPartitions, asset


@asset
def numbers() -> list[int]:
    return [1, 2, 3]


@asset
def total(numbers: list[int]) -> int:
    return sum(numbers)


@asset(partitions=DailyPartitions("2026-01-01", "2026-01-31"))
def daily(context: Context) -> str:
    return str(context.partition)


@asset
def sleeps() -> None:
    time.sleep(600)


@asset
def fails() -> None:
    raise ValueError("the sky is green")
