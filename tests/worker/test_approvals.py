"""Approvals and signals on a real worker: waiting holds nothing, and what was decided goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup
from sqlalchemy import text

import flowstone
from flowstone import RunHandle, RunState, approve, reject
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from tests.worker import approval_assets
from tests.worker.approval_assets import TOKEN
from tests.worker.broker_view import Broker
from tests.worker.event_view import tasks_of_events
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until

DIES_AFTER_THE_COMMIT = """
import os, sys
import flowstone
from flowstone import outbox
outbox.carry_on = lambda *_: os.kill(os.getpid(), 9)
flowstone.approve(sys.argv[1], by="ann")
"""


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([approval_assets.__name__])


@pytest.fixture
def worker_environment(worker_environment: dict[str, str]) -> dict[str, str]:
    return worker_environment | {
        "FLOWSTONE_ASSETS": approval_assets.__name__,
        "FLOWSTONE_POOLS": '{"desk": 1}',
        "FLOWSTONE_SECRET": "s" * 32,
    }


@pytest.fixture
def retried(celery_setup: CeleryTestSetup) -> Iterator[list[str]]:
    """The ids of the tasks that Flower is told to show as retried."""
    with tasks_of_events(celery_setup.app, "task-retried") as ids:
        yield ids


def gate_of(view: LedgerView, handle: RunHandle, step: str) -> int:
    return int(view.steps(handle.id)[step].gate)


def waits(handle: RunHandle) -> None:
    wait_until(lambda: handle.status() == RunState.WAITING, "all that is left waits")


def test_what_waits_holds_nothing_and_goes_on_wherever_it_stands(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    retried: list[str],
) -> None:
    handle = flowstone.materialize_all(["after_chain", "join", "last", "after_job", "impatient"])
    waits(handle)
    # Its signal came before it has begun to wait, and nobody but its worker knows.
    wait_until(lambda: view.states(handle.id)["impatient"] == "succeeded", "it goes on at once")
    states = view.states(handle.id)
    asking = ["in_chain", "in_header", "last"]
    assert [states[step] for step in asking] == ["waiting_approval"] * 3
    assert (states["job"], states["beside"]) == ("waiting_signal", "succeeded")
    assert [states[step] for step in ("after_chain", "join", "after_job")] == ["pending"] * 3

    # No message waits anywhere, no step is in a canvas, and no slot is held.
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert broker.waiting() == 0
    assert list(celery_setup.app.control.inspect(timeout=5).scheduled().values()) == [[]]
    assert {view.steps(handle.id)[step].canvas for step in (*asking, "job")} == {None}
    assert flowstone.materialize("at_the_desk").result(timeout=30) == "served"
    wait_until(lambda: len(retried) == 5, "Flower shows RETRY for what waits")

    # The middle of the chain; a header, with another value; the end; a job elsewhere.
    approve(gate_of(view, handle, "in_chain"), by="ann")
    approve(gate_of(view, handle, "in_header"), by="ann", edit={"total": 20})
    reject(gate_of(view, handle, "last"), by="bob", reason="not this one")
    assert flowstone.signal(TOKEN, {"rows": 7}) is not None
    wait_until(lambda: handle.status() == RunState.FAILED, "the run ends")
    ended = view.states(handle.id)
    assert ended.pop("last") == "failed"
    assert set(ended.values()) == {"succeeded"}
    values = {name: flowstone.get(name) for name in ("after_chain", "join", "after_job")}
    assert values == {"after_chain": 3, "join": 25, "after_job": 14}
    tried = [(1, "waiting_approval"), (2, "succeeded")]
    assert view.attempts(handle.id, "in_chain") == tried
    assert view.attempts(handle.id, "last") == [(1, "waiting_approval"), (2, "failed")]
    assert view.actions(handle.id)["approval.requested"] == 3
    error = view.steps(handle.id)["last"].error
    assert (error["type"], "not this one" in error["message"]) == ("approval_rejected", True)
    # Flower shows the continuations as tasks of their own.
    celery_setup.worker.assert_log_exists("Task in_chain after approval")
    celery_setup.worker.assert_log_exists("Task job after signal job")


def test_a_decision_without_a_worker_waits_for_one(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("after_chain")
    waits(handle)
    worker = celery_setup.worker.container
    worker.kill()
    approve(gate_of(view, handle, "in_chain"), by="ann")
    assert view.states(handle.id)["in_chain"] == "waiting_approval"
    worker.start()
    assert handle.result(timeout=30) == 3


def test_killed_between_decision_and_continuation_and_in_the_continuation(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    worker_environment: Mapping[str, str],
    full_pass: Callable[[], Mapping[str, int]],
    tmp_path: Path,
) -> None:
    handle = flowstone.materialize_all(
        ["after_chain", "dies_once"], config={"dies_once": {"folder": str(tmp_path)}}
    )
    waits(handle)
    decided = gate_of(view, handle, "in_chain")
    killed = subprocess.run(
        [sys.executable, "-c", DIES_AFTER_THE_COMMIT, str(decided)],
        env={**worker_environment, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert killed.returncode == -9
    assert full_pass()["continuation_lost"] == 0
    with here.ledger.begin() as conn:
        old = "UPDATE flowstone.gates SET closed_at = closed_at - interval '60 s' WHERE id = :id"
        conn.execute(text(old), {"id": decided})
    assert full_pass()["continuation_lost"] == 1
    wait_until(lambda: view.states(handle.id)["after_chain"] == "succeeded", "it has gone on")

    approve(gate_of(view, handle, "dies_once"), by="ann", option="later")
    assert handle.result("dies_once", timeout=30) == "ann: later"
    outcomes = [outcome for _, outcome in view.attempts(handle.id, "dies_once")]
    assert outcomes == ["waiting_approval", "lost", "succeeded"]
    assert handle.status() == RunState.SUCCEEDED


def test_what_nobody_decides_ends_in_time(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    full_pass: Callable[[], Mapping[str, int]],
) -> None:
    names = ["approved_in_time", "rejected_in_time", "failed_in_time"]
    handle = flowstone.materialize_all(names)
    waits(handle)
    wait_until(lambda: full_pass() and handle.status() == RunState.FAILED, "time decides")
    rows = view.steps(handle.id)
    assert rows["approved_in_time"].state == "succeeded"
    types = [rows[name].error["type"] for name in names[1:]]
    assert types == ["approval_rejected", "approval_expired"]
