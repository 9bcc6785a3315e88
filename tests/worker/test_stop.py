"""A worker is asked to stop: what it runs ends or is handed back; nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from celery import Celery

import flowstone
from flowstone import RunHandle, coordinator
from flowstone.canvas import Publisher, task_id
from flowstone.partition_key import label
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.worker import mortal_assets
from tests.worker.broker_view import Broker
from tests.worker.event_view import tasks_of_events
from tests.worker.ledger_view import LedgerView
from tests.worker.nodes import WorkerProcess
from tests.worker.waiting import wait_until

pytestmark = pytest.mark.slow

LEASE_SECONDS = 600.0
"""Longer than any of these tests; and nobody runs the reconciler."""

Start = Callable[..., WorkerProcess]


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([mortal_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    mine = {"assets": (mortal_assets.__name__,), "lease_seconds": LEASE_SECONDS}
    return settings.model_copy(update=mine)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gate"
    made.mkdir()
    return made


@pytest.fixture
def start(
    settings: Settings,
    worker_environment: dict[str, str],
    celery_setup_app: Celery,
    here: Runtime,
    tmp_path: Path,
) -> Iterator[Start]:
    """Start a worker with a name, and with settings of its own."""
    started: list[WorkerProcess] = []

    def start(name: str, *options: str, **own: object) -> WorkerProcess:
        env = {f"FLOWSTONE_{setting.upper()}": str(value) for setting, value in own.items()}
        worker = WorkerProcess(
            f"{name}@local",
            worker_environment | env,
            tmp_path / f"{name}.log",
            settings.broker,
            *("--include", mortal_assets.__name__, *options),
        )
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in started:
        worker.teardown()


def run_gate(folder: Path) -> RunHandle:
    return flowstone.materialize_all("after_gate", config={"gate": {"folder": str(folder)}})


def attempt_at(folder: Path, name: str) -> int:
    """Return the id of the process that waits at the gate."""
    wait_until((folder / name).exists, f"{name} comes to the gate")
    return int((folder / name).read_text())


def stop(worker: WorkerProcess, signal: str = "SIGTERM") -> int:
    """Stop a worker; return its exit code."""
    worker.kill(signal)
    assert worker._process is not None
    assert worker._process.returncode is not None
    return worker._process.returncode


def runs_long(view: LedgerView, worker: str) -> bool:
    """Return whether a worker computes a part that does not end before it stops."""
    running = view.rows(
        "SELECT s.partition FROM flowstone.attempts a JOIN flowstone.steps s ON s.id = a.step_id"
        " WHERE a.worker = :w AND a.outcome IS NULL",
        w=worker,
    )
    return any(label(row.partition) in mortal_assets.LONG for row in running)


def assert_no_message_is_left(broker: Broker) -> None:
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert broker.waiting("assets") == 0


def test_a_step_that_ends_in_time_is_done_once(
    start: Start, view: LedgerView, folder: Path, broker: Broker
) -> None:
    worker = start("first", stop_seconds=60)
    handle = run_gate(folder)
    attempt_at(folder, "attempt-1")
    psutil.Process(worker.pid).terminate()
    wait_until(lambda: "Warm shutdown" in worker.logs(), "the worker is asked to stop")
    (folder / "open").touch()
    wait_until(lambda: worker.status == "exited", "the worker stops")
    assert view.attempts(handle.id, "gate") == [(1, "succeeded")]
    start("second")
    assert handle.result(timeout=30) == 3
    assert view.attempts(handle.id, "gate") == [(1, "succeeded")]
    assert_no_message_is_left(broker)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_step_that_takes_longer_is_handed_back_and_taken_by_another_worker(
    start: Start,
    view: LedgerView,
    folder: Path,
    broker: Broker,
    celery_setup_app: Celery,
    pool: str,
) -> None:
    worker = start("first", "-P", pool, stop_seconds=0.3)
    handle = run_gate(folder)
    pid = attempt_at(folder, "attempt-1")
    message = task_id(view.steps(handle.id)["gate"].id, view.steps(handle.id)["gate"].canvas)
    with tasks_of_events(celery_setup_app, "task-retried") as retried:
        assert stop(worker) == 0
        wait_until(lambda: message in retried, "Flower shows RETRY")
    assert not psutil.pid_exists(pid)
    assert (folder / "cleaned-attempt-1").exists() == (pool == "prefork")
    assert view.attempts(handle.id, "gate") == [(1, "handed_back")]
    row = view.steps(handle.id)["gate"]
    assert (row.state, row.canvas, row.token, row.lost, row.failures) == (
        "pending", None, None, 0, 0,
    )  # fmt: skip
    assert view.states(handle.id)["after_gate"] == "pending"
    (told,) = view.rows("SELECT * FROM flowstone.audit WHERE action = 'step.handed_back'")
    assert (told.actor, told.reason) == ("first@local", "its worker stops")
    start("second")
    attempt_at(folder, "attempt-2")
    (folder / "open").touch()
    assert handle.result(timeout=30) == 3
    assert view.attempts(handle.id, "gate") == [(1, "handed_back"), (2, "succeeded")]
    assert_no_message_is_left(broker)


def test_messages_in_reserve_go_back_at_once(
    start: Start,
    view: LedgerView,
    folder: Path,
    broker: Broker,
    here: Runtime,
    publisher: Publisher,
) -> None:
    worker = start("first", "-c", "1", stop_seconds=60, prefetch=8)
    handle = run_gate(folder)
    attempt_at(folder, "attempt-1")
    items = flowstone.materialize_all("items")
    # The only process of the worker is busy.
    coordinator.coordinate(here, items.id, publisher.publish)
    wait_until(lambda: broker.unacked() >= 4, "messages are in reserve")
    psutil.Process(worker.pid).terminate()
    start("second")
    assert items.result(timeout=60) == 6
    assert worker.status == "running"
    (folder / "open").touch()
    assert handle.result(timeout=30) == 3
    assert view.attempts(handle.id, "gate") == [(1, "succeeded")]
    wait_until(lambda: worker.status == "exited", "the first worker stops")
    assert_no_message_is_left(broker)


def test_a_process_that_does_not_heed_is_killed(
    start: Start, view: LedgerView, folder: Path
) -> None:
    worker = start("first", stop_seconds=0.3)
    handle = flowstone.materialize("stubborn", config={"stubborn": {"folder": str(folder)}})
    pid = attempt_at(folder, "stubborn-1")
    assert stop(worker) == 0
    assert not psutil.pid_exists(pid)
    start("second")
    attempt_at(folder, "stubborn-2")
    (folder / "open").touch()
    assert handle.result(timeout=30) == 1
    assert view.attempts(handle.id, "stubborn") == [(1, "handed_back"), (2, "succeeded")]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_cold_shutdown_hands_back_at_once(
    start: Start, view: LedgerView, folder: Path, pool: str
) -> None:
    worker = start("first", "-P", pool, stop_seconds=600)
    handle = run_gate(folder)
    attempt_at(folder, "attempt-1")
    stop(worker, "SIGQUIT")
    assert view.attempts(handle.id, "gate") == [(1, "handed_back")]


def test_whoever_is_in_a_hurry_need_not_wait(start: Start, view: LedgerView, folder: Path) -> None:
    worker = start("first", stop_seconds=600)
    handle = run_gate(folder)
    attempt_at(folder, "attempt-1")
    psutil.Process(worker.pid).terminate()
    wait_until(lambda: "Warm shutdown" in worker.logs(), "the worker is asked to stop")
    stop(worker, "SIGQUIT")
    assert view.attempts(handle.id, "gate") == [(1, "handed_back")]


def test_a_signal_for_all_processes_hands_back_too(
    start: Start, view: LedgerView, folder: Path
) -> None:
    worker = start("first", stop_seconds=600)
    handle = run_gate(folder)
    attempt_at(folder, "attempt-1")
    psutil.Process(worker.pid).terminate()
    wait_until(lambda: "Warm shutdown" in worker.logs(), "the worker is asked to stop")
    for process in worker.pool():
        process.terminate()
    wait_until(lambda: worker.status == "exited", "the worker stops")
    assert view.attempts(handle.id, "gate") == [(1, "handed_back")]


def test_workers_are_replaced_one_by_one_and_each_step_is_done_once(
    start: Start, view: LedgerView, folder: Path, broker: Broker
) -> None:
    handle = flowstone.materialize_all("whole", config={"part": {"folder": str(folder)}})
    worker = start("worker-0", stop_seconds=0.1)
    for number in (1, 2):
        successor = start(f"worker-{number}", stop_seconds=0.1)
        wait_until(partial(runs_long, view, worker.name), f"{worker.name} is busy")
        assert stop(worker) == 0
        worker = successor
    (folder / "open").touch()
    parts = mortal_assets.PARTS
    assert handle.result(timeout=60) == parts
    outcomes = view.rows(
        "SELECT step_id, array_agg(outcome ORDER BY number) AS of FROM flowstone.attempts"
        " GROUP BY step_id"
    )
    assert len(outcomes) == parts + 1
    assert all(row.of[-1] == "succeeded" for row in outcomes)
    assert {outcome for row in outcomes for outcome in row.of[:-1]} == {"handed_back"}
    assert len(view.rows("SELECT FROM flowstone.outputs")) == parts + 1
    assert view.actions(handle.id)["step.succeeded"] == parts + 1
    assert_no_message_is_left(broker)
