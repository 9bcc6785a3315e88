"""Steps that could start and have not: in SQL, for those who ask what they wait for."""

from __future__ import annotations

from typing import Final

from flowstone.states import RunState, sql_list
from flowstone.store.tables import SCHEMA

GOES_ON: Final = f"""
    r.driver = 'celery' AND r.cancel_requested_at IS NULL
    AND r.state IN ({sql_list({RunState.PLANNED, RunState.RUNNING})})
"""
"""The condition that workers go on with a run `r`."""

QUEUED: Final = f"""
    SELECT id, queue, state, queued_at FROM {SCHEMA}.steps
    WHERE run_id = r.id AND state = 'queued' AND canvas IS NOT NULL AND open_deps = 0
"""
"""The steps of a run `r` that have been handed to Celery and could start."""

# Two parts, as each has an index of its own.
STARTABLE: Final = f"""
    {QUEUED}
    UNION ALL
    SELECT id, queue, state, queued_at FROM {SCHEMA}.steps
    WHERE run_id = r.id AND state = 'pending' AND open_deps = 0
"""
"""These, and those that are ready to be handed over."""
