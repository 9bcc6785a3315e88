"""The hours of backfills, as the clock passes them: what was dispatched waits for the next ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.hours import Hours
from flowstone.states import FINAL_RUN_STATES, RunState, sql_list
from flowstone.store import pausing
from flowstone.store.found import Found
from flowstone.store.tables import SCHEMA

BATCH: Final = 500
"""The most runs that one pass turns."""

_TIMED = text(
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

# Somebody else may have been here meanwhile, or be here at this moment.
_LOCK = text(
    f"""
    SELECT id FROM {SCHEMA}.runs
    WHERE id = :run_id AND opens_at IS NOT DISTINCT FROM CAST(:was AS timestamptz)
    FOR NO KEY UPDATE SKIP LOCKED
    """
)


@dataclass(frozen=True)
class Turned:
    """A run whose hours have begun, or are over; then `opens_at` is when they begin again."""

    run_id: UUID
    opens_at: datetime | None
    was: datetime | None


def find(conn: Connection) -> list[Found]:
    """Return the runs whose hours have begun, or are over, since somebody looked last."""
    turned = itertools.islice(_turned(conn), BATCH)
    return [Found(str(one.run_id), one.run_id) for one in turned]


def turn(conn: Connection) -> list[Turned]:
    """Let these runs be dispatched, or wait for their hours."""
    turned = []
    for one in itertools.islice(_turned(conn), BATCH):
        if conn.scalar(_LOCK, {"run_id": one.run_id, "was": one.was}) is not None:
            wait(conn, one.run_id, one.opens_at)
            turned.append(one)
    return turned


def _turned(conn: Connection) -> Iterator[Turned]:
    for row in conn.execute(_TIMED).all():
        opens_at = Hours.parse(row.hours, row.zone).opens_at(row.now)
        if opens_at != row.opens_at:
            yield Turned(row.id, opens_at, row.opens_at)


def wait(conn: Connection, run_id: UUID, opens_at: datetime | None) -> None:
    """Let nothing of a run start before `opens_at`; the caller holds the lock on it."""
    conn.execute(_OPEN_AT, {"run_id": run_id, "opens_at": opens_at})
    if opens_at is not None:
        pausing.take_back(conn, run_id)
