"""Steps go on behind gates that were decided: into a canvas of their own, or to the coordinator.

Everything here locks the run, the step and the gate, in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid5

from sqlalchemy import Connection, text

from flowstone.gate import TIMEOUT
from flowstone.states import (
    DECIDED_GATE_STATES,
    WAITING_STEP_STATES,
    RunState,
    StepState,
    in_state,
    sql_list,
)
from flowstone.store import audit, found, gates, runs
from flowstone.store.found import Found
from flowstone.store.gate_tables import TO_CONTINUE
from flowstone.store.gates import Asked
from flowstone.store.runs import Run
from flowstone.store.tables import SCHEMA

BATCH: Final = 500
"""The most steps that one pass of the reconciler lets go on."""

_CANVASES: Final = UUID("5d0f3c5e-9a04-4a4e-8a8e-6d1f1c0f8f57")

_MOVE: Final = f"""
    WITH moved AS (
        UPDATE {SCHEMA}.steps s
        SET state = '%(target)s', canvas = CAST(:canvas AS uuid),
            queued_at = CASE WHEN CAST(:canvas AS uuid) IS NOT NULL THEN clock_timestamp() END
        FROM (SELECT id, state FROM {SCHEMA}.steps WHERE id = :step_id) was
        WHERE s.id = was.id AND {in_state("s.state", *WAITING_STEP_STATES)} AND s.gate = :gate
          %(only)s
        RETURNING s.id, s.run_id, s.asset, s.partition, was.state AS was
    ), recorded AS (
        {
    audit.recorded(
        "moved",
        "step.continued",
        before="was",
        after="'%(target)s'",
        details="'gate', CAST(:gate AS bigint)",
    )
}
    ), continued AS (
        UPDATE {SCHEMA}.gates g SET continued_at = now() FROM moved WHERE g.id = :gate
    )
    SELECT id FROM moved
"""
# What takes slots, or has a rate, goes where all others go who wait for these.
_QUEUE = text(_MOVE % {"target": "queued", "only": "AND s.takes IS NULL"})
_FREE = text(_MOVE % {"target": "pending", "only": ""})

_IS_CARRIED = text(
    f"""
    SELECT EXISTS (
        SELECT FROM {SCHEMA}.steps
        WHERE id = :step_id AND {in_state("state", StepState.QUEUED)}
          AND canvas = CAST(:canvas AS uuid)
    )
    """
)

_LEFT = f"""
    SELECT g.id AS gate, s.id, s.run_id, s.asset, s.partition
    FROM {SCHEMA}.gates g
    JOIN {SCHEMA}.steps s ON s.id = g.step_id
    JOIN {SCHEMA}.runs r ON r.id = s.run_id
    WHERE g.{TO_CONTINUE.replace(" AND state", " AND g.state")}
      AND {in_state("s.state", *WAITING_STEP_STATES)} AND s.gate = g.id
      AND (g.closed_by = '{TIMEOUT}' OR r.driver = 'inline'
        OR g.closed_at < now() - make_interval(secs => :age))
      AND (CAST(:run_id AS uuid) IS NULL OR s.run_id = CAST(:run_id AS uuid))
    ORDER BY g.closed_at LIMIT :batch
"""
_LEFT_GATES = text(_LEFT)

# Nothing of FlowStone's does that: a gate is closed with what it says, and its step goes on.
_STRAY = f"""
    SELECT s.id, s.run_id, s.asset, s.partition FROM {SCHEMA}.steps s
    WHERE s.state IN ({sql_list(WAITING_STEP_STATES)}) AND NOT EXISTS (
        SELECT FROM {SCHEMA}.gates g
        WHERE g.id = s.gate AND g.step_id = s.id
          AND (g.state = 'open'
            OR g.continued_at IS NULL AND g.state IN ({sql_list(DECIDED_GATE_STATES)})))
    ORDER BY s.id LIMIT :batch
