"""A worker prunes and sweeps when beat says so, and says who it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import flowstone
from flowstone.messages import PRUNE, SWEEP
from flowstone.runtime import Runtime
from flowstone.store import runs
from tests.store.runs_by_hand import HandRun, run_sql
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


@pytest.fixture
def worker_environment(worker_environment: dict[str, str]) -> dict[str, str]:
    return worker_environment | {"FLOWSTONE_RETENTION": '{"runs": 90}'}


def test_the_task_deletes_what_the_settings_let_go(
    celery_worker_cluster: Any, celery_setup_app: Celery, here: Runtime, view: LedgerView
) -> None:
    run = HandRun(here.ledger, {1: ()})
    run.dispatch()
    run.fail(run.claim(1))
    with here.ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
        run_sql(conn, "UPDATE flowstone.runs SET finished_at = now() - interval '91 days'")
    celery_setup_app.send_task(PRUNE, queue="control")
    wait_until(lambda: view.actions(run.id)["run.pruned"], "the run is pruned")
    assert view.rows("SELECT id FROM flowstone.steps") == []
    told = "SELECT actor FROM flowstone.audit WHERE action = 'run.pruned'"
    assert [row.actor for row in view.rows(told)] == ["beat"]

    # What an attempt has left behind is swept.
    handle = flowstone.materialize("top")
    assert handle.result(timeout=30) == 1
    ((at,),) = view.rows("SELECT location FROM flowstone.outputs")
    part = Path(here.settings.outputs, at + ".part")
    part.write_text("1")
    celery_setup_app.send_task(SWEEP, queue="control")
    wait_until(lambda: not part.exists(), "the storage is swept")
    assert handle.result() == 1
