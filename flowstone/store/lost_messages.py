"""Messages that are lost: what was handed to a broker, and does not lie there any more.

The ledger knows what it has handed over, and only the broker what it still has. A second message
for a step is harmless: it names another canvas, and those of the first one claim nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

from flowstone.store import audit, dispatch, found
from flowstone.store.found import LOCKED_STEPS, Found
from flowstone.store.losses import Freed
from flowstone.store.tables import SCHEMA
from flowstone.store.waiting import GOES_ON

ACTOR = "reconciler"

BATCH = 500
"""The most steps that one pass sends again, as no queue holds their messages."""

LOSS_BATCH = 10_000
"""The most steps that one loss of all messages frees at once; more are found one by one."""

_MARK = text(f"SELECT broker_mark FROM {SCHEMA}.watch")

# Of several reconcilers that find the old mark missing, this lets one go on: the others wait for
# it here, and find another mark then.
_MARK_ANEW = text(
    f"""
    INSERT INTO {SCHEMA}.watch AS w (one, broker_mark) VALUES (true, :new)
    ON CONFLICT (one) DO UPDATE SET broker_mark = :new
        WHERE w.broker_mark IS NOT DISTINCT FROM CAST(:seen AS text)
    RETURNING one
    """
)

# What cannot start has no message, but goes with its canvas: what counts the header of a chord may
# be lost as well. The first condition is that of the index.
_HANDED_OVER = f"""
    WITH found AS (
        SELECT s.id FROM {SCHEMA}.runs r CROSS JOIN LATERAL (
            SELECT id FROM {SCHEMA}.steps
            WHERE run_id = r.id AND state IN ('queued', 'running', 'retrying')
              AND canvas IS NOT NULL AND state <> 'running') s
        WHERE {GOES_ON} LIMIT :batch
    )
    SELECT s.id, s.run_id, s.asset, s.partition, s.canvas, s.state, s.open_deps
    FROM {SCHEMA}.steps s JOIN found ON found.id = s.id
    WHERE s.state IN ('queued', 'retrying') AND s.canvas IS NOT NULL
    ORDER BY s.id
"""

_AS_MESSAGE = f"""
    SELECT * FROM ({_HANDED_OVER}) handed WHERE handed.state = 'retrying' OR handed.open_deps = 0
"""

# A short retry, and what waits for its rate, is a message that a worker keeps in its memory, and
# which no queue holds: it is lost only when its time is over. Nor is one that no worker consumes:
# a new message would not help.
_SILENT = """
    s.canvas IS NOT NULL AND s.open_deps = 0
    AND (s.state = 'queued' OR s.state = 'retrying')
    AND greatest(s.queued_at, s.retry_at, s.starts_at)
        < now() - make_interval(secs => :patience)
"""
_OVERDUE = f"""
    SELECT s.id, s.queue FROM {SCHEMA}.runs r CROSS JOIN LATERAL (
        SELECT * FROM {SCHEMA}.steps
        WHERE run_id = r.id AND state IN ('queued', 'running', 'retrying') AND canvas IS NOT NULL
    ) s
    WHERE {GOES_ON} AND {_SILENT}
      AND NOT EXISTS (SELECT FROM {SCHEMA}.unattended u WHERE u.queue = s.queue)
"""
_SUSPECTED = text(f"SELECT DISTINCT queue FROM ({_OVERDUE}) overdue ORDER BY queue")

_GONE = f"""
    WITH found AS (
        SELECT id FROM ({_OVERDUE}) overdue WHERE queue = ANY(CAST(:queues AS text[]))
        LIMIT :batch
    )
    SELECT s.id, s.run_id, s.asset, s.partition, s.canvas, s.state
    FROM {SCHEMA}.steps s JOIN found ON found.id = s.id
    WHERE {_SILENT}
    ORDER BY s.id
"""

_SEND_AGAIN = text(
    f"""
    WITH freed AS (
        UPDATE {SCHEMA}.steps
        SET state = 'pending', canvas = NULL, queued_at = NULL, retry_at = NULL, starts_at = NULL
        WHERE id = ANY(CAST(:ids AS bigint[]))
        RETURNING id, run_id, asset, partition
    )
    {audit.recorded("freed", "step.message_lost", before="CAST(:was AS text)", after="'pending'")}
    """
)

_PARK = text(
    f"""
    UPDATE {SCHEMA}.steps SET canvas = NULL, queued_at = NULL, starts_at = NULL
    WHERE id = ANY(CAST(:ids AS bigint[]))
    """
)


def mark(conn: Connection) -> str | None:
    """Return what the broker knows as long as it keeps messages; None before it was told."""
    found: str | None = conn.scalar(_MARK)
    return found


def mark_anew(conn: Connection, seen: str | None, new: str) -> bool:
    """Make `new` the mark unless somebody else has replaced the one that was `seen`."""
    return conn.scalar(_MARK_ANEW, {"seen": seen, "new": new}) is not None


def find_all_lost(conn: Connection) -> list[Found]:
    """Return the steps that wait as a message."""
    return found.steps(conn, _AS_MESSAGE, batch=LOSS_BATCH)


def all_lost(conn: Connection) -> list[Freed]:
    """Free all that waits as a message; what waits for its retry is parked, and keeps its time."""
    rows = conn.execute(text(_HANDED_OVER + LOCKED_STEPS), {"batch": LOSS_BATCH}).all()
    if not rows:
        return []
    sent = [row for row in rows if row.state == "retrying" or row.open_deps == 0]
    _send_again(conn, [row.id for row in sent if row.state == "queued"], was="queued")
    conn.execute(_PARK, {"ids": [row.id for row in sent if row.state == "retrying"]})
    dispatch.release(conn, {row.canvas for row in rows})
    return [Freed(row.id, row.run_id) for row in sent]


def suspected_queues(conn: Connection, patience: float) -> list[str]:
    """Return the queues in which messages lie, or should, since more than `patience` seconds.

    Of those that some worker consumes.
    """
    return list(conn.scalars(_SUSPECTED, {"patience": patience}))


def find_lost(conn: Connection, patience: float, empty: Iterable[str]) -> list[Found]:
    """Return the steps whose message should lie in one of these `empty` queues for so long."""
    return found.steps(conn, _GONE, patience=patience, queues=list(empty), batch=BATCH)


def lost(conn: Connection, patience: float, empty: Iterable[str]) -> list[Freed]:
    """Free the steps whose message should lie in one of these `empty` queues for so long."""
    values = {"patience": patience, "queues": list(empty), "batch": BATCH}
    rows = conn.execute(text(_GONE + LOCKED_STEPS), values).all()
    for was in ("queued", "retrying"):
        _send_again(conn, [row.id for row in rows if row.state == was], was=was)
    if rows:
        dispatch.release(conn, {row.canvas for row in rows})
    return [Freed(row.id, row.run_id) for row in rows]


def _send_again(conn: Connection, ids: list[int], *, was: str) -> None:
    if ids:
        conn.execute(_SEND_AGAIN, {"ids": ids, "was": was, "actor": ACTOR})