"""
_FREE_STRAY = text(
    f"""
    WITH stray AS ({_STRAY} FOR NO KEY UPDATE OF s SKIP LOCKED), moved AS (
        UPDATE {SCHEMA}.steps s SET state = 'pending'
        FROM stray JOIN {SCHEMA}.steps was ON was.id = stray.id
        WHERE s.id = stray.id
        RETURNING s.id, s.run_id, s.asset, s.partition, was.state AS was
    ), recorded AS (
        {
        audit.recorded(
            "moved",
            "step.freed",
            before="was",
            after="'pending'",
            reason="'it waited, and nothing was asked'",
        )
    }
    )
    SELECT run_id FROM moved
    """
)


@dataclass(frozen=True)
class Carried:
    """A step that goes on in a canvas of its own, by whoever holds this."""

    step_id: int
    canvas: UUID


@dataclass(frozen=True)
class Freed:
    """A step that goes on as any other that is ready: by the coordinator of its run."""

    run_id: UUID


def canvas_of(gate_id: int) -> UUID:
    """Return the canvas in which the step of a gate goes on; it follows from the gate."""
    return uuid5(_CANVASES, str(gate_id))


def carry_on(conn: Connection, gate_id: int, *, alone: bool, actor: str) -> Carried | Freed | None:
    """Let the step of a gate go on that was decided; None where it does already, or has ended.

    With `alone` it goes on in a canvas of its own, if it takes no slots. A second call for the
    same gate returns that canvas again as long as nothing has begun in it. An approval of what
    has changed meanwhile is void, and the step begins anew.
    """
    locked = _lock(conn, gate_id)
    if locked is None:
        return None
    run, asked = locked
    gate, canvas = asked.gate, canvas_of(gate_id)
    if gate.continued_at is not None:
        values = {"step_id": gate.step_id, "canvas": canvas}
        return Carried(gate.step_id, canvas) if conn.scalar(_IS_CARRIED, values) else None
    if gate.state not in DECIDED_GATE_STATES or run.is_being_cancelled or run.is_final:
        return None
    if gate.kind == "approval" and gates.is_outdated(conn, gate):
        gates.void(conn, asked, by=actor, reason=gates.OUTDATED)
        return Freed(run.id)
    values = {"step_id": gate.step_id, "gate": gate.id, "actor": actor}
    # Of a paused run nothing starts; that of a backfill goes by its hours, and by how many may run.
    alone = alone and run.state != RunState.PAUSED and run.backfill is None
    if alone and conn.scalar(_QUEUE, {**values, "canvas": canvas}) is not None:
        if run.state == RunState.WAITING:
            runs.move(conn, run.id, RunState.RUNNING, actor=actor)
        return Carried(gate.step_id, canvas)
    return Freed(run.id) if conn.scalar(_FREE, {**values, "canvas": None}) is not None else None


def _lock(conn: Connection, gate_id: int) -> tuple[Run, Asked] | None:
    known = gates.get(conn, gate_id)
    if known is None:
        return None
    run = runs.lock(conn, known.run_id)
    asked = gates.lock(conn, gate_id)
    return None if asked is None else (run, asked)


def find_left(conn: Connection, age: float) -> list[Found]:
    """Return the steps whose gate was decided `age` seconds ago, and that have not gone on."""
    return found.steps(conn, _LEFT, age=age, run_id=None, batch=BATCH)


def left(conn: Connection, age: float, run_id: UUID | None = None) -> Sequence[int]:
    """Return the gates, of one run perhaps, of the steps that `find_left` finds.

    Nobody is waited for who is late by the clock, or in a run that has no workers.
    """
    values = {"age": age, "run_id": run_id, "batch": BATCH}
    return [row.gate for row in conn.execute(_LEFT_GATES, values)]


def find_stray(conn: Connection) -> list[Found]:
    """Return the steps that wait though nothing is asked for them."""
    return found.steps(conn, _STRAY, batch=BATCH)


def stray(conn: Connection, *, actor: str) -> Sequence[Freed]:
    """Have the steps computed again that wait though nothing is asked for them."""
    return [Freed(run_id) for run_id in conn.scalars(_FREE_STRAY, {"batch": BATCH, "actor": actor})]
