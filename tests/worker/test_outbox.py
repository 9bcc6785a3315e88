"""A broker that is away delays what is asked for and what is done; neither fails, or is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from flowstone.settings import Settings
from tests.worker.ledger_view import LedgerView
from tests.worker.test_outcomes import Gate
from tests.worker.waiting import wait_until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"message_seconds": 1.0})


def test_what_is_asked_for_and_what_ends_while_the_broker_is_away_goes_on_when_it_is_back(
    celery_setup: CeleryTestSetup,
    view: LedgerView,
    full_pass: Callable[[], Mapping[str, int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, worker = celery_setup.broker, celery_setup.worker
    saved = flowstone.save_plan("top")
    failed = flowstone.materialize("broken")
    failed.wait(timeout=30)
    folder = tmp_path / "gate"
    folder.mkdir()
    gate = Gate(folder, worker)
    gate.wait_for_attempt(1)
    old, process = broker.container.id, worker.container.pid
    broker.kill()
    assert broker.container.status == "exited"

    # Each is told, and recorded.
    new = flowstone.materialize("untouched")
    saved.start()
    resumed = failed.resume()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert all("starts as soon as the broker is back" in line for line in told)
    assert all("cannot be reached" in line for line in told)
    assert new.status() == RunState.REQUESTED

    # What runs is committed, though nobody can be told of it.
    gate.open()
    committed = {"before_gate": "succeeded", "gate": "succeeded", "after_gate": "queued"}
    wait_until(lambda: view.states(gate.handle.id) == committed, "the step is committed")
    worker.wait_for_log("raised unexpected: OperationalError", "Celery sends the next in vain")
    assert view.states(gate.handle.id) == committed
    assert view.attempts(gate.handle.id, "gate") == [(1, "succeeded")]

    broker.restart()
    assert broker.container.id != old
    # As in production: it is lost since the queue is empty in which its message should lie.
    wait_until(lambda: full_pass()["message_lost"], "the next step counts as lost")
    assert [run.wait(timeout=30) for run in (new, saved, gate.handle)] == ["succeeded"] * 3
    assert worker.container.pid == process
    assert resumed.wait(timeout=30) == RunState.FAILED
    assert view.attempts(gate.handle.id, "gate") == [(1, "succeeded")]
