"""A hundred steps, of whose attempts 30 % fail with an error that may pass: all succeed."""

from __future__ import annotations

from sqlalchemy import text

import flowstone
from flowstone import RunState
from flowstone.runtime import Runtime
from tests.chaos.chaos_assets import HUNDRED
from tests.chaos.cluster import Cluster
from tests.chaos.invariants import seen_though_never

COUNTS = """
    SELECT count(DISTINCT s.id) AS steps, count(DISTINCT o.id) AS outputs,
        count(*) FILTER (WHERE a.outcome = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE a.outcome <> 'succeeded') AS failed
    FROM flowstone.steps s JOIN flowstone.attempts a ON a.step_id = s.id
    LEFT JOIN flowstone.outputs o ON o.step_id = s.id
    WHERE s.run_id = :run_id
"""


def test_all_of_a_hundred_unsteady_steps_succeed(cluster: Cluster, here: Runtime) -> None:
    assert cluster.pool()
    handle = flowstone.materialize_all(HUNDRED, force=True)
    assert handle.wait(timeout=120) == RunState.SUCCEEDED, handle.explain()
    assert [handle.result(name) for name in HUNDRED] == list(range(100))
    with here.ledger.begin() as conn:
        row = conn.execute(text(COUNTS), {"run_id": handle.id}).one()
    assert (row.steps, row.outputs, row.succeeded) == (100, 100, 100)
    # Of independent draws, so that it is some 43 of 143.
    assert 25 <= row.failed <= 65
    assert seen_though_never(here.settings.database, [handle.id]) == []
