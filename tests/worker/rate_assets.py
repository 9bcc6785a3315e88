"""Assets with rates, for the tests on real workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowstone import Context, Rate, Retry, StaticPartitions, asset

QUICK = Rate(20, per="second", key="quick")
PARTS = StaticPartitions([f"p{number:02}" for number in range(30)])
FEW = StaticPartitions(["p0", "p1", "p2"])


@asset(partitions=PARTS, rate=QUICK)
def page() -> int:
    return 1


@asset
def pages(page: dict[Any, int]) -> int:
    return sum(page.values())


@asset(partitions=FEW, rate=QUICK)
def other() -> int:
    return 1


@asset
def others(other: dict[Any, int]) -> int:
    return sum(other.values())


@asset(rate=Rate(2, per="second"), retry=Retry(max_attempts=3, base=0, factor=1))
def flaky(context: Context) -> int:
    """Succeed at the third attempt."""
    if context.attempt < 3:
        raise ConnectionError("not yet")
    return context.attempt


@asset(partitions=FEW, rate=Rate(15, per="minute", key="slow"))
def slow() -> int:
    return 1


@asset
def all_slow(slow: dict[Any, int]) -> int:
    return sum(slow.values())


class Folder(BaseModel):
    path: str = "."


@asset
def before_call(context: Context) -> int:
    return 1


@asset(rate=Rate(1, per="hour"), config=Folder)
def call(before_call: int, context: Context) -> int:
    (Path(context.config.path) / f"call-{context.run_id}").touch()
    return before_call


@asset
def after_call(call: int) -> int:
    return call
