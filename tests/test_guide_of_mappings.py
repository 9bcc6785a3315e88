"""What docs/mappings.md says: each of its examples reads and gets what the page tells."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowstone import Dep, asset, lineage, mapping, materialize_sync
from flowstone.asset import Asset
from flowstone.errors import BadMapping, CyclicGraph, MissingInput, RunFailed
from flowstone.graph import AssetGraph
from flowstone.mapping import default_mapping
from flowstone.mapping_check import MappingChecks
from flowstone.partition import (
    DailyPartitions,
    HourlyPartitions,
    Moment,
    MonthlyPartitions,
    StaticPartitions,
    UnpartitionedSet,
    WeeklyPartitions,
)
from flowstone.registry import build_registry
from flowstone.rollup import waits_until
from tests.conftest import RuntimeFactory
from tests.pages import PAGES, ROOT, blocks, section

PAGE = PAGES[ROOT / "docs" / "mappings.md"]


@pytest.fixture(scope="module")
def named() -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "guide"}
    for code in blocks("python", PAGE):
        exec(code, found)  # noqa: S102 - the page is ours
    return found


def assets(named: dict[str, Any]) -> list[Asset]:
    return [one for one in named.values() if isinstance(one, Asset)]


def test_each_example_gets_what_the_page_says(
    named: dict[str, Any], make_runtime: RuntimeFactory
) -> None:
    make_runtime(build_registry(assets(named)))

    def made(name: str, partition: Any) -> Any:
        """Make one partition with all that it needs, and return its value."""
        result = materialize_sync(name, partition=partition, upstream=True).result()
        return list(result.values())[-1] if isinstance(result, dict) else result

    assert made("left", "2024-03-05") == 2995
    assert made("growth", "2024-02-26") == "the first day"
    assert made("growth", "2024-03-01") == "29 the day before"
    assert made("last_seven_days", "2024-02-28") == 26 + 27 + 28
    assert made("last_seven_days", "2024-03-07") == sum(range(1, 8))
    assert made("weekly", "2024-W09") == [2000, 3000]
    assert made("weekly", "2024-W10") == [3000]
    assert made("balance", "2024-02-28") == 26 + 27 + 28
    assert made("compared_to", "asia") == 2
    assert made("share", "asia") == 0.5
    assert made("trend", "2024-02-29") == [27, 28, 29]
    assert made("trend", "2024-02-26") == [26]
    assert made("compared", "2024-03-01|us") == [2, 29]
    assert made("compared", "2024-02-26|us") == [2, None]
    assert made("total", "2024-03-02") == 6
    assert made("european", "2024-03-02") == 2
    assert made("city_share", "rome") == 1
    assert made("city_report", "eu") == ["rome", "oslo"]
    assert made("statement", "2024-02") == 26 + 27 + 28 + 29
    assert made("largest", "2024-02") == 29


def test_the_policies_do_what_the_page_says(
    named: dict[str, Any], make_runtime: RuntimeFactory
) -> None:
    make_runtime(build_registry(assets(named)))
    for day in (26, 27, 28):
        materialize_sync("sales", partition=f"2024-02-{day}")
    assert materialize_sync("quick_report", partition="2024-02").result() == 26 + 27 + 28
    missing = lineage.produced("quick_report", "2024-02").missing
    assert [one.name for one in missing] == ["sales[2024-02-29]"]
    for name in ("careful_report", "patient_report"):
        # The end of the grace is long ago.
        with pytest.raises((RunFailed, MissingInput), match="needs 4 of 4 partitions of 'sales'"):
            materialize_sync(name, partition="2024-02")
    materialize_sync("sales", partition="2024-02-29")
    for name, value in (("careful_report", 110), ("patient_report", 4), ("quick_report", 110)):
        assert materialize_sync(name, partition="2024-02", force=False).result() == value


def test_the_grace_is_that_of_the_example(named: dict[str, Any]) -> None:
    (dependency,) = named["patient_report"].dependencies
    assert dependency.grace == timedelta(hours=6)
    month = named["months"].window_of(next(iter(named["months"].keys(moment()))))
    until = waits_until(month.end, moment().now, dependency.grace)
    assert until == datetime(2024, 3, 1, 6, tzinfo=UTC)


def moment() -> Moment:
    return Moment(datetime(2024, 3, 1, tzinfo=UTC))


def test_the_table_of_defaults_is_that_of_the_code() -> None:
    hours, days = HourlyPartitions("2024-01-01"), DailyPartitions("2024-01-01")
    weeks, months = WeeklyPartitions("2024-01-01"), MonthlyPartitions("2024-01")
    none, some = UnpartitionedSet(), StaticPartitions(["a"])
    more = StaticPartitions(["a", "b"])
    found = {
        (down, up): default_mapping(down, up).fan_in
        for down, up in [
            (days, none), (none, days), (days, days), (months, days), (days, hours), (days, months),
            (hours, days), (some, more), (weeks, hours),
        ]
    }  # fmt: skip
    assert list(found.values()) == [False, True, False, True, True, False, False, False, True]
    abroad = DailyPartitions("2024-01-01", tz="Europe/Berlin")
    for down, up in ((weeks, months), (months, weeks), (days, abroad), (more, some)):
        with pytest.raises(BadMapping, match="suggests itself"):
            default_mapping(down, up)
    MappingChecks()(mapping.TimeWindow(fan_in=False), weeks, months, optional=False)


def test_the_page_names_all_mappings_and_each_annotation() -> None:
    for name in ("TimeWindow", "AllKeys", "Keys", "LastKeys", "SameKey", "PerDimension", "Mapped"):
        assert f"`{name}(" in PAGE or f"`{name}`" in PAGE
    rows = re.findall(r"^\| (`.+?) \|", section("How the values arrive"), re.MULTILINE)
    assert len(rows) == 5


def test_what_the_page_says_is_refused_is_refused() -> None:
    days = DailyPartitions("2024-01-01")
    circle = asset(
        name="circle",
        partitions=days,
        deps={"before": Dep("circle", mapping.TimeWindow(-6, 0))},
    )(lambda before: before)
    with pytest.raises(CyclicGraph, match="reads itself by the windows from offset -6"):
        AssetGraph.build([circle])
