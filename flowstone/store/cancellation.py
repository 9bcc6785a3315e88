"""Cancellation: what has not started ends at once, what runs is asked to stop, then made to.

Every function that changes steps here locks the run before them, and so comes after, or
before, each coordinator; the steps are locked in the order of their ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, func, text, update

from flowstone.errors import RunEnded
from flowstone.outcome import Failure
from flowstone.states import (
    FINAL_RUN_STATES,
    STEP_MOVES,
    RunState,
    StepState,
    in_state,
    is_open,
    sources,
    sql_list,
)
from flowstone.store import audit, found, runs
from flowstone.store.cancelled_gates import WITHDRAWN
from flowstone.store.found import LOCKED, Found
from flowstone.store.runs import Run
from flowstone.store.steps import Claim
from flowstone.store.tables import SCHEMA
from flowstone.store.tables import runs as runs_table

GRACE_SECONDS: Final = 30.0
"""How long a running step may go on after a cancellation, where nothing else is asked for."""

DRAIN_SECONDS: Final = 10 * 365 * 86_400.0
"""The grace of what may end by itself: its time limits end it before."""

BATCH: Final = 100
"""The most runs that one pass of the reconciler closes."""

_OPEN = sources(StepState.CANCELLED, STEP_MOVES)
_NOT_STARTED = [state for state in _OPEN if state != StepState.RUNNING]


def _cancel(states: Sequence[StepState]) -> str:
    return f"""
    WITH locked AS (
        SELECT id, state FROM {SCHEMA}.steps
        WHERE run_id = :run_id AND {is_open("state")} AND state IN ({sql_list(states)})
        ORDER BY id FOR NO KEY UPDATE
    ), moved AS (
        UPDATE {SCHEMA}.steps s
        SET state = 'cancelled', finished_at = now(), token = NULL, lease_until = NULL,
            retry_at = NULL, error = CAST(:error AS jsonb)
        FROM locked WHERE s.id = locked.id
        RETURNING s.id, s.run_id, s.asset, s.partition, s.canvas, s.gate, locked.state AS was
    ), {WITHDRAWN}, recorded AS (
        {
        audit.recorded(
            "moved",
            "step.cancelled",
            before="was",
            after="'cancelled'",
            reason="CAST(:reason AS text)",
        )
    }
    )
    SELECT id, canvas, was = 'running' AS was_running FROM moved
    """


# The canvas stays: a late message of it finds the step, and reads there what has become of it.
_CANCEL_NOT_STARTED = text(_cancel(_NOT_STARTED))
_CANCEL_OPEN = text(_cancel(_OPEN))

_RUNNING = text(f"SELECT count(*) FROM {SCHEMA}.steps WHERE run_id = :run_id AND state = 'running'")

_END_ATTEMPTS = text(
    f"""
    UPDATE {SCHEMA}.attempts
    SET outcome = 'cancelled', finished_at = now(), error_type = 'cancelled',
        error_message = :message
    WHERE step_id = ANY(CAST(:ids AS bigint[])) AND outcome IS NULL
    """
)

# A retry must not slip in between a cancellation, or a pause, and its look at the steps: sharing
# the lock on the run, it is either seen by that or sees it.
_IS_HALTED = text(
    f"""
    SELECT cancel_requested_at IS NOT NULL AS is_cancelled,
        state = '{RunState.PAUSED}' OR coalesce(opens_at > now(), false) AS is_paused
    FROM {SCHEMA}.runs WHERE id = :run_id FOR SHARE
    """
)

# Only in a run that is being cancelled: in any other, nobody would run what reads the step.
_STOP = text(
    f"""
    UPDATE {SCHEMA}.steps s
    SET state = 'cancelled', finished_at = now(), token = NULL, lease_until = NULL,
        error = CAST(:error AS jsonb)
    FROM {SCHEMA}.runs r
    WHERE s.id = :step_id AND {in_state("s.state", StepState.RUNNING)} AND s.token = :token
      AND r.id = s.run_id AND r.cancel_requested_at IS NOT NULL
    RETURNING r.cancel_reason
    """
)

_END_ATTEMPT = text(
    f"""
    UPDATE {SCHEMA}.attempts
    SET outcome = 'cancelled', finished_at = now(), error_type = :type, error_message = :message,
        traceback = :traceback
    WHERE token = :token
    """
)

# One that drains has no end by the clock, so it ends when nothing of it runs.
_OVERDUE = f"""
    SELECT id FROM {SCHEMA}.runs
    WHERE state NOT IN ({sql_list(FINAL_RUN_STATES)})
      AND (cancel_requested_at < now() - make_interval(secs => cancel_grace)
        OR cancel_requested_at IS NOT NULL AND drains AND NOT EXISTS (
            SELECT FROM {SCHEMA}.steps s
            WHERE s.run_id = runs.id AND s.state = 'running' AND s.canvas IS NOT NULL))
    ORDER BY created_at LIMIT :batch
