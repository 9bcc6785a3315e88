"""Steps that wait for an output of another run, as a roll-up has a grace time; never dispatched.

Such a step is pending, and counts itself as what it waits for, so that it is never ready. Where the
output has come, the step is skipped, and stands for it; where the time is over, it is skipped
without. Its readers then go on as after any other end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.store import audit, found, steps
from flowstone.store.found import LOCKED_STEPS, Found
from flowstone.store.losses import Freed
from flowstone.store.tables import SCHEMA

BATCH: Final = 10_000
"""The most steps that one pass ends."""

_OF_RUN = text(
    f"""
    SELECT count(*) AS steps, max(awaits_until) AS until FROM {SCHEMA}.steps
    WHERE run_id = :run_id AND state = 'pending' AND awaits_until IS NOT NULL
    """
)

# An output whose value was given up serves nobody; the next one may.
_IS_OVER = f"""
    SELECT s.id, s.run_id, s.asset, s.partition, s.awaits_until, (
        SELECT o.step_id FROM {SCHEMA}.latest l JOIN {SCHEMA}.outputs o ON o.id = l.output_id
        WHERE l.asset = s.asset AND l.partition = s.partition AND o.deleted_at IS NULL
    ) AS made_by
    FROM {SCHEMA}.steps s
    WHERE s.state = 'pending' AND s.awaits_until IS NOT NULL
      AND (CAST(:run_id AS uuid) IS NULL OR s.run_id = :run_id)
      AND (s.awaits_until <= now() OR EXISTS (
        SELECT FROM {SCHEMA}.latest l JOIN {SCHEMA}.outputs o ON o.id = l.output_id
        WHERE l.asset = s.asset AND l.partition = s.partition AND o.deleted_at IS NULL))
    ORDER BY s.id LIMIT :batch
"""

# The collector deletes no value of which the row is locked so, or that a step refers to then.
_SKIP = text(
    f"""
    WITH over AS ({_IS_OVER}{LOCKED_STEPS}), held AS (
        SELECT o.step_id FROM {SCHEMA}.outputs o
        WHERE o.step_id IN (SELECT made_by FROM over) AND o.deleted_at IS NULL
        ORDER BY o.id FOR KEY SHARE
    ), ended AS (
        UPDATE {SCHEMA}.steps s
        SET state = 'skipped', reuses = held.step_id, open_deps = 0, finished_at = now(),
            reason = CASE WHEN held.step_id IS NULL THEN 'never came, and was waited for'
                ELSE 'was waited for, and came' END
        FROM over LEFT JOIN held ON held.step_id = over.made_by
        WHERE s.id = over.id AND (held.step_id IS NOT NULL OR over.awaits_until <= now())
        RETURNING s.id, s.run_id, s.asset, s.partition, s.reuses, s.reason
    ), recorded AS (
        {
        audit.recorded(
            "ended",
            "step.skipped",
            before="'pending'",
            after="'skipped'",
            reason="reason",
            details="'reuses', reuses",
        )
    }
    )
    SELECT id, run_id FROM ended ORDER BY id
    """
)


@dataclass(frozen=True)
class Awaited:
    """How many outputs of other runs a run waits for, and until when at the latest."""

    count: int
    until: datetime


def of_run(conn: Connection, run_id: UUID) -> Awaited | None:
    """Return what a run waits for, or None if that is nothing."""
    row = conn.execute(_OF_RUN, {"run_id": run_id}).one()
    return Awaited(row.steps, row.until) if row.steps else None


def find(conn: Connection) -> list[Found]:
    """Return the steps whose output has come, or whose time is over."""
    return found.steps(conn, _IS_OVER, batch=BATCH, run_id=None)


def end(conn: Connection, run_id: UUID | None = None, *, actor: str) -> list[Freed]:
    """End the steps, of one run or of all, whose output has come, or whose time is over."""
    values = {"batch": BATCH, "run_id": run_id, "actor": actor}
    ended = [Freed(row.id, row.run_id) for row in conn.execute(_SKIP, values)]
    steps.lower_readers(conn, [step.step_id for step in ended])
    return ended
