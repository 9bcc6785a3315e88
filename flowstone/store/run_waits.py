"""A run in which everything that is left waits for a person or a signal is `waiting`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from flowstone.states import (
    WAITING_STEP_STATES,
    WORKING_RUN_STATES,
    RunState,
    StepState,
    is_put_off,
    sql_list,
)
from flowstone.store import found, runs
from flowstone.store.found import Found
from flowstone.store.runs import Run
from flowstone.store.tables import SCHEMA

BATCH: Final = 100
"""The most runs that one pass of the reconciler looks at."""

_WAITS = f"IN ({sql_list(WAITING_STEP_STATES)})"


def _has(run: str, what: str) -> str:
    """Return an SQL condition that a run has such a step.

    It is a subquery that PostgreSQL cannot turn into a join: it looks at an index of the run, and
    stops at the first that it finds, however many steps are open, or of other runs.
    """
    return f"(SELECT 1 FROM {SCHEMA}.steps s WHERE s.run_id = {run} AND {what} LIMIT 1) = 1"


def _all_waits(run: str) -> str:
    """Return an SQL condition that all that is left of a run waits.

    It waits itself, or is joined to what waits in another run; all else is behind one of these.
    What does not wait is in flight, to be tried again, or ready, be it for slots. Each of these
    has its index; who has joined comes last, as they may be many.
    """
    in_flight = "s.state IN ('queued', 'running', 'retrying') AND s.canvas IS NOT NULL"
    ready = "s.state = 'pending' AND s.open_deps = 0"
    joined = is_put_off("s.state", StepState.JOINED)
    retries = is_put_off("s.state", StepState.RETRYING)
    # Not a join, for which PostgreSQL may go through all steps that have ever joined another.
    leader = f"SELECT l.state FROM {SCHEMA}.steps l WHERE l.id = s.joined_to"
    is_led_on = f"({leader}) NOT {_WAITS}"
    return f"""CASE
        WHEN {_has(run, in_flight)} THEN false
        WHEN {_has(run, f"s.takes IS NULL AND {ready}")} THEN false
        WHEN {_has(run, f"s.takes IS NOT NULL AND {ready}")} THEN false
        WHEN {_has(run, retries)} THEN false
        WHEN {_has(run, f"{joined} AND {is_led_on}")} THEN false
        WHEN {_has(run, f"s.state {_WAITS}")} THEN true
        ELSE coalesce({_has(run, joined)}, false)
    END"""


_ALL_WAITS = text(f"SELECT {_all_waits('CAST(:run_id AS uuid)')}")

_UNTOLD = f"""
    SELECT r.id FROM {SCHEMA}.runs r
    WHERE r.driver = 'celery' AND r.cancel_requested_at IS NULL
      AND r.state IN ({sql_list(WORKING_RUN_STATES - {RunState.WAITING})})
      AND {_all_waits("r.id")}
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
