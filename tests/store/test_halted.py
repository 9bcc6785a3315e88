"""What becomes of runs that are paused, drained, or outside of their hours, while things happen."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text

from flowstone import (
    Approval,
    AtLeast,
    BackfillHandle,
    Context,
    DailyPartitions,
    Dep,
    MonthlyPartitions,
    Retry,
    RunState,
    StepState,
    asset,
    claiming,
    continuation,
    reconcile,
)
from flowstone.execution import execute
from flowstone.handle import RunHandle
from flowstone.hours import Hours
from flowstone.outcome import Succeeded
from flowstone.registry import build_registry
from flowstone.states import GateState
from flowstone.store import steps
from flowstone.store.steps import Claim
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.runs_by_hand import MADE_OF, output

DAYS = DailyPartitions("2013-01-01", "2013-01-31")
BROKEN: set[date] = set()
DAY = "2013-01-01"
FEW = "2013-01-01..2013-01-05"


@asset(partitions=DAYS, retry=Retry(max_attempts=2))
def raw(context: Context) -> int:
    if context.partition in BROKEN:
        raise ConnectionError("away")
    return int(context.partition.day)


@asset(partitions=DAYS, retry=Retry(max_attempts=1))
def fragile(context: Context) -> int:
    raise ValueError(f"no such day: {context.partition}")


@asset(partitions=DAYS, approval=Approval(approvers=["ann"]))
def asked(context: Context) -> int:
    return int(context.partition.day)


@asset(
    partitions=MonthlyPartitions("2013-01", "2013-01"),
    deps={"days": Dep("raw", needs=AtLeast(30), grace=timedelta(days=36_500))},
)
def rolled(days: dict[date, int]) -> int:
    return len(days)


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    BROKEN.clear()
    return LocalWorker(make_runtime(build_registry([raw, fragile, asked, rolled])))


def change(local: LocalWorker, statement: str) -> None:
    with local.runtime.ledger.begin() as conn:
        conn.execute(text(f"UPDATE flowstone.{statement}"))


def passes(local: LocalWorker, times: int = 2) -> Counter[str]:
    """Reconcile as beat does, long after all that has happened; return what was put right."""
    change(local, "runs SET created_at = created_at - interval '5 hours'")
    total = Counter[str]()
    for _ in range(times):
        total.update(reconcile.reconcile(local.runtime, lambda run_id, _: local.coordinate(run_id)))
        local.work()
    return total


def begun(local: LocalWorker) -> Claim:
    """Return the attempt of the first message, which runs."""
    message = local.messages.pop(0)
    found = claiming.claim(local.runtime, message.id, message.canvas, worker="w")
    assert isinstance(found, Claim)
    return found


def dies(local: LocalWorker) -> None:
    """Let the process die that runs a step."""
    change(local, "steps SET lease_until = now() - interval '1 s' WHERE state = 'running'")


def closed() -> Hours:
    """Return hours that begin in two hours."""
    now = datetime.now(UTC)
    begin, end = now + timedelta(hours=2), now + timedelta(hours=3)
    return Hours.parse(f"{begin:%H:%M}-{end:%H:%M}", "UTC")


def close(local: LocalWorker) -> None:
    hours = closed()
    change(local, f"backfills SET hours = '{hours.start:%H:%M}-{hours.end:%H:%M}'")


def always() -> Hours:
    return Hours.parse("00:00-23:59", "UTC")


def state(handle: BackfillHandle) -> RunState:
    return handle.progress().state


def test_a_run_that_ends_when_its_hours_are_over_is_closed(local: LocalWorker) -> None:
    handle = local.backfill("raw", partitions=DAY, hours=always())
    close(local)
    local.work()
    assert state(handle) == RunState.SUCCEEDED


def test_what_waits_for_people_is_told_outside_of_the_hours_too(local: LocalWorker) -> None:
    handle = local.backfill("asked", partitions=DAY, hours=always())
    close(local)
    local.work()
    assert state(handle) == RunState.WAITING


def test_each_failure_has_the_ratio_looked_at_whatever_the_window(local: LocalWorker) -> None:
    handle = local.backfill("fragile", stop_ratio=0.5)
    assert len(local.messages) == 31
    local.work()
    progress = handle.progress()
    assert (progress.state, progress.ended) == (RunState.PAUSED, 10)


def test_a_run_of_which_nothing_is_left_has_failed_and_is_not_paused(local: LocalWorker) -> None:
    handle = local.backfill("fragile", partitions="2013-01-01..2013-01-10", stop_ratio=0.5)
    local.work()
    assert state(handle) == RunState.FAILED


@pytest.mark.parametrize("paused", [True, False])
def test_what_drains_ends_though_the_process_dies_that_ran(
    local: LocalWorker, paused: bool
) -> None:
    handle = local.backfill("raw", partitions=FEW)
    begun(local)
    if paused:
        handle.pause()
    handle.cancel()
    assert not handle.progress().is_final
    dies(local)
    passes(local)
    assert handle.progress().count(StepState.CANCELLED) == 5
    assert state(handle) == RunState.CANCELLED


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_paused_run_is_closed_though_nobody_was_told_of_its_last_step(
    local: LocalWorker, cancelled: bool
) -> None:
    handle = local.backfill("raw", partitions=DAY)
    claim = begun(local)
    handle.pause()
    if cancelled:
        handle.cancel()
    with local.runtime.ledger.begin() as conn:
        assert steps.commit(conn, claim, Succeeded(output(), MADE_OF))
    passes(local)
    assert state(handle) == RunState.SUCCEEDED


def test_what_drains_can_still_be_stopped(local: LocalWorker) -> None:
    handle = local.backfill("raw", partitions=DAY)
    begun(local)
    assert not handle.cancel().already
    assert handle.cancel().already
    assert not handle.cancel(drain=False).already
    assert not handle.progress().is_final
    change(local, "runs SET cancel_requested_at = now() - interval '1 hour'")
    passes(local)
    assert state(handle) == RunState.CANCELLED


def approved(local: LocalWorker, handle: BackfillHandle) -> None:
    """Approve all that is asked, and carry it on as far as a message."""
    with local.runtime.ledger.begin() as conn:
        gates = conn.scalars(text("SELECT id FROM flowstone.gates WHERE state = 'open'")).all()
    for gate in gates:
        local.close(gate, GateState.APPROVED)
    for gate in gates:
        done = continuation.carry_on(local.runtime, "approval", gate, worker="local")
        assert isinstance(done, continuation.Freed), done
    local.coordinate(handle.run.id)


def test_what_is_decided_goes_on_within_the_bound(local: LocalWorker) -> None:
    handle = local.backfill("asked", partitions=FEW, max_parallel=1)
    local.work()
    approved(local, handle)
    assert handle.progress().count(StepState.QUEUED, StepState.RUNNING) == 1
    local.work()
    assert state(handle) == RunState.SUCCEEDED


def test_what_is_decided_waits_for_the_hours(local: LocalWorker) -> None:
    handle = local.backfill("asked", partitions=FEW, hours=always())
    local.work()
    close(local)
    passes(local, 1)
    approved(local, handle)
    assert not local.messages
    change(local, "backfills SET hours = '00:00-23:59'")
    passes(local)
    assert state(handle) == RunState.SUCCEEDED


def test_a_retry_waits_for_the_hours(local: LocalWorker) -> None:
    BROKEN.add(date(2013, 1, 1))
    handle = local.backfill("raw", partitions=DAY, hours=always())
    (message,) = local.messages
    change(local, "runs SET opens_at = now() + interval '2 hours'")
    # It is due in 30 s, which would leave it in its canvas.
    execute(local.runtime, message.id, message.canvas, worker="local", park_after=60)
    with local.runtime.ledger.begin() as conn:
        (row,) = conn.execute(text("SELECT state, canvas FROM flowstone.steps")).all()
    assert (row.state, row.canvas) == ("retrying", None)
    assert not handle.progress().is_final


def test_nobody_joins_what_waits_in_a_paused_run(local: LocalWorker) -> None:
    handle = local.backfill("asked", partitions=DAY)
    local.work()
    handle.pause()
    approved(local, handle)
    live: RunHandle = local.begin("asked", partition=DAY, upstream=False)
    assert len(local.messages) == 1
    local.work()
    assert live.status() == RunState.WAITING
    # When it goes on, what was decided there still counts there.
    handle.resume()
    local.coordinate(handle.run.id)
    local.work()
    passes(local)
    assert handle.progress().count(StepState.JOINED) == 1


def test_a_deadline_holds_for_a_run_that_is_paused(local: LocalWorker) -> None:
    handle = local.begin("raw", partition=DAY, upstream=False, deadline=60)
    handle.pause()
    change(local, "runs SET deadline_at = now() - interval '1 s', started_at = now()")
    passes(local)
    assert handle.status() == RunState.FAILED


def test_what_never_came_is_looked_for_again_when_the_rest_is_done_again(
    local: LocalWorker,
) -> None:
    local.backfill("raw", partitions="2013-01-01..2013-01-20")
    local.work()
    handle = local.backfill("rolled")
    change(local, "steps SET awaits_until = now() - interval '1 s' WHERE awaits_until IS NOT NULL")
    passes(local)
    assert state(handle) == RunState.FAILED
    assert "30 of the 31 partitions" in handle.run.explain()
    local.backfill("raw", partitions="2013-01-21..2013-01-31")
    local.work()
    handle.retry()
    local.coordinate(handle.run.id)
    passes(local)
    assert state(handle) == RunState.SUCCEEDED
    assert handle.run.result("rolled") == 31
