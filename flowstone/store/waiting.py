"""Steps that could start and have not: in SQL, for those who ask what they wait for."""

from __future__ import annotations

from typing import Final

from flowstone.states import ACTIVE_STEP_STATES, WORKING_RUN_STATES, RunState, in_state, sql_list
from flowstone.store.tables import SCHEMA

WANTED: Final = "takes IS NOT NULL AND state = 'pending' AND open_deps = 0"
"""The condition that a step waits for slots, as its index has it."""

TAKEN: Final = """takes IS NOT NULL AND canvas IS NOT NULL
    AND state IN ('queued', 'running', 'retrying')"""
"""The condition that a step holds slots, as its index has it."""

GOES_ON: Final = f"""
    r.driver = 'celery' AND r.cancel_requested_at IS NULL
    AND r.state IN ({sql_list(WORKING_RUN_STATES)})
    AND (r.opens_at IS NULL OR r.opens_at <= now())
"""
"""The condition that workers go on with a run `r`."""


def may_start(run_id: str) -> str:
    """Return the condition that steps of a run may start; `run_id` is SQL."""
    return f"""EXISTS (
        SELECT FROM {SCHEMA}.runs g
        WHERE g.id = {run_id} AND g.state <> '{RunState.PAUSED}'
          AND (g.opens_at IS NULL OR g.opens_at <= now()))"""


def leads(step: str) -> str:
    """Return an SQL condition that others join a step, and so that it is computed once.

    That is what is active, and what is ready behind a gate in a run that goes on: what was decided
    there is to count, and nobody is asked for the same by another run. The caller binds nothing.
    """
    active = in_state(f"{step}.state", *ACTIVE_STEP_STATES)
    behind = f"{step}.state = 'pending' AND {step}.gate IS NOT NULL"
    return f"({active} OR {behind} AND {may_start(step + '.run_id')})"


QUEUED: Final = f"""
    SELECT id, queue, state, queued_at FROM {SCHEMA}.steps
    WHERE run_id = r.id AND state = 'queued' AND canvas IS NOT NULL AND open_deps = 0
"""
"""The steps of a run `r` that have been handed to Celery and could start."""

# Each part has an index of its own. The order is that of the index: with statistics of a moment
# in which much was ready, PostgreSQL would look through all that is open.
BEHIND_OTHERS: Final = f"""
    {QUEUED}
    UNION ALL
    (SELECT id, queue, state, queued_at FROM {SCHEMA}.steps
    WHERE run_id = r.id AND takes IS NULL AND state = 'pending' AND open_deps = 0
    ORDER BY place, id)
"""
"""These, and those that are ready and wait for the window alone, not for slots."""

STARTABLE: Final = f"""
    {BEHIND_OTHERS}
    UNION ALL
    (SELECT id, queue, state, queued_at FROM {SCHEMA}.steps
    WHERE run_id = r.id AND {WANTED}
    ORDER BY takes, place, id)
"""
"""All that are handed over, or ready to be."""
