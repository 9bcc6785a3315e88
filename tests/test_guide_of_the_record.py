"""What docs/values.md says of checks, versions and going back is so."""

from __future__ import annotations

from typing import Any

import pytest

import flowstone
from flowstone import collector, materialize_sync
from flowstone.asset import asset
from flowstone.errors import RunFailed
from flowstone.partition import DailyPartitions, MonthlyPartitions
from flowstone.registry import build_registry
from tests.pages import block, section


def test_the_check_of_the_guide_keeps_a_bad_value_from_its_readers(make_runtime: Any) -> None:
    named: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", "Checks"), named)  # noqa: S102 - the page is ours
    checks = [named["none_below_zero"], named["enough"]]
    make_runtime(build_registry([named["orders"]], checks=checks))
    with pytest.raises(RunFailed, match=r"check 'none_below_zero' refused .*orders: 1 below zero"):
        materialize_sync("orders")
    assert not flowstone.exists("orders")
    assert named["orders"].keep == 3


def test_the_calls_of_the_guide_do_what_it_says(make_runtime: Any) -> None:
    @asset(partitions=DailyPartitions("2013-01-01", "2013-12-31"), volatile=True)
    def raw_flights() -> int:
        return 1

    @asset(partitions=MonthlyPartitions("2013-01", "2013-12"))
    def monthly_report(raw_flights: dict[Any, int]) -> int:
        return sum(raw_flights.values())

    make_runtime(build_registry([raw_flights, monthly_report]))
    materialize_sync("monthly_report", partition="2013-02", upstream=True)
    first = flowstone.versions("monthly_report", "2013-02")[0].id
    materialize_sync("monthly_report", partition="2013-02")
    calls = block("python", "Reading back, versions and going back").replace("to=17", f"to={first}")
    named: dict[str, Any] = {}
    results = []
    for line in calls.splitlines():
        if line.startswith("from"):
            exec(line, named)  # noqa: S102 - as above
        elif line.strip():
            results.append(eval(line, named))  # noqa: S307 - as above
    value, there, state, known, rolled_back, stale = results
    assert (value, there, state) == (28, True, "materialized")
    assert [version.is_latest for version in known] == [True, False]
    assert rolled_back.id == first
    assert [one.asset for one in stale if one.is_latest] == ["raw_flights", "monthly_report"]
    assert flowstone.status("monthly_report", "2013-02").state == "stale"


def test_the_numbers_of_the_guide_are_those_of_the_collector() -> None:
    text = section("Reading back, versions and going back")
    assert f"more than {collector.QUARANTINE_DAYS:g} days" in text
    assert collector.GRACE_SECONDS == 3600
    assert "younger than an hour" in text
