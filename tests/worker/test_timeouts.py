"""Timeouts and deadlines on a real worker: what is interrupted, what is killed, what goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup
from sqlalchemy import text

import flowstone
from flowstone import RunHandle, RunState
from flowstone.canvas import task_id
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from tests.worker import timeout_assets
from tests.worker.broker_view import Broker
from tests.worker.event_view import tasks_of_events
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until

Reconcile = Callable[[], Mapping[str, int]]


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([timeout_assets.__name__])


@pytest.fixture
def worker_environment(worker_environment: dict[str, str]) -> dict[str, str]:
    return worker_environment | {"FLOWSTONE_ASSETS": timeout_assets.__name__}


@pytest.fixture
def worker_options() -> tuple[str, ...]:
    return ("--include", timeout_assets.__name__)


def test_who_heeds_the_soft_timeout_is_tried_again_in_its_place_in_the_chain(
    celery_setup: CeleryTestSetup, view: LedgerView, broker: Broker, tmp_path: Path
) -> None:
    pool = {process.pid for process in celery_setup.worker.container.pool()}
    with tasks_of_events(celery_setup.app, "task-retried") as retried:
        handle = flowstone.materialize_all(
            ["after_slow", "careful"], config={"careful": {"folder": str(tmp_path)}}
        )
        assert handle.result("after_slow", timeout=30) == 4
        step = view.steps(handle.id)["slow"]
        wait_until(lambda: retried == [task_id(step.id, step.canvas)], "Flower shows RETRY")
    assert view.attempts(handle.id, "slow") == [(1, "retrying"), (2, "succeeded")]
    assert ["before", "slow", "after_slow"] in view.canvases(handle.id)
    celery_setup.worker.assert_log_exists(
        "retry: Retry in 0.1s: StepTimeout('slow took longer than 0.5 s, the timeout= of the asset"
    )
    # The other one has caught it, and has cleaned up.
    assert handle.result("careful") == "half of it"
    assert view.attempts(handle.id, "careful") == [(1, "succeeded")]
    assert "took longer than 0.5 s" in (tmp_path / "cleaned-up").read_text()
    assert {process.pid for process in celery_setup.worker.container.pool()} == pool
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")


def test_who_does_not_is_killed_at_once_and_the_rest_goes_on(
    celery_setup: CeleryTestSetup, view: LedgerView, broker: Broker, reconcile: Reconcile
) -> None:
    killed = {"hopeless", "stubborn", "stubborn_part"}
    before = {process.pid for process in celery_setup.worker.container.pool()}
    with tasks_of_events(celery_setup.app, "task-failed") as failed:
        handle = flowstone.materialize_all(["after_stubborn", "joined", "after_hopeless"])
        # Nobody but the worker itself applies the rules of the reconciler.
        wait_until(lambda: timed_out(view, handle).keys() == killed, "all three are recorded")
        wait_until(lambda: len(set(failed)) == len(killed), "Flower shows FAILURE")
    step = view.steps(handle.id)["hopeless"]
    assert task_id(step.id, step.canvas) in failed
    for name, (outcome, message) in timed_out(view, handle).items():
        assert outcome == ("failed" if name == "hopeless" else "retrying")
        assert message.startswith(f"{name} was killed after 0.6 s, the hard timeout= of the asset")

    def done() -> bool:
        reconcile()
        return handle.status() == RunState.FAILED

    wait_until(done, "the run comes to its end")
    assert view.states(handle.id) == {
        "before": "succeeded",
        "stubborn": "succeeded",
        "after_stubborn": "succeeded",
        "part": "succeeded",
        "stubborn_part": "succeeded",
        "joined": "succeeded",
        "hopeless": "failed",
        "after_hopeless": "upstream_failed",
    }
    assert "hopeless: timeout: hopeless was killed after 0.6 s" in handle.explain()
    for step in view.steps(handle.id).values():
        assert step.lost == 0
    assert view.attempts(handle.id, "stubborn_part") == [(1, "retrying"), (2, "succeeded")]
    assert "step.lost" not in view.actions(handle.id)
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert flowstone.materialize("before").result(timeout=30) == 1
    after = {process.pid for process in celery_setup.worker.container.pool()}
    assert not after <= before


def timed_out(view: LedgerView, handle: RunHandle) -> dict[str, tuple[str, str]]:
    """Return the outcome and the message of the attempts of a run that took too long."""
    rows = view.rows(
        "SELECT s.asset, a.outcome, a.error_message FROM flowstone.attempts a "
        "JOIN flowstone.steps s ON s.id = a.step_id "
        "WHERE a.error_type = 'timeout' AND s.run_id = :r",
        r=handle.id,
    )
    return {row.asset: (row.outcome, row.error_message) for row in rows}


class TestThreads:
    """Where assets run in threads, nothing can interrupt them, nor kill them alone."""

    @pytest.fixture
    def worker_options(self, worker_options: tuple[str, ...]) -> tuple[str, ...]:
        return (*worker_options, "-P", "threads")

    def test_who_asks_is_told_and_from_who_does_not_the_ledger_takes_the_step(
        self, celery_setup: CeleryTestSetup, view: LedgerView, reconcile: Reconcile
    ) -> None:
        handle = flowstone.materialize_all(["polite", "stubborn_part"])
        wait_until(lambda: reconcile()["timed_out"] == 1, "the hard timeout is over")
        wait_until(lambda: reconcile() and handle.status() == RunState.SUCCEEDED, "it goes on")
        for name in ("polite", "stubborn_part"):
            assert view.attempts(handle.id, name) == [(1, "retrying"), (2, "succeeded")]
            assert view.steps(handle.id)[name].lost == 0
        assert "ForkPoolWorker" not in celery_setup.worker.logs()


def test_a_run_that_is_late_stops_whatever_it_is_at(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    reconcile: Reconcile,
) -> None:
    handle = flowstone.materialize_all("all_of_it", deadline=1000)
    expected = {
        "before": "succeeded",
        "one_that_runs": "running",
        "another_that_runs": "running",
        "parks": "retrying",
        "waits_for_a_process": "queued",
        "all_of_it": "pending",
    }
    wait_until(lambda: view.states(handle.id) == expected, "both processes are busy")
    with here.ledger.begin() as conn:
        conn.execute(text("UPDATE flowstone.runs SET deadline_at = now()"))
    assert reconcile()["deadline_passed"] == 1
    assert handle.wait(timeout=30) == RunState.FAILED
    assert handle.explain().endswith(
        "failed: the run did not end within 1000 s, its deadline; resume it, or give it more time"
    )
    states = view.states(handle.id)
    assert states.pop("before") == "succeeded"
    assert set(states.values()) == {"cancelled"}
    assert view.actions(handle.id)["run.deadline_passed"] == 1
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert broker.waiting("assets") == 0
    assert view.attempts(handle.id, "waits_for_a_process") == []
    assert flowstone.materialize("before").result(timeout=30) == 1
