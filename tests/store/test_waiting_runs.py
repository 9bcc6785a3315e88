"""Runs that wait: with others for the same, with something else to do, cancelled, inline."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import text

from flowstone import (
    Approval,
    RunState,
    asset,
    materialize_sync,
)
from flowstone.reconcile import make_pass
from flowstone.registry import build_registry
from flowstone.states import GateState
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker
from tests.store.waiting_assets import (
    CANCEL,
    Report,
    aside,
    audited,
    awaited,
    cancelled_meanwhile,
    published,
    report,
    source,
    waits,
    worker,
)
from tests.worker.waiting import wait_until


@pytest.fixture
def local(make_runtime: RuntimeFactory) -> LocalWorker:
    return worker(make_runtime)


def test_nobody_is_asked_for_a_run_that_is_cancelled_while_its_function_runs(
    local: LocalWorker,
) -> None:
    handle = local.begin(cancelled_meanwhile)
    CANCEL.append(lambda: handle.cancel(grace=60))
    local.work()
    assert local.step(handle, cancelled_meanwhile).state == "cancelled"
    assert handle.status() == RunState.CANCELLED
    assert not [action for action in audited(local, handle) if action.startswith("approval")]
    with local.runtime.ledger.begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM flowstone.gates")) == 0


@pytest.mark.parametrize("goes_first", [0, 1])
def test_what_was_decided_counts_for_those_who_have_joined(
    local: LocalWorker, goes_first: int
) -> None:
    """Whoever is woken first: nobody is asked again, and nothing is computed twice."""
    first, gate = waits(local, report)
    other = local.submit(report, upstream=False)
    local.close(gate, GateState.APPROVED, by="timeout")
    woken: list[Any] = []
    make_pass(local.runtime, lambda run_id, _: woken.append(run_id)).check()
    assert first.id in woken
    third = local.begin(report, upstream=False)
    for run_id in [(first.id, other.id), (other.id, first.id)][goes_first]:
        local.coordinate(run_id)
    local.coordinate(third.id)
    local.work()
    for run in (first, other, third):
        assert run.result() == Report(delay=20)
    with local.runtime.ledger.begin() as conn:
        assert conn.scalar(text("SELECT count(*) FROM flowstone.gates")) == 1


def test_two_runs_wait_for_one_approval(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    other = local.submit(report, upstream=False, force=False)
    assert local.step(other, report).state == "joined"
    assert other.status() == RunState.WAITING
    assert local.open_gate() == gate
    local.decide(gate, GateState.APPROVED)
    assert handle.status() == other.status() == RunState.SUCCEEDED
    assert other.result() == Report(delay=20)


def test_who_has_joined_what_is_rejected_takes_its_turn_and_asks_again(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    other = local.submit(report, upstream=False, force=False)
    local.decide(gate, GateState.REJECTED)
    assert handle.status() == RunState.FAILED
    assert other.status() == RunState.WAITING
    assert local.step(other, report).gate == local.open_gate() != gate


def test_who_has_joined_a_step_waits_when_that_begins_to(local: LocalWorker) -> None:
    first = local.begin(report)
    other = local.begin(report)
    assert local.step(other, source).state == "joined"
    local.work()
    assert first.status() == other.status() == RunState.WAITING
    assert local.step(other, report).state == "joined"


def test_a_run_that_is_cancelled_asks_for_nothing_any_more(local: LocalWorker) -> None:
    handle, gate = waits(local, published)
    handle.cancel(reason="no more")
    assert handle.status() == RunState.CANCELLED
    assert local.gate(gate).state == GateState.WITHDRAWN
    assert "approval.withdrawn" in audited(local, handle)


def test_a_decision_whose_run_is_cancelled_before_the_continuation_is_withdrawn(
    local: LocalWorker,
) -> None:
    handle, gate = waits(local, published)
    local.close(gate, GateState.APPROVED)
    handle.cancel()
    local.carry_on(gate)
    assert local.gate(gate).state == GateState.WITHDRAWN
    assert local.step(handle, report).state == "cancelled"


def test_a_run_with_something_else_to_do_does_not_wait(local: LocalWorker) -> None:
    handle = local.submit(published, aside, awaited)
    assert handle.status() == RunState.WAITING
    assert local.step(handle, aside).state == "succeeded"
    with local.runtime.ledger.begin() as conn:
        ids = conn.scalars(text("SELECT id FROM flowstone.gates ORDER BY kind")).all()
    local.decide(ids[0], GateState.APPROVED)
    assert handle.status() == RunState.WAITING
    local.decide(ids[1], GateState.RECEIVED, payload={"value": None})
    assert handle.status() == RunState.SUCCEEDED


def test_an_inline_run_sees_that_time_is_up(make_runtime: RuntimeFactory) -> None:
    @asset(approval=Approval(timeout=0.1, on_timeout="approve"))
    def patient() -> int:
        return 3

    make_runtime(build_registry([patient]), lease_seconds=0.9)
    assert materialize_sync(patient).result() == 3


def test_an_inline_run_waits_in_its_process(local: LocalWorker) -> None:
    ended: list[Any] = []
    thread = threading.Thread(
        target=lambda: ended.append(materialize_sync(published, upstream=True).result())
    )
    thread.start()
    gate = wait_until(lambda: _first_open(local), "a gate")
    local.close(gate, GateState.APPROVED)
    thread.join(30)
    assert ended == [20]


def _first_open(local: LocalWorker) -> int:
    with local.runtime.ledger.begin() as conn:
        return int(conn.scalar(text("SELECT id FROM flowstone.gates WHERE state = 'open'")) or 0)
