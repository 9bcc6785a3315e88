"""A retry with a long delay on a real worker: nothing of it waits in Celery."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone.canvas import Publisher, task_id
from flowstone.reconcile import reconcile
from flowstone.runtime import Runtime
from tests.worker.broker_view import Broker
from tests.worker.conftest import needs_chords
from tests.worker.event_view import tasks_of_events
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


@pytest.fixture
def retried(celery_setup: CeleryTestSetup) -> Iterator[list[str]]:
    """The ids of the tasks that Flower is told to show as retried."""
    with tasks_of_events(celery_setup.app, "task-retried") as ids:
        yield ids


@needs_chords
def test_a_parked_step_of_a_chord_holds_nothing_up_and_the_join_comes_after_it(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    retried: list[str],
) -> None:
    handle = flowstone.materialize_all("join_patient")
    steps = ("patient", "after_patient", "beside_patient", "after_beside", "join_patient")

    # The rest of the header runs to its end, while the parked step waits in the ledger.
    def parked() -> bool:
        states = view.states(handle.id)
        return [states.get(step) for step in steps] == [
            "retrying", "pending", "succeeded", "succeeded", "pending",
        ]  # fmt: skip

    wait_until(parked, "patient is parked, and the other stretch is done")
    assert view.steps(handle.id)["patient"].canvas is None
    assert view.attempts(handle.id, "patient") == [(1, "retrying")]

    # No message waits anywhere: not in the worker's memory, and not on the broker.
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert broker.waiting() == 0
    scheduled = celery_setup.app.control.inspect(timeout=5).scheduled()
    assert list(scheduled.values()) == [[]]

    # Celery shows RETRY, as it would for a retry of its own.
    celery_setup.worker.assert_log_exists(
        "retry: Retry in 1.0s: ConnectionError('the source is closed')"
    )
    canvas = view.rows(
        "SELECT canvas FROM flowstone.steps WHERE run_id = :r AND asset = 'beside_patient'",
        r=handle.id,
    )[0].canvas
    assert retried == [task_id(view.steps(handle.id)["patient"].id, canvas)]

    wake = Publisher(celery_setup.app).wake
    assert wait_until(lambda: reconcile(here, wake)["retry_due"], "the retry is due") == 1
    assert handle.result(timeout=30) == 22
    assert view.attempts(handle.id, "patient") == [(1, "retrying"), (2, "succeeded")]
    assert [view.attempts(handle.id, step) for step in steps[1:]] == [[(1, "succeeded")]] * 4
    assert view.actions(handle.id)["step.retry_due"] == 1
    rows = view.steps(handle.id)
    assert rows["join_patient"].started_at >= rows["patient"].finished_at
