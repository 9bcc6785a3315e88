"""Whether all that is left of a run waits: told from a few rows, however much is open."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

from flowstone.approval import Ask
from flowstone.states import RunState
from flowstone.store import run_waits, runs
from flowstone.store.ledger import Ledger
from tests.store.gates_by_hand import ask_for
from tests.store.runs_by_hand import HandRun, query

_FILL = text(
    """
    INSERT INTO flowstone.steps (run_id, asset, partition, reason, queue, open_deps)
    SELECT :run_id, 'later', n::text, 'requested', 'assets', 1 FROM generate_series(1, 5000) n
    """
)


def settle(ledger: Ledger, run: HandRun) -> str:
    """Have the run say whether it waits, and return what it says."""
    with ledger.begin() as conn:
        run_waits.settle(conn, runs.lock(conn, run.id), actor="test")
        return str(runs.lock(conn, run.id).state)


def untold(ledger: Ledger) -> set[object]:
    with ledger.begin() as conn:
        return {found.run_id for found in run_waits.find_untold(conn)}


def waiting_and_joined(ledger: Ledger) -> tuple[HandRun, HandRun]:
    """Return a run one step of which waits and another has joined a step that runs, and its run."""
    leader = HandRun(ledger, {1: ()}, name="x")
    leader.dispatch()
    run = HandRun(ledger, {1: (), 2: ()}, name="x")
    run.dispatch()
    ask_for(ledger, run=run, step=2)
    assert run.states() == {1: "joined", 2: "waiting_approval"}
    return run, leader


def test_what_is_joined_to_a_step_that_runs_does_not_wait(ledger: Ledger) -> None:
    run, leader = waiting_and_joined(ledger)
    assert settle(ledger, run) == RunState.RUNNING
    claim = leader.claim(1)
    assert settle(ledger, run) == RunState.RUNNING
    assert untold(ledger) == set()
    leader.commit(claim)
    leader.settle()
    assert run.states()[1] == "succeeded"
    assert settle(ledger, run) == RunState.WAITING


def test_a_run_that_has_only_joined_what_waits_is_found_too(ledger: Ledger) -> None:
    leader = HandRun(ledger, {1: ()}, name="x")
    leader.dispatch()
    run = HandRun(ledger, {1: (), 2: (1,)}, name="x")
    run.dispatch()
    ask_for(ledger, run=leader, step=1)
    assert run.states() == {1: "joined", 2: "pending"}
    assert untold(ledger) == {run.id, leader.id}
    assert settle(ledger, run) == settle(ledger, leader) == RunState.WAITING
    assert untold(ledger) == set()


@pytest.mark.parametrize(
    "what",
    [
        "state = 'pending', open_deps = 0",
        "state = 'pending', open_deps = 0, takes = '{\"pool:p\": 1}'",
        "state = 'retrying', retry_at = now()",
        "state = 'queued', open_deps = 0, canvas = gen_random_uuid()",
    ],
)
def test_a_run_with_a_step_that_can_go_on_does_not_wait(ledger: Ledger, what: str) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (1,)})
    run.dispatch()
    ask_for(ledger, Ask(), run=run, step=1)
    assert untold(ledger) == {run.id}
    assert settle(ledger, run) == RunState.WAITING
    with ledger.begin() as conn:
        conn.execute(text(f"UPDATE flowstone.steps SET {what} WHERE id = {run.ids[2]}"))
    assert settle(ledger, run) == RunState.RUNNING
    assert untold(ledger) == set()


@pytest.mark.parametrize("analyze", [False, True])
def test_no_look_goes_through_all_that_is_open(ledger: Ledger, analyze: bool) -> None:
    run, leader = waiting_and_joined(ledger)
    with ledger.begin() as conn:
        for each in (run, leader):
            conn.execute(_FILL, {"run_id": each.id})
    if analyze:
        with ledger.autocommit() as conn:
            conn.execute(text("ANALYZE flowstone.steps, flowstone.runs"))
    ask_for(ledger, run=leader, step=1)
    looks = ((run_waits._ALL_WAITS.text, {"run_id": run.id}), (run_waits._UNTOLD, {"batch": 100}))
    for sql, values in looks:
        found = query(ledger, f"EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) {sql}", **values)
        plan = "\n".join(line for (line,) in found)
        # Not the one of all that is open, nor that of the primary key for a whole run.
        scans = set(re.findall(r"(?:Scan using|Bitmap Index Scan on) (\S+)", plan))
        assert not scans - ALLOWED, plan
        assert "Seq Scan on steps" not in plan, plan
        read = [int(rows) for rows in re.findall(r"(?:Scan .*rows=|Rows Removed.*: )(\d+)", plan)]
        assert sum(read) < 10, plan


ALLOWED = {
    "ix_steps_in_flight",
    "ix_steps_ready",
    "ix_steps_slots_wanted",
    "ix_steps_put_off",
    "ix_steps_waiting",
    "pk_steps",
    "ix_runs_open",
}