"""

# A run without a lease is one of an older version, whose process cannot use this ledger.
_DEAD = f"""
    SELECT id FROM {SCHEMA}.runs
    WHERE driver = 'inline' AND state NOT IN ({sql_list(FINAL_RUN_STATES)})
      AND coalesce(lease_until, created_at) < now()
    ORDER BY created_at LIMIT :batch
"""
_ABANDONED = text(
    f"""
    WITH dead AS ({_DEAD + LOCKED})
    UPDATE {SCHEMA}.runs r
    SET cancel_requested_at = coalesce(r.cancel_requested_at, now()), cancel_grace = 0,
        cancel_reason = coalesce(r.cancel_reason, :said)
    FROM dead WHERE r.id = dead.id
    RETURNING r.id
    """
)


@dataclass(frozen=True)
class Cancellation:
    """What a request to cancel a run has brought about.

    `state` is the run's now; `cancelled` and `running` count the steps that will not
    start, and those that still have up to `grace` seconds. `already` is set where the
    run had been cancelled before, and nothing was changed.
    """

    state: RunState
    cancelled: int
    running: int
    grace: float
    already: bool = False


@dataclass(frozen=True)
class Taken:
    """A step that was taken from the attempt that ran it."""

    step_id: int
    canvas: UUID


@dataclass(frozen=True)
class Overdue:
    """A run that has ended as its grace is over."""

    run_id: UUID
    taken: Sequence[Taken]
    """The steps that did not stop in time."""


def request(
    conn: Connection,
    run_id: UUID,
    *,
    grace: float,
    reason: str | None,
    actor: str,
    drain: bool = False,
) -> Cancellation:
    """Cancel all that has not started, ask what runs to stop, and close the run if nothing does.

    To `drain` is to let what runs come to its end, however long that takes. Raises UnknownRun, or
    RunEnded for a run that has succeeded or failed.
    """
    run = runs.lock(conn, run_id)
    if run.state in (RunState.SUCCEEDED, RunState.FAILED):
        raise RunEnded(f"run {run_id} has {run.state} already; there is nothing to cancel")
    if run.is_final or (run.is_being_cancelled and (drain or not run.drains)):
        return Cancellation(run.state, 0, running(conn, run_id), grace, already=True)
    said = f"cancelled by {actor}" + (f": {reason}" if reason else "")
    grace = DRAIN_SECONDS if drain else grace
    stopped, left = begin(conn, run_id, said, grace=grace, actor=actor, drain=drain)
    audit.record(
        conn,
        actor=actor,
        action="run.cancel_requested",
        run_id=run_id,
        details={
            **({"drain": True} if drain else {"grace": grace}),
            "cancelled": stopped,
            "running": left,
        },
        reason=reason,
        before={"state": run.state, "cancelling": False},
        after={"state": run.state, "cancelling": True},
    )
    return Cancellation(_close(conn, run, said, actor=actor), stopped, left, grace)


def begin(
    conn: Connection, run_id: UUID, said: str, *, grace: float, actor: str, drain: bool = False
) -> tuple[int, int]:
    """Cancel all that has not started of a run, and ask what runs to stop; return how many.

    The caller holds the lock on the run, records why, and closes the run.
    """
    conn.execute(
        update(runs_table)
        .where(runs_table.c.id == run_id)
        .values(
            cancel_requested_at=func.now(), cancel_grace=grace, cancel_reason=said, drains=drain
        )
    )
    return len(_cancel_not_started(conn, run_id, said, actor)), running(conn, run_id)


def _close(conn: Connection, run: Run, said: str, *, actor: str) -> RunState:
    if run.state == RunState.REQUESTED or (run.state == RunState.PAUSED and not run.started_at):
        # Nothing of it has begun: there are no steps, or none that tell how it ended.
        error = _reason(said)
        runs.move(conn, run.id, RunState.CANCELLED, actor=actor, reason=said, error=error)
        return RunState.CANCELLED
    return runs.close_if_done(conn, run.id, actor=actor) or run.state


@dataclass(frozen=True)
class Halted:
    """Whether nothing more of a run is to start, for now or for ever."""

    is_cancelled: bool
    is_paused: bool


def halted(conn: Connection, run_id: UUID) -> Halted:
    """Return whether a run is halted; that stays so until the transaction ends."""
    row = conn.execute(_IS_HALTED, {"run_id": run_id}).one()
    return Halted(row.is_cancelled, row.is_paused)


def stop(conn: Connection, claim: Claim, failure: Failure) -> bool:
    """End a running step of a run that is being cancelled; return False if the token is stale."""
    values = {"step_id": claim.step_id, "token": claim.token}
    error = json.dumps(failure.as_json())
    stopped = conn.execute(_STOP, {**values, "error": error}).one_or_none()
    if stopped is None:
        return False
    conn.execute(
        _END_ATTEMPT,
        {
            "token": claim.token,
            "type": failure.type,
            "message": failure.message,
            "traceback": failure.traceback,
        },
    )
    audit.record(
        conn,
        actor=claim.worker,
        action="step.cancelled",
        run_id=claim.run_id,
        step_id=claim.step_id,
        details=audit.of_step(
            claim.asset, claim.partition, attempt=claim.attempt, **failure.as_json()
        ),
        reason=stopped.cancel_reason,
        before={"state": StepState.RUNNING},
        after={"state": StepState.CANCELLED},
    )
    return True


def settle(conn: Connection, run_id: UUID, *, actor: str) -> RunState:
    """Bring a run that is being cancelled as far as it can go now, and return its state."""
    run = runs.lock(conn, run_id)
    return (sweep(conn, run, actor=actor) if run.is_being_cancelled else None) or run.state


def sweep(conn: Connection, run: Run, *, actor: str) -> RunState | None:
    """Cancel what has become free in a run that is being cancelled; close it if nothing runs.

    A step whose worker has died is free again, for one; it must not start. The caller
    holds the lock on the run. Returns the final state if the run has ended.
    """
    _cancel_not_started(conn, run.id, run.cancel_reason or "", actor)
    return runs.close_if_done(conn, run.id, actor=actor)


def find_overdue(conn: Connection) -> list[Found]:
    """Return the runs whose grace is over."""
    return found.runs(conn, _OVERDUE, batch=BATCH)


def overdue(conn: Connection, *, actor: str) -> list[Overdue]:
    """Take the steps of runs whose grace is over from whatever runs them, and close the runs."""
    late = list(conn.scalars(text(_OVERDUE + LOCKED), {"batch": BATCH}))
    return [Overdue(run_id, _take_overdue(conn, run_id, actor)) for run_id in late]


def _take_overdue(conn: Connection, run_id: UUID, actor: str) -> list[Taken]:
    said = f"{runs.get(conn, run_id).cancel_reason}; the step did not stop in time"
    taken = _take(conn, run_id, said, actor)
    runs.close_if_done(conn, run_id, actor=actor)
    return taken


def find_abandoned(conn: Connection) -> list[Found]:
    """Return the inline runs whose process has been silent for longer than its lease."""
    return found.runs(conn, _DEAD, batch=BATCH)


def abandoned(conn: Connection, *, actor: str) -> list[UUID]:
    """Cancel the inline runs whose process has been silent for longer than its lease.

    Nobody else would ever go on with them, and what they have dispatched would keep the
    same assets from all other runs.
    """
    said = "cancelled, as the process that drove the run has died"
    dead = sorted(conn.scalars(_ABANDONED, {"batch": BATCH, "said": said}))
    for run_id in dead:
        _take(conn, run_id, said, actor)
        _close(conn, runs.get(conn, run_id), said, actor=actor)
    return dead


def _cancel_not_started(conn: Connection, run_id: UUID, said: str, actor: str) -> list[int]:
    values = {"run_id": run_id, "error": _error(said), "reason": said, "actor": actor}
    return list(conn.scalars(_CANCEL_NOT_STARTED, values))


def _take(conn: Connection, run_id: UUID, said: str, actor: str) -> list[Taken]:
    values = {"run_id": run_id, "error": _error(said), "reason": said, "actor": actor}
    rows = conn.execute(_CANCEL_OPEN, values).all()
    taken = [Taken(row.id, row.canvas) for row in rows if row.was_running]
    conn.execute(_END_ATTEMPTS, {"ids": [step.step_id for step in taken], "message": said})
    return taken


def running(conn: Connection, run_id: UUID) -> int:
    """Return how many steps of a run are running."""
    return int(conn.scalar(_RUNNING, {"run_id": run_id}) or 0)


def _reason(said: str) -> dict[str, str]:
    return {"type": "cancelled", "message": said}


def _error(said: str) -> str:
    return json.dumps(_reason(said))
