"""Dispatch: what is ready, and what has been handed to Celery in which canvas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from flowstone.expand import MAX_CHAIN, Canvas, Node, members
from flowstone.states import FINAL_STEP_STATES, StepState, in_state, sql_list
from flowstone.store.tables import SCHEMA

# A step that is parked until its retry is due has no canvas, and takes no place in the window.
_IN_FLIGHT = text(
    f"""
    SELECT count(*) FROM {SCHEMA}.steps
    WHERE run_id = :run_id AND state IN ('queued', 'running', 'retrying') AND canvas IS NOT NULL
    """
)

LOW_PART: Final = 4
"""The coordinator refills the window when less than this part of it could start."""

# Steps that are ready, but not dispatched, need the coordinator as soon as the broker runs low:
# the part of the window that is queued and could start. And a run without an open step needs it
# to be closed. All counts are bounded by the window.
_NEEDS_COORDINATOR = text(
    f"""
    SELECT CASE
        WHEN EXISTS (
            SELECT FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state = 'pending' AND open_deps = 0
        ) THEN (
            SELECT count(*) FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state = 'queued' AND open_deps = 0
        ) < greatest(1, r.max_in_flight / {LOW_PART})
        ELSE NOT EXISTS (
            SELECT FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state NOT IN ({sql_list(FINAL_STEP_STATES)})
        )
    END
    FROM {SCHEMA}.runs r WHERE r.id = :run_id
    """
)

# From the ready steps along `feeds`, as far as a chain can reach: what expansion needs to see,
# and no more of the run than that.
_AHEAD = text(
    f"""
    WITH RECURSIVE ready AS (
        SELECT id, feeds, open_deps FROM {SCHEMA}.steps
        WHERE run_id = :run_id AND state = 'pending' AND open_deps = 0
        ORDER BY id LIMIT :budget
    ), ahead AS (
        SELECT id, feeds, open_deps, 0 AS depth FROM ready
        UNION
        SELECT s.id, s.feeds, s.open_deps, a.depth + 1
        FROM ahead a JOIN {SCHEMA}.steps s ON s.id = a.feeds
        WHERE {in_state("s.state", StepState.PENDING)} AND a.depth < :reach
    )
    SELECT DISTINCT id, feeds, open_deps FROM ahead ORDER BY id
    """
)

# Both lock the steps in the order of their ids, as commits do, so that they cannot deadlock.
_MARK = text(
    f"""
    WITH locked AS (
        SELECT s.id, n.canvas
        FROM {SCHEMA}.steps s
        JOIN unnest(CAST(:ids AS bigint[]), CAST(:canvases AS uuid[])) AS n(id, canvas)
            ON n.id = s.id
        WHERE {in_state("s.state", StepState.PENDING)}
        ORDER BY s.id FOR NO KEY UPDATE OF s
    )
    UPDATE {SCHEMA}.steps s
    -- The time of the transaction would be that of a coordinator which then waited for the lock.
    SET state = 'queued', queued_at = clock_timestamp(), canvas = locked.canvas
    FROM locked WHERE s.id = locked.id
    RETURNING s.id, s.asset, s.partition, s.queue, s.run_id
    """
)

_RELEASE = text(
    f"""
    WITH locked AS (
        SELECT id FROM {SCHEMA}.steps
        WHERE canvas = ANY(CAST(:canvases AS uuid[])) AND state = 'queued'
          AND (open_deps > 0 OR :all)
        ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE {SCHEMA}.steps s
    SET state = 'pending', canvas = NULL, queued_at = NULL
    FROM locked WHERE s.id = locked.id
    """
)


@dataclass(frozen=True)
class DispatchedStep:
    """What the message of a step is made of."""

    id: int
    run_id: UUID
    asset: str
    partition: str
    queue: str
    canvas: UUID


def needs_coordinator(conn: Connection, run_id: UUID) -> bool:
    """Return whether a coordinator has something to do for the run.

    Asked after each commit of a step, and not in it: then the last of several that
    commit at once sees them all, and no run is left without a wake-up.
    """
    return bool(conn.scalar(_NEEDS_COORDINATOR, {"run_id": run_id}))


def window_left(conn: Connection, run_id: UUID, max_in_flight: int) -> int:
    """Return how many more steps of the run may be dispatched now."""
    return max(0, max_in_flight - int(conn.scalar(_IN_FLIGHT, {"run_id": run_id}) or 0))


def ready(conn: Connection, run_id: UUID, budget: int) -> tuple[list[int], dict[int, Node]]:
    """Return up to `budget` ready steps, and them with all that a canvas could add to them."""
    rows = conn.execute(_AHEAD, {"run_id": run_id, "budget": budget, "reach": 2 * MAX_CHAIN})
    nodes = {id: Node(id, feeds, open_deps) for id, feeds, open_deps in rows}
    return [node.id for node in nodes.values() if node.open_deps == 0], nodes


def mark(conn: Connection, canvases: Sequence[Canvas]) -> dict[int, DispatchedStep]:
    """Move the members of the canvases to queued, and return what their messages need.

    The caller holds the lock on the run, so that no other coordinator dispatches them.
    """
    canvas_of = {
        step: canvas_id
        for canvas in canvases
        for canvas_id in [uuid4()]
        for step in members(canvas)
    }
    marked = conn.execute(_MARK, {"ids": list(canvas_of), "canvases": list(canvas_of.values())})
    return {
        row.id: DispatchedStep(
            row.id, row.run_id, row.asset, row.partition, row.queue, canvas_of[row.id]
        )
        for row in marked
    }


def withdraw(
    conn: Connection, canvases: Sequence[Canvas], steps: Mapping[int, DispatchedStep]
) -> int:
    """Make the members of canvases that were not published pending again; return how many."""
    ids = {steps[member].canvas for canvas in canvases for member in members(canvas)}
    return conn.execute(_RELEASE, {"canvases": list(ids), "all": True}).rowcount


def release(conn: Connection, canvases: Iterable[UUID]) -> int:
    """Take the members that still wait out of canvases that have broken; return how many.

    They are dispatched again when they are ready. A late message of an old canvas
    claims nothing, as it names the wrong canvas.
    """
    return conn.execute(_RELEASE, {"canvases": list(canvases), "all": False}).rowcount
