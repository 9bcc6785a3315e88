"""Pausing: nothing more of a run starts; what runs ends by itself, and counts."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.errors import CannotPause
from flowstone.states import RUN_MOVES, RunState
from flowstone.store import cancellation, runs
from flowstone.store.tables import SCHEMA

# Whoever comes with a message of these finds them in no canvas, and begins nothing. In the order
# of their ids, as commits lock them.
_TAKE_BACK = text(
    f"""
    WITH locked AS (
        SELECT id FROM {SCHEMA}.steps
        WHERE run_id = :run_id AND state IN ('queued', 'retrying') AND canvas IS NOT NULL
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE {SCHEMA}.steps s
    SET state = CASE s.state WHEN 'queued' THEN 'pending' ELSE s.state END,
        canvas = NULL, queued_at = NULL
    FROM locked WHERE s.id = locked.id
    RETURNING s.state
    """
)


@dataclass(frozen=True)
class Paused:
    """What a request to pause has brought about."""

    taken_back: int
    """Steps that were dispatched, and do not start now."""
    running: int
    """Steps that run to their end."""


def pause(conn: Connection, run_id: UUID, *, reason: str | None, actor: str) -> Paused:
    """Pause a run; raise UnknownRun, or CannotPause for one that is not going on."""
    run = runs.lock(conn, run_id)
    if run.is_being_cancelled or RunState.PAUSED not in RUN_MOVES[run.state]:
        how = "being cancelled" if run.is_being_cancelled else run.state
        remedy = (
            "; it is not planned yet, so wait a moment, or cancel it"
            if run.state == RunState.REQUESTED
            else ""
        )
        raise CannotPause(f"run {run_id} is {how}, and cannot be paused{remedy}")
    taken = take_back(conn, run_id)
    running = cancellation.running(conn, run_id)
    details = {"taken_back": taken, "running": running}
    runs.move(
        conn,
        run_id,
        RunState.PAUSED,
        actor=actor,
        reason=reason,
        details=details,
        pause_reason=reason,
    )
    return Paused(taken, running)


def take_back(conn: Connection, run_id: UUID) -> int:
    """Take what was dispatched and has not started out of its canvases; return how many.

    The caller holds the lock on the run.
    """
    return len(conn.execute(_TAKE_BACK, {"run_id": run_id}).all())
