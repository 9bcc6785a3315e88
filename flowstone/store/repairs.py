"""What the reconciler asks of the ledger, and what it puts right: one statement a rule."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from flowstone.states import FINAL_RUN_STATES, RunState, StepState, is_open, sql_list
from flowstone.store import audit, dispatch, found, losses
from flowstone.store.found import LOCKED, LOCKED_STEPS, Found
from flowstone.store.losses import Freed
from flowstone.store.steps import Claim, timeout_of
from flowstone.store.tables import SCHEMA
from flowstone.store.waiting import GOES_ON

ACTOR = "reconciler"

BATCH = 500
"""The most rows that one pass of a rule repairs."""

DUE_BATCH = 10_000
"""The most parked retries that one pass lets go on."""

# The process of an attempt that was killed in time had renewed its lease until then; that of one
# which has died before was silent when its time came, and is lost.
_TIMED_OUT = f"""
    SELECT s.id, s.run_id, s.asset, s.partition, s.attempt, s.failures, s.token, s.canvas,
        s.soft_timeout, s.hard_timeout, s.takes
    FROM {SCHEMA}.steps s
    WHERE s.state = 'running' AND s.ends_by < now() AND s.ends_by < s.lease_until
    ORDER BY s.id LIMIT :batch
"""

# An outage parks many, and they may be due at once; one statement for all is cheap.
_IS_DUE = f"""
    SELECT id, run_id, asset, partition FROM {SCHEMA}.steps
    WHERE state = 'retrying' AND canvas IS NULL AND retry_at <= now()
      AND (CAST(:run_id AS uuid) IS NULL OR run_id = :run_id)
    ORDER BY id LIMIT :batch
"""
_DUE = text(
    f"""
    WITH due AS ({_IS_DUE + LOCKED}), freed AS (
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
    SELECT s.id, s.run_id, s.asset, s.partition, s.canvas FROM {SCHEMA}.steps s
    WHERE s.state = 'retrying' AND s.canvas IS NOT NULL
      AND s.retry_at < now() - make_interval(secs => :patience)
    ORDER BY s.id LIMIT :batch
"""

OVERTAKEN_SECONDS = 60.0
"""How much later a message must have been sent to show that an earlier one is lost.

A step is marked before its message is sent, and those of one dispatch go out one after the other.
"""

# A full queue is no fault, however long it is: within a level it gives its messages out in the
# order in which they were sent. So one is lost where another that was sent later, and is not more
# urgent, has overtaken it. What runs at this moment shows that, of which there is no more than
# workers have processes: where a queue is never empty, some of it always runs. A new message for
# a queue that no worker consumes would not help. What waits for its rate is in a worker's memory.
_STRANDED = f"""
    WITH begun AS (
        SELECT o.queue, o.level, max(o.queued_at) AS queued_at
        FROM {SCHEMA}.steps o JOIN {SCHEMA}.runs r ON r.id = o.run_id
        WHERE o.state = 'running' AND o.lease_until > '-infinity' AND o.started_at > o.queued_at
          AND r.driver = 'celery'
        GROUP BY o.queue, o.level
    )
    SELECT s.id, s.run_id, s.asset, s.partition, s.canvas
    FROM {SCHEMA}.runs r CROSS JOIN LATERAL (
        SELECT * FROM {SCHEMA}.steps
        WHERE run_id = r.id AND state IN ('queued', 'running', 'retrying') AND canvas IS NOT NULL
    ) f JOIN {SCHEMA}.steps s ON s.id = f.id
    WHERE {GOES_ON} AND s.state = 'queued' AND s.open_deps = 0
      AND greatest(s.queued_at, s.starts_at) < now() - make_interval(secs => :patience)
      AND EXISTS (
        SELECT FROM begun b WHERE b.queue = s.queue AND b.level >= s.level
          AND b.queued_at > greatest(s.queued_at, s.starts_at)
            + interval '{OVERTAKEN_SECONDS:g} seconds')
      AND NOT EXISTS (SELECT FROM {SCHEMA}.unattended u WHERE u.queue = s.queue)
    ORDER BY s.id LIMIT :batch
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


def _open_runs(condition: str, paused_too: str = "false") -> str:
    """Return the query of runs that workers go on with, and that a coordinator could bring on.

    By chance, so that all have their turn where there are more than one pass can wake.
    """
    return f"""
        SELECT r.id FROM {SCHEMA}.runs r
        WHERE r.driver = 'celery' AND r.state NOT IN ({sql_list(FINAL_RUN_STATES)})
          AND (r.state <> '{RunState.PAUSED}' OR r.cancel_requested_at IS NOT NULL
            OR {paused_too})
          AND r.created_at < now() - make_interval(secs => :patience) AND {condition}
        ORDER BY random() LIMIT :batch
    """


_UNPLANNED = _open_runs(f"r.state = '{RunState.REQUESTED}'")

# Runs that wait for slots are not among them, see `slots.may_go_on`; nor are those whose window
# is full, as they should be.
_IDLE = _open_runs(
    f"""
    EXISTS (SELECT FROM {SCHEMA}.steps s
        WHERE s.run_id = r.id AND s.takes IS NULL AND s.state = 'pending' AND s.open_deps = 0)
    AND (r.opens_at IS NULL OR r.opens_at <= now())
    AND (SELECT count(*) FROM {SCHEMA}.steps s
        WHERE s.run_id = r.id AND s.state IN ('queued', 'running', 'retrying')
          AND s.canvas IS NOT NULL) < r.max_in_flight
    """
)

_UNCLOSED = _open_runs(
    f"""
    r.state <> '{RunState.REQUESTED}' AND NOT EXISTS (
        SELECT FROM {SCHEMA}.steps s WHERE s.run_id = r.id AND {is_open("s.state")})
    """,
    # What ran when it was paused has ended; a saved plan waits for its start.
    paused_too="r.started_at IS NOT NULL",
)


def timed_out(conn: Connection) -> list[Claim]:
    """Return the claims of the attempts that should have been killed by now.

    What somebody else has locked is left out, and the rest is locked until the transaction ends.
    """
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
        for row in conn.execute(text(_TIMED_OUT + LOCKED_STEPS), {"batch": BATCH})
    ]


