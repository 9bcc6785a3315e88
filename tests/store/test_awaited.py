"""Roll-ups on a real ledger: enough is enough, what is missing is waited for, and is recorded."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

import flowstone
from flowstone import (
    AtLeast,
    Context,
    DailyPartitions,
    Dep,
    MonthlyPartitions,
    Ratio,
    Retry,
    RunState,
    asset,
    lineage,
    materialize_sync,
    reconcile,
)
from flowstone.cli import app
from flowstone.errors import MissingInput, RunFailed
from flowstone.handle import RunHandle
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.store import progress, resumption
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.runs_by_hand import query, run_sql

DAYS = DailyPartitions("2024-02-26", "2024-02-29")
MONTH = MonthlyPartitions("2024-02", "2024-02")
LONG = timedelta(days=365 * 100)
MONTHS = "SELECT state, attempt, error FROM flowstone.steps WHERE asset = 'month'"
BROKEN: set[date] = set()


@pytest.fixture(autouse=True)
def nothing_is_broken() -> None:
    BROKEN.clear()


@asset(partitions=DAYS, retry=Retry(max_attempts=1))
def day(context: Context) -> int:
    if context.partition in BROKEN:
        raise ValueError("no data")
    return int(context.partition.day)


def months(day: dict[date, int | None]) -> list[int | None]:
    return list(day.values())


def month_of(**options: Any) -> Any:
    return asset(name="month", partitions=MONTH, deps={"day": Dep("day", **options)})(months)


def make_days(*numbers: int) -> None:
    for number in numbers:
        materialize_sync(day, partition=f"2024-02-{number}")


def test_enough_is_enough_and_what_was_missing_is_recorded(make_runtime: RuntimeFactory) -> None:
    month = month_of(needs=AtLeast(3))
    make_runtime(build_registry([day, month]))
    make_days(26, 27)
    with pytest.raises((MissingInput, RunFailed), match="needs 3 of the 4 partitions of 'day'"):
        materialize_sync(month, partition="2024-02")
    make_days(29)
    assert materialize_sync(month, partition="2024-02").result() == [26, 27, None, 29]
    found = lineage.produced("month", "2024-02")
    assert [one.name for one in found.missing] == ["day[2024-02-28]"]
    assert [one.name for one in found.inputs] == [f"day[2024-02-{n}]" for n in (26, 27, 29)]
    said = CliRunner().invoke(app, ["produced", "month", "--partition", "2024-02"])
    assert "missing: day[2024-02-28]" in said.output, said.output
    # It is computed again when there is more.
    make_days(28)
    assert materialize_sync(month, partition="2024-02", force=False).result() == [26, 27, 28, 29]
    assert lineage.produced("month", "2024-02").missing == ()


def test_what_fails_in_the_run_counts_as_missing(make_runtime: RuntimeFactory) -> None:
    month = month_of(needs=Ratio(0.7))
    here = make_runtime(build_registry([day, month]))
    BROKEN.update({date(2024, 2, 26), date(2024, 2, 27)})
    with pytest.raises((MissingInput, RunFailed)):
        materialize_sync(month, partition="2024-02", upstream=True)
    rows = query(
        here.ledger, "SELECT state, attempt, error FROM flowstone.steps WHERE asset = 'month'"
    )
    assert [(row.state, row.attempt, row.error["type"]) for row in rows] == [
        ("failed", 1, "missing_input")
    ]
    assert rows[0].error["message"] == (
        "month[2024-02] needs 3 of the 4 partitions of 'day', and there are 2; "
        "missing: day[2024-02-26], day[2024-02-27]"
    )
    BROKEN.discard(date(2024, 2, 27))
    with pytest.raises((ValueError, RunFailed)):
        materialize_sync(month, partition="2024-02", upstream=True)
    assert flowstone.get("month", partition="2024-02") == [None, 27, 28, 29]


def awaited(here: Runtime, handle: RunHandle) -> list[tuple[str, int, bool]]:
    rows = query(
        here.ledger,
        "SELECT state, open_deps, reuses IS NOT NULL AS is_there FROM flowstone.steps "
        "WHERE run_id = :run AND awaits_until IS NOT NULL ORDER BY id",
        run=handle.id,
    )
    return [(row.state, row.open_deps, row.is_there) for row in rows]


def end_grace(here: Runtime) -> None:
    with here.ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.steps SET awaits_until = now() WHERE awaits_until > now()")


def repair(worker: LocalWorker) -> None:
    reconcile.reconcile(worker.runtime, lambda run_id, _: worker.coordinate(run_id))
    worker.work()


def test_what_is_missing_is_waited_for_and_read_when_it_has_come(
    make_runtime: RuntimeFactory,
) -> None:
    month = month_of(grace=LONG)
    here = make_runtime(build_registry([day, month]))
    make_days(26, 27)
    worker = LocalWorker(here)
    handle = worker.submit(month, partition="2024-02", upstream=False)
    assert awaited(here, handle) == [("pending", 1, False)] * 2
    # Nobody computes it: that is what is waited for.
    assert flowstone.status(day, partition="2024-02-28").computing == []
    repair(worker)
    assert awaited(here, handle) == [("pending", 1, False)] * 2
    assert handle.status() not in (RunState.SUCCEEDED, RunState.FAILED)
    make_days(28)
    repair(worker)
    assert awaited(here, handle) == [("skipped", 0, True), ("pending", 1, False)]
    # It was not there before.
    with here.ledger.begin() as conn:
        assert progress.tally(conn, handle.id).fresh == 0
    make_days(29)
    repair(worker)
    assert handle.status() == RunState.SUCCEEDED
    assert handle.result() == [26, 27, 28, 29]
    assert lineage.produced("month", "2024-02").missing == ()


def test_after_the_grace_it_goes_on_without_or_fails(make_runtime: RuntimeFactory) -> None:
    for needs, ends in ((AtLeast(2), RunState.SUCCEEDED), (AtLeast(3), RunState.FAILED)):
        month = month_of(grace=LONG, needs=needs)
        here = make_runtime(build_registry([day, month]))
        make_days(26, 27)
        worker = LocalWorker(here)
        handle = worker.submit(month, partition="2024-02", upstream=False)
        assert handle.status() not in (RunState.SUCCEEDED, RunState.FAILED)
        end_grace(here)
        repair(worker)
        assert awaited(here, handle) == [("skipped", 0, False)] * 2
        assert handle.status() == ends
    assert flowstone.get("month", partition="2024-02") == [26, 27, None, None]


def test_a_run_that_waits_can_be_cancelled_and_resumed_and_waits_again(
    make_runtime: RuntimeFactory,
) -> None:
    month = month_of(grace=LONG)
    here = make_runtime(build_registry([day, month]))
    make_days(26, 27, 28)
    worker = LocalWorker(here)
    handle = worker.submit(month, partition="2024-02", upstream=False)
    handle.cancel()
    worker.coordinate(handle.id)
    assert handle.status() == RunState.CANCELLED
    assert awaited(here, handle) == [("cancelled", 1, False)]
    with here.ledger.begin() as conn:
        again = RunHandle(resumption.create(conn, uuid4(), handle.id, actor="me"), here)
    worker.coordinate(again.id)
    worker.work()
    assert awaited(here, again) == [("pending", 1, False)]
    make_days(29)
    repair(worker)
    assert again.result() == [26, 27, 28, 29]
    # No run but those of the days themselves has computed one.
    assert query(here.ledger, "SELECT count(*) AS n FROM flowstone.attempts")[0].n == 4 + 1


def test_materialize_sync_waits_itself(
    make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = month_of(needs=AtLeast(2), grace=LONG)
    here = make_runtime(build_registry([day, month]))
    make_days(26, 27)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        end_grace(here)

    monkeypatch.setattr("time.sleep", sleep)
    made = materialize_sync(month, partition="2024-02")
    assert made.result() == [26, 27, None, None]
    assert waits
