"""Pruning: what is old, and needed by nothing that is kept, is deleted, a batch at a time.

A step is needed while its value can be read, or it is the latest one, was rolled back to or
from, or was checked; and while a step that is kept reads it, stands for its output or has waited
for it. So of whatever is kept, all that it was made of is kept, with runs, attempts and edges.
Foreign keys hold this, too: they let nothing go that is referred to.

The log of audits, its seals and the rollbacks are never pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.errors import UnknownRun
from flowstone.states import FINAL_RUN_STATES, sql_list
from flowstone.store import audit, runs
from flowstone.store.tables import SCHEMA

BATCH: Final = 1_000
"""The most steps, attempts or check results that one transaction goes through."""

Counts = Mapping[str, int]
"""Rows by table."""

_OLD = "now() - make_interval(days => CAST(:days AS int))"

# The type of the error stays, and so does the attempt.
_FORGET_MESSAGES = text(
    f"""
    WITH old AS (
        SELECT step_id, number FROM {SCHEMA}.attempts
        WHERE error_message IS NOT NULL AND finished_at < {_OLD}
        ORDER BY finished_at LIMIT :batch FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE {SCHEMA}.attempts a SET error_message = NULL, traceback = NULL
    FROM old WHERE a.step_id = old.step_id AND a.number = old.number
    """
)

# A window of ids at a time: there is no index for what is old and of a value that is gone.
_FORGET_CHECKS = text(
    f"""
    WITH looked AS (
        SELECT c.id, c.checked_at < {_OLD} AND coalesce(o.deleted_at, q.deleted_at) IS NOT NULL
            AS goes
        FROM (SELECT * FROM {SCHEMA}.check_results WHERE id > :after ORDER BY id LIMIT :batch) AS c
        LEFT JOIN {SCHEMA}.outputs o ON o.id = c.output_id
        LEFT JOIN {SCHEMA}.quarantine q ON q.id = c.quarantine_id
    ), gone AS (
        DELETE FROM {SCHEMA}.check_results c USING looked WHERE c.id = looked.id AND looked.goes
        RETURNING c.id
    )
    SELECT max(id) AS last, (SELECT count(*) FROM gone) AS gone FROM looked
    """
)

# What a run refers to has mostly ended before it: the latest first, so that what they refer to
# is free when its turn comes.
_ENDED = text(
    f"""
    SELECT id FROM {SCHEMA}.runs
    WHERE state IN ({sql_list(FINAL_RUN_STATES)}) AND finished_at < {_OLD}
    ORDER BY finished_at DESC, id
    """
)

# Only what has no value any more is looked at closely, and what reads it: most of what is kept is
# kept for its value. Whatever a step reads in its own run is needed as the step itself is.
_FREE = text(
    f"""
    WITH RECURSIVE bare AS MATERIALIZED (
        SELECT s.id FROM {SCHEMA}.steps s
        WHERE s.run_id = :run_id AND NOT EXISTS (
            SELECT FROM {SCHEMA}.outputs o WHERE o.step_id = s.id AND o.deleted_at IS NULL)
    ), needed AS (
        SELECT b.id FROM bare b
        WHERE EXISTS (
            SELECT FROM {SCHEMA}.outputs o WHERE o.step_id = b.id AND (
                EXISTS (SELECT FROM {SCHEMA}.latest l WHERE l.output_id = o.id)
                OR EXISTS (SELECT FROM {SCHEMA}.rollbacks r WHERE r.output_id = o.id)
                OR EXISTS (SELECT FROM {SCHEMA}.rollbacks r WHERE r.replaced_id = o.id)
                OR EXISTS (SELECT FROM {SCHEMA}.check_results c WHERE c.output_id = o.id)))
        OR EXISTS (
            SELECT FROM {SCHEMA}.quarantine q WHERE q.step_id = b.id AND (
                q.deleted_at IS NULL
                OR EXISTS (SELECT FROM {SCHEMA}.check_results c WHERE c.quarantine_id = q.id)))
        OR EXISTS (
            SELECT FROM {SCHEMA}.edges e JOIN {SCHEMA}.steps d ON d.id = e.downstream
            WHERE e.upstream = b.id AND (d.run_id <> :run_id OR EXISTS (
                SELECT FROM {SCHEMA}.outputs o WHERE o.step_id = d.id AND o.deleted_at IS NULL)))
        OR EXISTS (SELECT FROM {SCHEMA}.steps r WHERE r.reuses = b.id)
        OR EXISTS (SELECT FROM {SCHEMA}.steps j WHERE j.joined_to = b.id)
        UNION
        SELECT e.upstream FROM needed
        JOIN {SCHEMA}.edges e ON e.downstream = needed.id AND NOT e.pinned
    )
    SELECT id FROM bare EXCEPT SELECT id FROM needed
    ORDER BY id DESC
    """
)

_OF_GATES = (
    f"gate_id IN (SELECT id FROM {SCHEMA}.gates WHERE step_id = ANY(CAST(:ids AS bigint[])))"
)

# In the order in which the foreign keys allow it. A gate replaces one of its own step alone.
_DELETE: Final = {
    "notifications": _OF_GATES,
    "votes": _OF_GATES,
    "gates": "step_id = ANY(CAST(:ids AS bigint[]))",
    "edges": "downstream = ANY(CAST(:ids AS bigint[]))",
    "lineage": "step_id = ANY(CAST(:ids AS bigint[]))",
    "attempts": "step_id = ANY(CAST(:ids AS bigint[]))",
    "quarantine": "step_id = ANY(CAST(:ids AS bigint[]))",
    "outputs": "step_id = ANY(CAST(:ids AS bigint[]))",
    "steps": "id = ANY(CAST(:ids AS bigint[]))",
}

_MARK = text(f"UPDATE {SCHEMA}.runs SET pruned_at = coalesce(pruned_at, now()) WHERE id = :run_id")

_DELETE_RUN = text(
    f"""
    DELETE FROM {SCHEMA}.runs r
    WHERE r.id = :run_id
      AND NOT EXISTS (SELECT FROM {SCHEMA}.steps s WHERE s.run_id = r.id)
      AND NOT EXISTS (SELECT FROM {SCHEMA}.runs o WHERE o.resumed_from = r.id)
    """
)

_DELETE_BACKFILL = text(
    f"""
    DELETE FROM {SCHEMA}.backfills b
    WHERE b.id = :backfill AND NOT EXISTS (SELECT FROM {SCHEMA}.runs r WHERE r.backfill = b.id)
    """
)


def forget_messages(conn: Connection, days: int, *, actor: str) -> int:
    """Empty messages and tracebacks of attempts that ended so long ago; return of how many."""
    emptied = conn.execute(_FORGET_MESSAGES, {"days": days, "batch": BATCH}).rowcount
    _record(conn, {"attempts": emptied}, "attempts.emptied", days, actor)
    return emptied


@dataclass(frozen=True)
class Window:
    """The check results up to the id `last` have been looked at, and `gone` of them deleted."""

    last: int | None
    """None where there is none left to look at."""
    gone: int


def forget_checks(conn: Connection, days: int, after: int, *, actor: str) -> Window:
    """Delete old results of checks of values that were given up, of the next ones `after` an id."""
    row = conn.execute(_FORGET_CHECKS, {"days": days, "after": after, "batch": BATCH}).one()
    _record(conn, {"check_results": row.gone}, "check_results.pruned", days, actor)
    return Window(row.last, row.gone)


def ended_runs(conn: Connection, days: int) -> list[UUID]:
    """Return the runs that ended so many days ago, the latest first."""
    return list(conn.scalars(_ENDED, {"days": days}))


def free_steps(conn: Connection, run_id: UUID) -> list[int]:
    """Return the steps of a run that nothing kept needs, each before what it reads."""
    return list(conn.scalars(_FREE, {"run_id": run_id}))


def delete_steps(conn: Connection, run_id: UUID, ids: Sequence[int], *, actor: str) -> Counts:
    """Delete steps of a run that are free, and the run if none is left; return what is gone.

    A backfill goes with the last of its runs.
    Raises LedgerRefused where one is needed by now. A run of which steps were deleted cannot
    be resumed: the lock keeps out whoever would at this moment.
    """
    try:
        run = runs.lock(conn, run_id)
    except UnknownRun:
        return {}  # Somebody else prunes.
    values = {"ids": list(ids)}
    gone = {
        table: conn.execute(text(f"DELETE FROM {SCHEMA}.{table} WHERE {which}"), values).rowcount
        for table, which in _DELETE.items()
        if ids
    }
    if gone.get("steps"):
        conn.execute(_MARK, {"run_id": run_id})
    gone["runs"] = conn.execute(_DELETE_RUN, {"run_id": run_id}).rowcount
    if gone["runs"] and run.backfill is not None:
        gone["backfills"] = conn.execute(_DELETE_BACKFILL, {"backfill": run.backfill}).rowcount
    if any(gone.values()):
        audit.record(
            conn,
            actor=actor,
            action="run.pruned",
            run_id=run_id,
            details={table: rows for table, rows in gone.items() if rows},
            before={"state": run.state},
            after={"state": None if gone["runs"] else run.state},
        )
    return gone


def _record(conn: Connection, gone: Counts, action: str, days: int, actor: str) -> None:
    if any(gone.values()):
        audit.record(conn, actor=actor, action=action, details={**gone, "days": days})
