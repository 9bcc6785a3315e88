"""Runs that are cancelled on a real worker, and resumed: they end, and Celery with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState, reconcile
from flowstone.canvas import Publisher, task_id
from flowstone.runtime import Runtime
from tests.worker.broker_view import Broker
from tests.worker.conftest import needs_chords
from tests.worker.event_view import tasks_of_events
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gate"
    made.mkdir()
    return made


@pytest.fixture
def revoked(celery_setup: CeleryTestSetup) -> Iterator[list[str]]:
    """The ids of the tasks that Flower is told to show as revoked."""
    with tasks_of_events(celery_setup.app, "task-revoked") as ids:
        yield ids


def assert_celery_is_done(celery_setup: CeleryTestSetup, broker: Broker) -> None:
    """No message is left or will be given out again, and the worker takes the next one."""
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert broker.waiting("assets") == 0
    assert flowstone.materialize("top").result(timeout=30) == 1
    assert "Traceback" not in celery_setup.worker.logs()


@needs_chords
def test_a_chord_whose_headers_stop_end_well_and_never_begin_ends_cancelled(
    celery_setup: CeleryTestSetup,
    view: LedgerView,
    broker: Broker,
    folder: Path,
    revoked: list[str],
) -> None:
    config = {name: {"folder": str(folder)} for name in ("heeds", "finishes")}
    handle = flowstone.materialize_all("after_all", config=config)
    for name in config:
        wait_until((folder / name).exists, f"{name} runs")
    assert view.canvases(handle.id) == [["finishes", "heeds", "waits", "after_all"]]

    done = handle.cancel(reason="enough")
    assert (done.state, done.cancelled, done.running) == (RunState.RUNNING, 2, 2)
    assert handle.wait(timeout=20) == RunState.CANCELLED
    assert view.states(handle.id) == {
        "heeds": "cancelled",
        "finishes": "succeeded",
        "waits": "cancelled",
        "after_all": "cancelled",
    }
    assert view.attempts(handle.id, "heeds") == [(1, "cancelled")]
    assert view.attempts(handle.id, "waits") == []
    assert view.actions(handle.id)["run.cancelled"] == 1
    assert handle.explain().endswith(": enough")
    rows = view.steps(handle.id)
    stopped = {task_id(rows[name].id, rows[name].canvas) for name in ("heeds", "waits")}
    wait_until(lambda: set(revoked) == stopped, "Celery shows as revoked what did not end well")
    assert_celery_is_done(celery_setup, broker)
    assert "Task after_all" not in celery_setup.worker.logs()


def test_a_step_that_does_not_stop_is_killed_and_the_run_can_be_resumed(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    folder: Path,
) -> None:
    handle = flowstone.materialize_all("after_gate", config={"gate": {"folder": str(folder)}})
    wait_until((folder / "attempt-1").exists, "the first attempt comes to the gate")
    pid = int((folder / "attempt-1").read_text())
    pool = celery_setup.worker.container.pool
    assert pid in {process.pid for process in pool()}

    assert handle.cancel(grace=0).running == 1
    publisher = Publisher(celery_setup.app)
    counts = reconcile.reconcile(here, publisher.wake, publisher.kill)
    assert (counts["cancel_overdue"], counts["lease_expired"]) == (1, 0)
    assert handle.status() == RunState.CANCELLED
    wait_until(lambda: pid not in {process.pid for process in pool()}, "its process is gone")
    assert view.states(handle.id) == {
        "before_gate": "succeeded",
        "gate": "cancelled",
        "after_gate": "cancelled",
    }
    assert view.attempts(handle.id, "gate") == [(1, "cancelled")]
    assert "step.lost" not in view.actions(handle.id)
    wait_until(lambda: broker.unacked() == 0, "the message of the killed task is gone")

    (folder / "open").touch()
    resumed = handle.resume()
    assert resumed.result(timeout=30) == 3
    assert view.states(resumed.id) == {"gate": "succeeded", "after_gate": "succeeded"}
    assert resumed.result("before_gate") == 1
    assert celery_setup.worker.logs().count("Task before_gate[") == 2  # received and succeeded
    assert handle.status() == RunState.CANCELLED


def test_a_failed_run_is_resumed_with_what_is_missing(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize_all(["after_that", "after_untouched"])
    assert handle.wait(timeout=30) == RunState.FAILED
    resumed = flowstone.resume(str(handle.id)[:8])
    assert resumed.wait(timeout=30) == RunState.FAILED
    assert view.states(resumed.id) == {
        "broken": "failed",
        "after_broken": "upstream_failed",
        "after_that": "upstream_failed",
    }
    assert view.actions(resumed.id)["run.resumed"] == 1
