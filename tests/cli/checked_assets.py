"""An asset with checks, of which one stands in the way of negative numbers."""

from __future__ import annotations

import os

from flowstone import CheckResult, asset, check


@asset
def number() -> int:
    return int(os.environ.get("NUMBER", "1"))


@check(asset=number, blocking=True)
def positive(value: int) -> bool:
    return value > 0


@check(asset=number)
def small(value: int) -> CheckResult:
    return CheckResult(value < 10, f"{value} of at most 10")
