"""A run in which everything that is left waits for a person or a signal is `waiting`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from flowstone.states import (
    WAITING_STEP_STATES,
    WORKING_RUN_STATES,
    RunState,
    is_open,
    sql_list,
)
from flowstone.store import found, runs
from flowstone.store.found import Found
from flowstone.store.runs import Run
from flowstone.store.tables import SCHEMA

BATCH: Final = 100
"""The most runs that one pass of the reconciler looks at."""

_WAITS = f"IN ({sql_list(WAITING_STEP_STATES)})"

# What waits itself, or is joined to what waits in another run; and what does not: a retry that is
# parked, what is ready and waits for slots. All else is behind one of these. What is open is
# looked through only where nothing is in flight.
_ALL_WAITS = text(
    f"""
    SELECT bool_or(s.state {_WAITS} OR l.state {_WAITS}) AND NOT bool_or(
        s.state = 'retrying'
        OR s.state = 'pending' AND s.open_deps = 0
        OR s.state = 'joined' AND NOT l.state {_WAITS})
    FROM {SCHEMA}.steps s
    LEFT JOIN {SCHEMA}.steps l ON l.id = s.joined_to AND s.state = 'joined'
    WHERE s.run_id = :run_id AND {is_open("s.state")} AND NOT EXISTS (
        SELECT FROM {SCHEMA}.steps
        WHERE run_id = :run_id AND state IN ('queued', 'running', 'retrying')
          AND canvas IS NOT NULL)
    """
)


# That of a run alone, so that no pass looks through what is open: it has something that waits, and
# nothing that is in flight, ready, or to be tried again.
_UNTOLD = f"""
    SELECT r.id FROM {SCHEMA}.runs r
    WHERE r.driver = 'celery' AND r.cancel_requested_at IS NULL
      AND r.state IN ({sql_list(WORKING_RUN_STATES - {RunState.WAITING})})
      AND EXISTS (SELECT FROM {SCHEMA}.steps WHERE run_id = r.id AND state {_WAITS})
      AND NOT EXISTS (
        SELECT FROM {SCHEMA}.steps WHERE run_id = r.id AND {is_open("state")}
          AND (state IN ('queued', 'running', 'retrying', 'joined')
            OR state = 'pending' AND open_deps = 0))
    ORDER BY r.created_at LIMIT :batch
"""


def find_untold(conn: Connection) -> list[Found]:
    """Return the runs in which all that is left waits, and that do not say so."""
    return found.runs(conn, _UNTOLD, batch=BATCH)


def settle(conn: Connection, run: Run, *, actor: str) -> None:
    """Say whether a run of which nothing can be dispatched waits; its lock is with the caller."""
    if run.state not in WORKING_RUN_STATES:
        return
    waits = bool(conn.scalar(_ALL_WAITS, {"run_id": run.id}))
    if waits and run.state != RunState.WAITING:
        runs.move(conn, run.id, RunState.WAITING, actor=actor)
    elif run.state == RunState.WAITING and not waits:
        runs.mark_running(conn, run.id, actor=actor)
