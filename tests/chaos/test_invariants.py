"""Each invariant is seen to be broken where it is, so that none of them holds by itself."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from flowstone import asset, materialize_sync
from flowstone.registry import build_registry
from tests.chaos.invariants import _NEVER, seen_though_never


def first() -> int:
    return 1


def second(first: int) -> int:
    return first + 1


OF_SECOND = "(SELECT id FROM flowstone.steps WHERE asset = 'second' AND run_id = :run)"
OF_FIRST = "(SELECT id FROM flowstone.steps WHERE asset = 'first' AND run_id = :run)"
OTHER = "(SELECT id FROM flowstone.steps WHERE asset = 'second' AND run_id <> :run)"
SAID = "INSERT INTO flowstone.audit (actor, action, run_id, step_id) VALUES ('x', '{}', :run, {})"

GATE = f"""
    INSERT INTO flowstone.gates (kind, step_id, attempt, message, context, options, approvers,
        escalation, state, closed_at)
    VALUES ('approval', {OF_FIRST}, 1, '', '{{{{}}}}', '{{{{}}}}', '{{{{}}}}', '[]', '{{}}', {{}})
"""

BREAKS = {
    "a step was committed twice": SAID.format("step.succeeded", OF_FIRST),
    "two attempts at a step succeeded": f"""
        INSERT INTO flowstone.attempts (step_id, number, token, worker, outcome, finished_at)
        VALUES ({OF_FIRST}, 2, gen_random_uuid(), 'x', 'succeeded', now())""",
    "an attempt has no end": f"""
        UPDATE flowstone.attempts SET outcome = NULL, finished_at = NULL
        WHERE step_id = {OF_FIRST}""",
    "an attempt began before a dependency had ended": f"""
        UPDATE flowstone.attempts SET started_at = started_at - interval '1 hour'
        WHERE step_id = {OF_SECOND}""",
    "the lineage of a computed step lacks an input that was there": f"""
        DELETE FROM flowstone.lineage WHERE step_id = {OF_SECOND}""",
    "the lineage of a step names what it has not read": f"""
        INSERT INTO flowstone.lineage
        SELECT {OF_SECOND}, o.step_id, o.id, o.sha256 FROM flowstone.outputs o
        WHERE o.step_id = {OTHER}""",
    "a step is open or holds a lease, a token or slots": f"""
        UPDATE flowstone.steps SET state = 'pending', finished_at = NULL WHERE id = {OF_FIRST}""",
    "a dependency counts as open": f"""
        UPDATE flowstone.steps SET open_deps = 1 WHERE id = {OF_SECOND}""",
    "more slots of the pool were taken than there are": f"""
        UPDATE flowstone.steps SET takes = '{{"chaos": 9}}' WHERE id = {OF_FIRST}""",
    "two runs have computed the same at once": f"""
        UPDATE flowstone.attempts SET started_at = '2026-01-01', finished_at = '2026-01-02'
        WHERE step_id IN ({OF_SECOND}, {OTHER})""",
    "an approval was decided twice": """
        INSERT INTO flowstone.audit (actor, action, run_id, details)
        SELECT 'x', action, :run, '{"gate": 7}'
        FROM unnest(ARRAY['approval.approved', 'approval.rejected']) action""",
    "something is asked for a step that has ended": GATE.format("open", "NULL"),
    "the value of a step is not the one that was approved": f"""
        WITH made AS ({GATE.format("rejected", "now()")} RETURNING id)
        UPDATE flowstone.steps SET gate = (SELECT id FROM made) WHERE id = {OF_FIRST}""",
    "a run was closed twice": SAID.format("run.failed", "NULL"),
}


@pytest.mark.parametrize("what", _NEVER)
def test_an_invariant_that_is_broken_is_seen(make_runtime: Any, database: str, what: str) -> None:
    here = make_runtime(build_registry([asset(first), asset(second)]))
    run, other = (materialize_sync("second", upstream=True, force=True) for _ in range(2))
    assert seen_though_never(database, [run.id, other.id]) == []
    with here.ledger.begin() as conn:
        conn.execute(text(BREAKS[what]), {"run": run.id})
    found = seen_though_never(database, [run.id, other.id])
    assert any(line.startswith(f"{what}:") for line in found), found
