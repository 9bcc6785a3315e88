"""What the database itself refuses, whoever writes to it."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from flowstone.states import FINAL_STEP_STATES, StepState
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, count

ALSO = {
    "joined": {"joined_to": "id"},
    "running": {"token": "gen_random_uuid()", "lease_until": "now()"},
    "retrying": {"retry_at": "now()"},
    "waiting_approval": {"gate": "1"},
    "waiting_signal": {"gate": "1"},
}


def refused(ledger: Ledger, sql: str) -> str:
    with pytest.raises(DBAPIError) as caught, ledger.engine.begin() as conn:
        conn.execute(text(sql))
    return str(caught.value.orig)


def taken(ledger: Ledger, sql: str) -> None:
    with ledger.engine.begin() as conn:
        conn.execute(text(sql))


@pytest.fixture
def run(ledger: Ledger) -> HandRun:
    made = HandRun(ledger, {1: (), 2: (1,)})
    made.dispatch()
    made.commit(made.claim(1))
    return made


def test_an_end_is_dated_exactly_in_the_final_states(ledger: Ledger) -> None:
    HandRun(ledger, {1: ()})
    for state in StepState:
        good, bad = ("now()", "NULL") if state in FINAL_STEP_STATES else ("NULL", "now()")
        update = (
            f"UPDATE flowstone.steps SET token = NULL, lease_until = NULL, retry_at = NULL, "
            f"joined_to = NULL, gate = NULL, state = '{state}', finished_at = "
        )
        for nulled, value in ALSO.get(state, {}).items():
            update = update.replace(f"{nulled} = NULL", f"{nulled} = {value}")
        assert "ck_steps_finished_at" in refused(ledger, update + bad)
        taken(ledger, update + good)


INSERT_OUTPUT = "INSERT INTO flowstone.outputs (step_id, location, format, size, sha256)"
REFUSED = (
    ("UPDATE flowstone.steps SET state = 'done', finished_at = NULL", "ck_steps_"),
    ("UPDATE flowstone.steps SET open_deps = -1", "ck_steps_open_deps"),
    ("UPDATE flowstone.steps SET token = gen_random_uuid()", "ck_steps_lease"),
    ("UPDATE flowstone.steps SET lease_until = now()", "ck_steps_lease"),
    ("UPDATE flowstone.steps SET state = 'running', finished_at = NULL", "ck_steps_lease"),
    ("UPDATE flowstone.steps SET retry_at = now()", "ck_steps_retry_at"),
    ("UPDATE flowstone.steps SET state = 'waiting_signal', finished_at = NULL", "ck_steps_gate"),
    ("UPDATE flowstone.steps SET state = 'retrying', finished_at = NULL", "ck_steps_retry_at"),
    ("UPDATE flowstone.steps SET partition = repeat('a', 513)", "ck_steps_partition"),
    ("UPDATE flowstone.steps SET asset = 'same'", "uq_steps_run_id_asset_partition"),
    ("UPDATE flowstone.runs SET state = 'done'", "ck_runs_state"),
    ("UPDATE flowstone.runs SET state = 'succeeded'", "ck_runs_finished_at"),
    ("UPDATE flowstone.runs SET finished_at = now()", "ck_runs_finished_at"),
    ("UPDATE flowstone.runs SET max_in_flight = 0", "ck_runs_max_in_flight"),
    ("UPDATE flowstone.runs SET driver = 'other'", "ck_runs_driver"),
    ("UPDATE flowstone.attempts SET number = 0", "ck_attempts_number"),
    ("UPDATE flowstone.attempts SET outcome = NULL", "ck_attempts_finished_at"),
    ("UPDATE flowstone.outputs SET sha256 = 'abc'", "ck_outputs_sha256"),
    ("UPDATE flowstone.outputs SET size = -1", "ck_outputs_size"),
    ("UPDATE flowstone.edges SET upstream = 0", "fk_edges_upstream"),
    ("DELETE FROM flowstone.outputs", "fk_latest_output_id"),
    ("DELETE FROM flowstone.runs", "fk_"),
    (
        f"{INSERT_OUTPUT} SELECT step_id, 'elsewhere', format, size, sha256 FROM flowstone.outputs",
        "uq_outputs_step_id",
    ),
    (
        f"{INSERT_OUTPUT} SELECT 0, location, format, size, sha256 FROM flowstone.outputs",
        "uq_outputs_io_location",
    ),
)


def test_a_row_that_makes_no_sense_is_refused(ledger: Ledger, run: HandRun) -> None:
    for sql, constraint in REFUSED:
        assert constraint in refused(ledger, sql), sql


def test_lineage_refers_to_what_there_is(ledger: Ledger, run: HandRun) -> None:
    run.commit(run.claim(2))
    for column in ("step_id", "upstream_step_id", "upstream_output_id"):
        message = refused(ledger, f"UPDATE flowstone.lineage SET {column} = 0")
        assert f"fk_lineage_{column}" in message


def test_the_audit_log_only_grows(ledger: Ledger, run: HandRun) -> None:
    for sql in (
        "UPDATE flowstone.audit SET actor = 'nobody'",
        "DELETE FROM flowstone.audit",
        "DELETE FROM flowstone.audit WHERE false",
        "TRUNCATE flowstone.audit",
    ):
        assert "append-only" in refused(ledger, sql)
    forged = "INSERT INTO flowstone.audit (id, actor, action) VALUES (1, 'a', 'b')"
    assert "id" in refused(ledger, forged)
    assert count(ledger, "audit") == 4
