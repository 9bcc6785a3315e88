"""Queues of one's own, the workers that consume them, and what happens where none does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone.canvas import Publisher
from flowstone.coordinator import go_on
from flowstone.errors import DefinitionError
from flowstone.planning import plan_run
from flowstone.reconcile import reconcile as reconcile_once
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.worker import priority_assets
from tests.worker.broker_view import Broker
from tests.worker.ledger_view import LedgerView
from tests.worker.nodes import WorkerProcess
from tests.worker.waiting import wait_until

pytestmark = pytest.mark.slow

NOT_GPU = ("-Q", "assets,control")
GPU = (
    "1 step waits in the queue 'gpu', which no worker consumes; "
    "start one: celery -A tasks worker -Q gpu"
)


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([priority_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    own = {"assets": (priority_assets.__name__,), "queues": ("gpu",), "queue_timeout": 3600.0}
    return settings.model_copy(update=own)


@pytest.fixture
def worker_environment(worker_environment: dict[str, str]) -> dict[str, str]:
    return worker_environment | {"FLOWSTONE_QUEUES": "gpu"}


def listed(view: LedgerView) -> dict[str, list[str]]:
    return {row.name: row.queues for row in view.rows("SELECT * FROM flowstone.workers")}


def let_pass(here: Runtime, seconds: float) -> None:
    with here.ledger.begin() as conn:
        for table, column in (("unattended", "since"), ("steps", "queued_at")):
            conn.exec_driver_sql(
                f"UPDATE flowstone.{table} SET {column} = {column} - interval '{seconds} seconds'"
            )


def test_an_asset_in_a_queue_of_ones_own_runs_where_a_worker_consumes_it(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    assert flowstone.materialize_all("served").result(timeout=60) == "what?"
    wait_until(lambda: "gpu" in listed(view).get("tests@local", []), "the worker is listed")


def test_without_the_setting_the_queue_is_refused(settings: Settings, here: Runtime) -> None:
    other = Runtime(settings.model_copy(update={"queues": ()}), here.registry)
    with pytest.raises(
        DefinitionError, match=r"'gpu', which there is not; use one of .* or add it"
    ):
        _ = other.registry


@pytest.mark.parametrize("worker_options", [NOT_GPU])
def test_a_step_that_no_worker_consumes_is_told_and_fails_at_last(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    worker_options: tuple[str, ...],
    reconcile: Callable[[], Mapping[str, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wait_until(lambda: listed(view) == {"tests@local": ["assets", "control"]}, "one is listed")
    handle = flowstone.materialize_all("served")
    wait_until(lambda: view.states(handle.id).get("question") == "succeeded", "what could, ran")
    assert [str(one) for one in handle.progress().unattended] == [GPU]
    assert [str(one) for one in flowstone.client.unattended()] == [GPU]
    assert reconcile()["queue_timeout"] == 0
    assert GPU in caplog.text
    let_pass(here, 3601)
    counts = reconcile()
    assert (counts["queue_timeout"], counts["step_stranded"]) == (1, 0)
    assert handle.wait(timeout=60) == "failed"
    assert view.states(handle.id) == {
        "question": "succeeded", "trained": "failed", "served": "upstream_failed",
    }  # fmt: skip
    assert view.steps(handle.id)["trained"].error["type"] == "queue_timeout"
    assert handle.progress().unattended == []

    # The message is still there. A worker that sees it now does nothing.
    assert broker.waiting("gpu") == 1
    celery_setup.app.control.add_consumer("gpu", reply=True, timeout=10)
    wait_until(lambda: broker.waiting("gpu") == broker.unacked() == 0, "it is taken")
    assert view.attempts(handle.id, "trained") == []
    assert view.states(handle.id)["trained"] == "failed"

    # And what is left undone can be done, as there is a worker now.
    assert handle.resume().result("served", timeout=60) == "what?"


@pytest.mark.parametrize("worker_options", [NOT_GPU])
def test_a_worker_that_comes_back_in_time_finds_its_steps(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    worker_options: tuple[str, ...],
    reconcile: Callable[[], Mapping[str, int]],
) -> None:
    handle = flowstone.materialize_all("served")
    wait_until(lambda: view.states(handle.id).get("question") == "succeeded", "what could, ran")
    reconcile()
    let_pass(here, 3599)
    assert reconcile()["queue_timeout"] == 0
    celery_setup.app.control.add_consumer("gpu", reply=True, timeout=10)
    assert handle.result(timeout=60) == "what?"


def test_a_queue_that_the_settings_have_lost_since_the_run_was_planned_can_be_sent_to(
    here: Runtime, publisher: Publisher, broker: Broker, view: LedgerView
) -> None:
    handle = flowstone.materialize("question")
    plan_run(here, handle.id)
    view.rows("UPDATE flowstone.steps SET queue = 'lost' RETURNING id")
    go_on(here, handle.id, publisher.publish)
    assert broker.waiting("lost") == 1
    assert [one.queue for one in handle.progress().unattended] == ["lost"]


def test_a_run_that_nobody_takes_says_so(here: Runtime) -> None:
    handle = flowstone.materialize_all("told")
    (said,) = handle.progress().unattended
    assert str(said) == (
        "1 run waits in the queue 'control', which no worker consumes; "
        "start one: celery -A tasks worker -Q control"
    )


@pytest.mark.parametrize(
    "worker_options", [("-P", pool) for pool in ("prefork", "threads", "solo")]
)
def test_a_worker_is_listed_until_it_is_told_to_stop(
    celery_setup: CeleryTestSetup, view: LedgerView, worker_options: tuple[str, ...]
) -> None:
    wait_until(lambda: listed(view), "the worker is listed")
    assert flowstone.materialize_all("told").result(timeout=60) == "WHAT? THAT!"
    process: WorkerProcess = celery_setup.worker.container
    process.kill("SIGTERM")
    assert listed(view) == {}


def test_a_worker_that_was_killed_is_forgotten_when_it_is_silent_for_too_long(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    wait_until(lambda: listed(view), "the worker is listed")
    celery_setup.worker.container.kill("SIGKILL")
    assert reconcile_once(here, lambda *_: None)["worker_gone"] == 0
    assert list(listed(view)) == ["tests@local"]
    with here.ledger.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE flowstone.workers SET seen_at = seen_at - interval '61 seconds'"
        )
    assert flowstone.client.workers_list() == []
    assert reconcile_once(here, lambda *_: None)["worker_gone"] == 1
    assert listed(view) == {}


@pytest.mark.parametrize("worker_options", [("--max-tasks-per-child", "1")])
def test_the_children_of_a_pool_do_not_take_their_worker_off_the_list(
    celery_setup: CeleryTestSetup, view: LedgerView, worker_options: tuple[str, ...]
) -> None:
    wait_until(lambda: listed(view), "the worker is listed")
    pool = {process.pid for process in celery_setup.worker.container.pool()}
    assert flowstone.materialize_all("told").result(timeout=60) == "WHAT? THAT!"

    def others_have_come() -> bool:
        return pool.isdisjoint(process.pid for process in celery_setup.worker.container.pool())

    wait_until(others_have_come, "children have ended, and others have come")
    assert list(listed(view)) == ["tests@local"]
