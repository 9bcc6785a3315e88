"""What the reconciler asks of the ledger, and what it puts right: one statement a rule."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from flowstone.states import FINAL_RUN_STATES, RunState, StepState, is_open, sql_list
from flowstone.store import audit, dispatch, losses
from flowstone.store.losses import Freed
from flowstone.store.steps import Claim, timeout_of
from flowstone.store.tables import SCHEMA

ACTOR = "reconciler"

BATCH = 500
"""The most rows that one pass of a rule repairs."""

DUE_BATCH = 10_000
"""The most parked retries that one pass lets go on."""

# The process of an attempt that was killed in time had renewed its lease until then; that of one
# which has died before was silent when its time came, and is lost.
_TIMED_OUT = text(
    f"""
    SELECT s.id, s.run_id, s.asset, s.partition, s.attempt, s.failures, s.token, s.canvas,
        s.soft_timeout, s.hard_timeout, s.takes
    FROM {SCHEMA}.steps s
    WHERE s.state = 'running' AND s.ends_by < now() AND s.ends_by < s.lease_until
    ORDER BY s.id LIMIT :batch
    """
)

# An outage parks many, and they may be due at once; one statement for all is cheap.
_DUE = text(
    f"""
    WITH due AS (
        SELECT id FROM {SCHEMA}.steps
        WHERE state = 'retrying' AND canvas IS NULL AND retry_at <= now()
          AND (CAST(:run_id AS uuid) IS NULL OR run_id = :run_id)
        ORDER BY id LIMIT :batch FOR NO KEY UPDATE SKIP LOCKED
    ), freed AS (
        UPDATE {SCHEMA}.steps s SET state = 'pending', retry_at = NULL
        FROM due WHERE s.id = due.id
        RETURNING s.id, s.run_id, s.asset, s.partition
    ), recorded AS (
        {audit.recorded("freed", "step.retry_due", before="'retrying'", after="'pending'")}
    )
    SELECT id, run_id FROM freed ORDER BY id
    """
)

_OVERDUE = f"""
    SELECT id, run_id, canvas FROM {SCHEMA}.steps
    WHERE state = 'retrying' AND canvas IS NOT NULL
      AND retry_at < now() - make_interval(secs => :patience)
    ORDER BY id LIMIT :batch FOR NO KEY UPDATE SKIP LOCKED
"""

# A full queue is no fault: only where nothing of the run has moved for as long is a message lost.
# Nor is one that no worker consumes: a new message would not help, and its time is counted.
# A step that takes slots keeps others off them: its message is lost, too, if one of its run has
# overtaken it, as none that was sent later should.
_STRANDED = f"""
    SELECT s.id, s.run_id, s.canvas FROM {SCHEMA}.steps s
    WHERE s.state = 'queued' AND s.open_deps = 0
      AND s.queued_at < now() - make_interval(secs => :patience)
      AND NOT EXISTS (SELECT FROM {SCHEMA}.unattended u WHERE u.queue = s.queue)
      AND (NOT EXISTS (
            SELECT FROM {SCHEMA}.steps o WHERE o.run_id = s.run_id
            AND greatest(o.started_at, o.finished_at) > now() - make_interval(secs => :patience))
        OR s.takes IS NOT NULL AND EXISTS (
            SELECT FROM {SCHEMA}.steps o WHERE o.run_id = s.run_id AND o.queue = s.queue
            AND o.queued_at > s.queued_at AND o.started_at > o.queued_at))
    ORDER BY s.id LIMIT :batch FOR NO KEY UPDATE SKIP LOCKED
"""


def _reset_and(action: str, was: str) -> TextClause:
    """Return the UPDATE that makes steps pending again which are in the state `was`, and locked."""
    return text(
        f"""
        WITH freed AS (
            UPDATE {SCHEMA}.steps
            SET state = 'pending', token = NULL, lease_until = NULL, retry_at = NULL,
                canvas = NULL, queued_at = NULL
            WHERE id = ANY(CAST(:ids AS bigint[]))
            RETURNING id, run_id, asset, partition
        )
        {audit.recorded("freed", action, before=f"'{was}'", after="'pending'")}
        """
    )


_RETRY_OVERDUE = _reset_and("step.retry_overdue", StepState.RETRYING)
_WAS_STRANDED = _reset_and("step.stranded", StepState.QUEUED)

# Runs that wait for slots are not among them, see `slots.may_go_on`. By chance, so that all have
# their turn where there are more than one pass can wake.
_TO_WAKE = text(
    f"""
    SELECT r.id FROM {SCHEMA}.runs r
    WHERE r.driver = 'celery'
      AND r.state NOT IN ({sql_list({*FINAL_RUN_STATES, RunState.PAUSED})})
      AND r.created_at < now() - make_interval(secs => :patience)
      AND (r.state = 'requested'
        OR EXISTS (SELECT FROM {SCHEMA}.steps s
            WHERE s.run_id = r.id AND s.takes IS NULL AND s.state = 'pending' AND s.open_deps = 0)
        OR NOT EXISTS (SELECT FROM {SCHEMA}.steps s
            WHERE s.run_id = r.id AND {is_open("s.state")}))
    ORDER BY r.state <> 'requested', random() LIMIT :batch
    """
)


def timed_out(conn: Connection) -> list[Claim]:
    """Return the claims of the attempts that should have been killed by now; nothing is locked."""
    return [
        Claim(
            step_id=row.id,
            run_id=row.run_id,
            asset=row.asset,
            partition=row.partition,
            attempt=row.attempt,
            failures=row.failures,
            token=row.token,
            canvas=row.canvas,
            worker=ACTOR,
            inputs={},
            config={},
            io={},
            resources={},
            earlier=None,
            timeout=timeout_of(row.soft_timeout, row.hard_timeout),
            takes=row.takes or {},
        )
        for row in conn.execute(_TIMED_OUT, {"batch": BATCH})
    ]


def expired_leases(conn: Connection) -> list[Freed]:
    """Free the steps whose worker has been silent for longer than its lease.

    What kills its process each time must not go round for ever: see `losses.lose`.
    """
    return losses.expired(conn, BATCH, actor=ACTOR)


def due_retries(conn: Connection, run_id: UUID | None = None) -> list[Freed]:
    """Make the steps ready again, of one run or of all, whose parked retry is due."""
    found = conn.execute(_DUE, {"batch": DUE_BATCH, "actor": ACTOR, "run_id": run_id})
    return [Freed(row.id, row.run_id) for row in found]


def overdue_retries(conn: Connection, patience: float) -> list[Freed]:
    """Free the steps whose retry is due since `patience` seconds and has not come."""
    return _reset(conn, _OVERDUE, _RETRY_OVERDUE, patience=patience)


def stranded(conn: Connection, patience: float) -> list[Freed]:
    """Free the dispatched steps of runs in which nothing has moved for `patience` seconds."""
    return _reset(conn, _STRANDED, _WAS_STRANDED, patience=patience)


def runs_to_wake(conn: Connection, patience: float) -> list[UUID]:
    """Return the runs that a coordinator could bring further, older than `patience` seconds."""
    return list(conn.scalars(_TO_WAKE, {"batch": BATCH, "patience": patience}))


def _reset(conn: Connection, query: str, reset: TextClause, **values: float) -> list[Freed]:
    found = conn.execute(text(query), {"batch": BATCH, **values}).all()
    if not found:
        return []
    ids = [row.id for row in found]
    conn.execute(reset, {"ids": ids, "actor": ACTOR})
    dispatch.release(conn, {row.canvas for row in found})
    return [Freed(row.id, row.run_id) for row in found]
