"""The nodes themselves: what pytest-celery does to containers works on these processes."""

from __future__ import annotations

from pathlib import Path

from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from tests.worker.waiting import wait_until


def test_a_worker_that_was_killed_works_again_after_a_restart(
    celery_setup: CeleryTestSetup,
) -> None:
    worker = celery_setup.worker
    assert celery_setup.ready(control=True)
    old = worker.container.pid
    worker.kill()
    assert worker.container.status == "exited"
    worker.restart()
    assert worker.container.pid != old
    assert flowstone.materialize("top").result(timeout=20) == 1
    worker.assert_log_exists("Task top")


def test_a_worker_outlives_a_broker_that_is_gone_while_it_holds_a_message(
    celery_setup: CeleryTestSetup, tmp_path: Path
) -> None:
    worker, broker = celery_setup.worker, celery_setup.broker
    before = worker.container.pid
    handle = flowstone.materialize_all("after_gate", config={"gate": {"folder": str(tmp_path)}})
    wait_until((tmp_path / "attempt-1").exists, "the step runs")
    broker.kill()
    worker.wait_for_log("Connection to broker lost")
    worker.wait_for_log("Trying again in")
    broker.restart()
    wait_until(
        lambda: worker.logs().count("Connected to") > 1, "the worker has connected once more"
    )
    # Its message can be acknowledged no more, over the connection that it came by.
    (tmp_path / "open").touch()
    assert handle.wait(timeout=30) == RunState.SUCCEEDED
    assert flowstone.materialize("top").result(timeout=20) == 1
    assert (worker.container.status, worker.container.pid) == ("running", before)
    assert "Unrecoverable" not in worker.logs()
