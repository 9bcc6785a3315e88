"""Rates on real workers: the ledger's own time stamps keep to them, whatever the queue does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from flowstone import reconcile as reconciler
from flowstone.canvas import Publisher
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.rate_law import assert_kept
from tests.store.test_rates import PROMISED, STARTS_OF_PAGES, later
from tests.worker import rate_assets
from tests.worker.broker_view import Broker
from tests.worker.ledger_view import LedgerView
from tests.worker.nodes import WorkerProcess
from tests.worker.waiting import wait_until


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([rate_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"assets": (rate_assets.__name__,)})


@pytest.fixture
def second_worker(
    celery_setup: CeleryTestSetup,
    settings: Settings,
    worker_environment: dict[str, str],
    tmp_path: Path,
) -> Iterator[WorkerProcess]:
    process = WorkerProcess(
        "second@local", worker_environment, tmp_path / "second.log", settings.broker
    )
    try:
        process.start()
        yield process
    finally:
        process.teardown()


def starts(view: LedgerView) -> list[float]:
    return [row[0] for row in view.rows(STARTS_OF_PAGES)]


def test_thirty_steps_of_a_run_start_at_its_rate_and_wait_in_no_process(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("pages", force=True)
    assert handle.result(timeout=60) == 30
    assert len(starts(view)) == 30
    assert_kept(starts(view), 0.05)
    assert set(handle.progress().steps["page"]) == {"succeeded"}
    # Waiting is no attempt, and Celery is told so.
    assert view.rows("SELECT max(number) FROM flowstone.attempts") == [(1,)]
    celery_setup.worker.assert_log_exists("_WaitsForItsTurn('rate:quick')")


def test_two_workers_and_two_runs_share_a_rate(
    celery_setup: CeleryTestSetup, second_worker: WorkerProcess, view: LedgerView
) -> None:
    handles = [flowstone.materialize_all(name, force=True) for name in ("pages", "others")]
    assert [handle.result(timeout=60) for handle in handles] == [30, 3]
    assert len(starts(view)) == 33
    assert_kept(starts(view), 0.05)
    hosts = {row[0] for row in view.rows("SELECT DISTINCT worker FROM flowstone.attempts")}
    assert hosts == {"tests@local", "second@local"}


def test_each_retry_takes_a_token(
    celery_setup: CeleryTestSetup, view: LedgerView, reconcile: Callable[[], Mapping[str, int]]
) -> None:
    handle = flowstone.materialize("flaky")

    def ends() -> bool:
        # Its retries are parked, and become ready by the reconciler.
        reconcile()
        return handle.status() == RunState.SUCCEEDED

    wait_until(ends, "the third attempt succeeds")
    assert len(starts(view)) == 3
    assert_kept(starts(view), 0.5)


def test_messages_that_are_lost_while_they_wait_are_sent_again(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    publisher: Publisher,
) -> None:
    handle = flowstone.materialize_all("all_slow", force=True)

    def count(state: str) -> int:
        return list(view.states(handle.id).values()).count(state)

    wait_until(lambda: count("succeeded") == 1, "the first has started")
    wait_until(lambda: view.rows(PROMISED) == [(2,)], "the others wait for their turn")
    celery_setup.worker.kill()
    broker.lose_all()
    later(here.ledger, 1000)
    counts = reconciler.reconcile(here, publisher.wake, broker=publisher)
    assert counts["message_lost"] == 2
    celery_setup.worker.container.start()
    assert handle.result(timeout=60) == 3
    assert_kept(starts(view), 4)


@pytest.mark.slow
def test_a_step_of_a_slow_rate_holds_nothing_and_can_be_cancelled(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    tmp_path: Path,
    reconcile: Callable[[], Mapping[str, int]],
) -> None:
    config = {"call": {"path": str(tmp_path)}}
    first, second, third = (
        flowstone.materialize_all("after_call", config=config, force=True, on_conflict="queue")
        for _ in range(3)
    )
    handles = {str(handle.id): handle for handle in (first, second, third)}

    def called() -> list[str]:
        return [path.name.removeprefix("call-") for path in tmp_path.glob("call-*")]

    wait_until(lambda: len(called()) == 1, "the only token is taken")
    (done,) = called()
    assert handles.pop(done).wait(timeout=30) == RunState.SUCCEEDED
    waiting = list(handles.values())
    ready = ["succeeded", "pending", "pending"]
    wait_until(
        lambda: all(list(view.states(one.id).values()) == ready for one in waiting), "both wait"
    )
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert broker.waiting() == 0
    scheduled = celery_setup.app.control.inspect(timeout=5).scheduled()
    assert list(scheduled.values()) == [[]]
    waiting[0].cancel()
    assert waiting[0].wait(timeout=30) == RunState.CANCELLED
    # Near its start it is dispatched, and waits as a message for the rest.
    ((left,),) = view.rows(
        "SELECT extract(epoch FROM next_at - now())::float8 FROM flowstone.rates"
    )
    later(here.ledger, left - 5)
    assert reconcile()["run_woken"] == 1
    wait_until(lambda: view.rows(PROMISED)[0][0] == 1, "it waits for its turn")
    assert len(called()) == 1
    assert waiting[1].wait(timeout=30) == RunState.SUCCEEDED
    assert_kept(starts(view), 3600)
