"""Failure: a step fails, and with it, in the same transaction, all that cannot do without it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.outcome import Failure, RefusedValue
from flowstone.states import StepState, in_state
from flowstone.store import audit, checks, dispatch, steps
from flowstone.store.steps import Claim
from flowstone.store.tables import SCHEMA
from flowstone.summary import one_line

_S = StepState

_NOT_BEGUN = in_state("s.state", _S.PENDING, _S.QUEUED)

# Not through steps that have failed with another one: what is below them has failed as well.
_BELOW = f"""
    RECURSIVE below AS (
        SELECT s.id FROM {SCHEMA}.edges e JOIN {SCHEMA}.steps s ON s.id = e.downstream
        WHERE e.upstream = :step_id AND NOT e.pinned AND NOT e.optional AND {_NOT_BEGUN}
        UNION
        SELECT s.id FROM below
        JOIN {SCHEMA}.edges e ON e.upstream = below.id
        JOIN {SCHEMA}.steps s ON s.id = e.downstream
        WHERE NOT e.pinned AND NOT e.optional AND {_NOT_BEGUN}
    )
"""

# A failure changes its readers, and then releases its canvas, whose ids lie between theirs: two
# failures in one chord would deadlock if they did not lock all of these beforehand, in order.
_LOCK_FAILING = text(
    f"""
    WITH {_BELOW}, touched AS (
        SELECT id FROM below
        UNION
        SELECT e.downstream FROM {SCHEMA}.edges e
        WHERE (e.upstream = :step_id OR e.upstream IN (SELECT id FROM below))
          AND e.optional AND NOT e.pinned
        UNION
        SELECT id FROM {SCHEMA}.steps
        WHERE canvas = :canvas AND state = 'queued' AND open_deps > 0
    )
    SELECT s.id FROM {SCHEMA}.steps s JOIN touched ON touched.id = s.id
    WHERE {in_state("s.state", _S.PENDING, _S.QUEUED)}
    ORDER BY s.id FOR NO KEY UPDATE OF s
    """
)

# Ids grow along the edges, so the first step that a reader came to nothing `via` is the failed one
# itself wherever it reads that.
_FAIL_READERS = text(
    f"""
    WITH {_BELOW}, ways AS (
        SELECT e.downstream AS id, min(e.upstream) AS via
        FROM (SELECT id FROM below UNION SELECT CAST(:step_id AS bigint)) bad
        JOIN {SCHEMA}.edges e ON e.upstream = bad.id
        WHERE NOT e.pinned AND NOT e.optional
        GROUP BY e.downstream
    ), locked AS (
        SELECT s.id, s.state, ways.via FROM {SCHEMA}.steps s JOIN ways ON ways.id = s.id
        WHERE {_NOT_BEGUN}
        ORDER BY s.id FOR NO KEY UPDATE OF s
    ), moved AS (
        UPDATE {SCHEMA}.steps s
        SET state = 'upstream_failed', finished_at = now(),
            error = CAST(:error AS jsonb) || jsonb_build_object('via', locked.via)
        FROM locked WHERE s.id = locked.id
        RETURNING s.id, s.run_id, s.asset, s.partition, locked.state AS was, s.error
    ), recorded AS (
        {
        audit.recorded(
            "moved",
            "step.upstream_failed",
            before="was",
            after="'upstream_failed'",
            reason="error->>'message'",
            details="'via', error->'via'",
        )
    }
    )
    SELECT id FROM moved
    """
)


_FAIL_PENDING = text(
    f"""
    UPDATE {SCHEMA}.steps
    SET state = 'failed', finished_at = now(), error = CAST(:error AS jsonb)
    WHERE id = :step_id AND {in_state("state", _S.PENDING)}
    RETURNING asset, partition
    """
)


def fail(
    conn: Connection, claim: Claim, failure: Failure, refused: RefusedValue | None = None
) -> bool:
    """Fail the step, and with it all that depends on it; return False if stale.

    A value that a check has `refused` is recorded as in quarantine.
    """
    values = {
        "finished_at": text("now()"),
        "error": failure.as_json(),
        "failures": claim.failures + 1,
    }
    if not steps.finish(conn, claim, StepState.FAILED, values, failure=failure):
        return False
    if refused is not None:
        checks.quarantine(conn, claim.step_id, claim.attempt, refused, actor=claim.worker)
    conn.execute(_LOCK_FAILING, {"step_id": claim.step_id, "canvas": claim.canvas})
    # Before the counters are lowered, by which the rest of a broken canvas is known.
    dispatch.release(conn, [claim.canvas])
    error = one_line(failure.type, failure.message)
    _fail_readers(conn, claim.step_id, claim.name, error, claim.worker)
    return True


@dataclass(frozen=True)
class Reason:
    """Why a step fails that does not run."""

    type: str
    message: str


def fail_pending(
    conn: Connection, step_id: int, name: str, run_id: UUID, reason: Reason, *, actor: str
) -> None:
    """Fail a step that is not dispatched, and its readers."""
    error = {"type": reason.type, "message": reason.message, "retryable": False}
    values = {"step_id": step_id, "error": json.dumps(error)}
    failed = conn.execute(_FAIL_PENDING, values).one_or_none()
    if failed is not None:
        said = one_line(reason.type, reason.message)
        audit.record(
            conn,
            actor=actor,
            action="step.failed",
            run_id=run_id,
            step_id=step_id,
            details=audit.of_step(failed.asset, failed.partition, **error),
            reason=said,
            before={"state": _S.PENDING},
            after={"state": _S.FAILED},
        )
        _fail_readers(conn, step_id, name, said, actor)


def _fail_readers(conn: Connection, step_id: int, name: str, error: str, actor: str) -> None:
    """Fail all that depends on a failed step.

    Each says which step failed, and `via` which step that it reads could not run or failed.
    """
    reason = {
        "type": "upstream_failed",
        "message": f"{name} failed: {error}",
        "step": name,
        "step_id": step_id,
    }
    values = {"step_id": step_id, "error": json.dumps(reason), "actor": actor}
    failed = conn.scalars(_FAIL_READERS, values)
    steps.lower_readers(conn, [step_id, *failed], done=False)
