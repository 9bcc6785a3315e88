"""What produced a value, asked in a process that has nothing but the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from flowstone import lineage, runtime
from flowstone.asset import Asset, asset
from flowstone.client import materialize_sync
from flowstone.context import Context
from flowstone.errors import (
    BadPartition,
    BadQuery,
    DefinitionError,
    NeverMaterialized,
    UnknownAsset,
    UnknownRun,
)
from flowstone.handle import RunHandle
from flowstone.lineage import Standing
from flowstone.partition import UNPARTITIONED, DailyPartitions, Key, Month, MonthlyPartitions
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun, query, run_sql

DAY = date(2026, 1, 5)


class Scale(BaseModel):
    factor: int = 1


def sales() -> list[Asset]:
    @asset(partitions=DailyPartitions("2026-01-01", "2026-01-31"), config=Scale, version="3")
    def orders(context: Context) -> int:
        return int(context.partition.day * context.config.factor)

    @asset
    def rate() -> int:
        return 2

    @asset(partitions=DailyPartitions("2026-01-01", "2026-01-31"))
    def revenue(orders: int, rate: int) -> int:
        return orders * rate

    @asset(partitions=MonthlyPartitions("2026-01", "2026-01"))
    def month(revenue: dict[date, int]) -> int:
        return sum(revenue.values())

    return [orders, rate, revenue, month]


def materialized(make_runtime: RuntimeFactory, name: str, **options: Any) -> RunHandle:
    make_runtime(build_registry(sales()), release="abc123")
    return materialize_sync(name, **options)


@pytest.fixture
def only_ledger(make_runtime: RuntimeFactory) -> Iterator[Any]:
    """Makes this a process that could not import any asset."""

    def forget() -> Ledger:
        here = Runtime(make_runtime.settings.model_copy(update={"assets": ("no.such.module",)}))
        make_runtime.made.append(here)
        runtime.use(here)
        with pytest.raises(DefinitionError):
            _ = here.registry
        return here.ledger

    yield forget
    runtime.use(None)


def test_one_call_tells_what_produced_a_value(
    make_runtime: RuntimeFactory, only_ledger: Any
) -> None:
    materialized(make_runtime, "rate")
    first = materialized(make_runtime, "orders", partition=DAY, config={"orders": {"factor": 3}})
    run = materialized(make_runtime, "revenue", partition=DAY)
    ledger = only_ledger()
    with ledger.begin() as conn:
        run_sql(
            conn,
            "INSERT INTO flowstone.check_results (name, output_id, passed, blocking, severity, "
            "message, metadata, actor) SELECT 'positive', o.id, true, true, 'error', 'is 30', "
            """'{"value": 30}', 'w' FROM flowstone.outputs o JOIN flowstone.steps s """
            "ON s.id = o.step_id WHERE s.asset = 'revenue'",
        )
    found = lineage.produced("revenue", "2026-01-05")
    assert (found.name, found.partition) == ("revenue[2026-01-05]", DAY)
    assert (found.made_by.run_id, found.made_by.reason) == (run.id, "forced")
    assert found.made_by.requested_by == runtime.whoami()
    assert found.made_by.request["assets"] == ["revenue"]
    assert (found.attempt.number, found.attempt.release) == (1, "abc123")
    assert found.attempt.worker == runtime.whoami()
    assert found.attempt.finished_at == found.output.made_at > found.made_by.requested_at
    assert (found.output.size, found.output.format, found.output.is_latest) == (2, "json", True)
    assert found.output.location.startswith("revenue/2026-01-05/")
    assert (found.output.io, found.output.stale, found.output.deleted_at) == ("default", None, None)
    assert found.version is None
    assert found.reused_by is None
    orders, rate = found.inputs
    assert (orders.name, orders.run_id, orders.is_deleted) == (
        "orders[2026-01-05]", first.id, False,
    )  # fmt: skip
    assert (rate.asset, rate.partition) == ("rate", UNPARTITIONED)
    (check,) = found.checks
    assert (check.name, check.passed, check.message, check.metadata) == (
        "positive", True, "is 30", {"value": 30},
    )  # fmt: skip
    made = lineage.produced("orders", DAY)
    assert (made.version, made.made_by.config, made.inputs) == ("3", {"factor": 3}, ())
    assert orders.sha256 == made.output.sha256
    asked: list[tuple[str, Key]] = [("rate", UNPARTITIONED), ("orders", DAY), ("revenue", DAY)]
    stored = query(ledger, "SELECT fingerprint FROM flowstone.outputs ORDER BY id")
    assert [row.fingerprint for row in stored] == [
        str(lineage.produced(name, key).fingerprint) for name, key in asked
    ]


def test_a_value_that_was_reused_has_a_maker_and_a_user(
    make_runtime: RuntimeFactory, only_ledger: Any
) -> None:
    first = materialized(make_runtime, "revenue", partition=DAY, upstream=True)
    again = materialized(make_runtime, "revenue", partition=DAY, upstream=True)
    only_ledger()
    found = lineage.produced("revenue", DAY, run=again.id)
    assert found.reused_by is not None
    assert (found.reused_by.run_id, found.reused_by.state) == (again.id, "skipped")
    assert (found.made_by.run_id, found.made_by.state) == (first.id, "succeeded")
    assert {one.run_id for one in found.inputs} == {first.id}
    assert lineage.produced("revenue", DAY, run=str(first.id)[:8]).reused_by is None
    assert lineage.produced("revenue", DAY).reused_by is None


def test_a_run_that_resumes_another_one_has_what_that_has_done(
    make_runtime: RuntimeFactory, only_ledger: Any
) -> None:
    ledger = only_ledger()
    one, two = HandRun(ledger, {1: ()}), HandRun(ledger, {2: ()})
    one.do(1)
    with ledger.begin() as conn:
        run_sql(
            conn, "UPDATE flowstone.runs SET resumed_from = :o WHERE id = :t", o=one.id, t=two.id
        )
    assert lineage.produced("a1", run=two.id).made_by.run_id == one.id


def test_what_became_of_an_output_later_is_told_as_it_stood(
    make_runtime: RuntimeFactory, only_ledger: Any
) -> None:
    materialized(make_runtime, "revenue", partition=DAY, upstream=True)
    ledger = only_ledger()
    before = query(ledger, "SELECT clock_timestamp()")[0][0]
    with ledger.begin() as conn:
        run_sql(
            conn,
            "UPDATE flowstone.outputs SET stale_at = now(), stale_reason = 'wrong rates', "
            "deleted_at = now()",
        )
    now, then = lineage.produced("rate"), lineage.produced("rate", as_of=before)
    assert (now.output.stale, then.output.stale) == ("wrong rates", None)
    assert now.output.deleted_at is not None
    assert then.output.deleted_at is None
    for as_of, stale in ((None, "wrong rates"), (before, None)):
        found = lineage.upstream("revenue", DAY, as_of=as_of)
        assert {(one.stale, one.is_deleted) for one in found} == {(stale, stale is not None)}
        inputs = lineage.produced("revenue", DAY, as_of=as_of).inputs
        assert {one.is_deleted for one in inputs} == {stale is not None}


def test_the_walks_are_asked_by_key_text_or_asset(
    make_runtime: RuntimeFactory, only_ledger: Any
) -> None:
    run = materialized(make_runtime, "month", partition="2026-01", upstream=True)
    newer = materialized(make_runtime, "orders", partition=DAY, config={"orders": {"factor": 9}})
    only_ledger()
    month = sales()[-1]
    keys: list[Key] = [Month(2026, 1), "2026-01"]
    for key in keys:
        found = lineage.upstream(month, key)
        assert [one.depth for one in found] == [1] * 31 + [2] * 32
        assert {one.run_id for one in found} == {run.id}
        near = lineage.upstream("month", key, depth=1)
        assert [one.name for one in near] == [f"revenue[2026-01-{day:02d}]" for day in range(1, 32)]
    assert lineage.downstream("orders", DAY) == []
    old = lineage.downstream("orders", DAY, run=run.id)
    assert [one.name for one in old] == ["revenue[2026-01-05]", "month[2026-01]"]
    assert old == lineage.downstream("orders", DAY, as_of=old[-1].made_at)
    affected = lineage.impact("orders", DAY)
    assert [(one.name, one.standing) for one in affected] == [
        ("revenue[2026-01-05]", Standing.OUT_OF_DATE),
        ("month[2026-01]", Standing.OUT_OF_DATE),
    ]
    assert {one.requested_by for one in affected} == {runtime.whoami()}
    assert {one.standing for one in lineage.impact("orders", "2026-01-06")} == {Standing.CURRENT}
    assert lineage.produced("orders", DAY).made_by.run_id == newer.id
    then = old[-1].made_at
    assert {one.standing for one in lineage.impact("orders", DAY, as_of=then)} == {Standing.CURRENT}
    assert len(lineage.impact("orders", DAY, depth=1)) == 1


def test_what_makes_no_sense_or_never_was_is_said_in_one_line(
    make_runtime: RuntimeFactory, only_ledger: Any
) -> None:
    run = materialized(make_runtime, "orders", partition=DAY)
    other = materialized(make_runtime, "rate")
    only_ledger()
    made_at = lineage.produced("rate").output.made_at
    with pytest.raises(UnknownAsset, match="'rates' was never materialized; did you mean 'rate'"):
        lineage.upstream("rates")
    with pytest.raises(
        BadPartition, match="for partition '2026-01-06'; there is one for 2026-01-05"
    ):
        lineage.downstream("orders", date(2026, 1, 6))
    with pytest.raises(BadQuery, match=r"no time zone; write it as 2026-01-05T00:00:00\+00:00"):
        lineage.impact("rate", as_of=datetime(2026, 1, 5))  # noqa: DTZ001 - that is the point
    with pytest.raises(NeverMaterialized) as caught:
        lineage.produced("rate", as_of=made_at - timedelta(microseconds=1))
    assert caught.value.message.endswith(f"yet; the first one was made at {made_at}")
    assert lineage.produced("rate", as_of=made_at).output.made_at == made_at
    with pytest.raises(NeverMaterialized, match=r"no output of orders\[2026-01-05\], which is no"):
        lineage.upstream("orders", DAY, run=other.id)
    with pytest.raises(BadQuery, match="one of the two"):
        lineage.upstream("orders", DAY, run=run.id, as_of=datetime.now(UTC))
    with pytest.raises(BadQuery, match="depth is 0; it counts from 1"):
        lineage.upstream("orders", DAY, depth=0)
    with pytest.raises(UnknownRun):
        lineage.upstream("orders", DAY, run="ffffffff")


def test_a_step_that_has_failed_has_no_output_in_its_run(
    make_runtime: RuntimeFactory, only_ledger: Any
) -> None:
    ledger = only_ledger()
    HandRun(ledger, {1: ()}).do(1)
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    run.fail(run.claim(1))
    with pytest.raises(NeverMaterialized, match=f"run {run.id} has no output of a1, which is fai"):
        lineage.produced("a1", run=run.id)


def test_columns_are_read_from_the_definitions(make_runtime: RuntimeFactory) -> None:
    source = asset(name="source")(lambda: 1)
    reader = asset(name="reader", deps=["source"], columns={"a": ["source.b"]})(lambda: 1)
    make_runtime(build_registry([source, reader]))
    (up,) = lineage.columns_upstream(reader, "a")
    (down,) = lineage.columns_downstream("source", "b")
    assert (up.asset, up.column, down.asset, down.column) == ("source", "b", "reader", "a")
