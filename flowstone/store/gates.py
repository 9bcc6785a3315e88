"""Gates: what steps wait for, asked for and closed. Each is closed once: one guarded UPDATE.

Whoever changes a gate and its step locks the step first, and before that the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, func, select, text, update

from flowstone.gate import Gate
from flowstone.states import (
    GATE_MOVES,
    WAITING_STEP_STATES,
    GateState,
    StepState,
    in_state,
    sources,
)
from flowstone.store import audit, dispatch, notifications
from flowstone.store import steps as steps_store
from flowstone.store.steps import Claim
from flowstone.store.tables import SCHEMA, gates, runs, steps

OUTDATED: Final = "an input has changed meanwhile"
"""Why an approval is void of which what was approved is not what would be made now."""

EVENT_OF: Final[Mapping[GateState, str]] = {
    GateState.APPROVED: "decided",
    GateState.REJECTED: "decided",
    GateState.EXPIRED: "expired",
    GateState.VOID: "void",
    GateState.WITHDRAWN: "withdrawn",
}


@dataclass(frozen=True)
class Asked:
    """A gate, and the step that waits at it."""

    gate: Gate
    asset: str
    partition: str
    run_id: UUID
    launcher: str
    """Who has submitted the run."""
    driver: str
    hard_timeout: float | None
    """That of the step, in seconds."""


_SELECT = (
    select(
        gates,
        steps.c.asset,
        steps.c.partition,
        steps.c.run_id,
        steps.c.hard_timeout,
        runs.c.actor.label("launcher"),
        runs.c.driver,
    )
    .join(steps, steps.c.id == gates.c.step_id)
    .join(runs, runs.c.id == steps.c.run_id)
)

_LOCK_STEP = text(
    f"""
    SELECT id FROM {SCHEMA}.steps
    WHERE id = (SELECT step_id FROM {SCHEMA}.gates WHERE id = :id) FOR NO KEY UPDATE
    """
)

# Whether anything that the step reads has another latest value by now: then what was approved is
# not what would be made. What it does without is compared with what there was when it asked.
_IS_OUTDATED = text(
    f"""
    SELECT EXISTS (
        SELECT FROM {SCHEMA}.gates g
        JOIN {SCHEMA}.edges e ON e.downstream = g.step_id
        JOIN {SCHEMA}.steps u ON u.id = e.upstream
        JOIN {SCHEMA}.latest l ON l.asset = u.asset AND l.partition = u.partition
        JOIN {SCHEMA}.outputs n ON n.id = l.output_id
        LEFT JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(u.reuses, u.id)
        WHERE g.id = :id
          AND (n.sha256 <> o.sha256 OR o.id IS NULL AND n.created_at > g.created_at)
    )
    """
)

_FREE = text(
    f"""
    WITH moved AS (
        UPDATE {SCHEMA}.steps s SET state = 'pending'
        FROM (SELECT id, state FROM {SCHEMA}.steps WHERE id = :step_id) was
        WHERE s.id = was.id AND {in_state("s.state", *WAITING_STEP_STATES)} AND s.gate = :gate
        RETURNING s.id, s.run_id, s.asset, s.partition, was.state AS was
    ), recorded AS (
        {
        audit.recorded(
            "moved",
            "step.freed",
            before="was",
            after="'pending'",
            reason="CAST(:reason AS text)",
            details="'gate', CAST(:gate AS bigint)",
        )
    }
    )
    SELECT id FROM moved
    """
)

# The same assets and partitions, in the order of the plan; whatever of them has another latest
# output by now is read from the step that has made that.
_READ_LATEST = text(
    f"""
    UPDATE {SCHEMA}.edges e SET upstream = o.step_id, pinned = true
    FROM {SCHEMA}.steps u
    JOIN {SCHEMA}.latest l ON l.asset = u.asset AND l.partition = u.partition
    JOIN {SCHEMA}.outputs o ON o.id = l.output_id
    WHERE e.downstream = :step_id AND u.id = e.upstream
      AND o.step_id <> coalesce(u.reuses, u.id)
    """
)


def get(conn: Connection, gate_id: int) -> Asked | None:
    """Return a gate, or None if there is no such."""
    row = conn.execute(_SELECT.where(gates.c.id == gate_id)).one_or_none()
    return None if row is None else asked_of(row)


def of_step(conn: Connection, step_id: int) -> Asked | None:
    """Return the gate at which a step waits, or behind which it goes on; None if at none."""
    query = _SELECT.where(steps.c.id == step_id, steps.c.gate == gates.c.id)
    row = conn.execute(query).one_or_none()
    return None if row is None else asked_of(row)


def lock(conn: Connection, gate_id: int) -> Asked | None:
    """Lock a gate and its step, and return it as it is then; None if there is no such."""
    conn.execute(_LOCK_STEP, {"id": gate_id})
    query = _SELECT.where(gates.c.id == gate_id).with_for_update(of=gates)
    row = conn.execute(query).one_or_none()
    return None if row is None else asked_of(row)


def lock_free(conn: Connection, gate_ids: Sequence[int]) -> list[Asked]:
    """Lock those of the gates that nobody else has locked, and return them as they are then.

    The caller has locked their steps.
    """
    query = _SELECT.where(gates.c.id.in_(gate_ids)).order_by(gates.c.id)
    rows = conn.execute(query.with_for_update(of=gates, skip_locked=True))
    return [asked_of(row) for row in rows]


def asked_of(row: Row[*tuple[Any, ...]]) -> Asked:
    """Return what a row of `_SELECT` tells."""
    values = row._asdict()
    return Asked(
        Gate.of(values),
        row.asset,
        row.partition,
        row.run_id,
        row.launcher,
        row.driver,
        row.hard_timeout,
    )


def is_outdated(conn: Connection, gate: Gate) -> bool:
    """Return whether what is to be approved was made of what is not the latest any more."""
    return bool(conn.scalar(_IS_OUTDATED, {"id": gate.id}))


def void(conn: Connection, asked: Asked, *, by: str, reason: str) -> None:
    """Let what was approved, or is to be, count no longer; the step is computed and asked anew.

    It is made of what is the latest now. The caller holds the lock on the step, and wakes the
    run. Where the step runs already, behind its gate, its attempt finds out: see `renew`.
    """
    if not close(conn, asked, GateState.VOID, by=by, reason=reason):
        return
    values = {"step_id": asked.gate.step_id, "gate": asked.gate.id, "actor": by, "reason": reason}
    if conn.execute(_FREE, values).one_or_none() is not None:
        conn.execute(_READ_LATEST, {"step_id": asked.gate.step_id})


def renew(conn: Connection, claim: Claim, reason: str) -> bool:
    """Let what was decided about a running step count no longer; it begins anew; False if stale.

    It leaves its canvas, and is made of what is the latest then.
    """
    assert claim.gate is not None
    if not steps_store.holds(conn, claim):
        return False
    asked = lock(conn, claim.gate.id)
    assert asked is not None
    close(conn, asked, GateState.VOID, by=claim.worker, reason=reason)
    steps_store.finish(
        conn,
        claim,
        StepState.PENDING,
        {"canvas": None, "queued_at": None},
        outcome="void",
        details={"gate": claim.gate.id},
        reason=reason,
    )
    conn.execute(_READ_LATEST, {"step_id": claim.step_id})
    dispatch.release(conn, [claim.canvas])
    return True


def close(
    conn: Connection,
    asked: Asked,
    target: GateState,
    *,
    by: str,
    channel: str | None = None,
    reason: str | None = None,
    event: str | None = None,
    details: Mapping[str, Any] | None = None,
    **values: Any,  # noqa: ANN401 - columns of gates
) -> bool:
    """Move a gate on, with its audit row, and have people told; return False if that is illegal.

    The step stays where it is: a continuation carries it on. `details` are for the audit log, and
    `event` is what is told where the state does not say.
    """
    gate = asked.gate
    was = gate.state
    moved = conn.execute(
        update(gates)
        .where(gates.c.id == gate.id, gates.c.state.in_(sources(target, GATE_MOVES)))
        .values(
            state=target,
            closed_at=func.coalesce(gates.c.closed_at, func.now()),
            closed_by=func.coalesce(gates.c.closed_by, by),
            channel=func.coalesce(gates.c.channel, channel),
            reason=func.coalesce(gates.c.reason, reason),
            **values,
        )
        .returning(gates.c.id)
    ).one_or_none()
    if moved is None:
        return False
    record(
        conn,
        asked,
        str(target),
        by=by,
        reason=reason,
        before={"state": was},
        after={"state": target},
        details={"channel": channel, **(details or {})} if channel else details,
    )
    if gate.kind == "approval":
        notifications.tell(conn, gate.id, event or EVENT_OF[target])
    return True


def record(
    conn: Connection,
    asked: Asked,
    what: str,
    *,
    by: str,
    reason: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append a row about a gate to the audit log: its action is such as "approval.approved"."""
    gate = asked.gate
    audit.record(
        conn,
        actor=by,
        action=f"{gate.kind}.{what}",
        run_id=asked.run_id,
        step_id=gate.step_id,
        details=audit.of_step(asked.asset, asked.partition, gate=gate.id, **(details or {})),
        reason=reason,
        before=before,
        after=after,
    )
