"""`materialize_sync`, end to end: plan, claim, execute and commit on a real ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel

from flowstone.asset import asset
from flowstone.client import materialize_sync, run, runs_list
from flowstone.context import Context
from flowstone.errors import FlowStoneError, RunFailed, UnknownAsset
from flowstone.partition import (
    DailyPartitions,
    Key,
    Month,
    MonthlyPartitions,
    StaticPartitions,
)
from flowstone.registry import build_registry
from flowstone.resource import resource
from flowstone.retry import Retry
from tests.store.runs_by_hand import query

DAILY = DailyPartitions("2024-02-01", "2024-03-31", tz="Europe/Berlin")


def test_a_value_is_computed_stored_and_given_back(make_runtime: Any) -> None:
    @asset
    def answer() -> dict[str, Any]:
        return {"value": 42, "nothing": None}

    make_runtime(build_registry([answer]))
    handle = materialize_sync(answer)
    assert handle.result() == {"value": 42, "nothing": None}
    assert handle.status() == "succeeded"
    assert run(str(handle.id)[:8]).result("answer") == handle.result(answer)
    with pytest.raises(UnknownAsset, match="did not compute 'answr'; did you mean 'answer'"):
        handle.result("answr")


def test_a_diamond_computes_each_step_once(make_runtime: Any) -> None:
    calls: Counter[str] = Counter()

    @asset
    def top() -> int:
        calls["top"] += 1
        return 1

    @asset
    def left(top: int) -> int:
        calls["left"] += 1
        return top + 1

    @asset
    def right(top: int) -> int:
        calls["right"] += 1
        return top + 2

    @asset
    def bottom(left: int, right: int) -> list[int]:
        calls["bottom"] += 1
        return [left, right]

    make_runtime(build_registry([top, left, right, bottom]))
    assert materialize_sync("bottom", upstream=True).result() == [2, 3]
    assert calls == {"top": 1, "left": 1, "right": 1, "bottom": 1}


def test_without_upstream_the_latest_outputs_are_read(make_runtime: Any) -> None:
    versions = iter([1, 2, 3])

    @asset
    def source() -> int:
        return next(versions)

    @asset
    def copy(source: int) -> int:
        return source * 10

    make_runtime(build_registry([source, copy]))
    with pytest.raises(RunFailed, match="source, read by copy, has never been materialized"):
        materialize_sync(copy)
    materialize_sync(source)
    assert materialize_sync(copy).result() == 10
    materialize_sync(source)
    assert materialize_sync(copy).result() == 20
    assert materialize_sync(copy).result() == 20


def test_a_failure_stops_only_what_depends_on_it(make_runtime: Any) -> None:
    @asset
    def good() -> int:
        return 1

    @asset
    def bad() -> int:
        raise ValueError("no good: caf\udce9 \0")

    @asset
    def after_bad(bad: int) -> int:
        return bad

    @asset
    def after_good(good: int) -> int:
        return good

    here = make_runtime(build_registry([good, bad, after_bad, after_good]))
    with pytest.raises(RunFailed) as caught:
        materialize_sync(["after_bad", "after_good"], upstream=True)
    assert "failed: bad: ValueError: no good: caf\\udce9 \\0" in caught.value.message
    states = dict(query(here.ledger, "SELECT asset, state FROM flowstone.steps"))
    assert states == {
        "good": "succeeded",
        "after_good": "succeeded",
        "bad": "failed",
        "after_bad": "upstream_failed",
    }
    (trace,) = query(
        here.ledger, "SELECT traceback FROM flowstone.attempts WHERE traceback IS NOT NULL"
    )[0]
    assert "test_sync.py" in trace
    assert "raise ValueError" in trace


def test_an_asset_that_calls_exit_has_failed(make_runtime: Any) -> None:
    @asset
    def leaves() -> None:
        raise SystemExit(3)

    make_runtime(build_registry([leaves]))
    with pytest.raises(RunFailed, match="leaves: SystemExit: 3"):
        materialize_sync(leaves)


def test_a_value_that_has_no_format_is_a_failure(make_runtime: Any) -> None:
    @asset
    def odd() -> object:
        return object()

    make_runtime(build_registry([odd]))
    with pytest.raises(RunFailed, match="odd: output_error: asset 'odd' returned a "):
        materialize_sync(odd)


def test_a_fault_of_the_world_is_tried_again_after_the_delay(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    attempts: list[int] = []

    @asset(retry=Retry(max_attempts=3, base=0.1, factor=2))
    def shaky(context: Context) -> int:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise ConnectionError("away")
        return 7

    @asset
    def reader(shaky: int) -> int:
        return shaky

    here = make_runtime(build_registry([shaky, reader]))
    monkeypatch.setattr(time, "sleep", waited.append)
    assert materialize_sync(reader, upstream=True).result() == 7
    assert attempts == [1, 2, 3]
    assert sum(waited) == pytest.approx(0.2 + 0.4)
    assert query(
        here.ledger,
        "SELECT number, outcome, error_type FROM flowstone.attempts "
        "JOIN flowstone.steps s ON s.id = step_id WHERE s.asset = 'shaky' ORDER BY 1",
    ) == [(1, "retrying", "ConnectionError"), (2, "retrying", "ConnectionError"),
          (3, "succeeded", None)]  # fmt: skip


def test_after_the_last_attempt_the_step_has_failed(make_runtime: Any) -> None:
    @asset(retry=Retry(max_attempts=2, base=0))
    def shaky() -> int:
        raise TimeoutError("slow")

    here = make_runtime(build_registry([shaky]))
    with pytest.raises(RunFailed, match="shaky: TimeoutError: slow"):
        materialize_sync(shaky)
    assert query(here.ledger, "SELECT outcome FROM flowstone.attempts ORDER BY number") == [
        ("retrying",),
        ("failed",),
    ]


def test_a_month_receives_its_days_as_a_dict_in_their_order(make_runtime: Any) -> None:
    @asset(partitions=DAILY)
    def day(context: Context) -> int:
        assert isinstance(context.partition, date)
        return context.partition.day

    @asset(partitions=MonthlyPartitions("2024-02", "2024-03", tz="Europe/Berlin"))
    def month(day: dict[date, int]) -> list[int]:
        assert list(day) == [date(2024, 2, n) for n in range(1, 30)]
        return list(day.values())

    @asset
    def year(month: Mapping[Month, list[int]]) -> list[str]:
        return [f"{m}: {sum(days)}" for m, days in month.items()]

    make_runtime(build_registry([day, month, year]))
    handle = materialize_sync(month, partition="2024-02", upstream=True)
    assert handle.result() == list(range(1, 30))
    assert list(handle.result(day)) == [date(2024, 2, n) for n in range(1, 30)]
    with pytest.raises(RunFailed, match=r"month\[2024-03\], read by year, has never been"):
        materialize_sync(year)


def test_static_keys_keep_the_order_and_the_type_that_they_were_given(make_runtime: Any) -> None:
    keys: list[Key] = ["us", "eu", 1, "1", None, ("a", 2), "nul \0", ".."]

    @asset(partitions=StaticPartitions(keys))
    def part(context: Context) -> str:
        return repr(context.partition)

    @asset
    def whole(part: dict[Any, str]) -> list[list[str]]:
        return [[repr(key), value] for key, value in part.items()]

    make_runtime(build_registry([part, whole]))
    expected = [[repr(key), repr(key)] for key in keys]
    assert materialize_sync(whole, upstream=True).result() == expected


def test_none_is_a_partition_key_like_others(make_runtime: Any) -> None:
    @asset(partitions=StaticPartitions([None, "eu"]))
    def part(context: Context) -> bool:
        return context.partition is None

    make_runtime(build_registry([part]))
    assert materialize_sync(part, partition=None).result() is True
    assert materialize_sync(part, partition="eu").result() is False
    with pytest.raises(RunFailed, match=r"is partitioned \(2 static keys\); give a partition"):
        materialize_sync(part)


class Model(BaseModel):
    limit: int = 5
    name: str = "default"


def test_the_context_tells_an_asset_which_step_it_computes(make_runtime: Any) -> None:
    seen: list[Context] = []

    @asset(partitions=DAILY, config=Model)
    def told(context: Context) -> None:
        seen.append(context)
        context.logger.info("told", rows=1)

    make_runtime(build_registry([told]))
    handle = materialize_sync(told, partition="2024-03-31", config={"told": {"limit": 9}})
    (context,) = seen
    assert context.run_id == str(handle.id)
    assert (context.asset, context.partition) == ("told", date(2024, 3, 31))
    assert (context.partitions, context.attempt) == (DAILY, 1)
    assert context.config == Model(limit=9)
    assert context.window is not None
    assert context.window.start.isoformat() == "2024-03-31T00:00:00+01:00"
    assert context.window.end.isoformat() == "2024-04-01T00:00:00+02:00"
    assert dict(context.resources) == {}


def test_an_unpartitioned_asset_has_no_window_and_the_default_config(make_runtime: Any) -> None:
    @asset(config=Model)
    def told(context: Context) -> list[Any]:
        return [context.window, context.config.limit, context.config.name]

    make_runtime(build_registry([told]))
    assert materialize_sync(told).result() == [None, 5, "default"]


def test_config_that_is_no_json_is_refused_at_once(make_runtime: Any) -> None:
    here = make_runtime(build_registry([]))
    with pytest.raises(FlowStoneError, match="config must hold JSON values only"):
        materialize_sync("a", config={"a": {"when": date(2024, 1, 1)}})
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(0,)]


def test_an_asset_sees_only_the_resources_that_it_declares(make_runtime: Any) -> None:
    made: list[str] = []

    @resource
    def client() -> str:
        made.append("client")
        return "the client"

    @resource
    def other() -> str:
        made.append("other")
        return "the other"

    @asset(requires=["client"])
    def uses(context: Context) -> list[str]:
        assert list(context.resources) == ["client"]
        return [context.resources["client"], context.resources["client"]]

    @asset
    def uses_none(context: Context) -> None:
        context.resources["client"]

    make_runtime(build_registry([uses, uses_none], [client, other]))
    assert materialize_sync(uses).result() == ["the client", "the client"]
    assert made == ["client"]
    with pytest.raises(RunFailed, match="unknown_resource: resource 'client' is not declared"):
        materialize_sync(uses_none)


def test_an_asset_that_only_comes_first_is_not_loaded_but_in_the_lineage(
    make_runtime: Any,
) -> None:
    @asset
    def setup() -> str:
        return "done"

    @asset(deps=["setup"])
    def made() -> int:
        return 1

    here = make_runtime(build_registry([setup, made]))
    assert materialize_sync(made, upstream=True).result() == 1
    assert query(here.ledger, "SELECT count(*) FROM flowstone.lineage") == [(1,)]


def test_an_output_that_was_changed_in_storage_is_not_read(make_runtime: Any) -> None:
    @asset
    def source() -> int:
        return 1

    @asset
    def copy(source: int) -> int:
        return source

    here = make_runtime(build_registry([source, copy]))
    handle = materialize_sync(source)
    (location,) = query(here.ledger, "SELECT location FROM flowstone.outputs")[0]
    path = here.settings.home / "outputs" / location
    path.write_text("2")
    with pytest.raises(FlowStoneError, match="has been changed"):
        handle.result()
    with pytest.raises(RunFailed, match=r"copy: changed_output: the output .* has been changed"):
        materialize_sync(copy)


def test_an_interrupted_run_is_closed(make_runtime: Any) -> None:
    @asset
    def interrupted() -> None:
        raise KeyboardInterrupt

    @asset
    def after(interrupted: None) -> None: ...

    @asset
    def beside() -> None: ...

    make_runtime(build_registry([interrupted, after, beside]))
    with pytest.raises(KeyboardInterrupt):
        materialize_sync(["interrupted", "after", "beside"])
    (last,) = runs_list(1)
    assert last.state in ("failed", "cancelled")
