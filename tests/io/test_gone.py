"""A value that is gone from storage: its reader says so, and the next run computes it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flowstone
from flowstone import DailyPartitions, MonthlyPartitions, asset, materialize_sync, versions
from flowstone.errors import ChangedOutput, MissingOutput, RunFailed, StorageUnavailable
from flowstone.io.files import FileOutputs
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import query

REASONS = "SELECT asset, state, reason FROM flowstone.steps WHERE run_id = :run ORDER BY id"


@asset
def number() -> int:
    return 1


@asset
def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def here(make_runtime: RuntimeFactory) -> Runtime:
    made = make_runtime(build_registry([number, double]))
    materialize_sync(number)
    return made


def path_of(here: Runtime, name: str) -> Path:
    return Path(here.outputs.describe(versions(name)[0].output).path)


def error_of(here: Runtime) -> dict[str, Any]:
    (row,) = query(
        here.ledger, "SELECT error FROM flowstone.steps WHERE asset = 'double' AND state = 'failed'"
    )
    return dict(row.error)


def reasons(here: Runtime, handle: flowstone.RunHandle) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in query(here.ledger, REASONS, run=handle.id)]


def test_a_reader_fails_and_the_next_run_computes_it_again(here: Runtime) -> None:
    path_of(here, "number").unlink()
    with pytest.raises(RunFailed, match="in the ledger but not in storage"):
        materialize_sync(double)
    failure = error_of(here)
    assert (failure["type"], failure["retryable"]) == ("missing_output", False)
    (version,) = versions("number")
    assert version.stale_reason == "value is gone"
    (told,) = query(
        here.ledger,
        "SELECT details, after FROM flowstone.audit WHERE action = 'output.invalidated'",
    )
    assert (told.details["asset"], told.after) == ("number", {"stale": True})
    again = materialize_sync(double, upstream=True)
    assert again.result() == 2
    assert reasons(here, again)[0] == ("number", "succeeded", "value is gone")
    assert [v.stale_reason for v in versions("number")] == [None, "value is gone"]


def test_so_it_is_with_a_value_that_was_changed(here: Runtime) -> None:
    path_of(here, "number").write_text("7")
    with pytest.raises(RunFailed, match="has been changed in storage"):
        materialize_sync(double)
    assert error_of(here)["type"] == "changed_output"
    with pytest.raises(ChangedOutput):
        flowstone.get("number")
    assert materialize_sync(double, upstream=True).result() == 2


def test_a_storage_that_is_away_makes_nothing_stale(
    here: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, location: str) -> bytes:
        raise StorageUnavailable("away", retryable=False)

    with monkeypatch.context() as patch:
        patch.setattr(FileOutputs, "load", fail)
        with pytest.raises(RunFailed, match="away"):
            materialize_sync(double)
    assert error_of(here)["type"] == "storage_unavailable"
    assert versions("number")[0].stale_at is None
    again = materialize_sync(double, upstream=True)
    assert reasons(here, again)[0] == ("number", "skipped", "fresh")


def test_reading_back_says_what_is_gone(here: Runtime) -> None:
    assert flowstone.exists("number")
    path_of(here, "number").unlink()
    assert not flowstone.exists("number")
    with pytest.raises(MissingOutput, match="invalidate it, and materialize it again"):
        flowstone.get("number")


def test_one_of_many_is_computed_again(make_runtime: RuntimeFactory) -> None:
    ran: list[int] = []

    @asset(partitions=DailyPartitions("2013-01-01", "2013-01-03"))
    def day(context: flowstone.Context) -> int:
        ran.append(context.partition.day)
        return int(context.partition.day)

    @asset(partitions=MonthlyPartitions("2013-01", "2013-01"))
    def month(day: dict[Any, int]) -> int:
        return sum(day.values())

    here = make_runtime(build_registry([day, month]))
    materialize_sync(month, partition="2013-01", upstream=True)
    gone = versions("day", "2013-01-02")[0]
    Path(here.outputs.describe(gone.output).path).unlink()
    with pytest.raises(RunFailed, match="not in storage"):
        materialize_sync(month, partition="2013-01")
    ran.clear()
    assert materialize_sync(month, partition="2013-01", upstream=True).result() == 6
    assert ran == [2]
