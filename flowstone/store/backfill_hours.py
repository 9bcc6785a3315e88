"""The hours of backfills, as the clock passes them: what was dispatched waits for the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.hours import Hours
from flowstone.states import FINAL_RUN_STATES, RunState, sql_list
from flowstone.store import pausing, runs
from flowstone.store.found import Found
from flowstone.store.tables import SCHEMA

_WITH_HOURS = text(
    f"""
    SELECT r.id, r.opens_at, b.hours, b.zone, now() AS now
    FROM {SCHEMA}.runs r JOIN {SCHEMA}.backfills b ON b.id = r.backfill
    WHERE r.state NOT IN ({sql_list(FINAL_RUN_STATES)})
      AND r.state NOT IN ('{RunState.REQUESTED}', '{RunState.PAUSED}')
      AND r.cancel_requested_at IS NULL AND b.hours IS NOT NULL
    ORDER BY r.id
    """
)

_OPEN_AT = text(f"UPDATE {SCHEMA}.runs SET opens_at = :opens_at WHERE id = :run_id")


@dataclass(frozen=True)
class Turn:
    """A run whose hours have begun, or are over; then `opens_at` is when they begin again."""

    run_id: UUID
    opens_at: datetime | None


def turns(conn: Connection) -> Iterator[Turn]:
    """Yield the runs whose hours have begun, or are over, since somebody looked last."""
    for row in conn.execute(_WITH_HOURS).all():
        opens_at = Hours.parse(row.hours, row.zone).opens_at(row.now)
        if opens_at != row.opens_at:
            yield Turn(row.id, opens_at)


def find(conn: Connection) -> list[Found]:
    """Return the runs that `turns` yields, as people name them."""
    return [Found(str(turn.run_id), turn.run_id) for turn in turns(conn)]


def turn(conn: Connection, change: Turn) -> bool:
    """Let a run be dispatched, or wait for its hours; return False if it goes on no more."""
    run = runs.lock(conn, change.run_id)
    if run.is_final or run.state == RunState.PAUSED or run.is_being_cancelled:
        return False
    wait(conn, change.run_id, change.opens_at)
    return True


def wait(conn: Connection, run_id: UUID, opens_at: datetime | None) -> None:
    """Let nothing of a run start before `opens_at`; the caller holds the lock on it."""
    conn.execute(_OPEN_AT, {"run_id": run_id, "opens_at": opens_at})
    if opens_at is not None:
        pausing.take_back(conn, run_id)