def find_expired_leases(conn: Connection) -> list[Found]:
    """Return the steps whose worker has been silent for longer than its lease."""
    return losses.find_expired(conn, BATCH)


def expired_leases(conn: Connection) -> list[Freed]:
    """Free the steps whose worker has been silent for longer than its lease.

    What kills its process each time must not go round for ever: see `losses.lose`.
    """
    return losses.expired(conn, BATCH, actor=ACTOR)


def find_due_retries(conn: Connection) -> list[Found]:
    """Return the steps whose parked retry is due."""
    return found.steps(conn, _IS_DUE, batch=DUE_BATCH, run_id=None)


def due_retries(conn: Connection, run_id: UUID | None = None) -> list[Freed]:
    """Make the steps ready again, of one run or of all, whose parked retry is due."""
    freed = conn.execute(_DUE, {"batch": DUE_BATCH, "actor": ACTOR, "run_id": run_id})
    return [Freed(row.id, row.run_id) for row in freed]


def find_overdue_retries(conn: Connection, patience: float) -> list[Found]:
    """Return the steps whose retry is due since `patience` seconds and has not come."""
    return found.steps(conn, _OVERDUE, batch=BATCH, patience=patience)


def overdue_retries(conn: Connection, patience: float) -> list[Freed]:
    """Free the steps whose retry is due since `patience` seconds and has not come."""
    return _reset(conn, _OVERDUE, _RETRY_OVERDUE, patience=patience)


def find_stranded(conn: Connection, patience: float) -> list[Found]:
    """Return the steps that were overtaken, and whose messages were sent `patience` seconds ago."""
    return found.steps(conn, _STRANDED, batch=BATCH, patience=patience)


def stranded(conn: Connection, patience: float) -> list[Freed]:
    """Free the steps that were overtaken, and whose messages were sent `patience` seconds ago."""
    return _reset(conn, _STRANDED, _WAS_STRANDED, patience=patience)


def unplanned(conn: Connection, patience: float) -> list[Found]:
    """Return the runs, older than `patience` seconds, that nobody has planned."""
    return found.runs(conn, _UNPLANNED, batch=BATCH, patience=patience)


def idle(conn: Connection, patience: float) -> list[Found]:
    """Return the runs as old with steps that are ready, and not dispatched though they could be."""
    return found.runs(conn, _IDLE, batch=BATCH, patience=patience)


def unclosed(conn: Connection, patience: float) -> list[Found]:
    """Return the runs as old that have no open step, and are not closed."""
    return found.runs(conn, _UNCLOSED, batch=BATCH, patience=patience)


def _reset(conn: Connection, query: str, reset: TextClause, **values: float) -> list[Freed]:
    rows = conn.execute(text(query + LOCKED_STEPS), {"batch": BATCH, **values}).all()
    if not rows:
        return []
    conn.execute(reset, {"ids": [row.id for row in rows], "actor": ACTOR})
    dispatch.release(conn, {row.canvas for row in rows})
    return [Freed(row.id, row.run_id) for row in rows]
