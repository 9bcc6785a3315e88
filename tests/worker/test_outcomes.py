"""Failures, retries, copies of messages, deaths: what Celery is told, and what the ledger holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunHandle, RunState, coordinator, planning, submission
from flowstone.canvas import Publisher
from flowstone.expand import Canvas
from flowstone.messages import STEP
from flowstone.runtime import Runtime
from flowstone.store.dispatch import DispatchedStep
from tests.worker.ledger_view import LedgerView
from tests.worker.nodes import LocalWorker
from tests.worker.waiting import wait_until


class Gate:
    """A run that is held in its asset `gate`, and the worker that computes it."""

    def __init__(self, folder: Path, worker: LocalWorker) -> None:
        self.folder = folder
        self.worker = worker
        self.handle = flowstone.materialize_all(
            "after_gate", config={"gate": {"folder": str(folder)}}
        )

    def wait_for_attempt(self, number: int) -> int:
        """Return the id of the process that waits in the gate."""
        note = self.folder / f"attempt-{number}"
        wait_until(note.exists, f"attempt {number} comes to the gate")
        return int(note.read_text())

    def open(self, attempt: int | None = None) -> None:
        """Let one attempt pass, or all."""
        (self.folder / ("open" if attempt is None else f"open-{attempt}")).touch()


@pytest.fixture
def gate(celery_setup: CeleryTestSetup, tmp_path: Path) -> Gate:
    folder = tmp_path / "gate"
    folder.mkdir()
    return Gate(folder, celery_setup.worker)


def test_a_failure_stops_what_depends_on_it_and_nothing_else(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize_all(["after_that", "after_untouched"])
    assert handle.wait(timeout=30) == RunState.FAILED
    assert view.states(handle.id) == {
        "broken": "failed",
        "untouched": "succeeded",
        "after_broken": "upstream_failed",
        "after_untouched": "succeeded",
        "after_that": "upstream_failed",
    }
    assert handle.explain().endswith(
        "failed: 1 of 5 assets failed: broken: ValueError: the well is dry; "
        "2 more were not run because of it: after_broken, after_that"
    )
    assert list(map(str, handle.reasons("after_that"))) == [
        "after_broken <- broken failed: ValueError: the well is dry"
    ]
    assert view.attempts(handle.id, "after_broken") == []
    assert view.actions(handle.id)["run.failed"] == 1
    # Celery's own state of the task is FAILURE, and the chain behind it does not go on.
    celery_setup.worker.assert_log_exists("raised unexpected: ValueError('the well is dry')")
    assert "Task after_broken" not in celery_setup.worker.logs()


def test_a_fault_that_may_pass_is_retried_in_its_place_in_the_chain(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("after_flaky")
    assert handle.result(timeout=30) == 5
    assert view.attempts(handle.id, "flaky") == [
        (1, "retrying"),
        (2, "retrying"),
        (3, "succeeded"),
    ]
    assert view.canvases(handle.id) == [["before_flaky", "flaky", "after_flaky"]]
    celery_setup.worker.assert_log_exists(
        "retry: Retry in 0.1s: ConnectionError('attempt 1 got no answer')"
    )


def test_an_asset_that_exits_fails_and_leaves_the_worker_alone(
    celery_setup: CeleryTestSetup,
) -> None:
    pool = {process.pid for process in celery_setup.worker.container.pool()}
    handle = flowstone.materialize("leaves")
    assert handle.wait(timeout=30) == RunState.FAILED
    assert "leaves: SystemExit: goodbye" in handle.explain()
    assert flowstone.materialize("top").result(timeout=30) == 1
    assert {process.pid for process in celery_setup.worker.container.pool()} == pool


def test_a_canvas_that_is_delivered_twice_commits_each_step_once(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView, publisher: Publisher
) -> None:
    def publish_twice(canvas: Canvas, steps: Mapping[int, DispatchedStep]) -> None:
        publisher.publish(canvas, steps)
        publisher.publish(canvas, steps)

    handle = _request_quietly(here, "tail")
    coordinator.coordinate(here, handle.id, publish_twice)
    assert handle.result(timeout=30) == "(a1 a2, b1) tail"
    logs = celery_setup.worker.logs

    # Both copies of the two first steps have been through the worker.
    def ended() -> bool:
        return all(logs().count(f"Task {step}[") == 4 for step in ("a1", "b1"))

    wait_until(ended, "both messages of a1 and b1 end")
    assert view.actions(handle.id) == {
        "run.requested": 1,
        "run.planned": 1,
        "run.started": 1,
        "step.succeeded": 5,
        "run.succeeded": 1,
    }
    assert [view.attempts(handle.id, step) for step in ("a1", "a2", "b1", "join", "tail")] == [
        [(1, "succeeded")]
    ] * 5


def test_a_message_of_a_canvas_that_has_been_given_up_is_ignored(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView, celery_setup_app: Celery
) -> None:
    handle = _request_quietly(here, "top")
    planning.plan_run(here, handle.id)
    coordinator.take_ready(here, handle.id)
    before = view.snapshot()
    stale = {"step_id": view.steps(handle.id)["top"].id, "canvas": str(uuid4())}
    sent = celery_setup_app.send_task(STEP, kwargs=stale, queue="assets", ignore_result=True)
    celery_setup.worker.assert_log_exists(f"Task flowstone.step[{sent.id}] ignored")
    assert view.snapshot() == before


def test_a_run_survives_the_end_of_the_worker_that_computes_it(
    view: LedgerView, gate: Gate, reconcile: Callable[[], Mapping[str, int]]
) -> None:
    gate.wait_for_attempt(1)
    gate.worker.kill()
    assert view.attempts(gate.handle.id, "gate") == [(1, None)]
    gate.worker.restart()
    assert wait_until(lambda: reconcile()["lease_expired"], "the lease of the dead expires") == 1
    gate.wait_for_attempt(2)
    gate.open()
    assert gate.handle.result(timeout=30) == 3
    assert view.attempts(gate.handle.id, "before_gate") == [(1, "succeeded")]
    assert view.attempts(gate.handle.id, "gate") == [(1, "lost"), (2, "succeeded")]
    assert view.steps(gate.handle.id)["gate"].lost == 1
    actions = view.actions(gate.handle.id)
    assert actions["step.lost"] == 1
    assert actions["step.succeeded"] == 3
    assert actions["run.succeeded"] == 1


def test_a_step_that_is_still_computed_keeps_its_lease(
    here: Runtime, view: LedgerView, gate: Gate, reconcile: Callable[[], Mapping[str, int]]
) -> None:
    gate.wait_for_attempt(1)
    first = view.steps(gate.handle.id)["gate"].lease_until

    def outlived() -> bool:
        assert reconcile()["lease_expired"] == 0
        return bool(view.rows("SELECT now() > :first AS past", first=first)[0].past)

    wait_until(outlived, "the first lease would have expired")
    gate.open()
    assert gate.handle.result(timeout=30) == 3
    assert view.attempts(gate.handle.id, "gate") == [(1, "succeeded")]


@pytest.fixture
def freeze(view: LedgerView) -> Iterator[Callable[[int], psutil.Process]]:
    """Stop a process in its tracks; it goes on at the latest when the test ends."""
    stopped: list[psutil.Process] = []

    def freeze(pid: int) -> psutil.Process:
        process = psutil.Process(pid)
        stopped.append(process)
        wait_until(lambda: _stop_between_transactions(process, view), "a moment to stop it")
        return process

    yield freeze
    for process in stopped:
        if process.is_running():
            process.resume()


def _stop_between_transactions(process: psutil.Process, view: LedgerView) -> bool:
    """Stop a process unless it is just renewing its lease: it would keep the row locked."""
    process.suspend()
    busy = view.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND state <> 'idle' AND pid <> pg_backend_pid()"
    )
    if busy:
        process.resume()
    return not busy


def test_an_attempt_that_wakes_up_after_its_lease_writes_nothing(
    here: Runtime,
    view: LedgerView,
    gate: Gate,
    reconcile: Callable[[], Mapping[str, int]],
    freeze: Callable[[int], psutil.Process],
) -> None:
    sleeper = freeze(gate.wait_for_attempt(1))
    wait_until(lambda: reconcile()["lease_expired"], "the lease of the frozen process expires")
    assert gate.wait_for_attempt(2) != sleeper.pid
    before, actions = view.steps(gate.handle.id)["gate"], view.actions(gate.handle.id)

    gate.open(attempt=1)
    sleeper.resume()
    wait_until(
        lambda: re.search(r"Task gate\[\S+\] ignored", gate.worker.logs()),
        "the first attempt is ignored",
    )
    after = view.steps(gate.handle.id)["gate"]
    assert (after.state, after.token) == ("running", before.token)
    assert view.attempts(gate.handle.id, "gate") == [(1, "lost"), (2, None)]
    assert view.actions(gate.handle.id) == actions

    gate.open()
    assert gate.handle.result(timeout=30) == 3
    assert view.attempts(gate.handle.id, "gate") == [(1, "lost"), (2, "succeeded")]
    outputs = view.rows("SELECT * FROM flowstone.outputs WHERE step_id = :s", s=before.id)
    assert len(outputs) == 1
    # The first attempt did store its value, at a place of its own that no row names.
    assert len(list(Path(here.settings.outputs, "gate").rglob("*.json"))) == 2


def _request_quietly(here: Runtime, asset: str) -> RunHandle:
    """Record a request without a message, so that only the test coordinates the run at first."""
    request = submission.request(asset, flowstone.UNPARTITIONED, upstream=True, force=True)
    run_id, _ = submission.record(here, request, None, None, driver="celery", key=None)
    return RunHandle(run_id, here)
