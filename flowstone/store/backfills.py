"""Backfills: what many partitions are computed by, and how fast, and when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, insert, text

from flowstone.errors import UnknownBackfill
from flowstone.hours import Hours
from flowstone.store.tables import SCHEMA, backfills

FEW: Final = 10
"""Of fewer steps that have ended, it is too early to say which part fails."""

# The latest of its runs is what it does now; the others are what that goes on with.
_SELECT = f"""
    SELECT b.*, r.id AS run_id FROM {SCHEMA}.backfills b
    CROSS JOIN LATERAL (
        SELECT id FROM {SCHEMA}.runs WHERE backfill = b.id ORDER BY created_at DESC LIMIT 1) r
"""
_ONE = text(f"{_SELECT} WHERE b.id = :id")
_RECENT = text(f"{_SELECT} ORDER BY b.id DESC LIMIT :limit")

_OF_RUN = text(
    f"SELECT stop_ratio, hours, zone, max_parallel FROM {SCHEMA}.backfills WHERE id = :id"
)

_ATTACH = text(f"UPDATE {SCHEMA}.runs SET backfill = :backfill WHERE id = :run_id")

_FAILED = text(
    f"""
    SELECT count(*) FROM {SCHEMA}.steps
    WHERE run_id = :run_id AND state = 'failed' AND finished_at >= :since
    """
)
# No more of them is looked at than decide it.
_ENDED = text(
    f"""
    SELECT count(*) FROM (
        SELECT FROM {SCHEMA}.steps
        WHERE run_id = :run_id AND state IN ('succeeded', 'failed') AND finished_at >= :since
        LIMIT :limit) few
    """
)


@dataclass(frozen=True)
class Backfill:
    """A row of the table backfills, and the run that it does now."""

    id: int
    run_id: UUID
    actor: str
    created_at: datetime
    max_parallel: int | None
    stop_ratio: float | None
    hours: Hours | None


@dataclass(frozen=True)
class Terms:
    """What the coordinator heeds in a run of a backfill."""

    stop_ratio: float | None
    hours: Hours | None
    is_narrow: bool
    """Whether the steps that are dispatched are counted, so that none may wait in a chain."""


def create(
    conn: Connection,
    run_id: UUID,
    *,
    max_parallel: int | None,
    stop_ratio: float | None,
    hours: Hours | None,
    actor: str,
) -> int:
    """Make a backfill of a run that was just recorded; return its id."""
    made = conn.scalar(
        insert(backfills)
        .values(
            actor=actor,
            max_parallel=max_parallel,
            stop_ratio=stop_ratio,
            hours=hours and f"{hours.start:%H:%M}-{hours.end:%H:%M}",
            zone=hours.zone if hours else "UTC",
        )
        .returning(backfills.c.id)
    )
    assert made is not None
    conn.execute(_ATTACH, {"run_id": run_id, "backfill": made})
    return int(made)


def get(conn: Connection, backfill_id: int) -> Backfill:
    """Return a backfill; raise UnknownBackfill."""
    row = conn.execute(_ONE, {"id": backfill_id}).one_or_none()
    if row is None:
        raise UnknownBackfill(
            f"there is no backfill {backfill_id}; `flowstone backfills list` lists the latest"
        )
    return _made(row)


def recent(conn: Connection, limit: int) -> list[Backfill]:
    """Return the latest backfills, the newest first."""
    return [_made(row) for row in conn.execute(_RECENT, {"limit": limit})]


def _made(row: Row[tuple[Any, ...]]) -> Backfill:
    return Backfill(
        id=row.id,
        run_id=row.run_id,
        actor=row.actor,
        created_at=row.created_at,
        max_parallel=row.max_parallel,
        stop_ratio=row.stop_ratio,
        hours=Hours.parse(row.hours, row.zone) if row.hours else None,
    )


def terms(conn: Connection, backfill_id: int) -> Terms:
    """Return what holds for the runs of a backfill."""
    row = conn.execute(_OF_RUN, {"id": backfill_id}).one()
    hours = Hours.parse(row.hours, row.zone) if row.hours else None
    return Terms(row.stop_ratio, hours, row.max_parallel is not None)


def too_many_failed(conn: Connection, run_id: UUID, ratio: float, since: datetime) -> int | None:
    """Return how many steps have failed since then if that is `ratio` of those that have ended."""
    values = {"run_id": run_id, "since": since}
    failed = int(conn.scalar(_FAILED, values) or 0)
    if not failed:
        return None
    enough = max(FEW, int(failed / ratio) + 1)
    ended = int(conn.scalar(_ENDED, {**values, "limit": enough}) or 0)
    return failed if ended >= FEW and failed >= ratio * ended else None
