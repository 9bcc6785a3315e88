"""Ageing: a run of which no step starts, though some could, becomes more urgent.

The reconciler notes in `runs.waits_since` when it has seen a run wait first, or start a step last.
What is queued in Celery keeps its place there, so the first few steps are made ready again: the
coordinator sends them anew at the better level, and their old messages claim nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, select, text

from flowstone.priority import FIRST, MAX_BOOST
from flowstone.store import dispatch, found
from flowstone.store.found import Found
from flowstone.store.tables import SCHEMA, runs
from flowstone.store.waiting import BEHIND_OTHERS, GOES_ON, QUEUED

ACTOR = "reconciler"

BATCH = 500
"""The most runs that one pass moves, the first few steps of each."""

# Whoever waits for a worker that is not there would gain nothing. And who waits for slots waits
# for its turn in a pool, where priority would be worth nothing if all who wait moved up.
_COULD_START = f"""
    EXISTS (
        SELECT FROM ({BEHIND_OTHERS}) s
        WHERE NOT EXISTS (SELECT FROM {SCHEMA}.unattended u WHERE u.queue = s.queue))
"""

# OFFSET 0 keeps PostgreSQL from looking through all attempts, for which there is no index.
_HAS_STARTED = f"""
    EXISTS (
        SELECT FROM {SCHEMA}.steps s
        WHERE s.run_id = r.id AND s.attempt > 0
          AND (s.finished_at IS NULL OR s.finished_at >= r.waits_since)
          AND EXISTS (
            SELECT FROM {SCHEMA}.attempts a
            WHERE a.step_id = s.id AND a.started_at >= r.waits_since OFFSET 0))
"""

# A run at the top has nothing to gain but that its first steps go before its bulk. One whose
# coordinator works at this moment does not starve.
_SEEN = f"""
    WITH seen AS (
        SELECT r.id, r.boost, CASE
            WHEN NOT {_COULD_START} THEN 'has all it wants'
            WHEN r.waits_since IS NULL OR {_HAS_STARTED} THEN 'moves'
            WHEN r.boost < least({MAX_BOOST}, greatest(1, r.priority))
                AND r.waits_since <= now() - make_interval(secs => :ageing * (r.boost + 1))
            THEN 'starves' END AS how
        FROM {SCHEMA}.runs r WHERE {GOES_ON}
    )
"""

_STARVING = f"{_SEEN} SELECT id FROM seen WHERE how = 'starves' LIMIT :batch"

# Those that starve first, then those that were looked at longest ago, so that all have their turn.
# A run that another reconciler has moved up at this moment is not moved up once more.
_AGE = text(
    f"""
    {_SEEN}, locked AS (
        SELECT r.id, r.boost AS was, seen.how FROM {SCHEMA}.runs r JOIN seen ON seen.id = r.id
        WHERE r.boost = seen.boost AND (seen.how IN ('moves', 'starves')
            OR seen.how IS NOT NULL AND r.waits_since IS NOT NULL)
        ORDER BY seen.how = 'starves' DESC, r.waits_since NULLS FIRST LIMIT :batch
        FOR NO KEY UPDATE OF r SKIP LOCKED
    ), aged AS (
        UPDATE {SCHEMA}.runs r
        SET boost = CASE how WHEN 'starves' THEN was + 1 ELSE 0 END,
            waits_since = CASE how WHEN 'starves' THEN waits_since WHEN 'moves' THEN now() END
        FROM locked WHERE r.id = locked.id
        RETURNING r.id, was, r.boost, how = 'starves' AS starves
    ), recorded AS (
        INSERT INTO {SCHEMA}.audit (actor, action, run_id, details, before, after)
        SELECT '{ACTOR}', CASE WHEN starves THEN 'run.aged' ELSE 'run.unaged' END, id, '{{}}',
            jsonb_build_object('boost', was), jsonb_build_object('boost', boost)
        FROM aged WHERE was <> boost ORDER BY id
    )
    SELECT id, boost FROM aged WHERE starves ORDER BY id
    """
)

_FREE = text(
    f"""
    WITH first AS (
        SELECT s.id FROM unnest(CAST(:runs AS uuid[])) AS r(id) CROSS JOIN LATERAL (
            SELECT q.id FROM ({QUEUED}) q
            WHERE NOT EXISTS (SELECT FROM {SCHEMA}.unattended u WHERE u.queue = q.queue)
            ORDER BY q.id LIMIT {FIRST}) s
    ), locked AS (
        SELECT s.id, s.canvas FROM {SCHEMA}.steps s JOIN first ON first.id = s.id
        WHERE s.state = 'queued' ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
    )
    UPDATE {SCHEMA}.steps s SET state = 'pending', canvas = NULL, queued_at = NULL
    FROM locked WHERE s.id = locked.id
    RETURNING locked.canvas
    """
)


@dataclass(frozen=True)
class Aged:
    """A run that has moved up, as it starves."""

    run_id: UUID
    boost: int
    """By how many levels."""


def of_runs(conn: Connection, run_ids: Iterable[UUID]) -> dict[UUID, tuple[int, int]]:
    """Return the priority of each run, and by how many levels it has moved up."""
    query = select(runs.c.id, runs.c.priority, runs.c.boost).where(runs.c.id.in_(list(run_ids)))
    return {row.id: (row.priority, row.boost) for row in conn.execute(query)}


def find(conn: Connection, ageing: float) -> list[Found]:
    """Return the runs that starve since `ageing` seconds, or since that once more."""
    return found.runs(conn, _STARVING, ageing=ageing, batch=BATCH)


def age(conn: Connection, ageing: float) -> list[Aged]:
    """Move the runs up that starve since `ageing` seconds, or since that once more.

    Those that have started a step meanwhile go back to where they were.
    """
    seen = conn.execute(_AGE, {"ageing": ageing, "batch": BATCH})
    aged = [Aged(row.id, row.boost) for row in seen]
    if aged:
        canvases = conn.scalars(_FREE, {"runs": [run.run_id for run in aged]}).all()
        dispatch.release(conn, set(canvases))
    return aged
