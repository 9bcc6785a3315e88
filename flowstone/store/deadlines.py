"""Deadlines: a run that has not ended by then is ended, as a cancellation would, and has failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text, update

from flowstone.states import FINAL_RUN_STATES, RunState, sql_list
from flowstone.store import audit, cancellation, found, runs
from flowstone.store.cancellation import BATCH, GRACE_SECONDS
from flowstone.store.found import LOCKED, Found
from flowstone.store.runs import Run
from flowstone.store.tables import SCHEMA
from flowstone.store.tables import runs as runs_table

ERROR: Final = "deadline_exceeded"
"""The type of the error of such a run."""

# A plan that was saved has no deadline; nothing of it was started. A run that is being cancelled
# has an end already.
_PASSED = f"""
    SELECT id FROM {SCHEMA}.runs
    WHERE state NOT IN ({sql_list(FINAL_RUN_STATES)})
      AND (state <> '{RunState.PAUSED}' OR started_at IS NOT NULL)
      AND deadline_at < now() AND cancel_requested_at IS NULL
    ORDER BY created_at LIMIT :batch
"""


def find(conn: Connection) -> list[Found]:
    """Return the runs whose deadline has passed."""
    return found.runs(conn, _PASSED, batch=BATCH)


def passed(conn: Connection, *, actor: str) -> list[UUID]:
    """End the runs whose deadline has passed; return them."""
    late = list(conn.scalars(text(_PASSED + LOCKED), {"batch": BATCH}))
    for run_id in late:
        end(conn, runs.get(conn, run_id), actor=actor)
    return late


def end(conn: Connection, run: Run, *, actor: str) -> RunState:
    """Cancel what has not started of a run that is late, ask what runs to stop; return its state.

    It is failed as soon as nothing of it runs. The caller holds the lock on the run.
    """
    said = f"the run did not end within {run.request.deadline:g} s, its deadline"
    error = {"type": ERROR, "message": f"{said}; resume it, or give it more time"}
    if run.state == RunState.REQUESTED:
        runs.move(conn, run.id, RunState.FAILED, actor=actor, reason=said, error=error)
        return RunState.FAILED
    stopped, running = cancellation.begin(
        conn, run.id, f"cancelled: {said}", grace=GRACE_SECONDS, actor=actor
    )
    _note(conn, run, error, actor, {"cancelled": stopped, "running": running})
    return runs.close_if_done(conn, run.id, actor=actor) or run.state


def _note(
    conn: Connection, run: Run, error: Mapping[str, str], actor: str, counts: Mapping[str, int]
) -> None:
    """Give the run its error, which tells how it is to end, and say so in the audit log."""
    conn.execute(update(runs_table).where(runs_table.c.id == run.id).values(error=dict(error)))
    audit.record(
        conn,
        actor=actor,
        action="run.deadline_passed",
        run_id=run.id,
        details={"grace": GRACE_SECONDS, **counts},
        reason=error["message"],
        before={"state": run.state, "cancelling": False},
        after={"state": run.state, "cancelling": True},
    )
