"""What becomes of the gates of steps that are cancelled: nobody decides about them any more."""

from __future__ import annotations

from typing import Final

from flowstone.states import DECIDED_GATE_STATES, sql_list
from flowstone.store.tables import SCHEMA

WITHDRAWN: Final = f"""
    closed AS (
        UPDATE {SCHEMA}.gates g
        SET state = 'withdrawn', closed_at = coalesce(g.closed_at, now()),
            closed_by = coalesce(g.closed_by, :actor), reason = coalesce(g.reason, :reason)
        FROM moved JOIN {SCHEMA}.gates was ON was.id = moved.gate
        WHERE g.id = moved.gate AND (g.state = 'open' OR g.continued_at IS NULL
            AND g.state IN ({sql_list(DECIDED_GATE_STATES)}))
        RETURNING g.id, g.kind, g.step_id, was.state AS was, moved.run_id, moved.asset,
            moved.partition
    ), told AS (
        INSERT INTO {SCHEMA}.notifications (gate_id, event)
        SELECT id, 'withdrawn' FROM closed WHERE kind = 'approval'
    ), withdrawn AS (
    INSERT INTO {SCHEMA}.audit (actor, action, run_id, step_id, details, reason, before, after)
    SELECT CAST(:actor AS text), kind || '.withdrawn', run_id, step_id,
        jsonb_build_object('asset', asset, 'partition', partition, 'gate', id),
        CAST(:reason AS text), jsonb_build_object('state', was),
        jsonb_build_object('state', 'withdrawn')
    FROM closed
    )
"""
"""Common table expressions that withdraw the gates of the steps in the one named `moved`.

They write the audit rows, too, and bind :actor and :reason.
"""
