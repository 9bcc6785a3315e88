"""`flowstone cancel` and `flowstone resume` on a real ledger, and Ctrl-C while watching."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from flowstone.embedded import ValkeyServer
from flowstone.store.ledger import Ledger
from tests.cli.conftest import DEADLINE, ROOT, Cli, wait_until
from tests.store.runs_by_hand import HandRun, query, run_sql

pytestmark = pytest.mark.slow


def test_a_run_is_cancelled_in_one_line_and_again_without_harm(
    flowstone: Any, ledger: Ledger
) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    done = flowstone("cancel", str(run.id)[:8], "--reason", "a typo")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"run {run.id} is cancelled; 2 steps will not run\n"
    again = flowstone("cancel", str(run.id))
    assert (again.code, again.out) == (0, f"run {run.id} is cancelled already\n")
    status = flowstone("status", str(run.id))
    assert status.code == 1
    assert "cancelled by" in status.err
    assert "a typo" in status.err


def test_it_says_what_still_runs_and_for_how_long(flowstone: Any, ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    run.claim(1)
    done = flowstone("cancel", str(run.id), "--grace", "5")
    assert done.code == 0
    assert "1 steps will not run, 1 still run and have 5 s to end" in done.out
    assert "being cancelled already; 1 steps still run" in flowstone("cancel", str(run.id)).out
    assert "(being cancelled)" in flowstone("status", str(run.id)).out


def test_what_has_ended_cannot_be_cancelled_nor_resumed(flowstone: Any, ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    assert "is still planned; wait for its end" in flowstone("resume", str(run.id)).refused(2)
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.runs SET state = 'succeeded', finished_at = now()")
    error = flowstone("cancel", str(run.id)).refused(2)
    assert f"run {run.id} has succeeded already" in error
    assert "nothing left of it to run" in flowstone("resume", str(run.id)).refused(2)


def test_resume_prints_the_id_of_the_new_run(flowstone: Any, ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    flowstone("cancel", str(run.id))
    done = flowstone("resume", str(run.id)[:8], "--detach")
    assert done.code == 0
    found = query(ledger, "SELECT state, resumed_from FROM flowstone.runs WHERE id = :i",
                  i=UUID(done.out.strip()))  # fmt: skip
    assert found == [("planned", run.id)]
    assert "resumed already by run" in flowstone("resume", str(run.id)).refused(2)


def test_interrupting_the_watching_does_not_cancel_and_says_how_to(
    cli: Cli, ledger: Ledger, database: str, valkey: ValkeyServer
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flowstone.cli", "run", "total"],
        cwd=ROOT,
        env=cli.environment(database_url=database, broker_url=valkey.url, result_url=valkey.url)
        | {"PYTHONPATH": os.fspath(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with ledger.engine.connect() as conn:
            count = text("SELECT count(*) FROM flowstone.runs")
            wait_until(lambda: conn.scalar(count), "the run is recorded")
        assert process.stdout is not None
        # It says that no worker has come, and so it is watching.
        assert process.stdout.readline().startswith("run ")
        assert "in the queue 'control', which no worker consumes" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    ((run_id, state),) = query(ledger, "SELECT id, state FROM flowstone.runs")
    assert process.returncode == 130
    assert f"the run goes on: `flowstone status {str(run_id)[:8]}` shows it" in err
    assert f"`flowstone cancel {str(run_id)[:8]}` ends it" in err
    assert "Traceback" not in err
    assert state == "requested"
