"""The nodes themselves: what pytest-celery does to containers works on these processes."""

from __future__ import annotations

from pytest_celery import CeleryTestSetup

import flowstone


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
