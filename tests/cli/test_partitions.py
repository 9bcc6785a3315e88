"""`flowstone partitions`: how partitions stand, as a picture, as a list, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest

from flowstone.asset import Asset, asset
from flowstone.errors import BadQuery, UnknownAsset
from flowstone.partition import (
    DailyPartitions,
    HourlyPartitions,
    MonthlyPartitions,
    PartitionSet,
    ProductPartitions,
    StaticPartitions,
    WeeklyPartitions,
)
from flowstone.partition_key import encode_key
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from tests.cli.in_process import InProcess
from tests.conftest import RuntimeFactory
from tests.store.many_partitions import made, steps


def definition(partitions: PartitionSet | None) -> Asset:
    @asset(name="a", partitions=partitions, version="1")
    def a() -> None: ...

    return a


class Stage:
    """An asset whose partitions are brought into states, and the command line that shows them."""

    def __init__(self, make_runtime: RuntimeFactory) -> None:
        self.make_runtime = make_runtime
        self.flowstone = InProcess()
        self.runtime: Runtime
        self.asset: Asset

    def define(self, partitions: PartitionSet | None = None) -> None:
        self.asset = definition(partitions)
        self.runtime = self.make_runtime(build_registry([self.asset]))

    def put(self, state: str, *keys: Any) -> None:
        encoded = [key if ":" in str(key) else encode_key(key) for key in keys]
        with self.runtime.ledger.begin() as conn:
            if state == "ok":
                cut = self.asset.partitions.cut
                made(conn, "a", encoded, code=self.asset.code_hash, cut=cut)
            else:
                steps(conn, "a", encoded, state)

    def shown(self, *arguments: str) -> list[str]:
        lines: Sequence[str] = self.flowstone("partitions", "a", *arguments).stdout.splitlines()
        assert all(len(line) <= 80 for line in lines)
        # Where a sentence goes on in the next line, a blank is left.
        return [line.rstrip() for line in lines]


@pytest.fixture
def stage(make_runtime: RuntimeFactory) -> Stage:
    return Stage(make_runtime)


def days(*numbers: int, month: str = "2026-01") -> list[str]:
    return [f"d:{month}-{number:02d}" for number in numbers]


def test_days_are_a_calendar(stage: Stage) -> None:
    stage.define(DailyPartitions("2026-01-03", "2026-02-10"))
    stage.put("ok", *days(*range(3, 32)))
    stage.put("ok", *days(1, 2, month="2026-02"))
    stage.put("failed", *days(3, month="2026-02"), *days(9))
    stage.put("running", *days(4, month="2026-02"))
    stage.put("pending", *days(5, month="2026-02"))
    stage.put("waiting_signal", *days(6, month="2026-02"))
    stage.put("skipped", *days(7, month="2026-02"))
    with stage.runtime.ledger.begin() as conn:
        made(conn, "a", days(20), code="old")
    assert stage.shown() == [
        "a: daily, 2026-01-03 to 2026-02-10, UTC",
        "        1   5    10   15   20   25   30",
        "2026-01   ######X##########~###########",
        "2026-02 ##X>q?-...",
        "# ok 29   ~ stale 1   X failed 2   > running 1   q queued 1   ? waiting 1",
        "- skipped 1   . missing 3   partitions: 39",
        "1 stale: code changed",
    ]
    assert stage.shown("-p", "2026-02-02..2026-02-04", "-p", "2026-02-08")[2:] == [
        "2026-02  #X>   .",
        "# ok 1   X failed 1   > running 1   . missing 1   partitions: 4",
    ]
    assert stage.shown("--state", "failed", "--state", "stale") == [
        "X 2026-01-09  failed",
        "~ 2026-01-20  stale: code changed",
        "X 2026-02-03  failed",
        "partitions: 3 of 39",
    ]
    found = json.loads(stage.flowstone("partitions", "a", "--json", "--state", "stale").stdout)
    assert found["partitions"] == [
        {"partition": "2026-01-20", "state": "stale", "why": "code changed"}
    ]
    assert (found["counts"]["ok"], found["counts"]["missing"], found["left_over"]) == (29, 3, [])
    assert len(json.loads(stage.flowstone("partitions", "a", "--json").stdout)["partitions"]) == 39


def test_hours_have_a_row_a_day_in_which_one_may_be_twice_or_not_at_all(stage: Stage) -> None:
    stage.define(HourlyPartitions("2025-10-25T22", "2025-10-27T01", tz="Europe/Berlin"))
    stage.put("ok", "t:2025-10-26T02:00:00+01:00")
    assert stage.shown()[1:5] == [
        "           0     6     12    18",
        "2025-10-25                       ..",
        "2025-10-26 ...#.....................",
        "2025-10-27 ..",
    ]
    stage.define(HourlyPartitions("2026-03-29", "2026-03-29T05", tz="Europe/Berlin"))
    assert "2026-03-29 .. ..." in stage.shown()


def test_what_else_there_is_has_a_form_of_its_own(stage: Stage) -> None:
    stage.define(MonthlyPartitions("2025-11", "2026-02"))
    stage.put("ok", "m:2026-01")
    assert stage.shown()[1:4] == ["     JFMAMJJASOND", "2025           ..", "2026 #."]
    stage.define(WeeklyPartitions("2025-01-06", "2026-12-28"))
    assert stage.shown()[1:3] == [
        f"2025-01-06 {'.' * 60}",
        f"2026-03-02 {'.' * 44}",
    ]
    stage.define(StaticPartitions(["eu", "us", "apac"]))
    stage.put("ok", "us")
    assert stage.shown()[1:] == [
        ". eu    # us    . apac",
        "# ok 1   . missing 2   partitions: 3",
        "left over: 1 with an output that the set does not have any more, which nothing",
        "computes again and `flowstone get` still reads: 2026-01",
    ]
    stage.define()
    assert stage.shown() == [
        "a: unpartitioned",
        ". (unpartitioned)",
        ". missing 1   partitions: 1",
        "left over: 2 with an output that the set does not have any more, which nothing",
        "computes again and `flowstone get` still reads: 2026-01, us",
    ]


def test_two_dimensions_are_a_matrix_and_more_have_labels(stage: Stage) -> None:
    regions = StaticPartitions(["eu", "north-america"])
    january = DailyPartitions("2026-01-01", "2026-01-02")
    # Whichever comes first, days go down.
    stage.define(ProductPartitions(region=regions, day=january))
    stage.put("ok", ("eu", date(2026, 1, 2)))
    assert stage.shown()[1:4] == [
        "           eu       north-am",
        "2026-01-01 .        .",
        "2026-01-02 #        .",
    ]
    three = [(day, 1, to) for day in ("1st", "2nd") for to in ("eu", "us")]
    stage.define(StaticPartitions(three))
    stage.put("ok", ("1st", 1, "us"))
    assert stage.shown()[1:4] == ["      eu us", "1st|1 .  #", "2nd|1 .  ."]
    stage.define(StaticPartitions([(row, f"column{n}") for row in "xy" for n in range(12)]))
    assert [line.split()[0] for line in stage.shown()[1:7]] == [
        "column0", "x", "y", "column8", "x", "y",
    ]  # fmt: skip


def test_many_do_not_flood_the_terminal(stage: Stage) -> None:
    stage.define(DailyPartitions("1900-01-01", "2025-12-31"))
    shown = stage.shown()
    assert len(shown) < 24
    assert shown[1] == "45,595 earlier ones are not shown; --all shows them"
    assert shown[3].startswith("2024-11 ")
    assert len(stage.shown("--all")) == 126 * 12 + 3
    listed = stage.shown("--state", "missing")
    assert len(listed) < 24
    assert listed[-2:] == [". 2025-12-31  missing", "partitions: 46,021 of 46,021"]
    stage.define(StaticPartitions([f"station-{number:04d}" for number in range(2_000)]))
    assert len(stage.shown()) < 24
    assert stage.shown()[-2].startswith("station-1980 " + "." * 20)


def test_what_there_is_not_is_refused(stage: Stage) -> None:
    stage.define()
    with pytest.raises(UnknownAsset):
        stage.flowstone("partitions", "b")
    with pytest.raises(BadQuery, match="did you mean 'missing'"):
        stage.flowstone("partitions", "a", "--state", "mising")
