"""Queues that no worker consumes: since when, and the end of the steps that wait in them.

The reconciler notes since when, so only time counts in which it has looked: where nothing ran at
all, be it for days, the workers that come back first fail nothing that waits for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.partition_key import step_name
from flowstone.store import dispatch, failing, found
from flowstone.store.failing import Reason
from flowstone.store.found import LOCKED_STEPS, Found
from flowstone.store.tables import SCHEMA
from flowstone.store.waiting import GOES_ON, QUEUED, STARTABLE
from flowstone.store.workers import GONE_SECONDS, Unattended, is_attended

ACTOR = "reconciler"

BATCH = 500
"""The most steps that one pass fails."""

_WAITING = text(
    f"""
    SELECT queue, steps FROM (
        SELECT s.queue, count(*) AS steps
        FROM {SCHEMA}.runs r CROSS JOIN LATERAL ({QUEUED}) s WHERE {GOES_ON}
        GROUP BY s.queue) waiting
    WHERE NOT {is_attended("waiting.queue")} ORDER BY queue
    """
)

_FORGET = text(f"DELETE FROM {SCHEMA}.unattended WHERE NOT queue = ANY(CAST(:queues AS text[]))")

# After a time in which nobody has looked, the count begins anew.
_NOTE = text(
    f"""
    INSERT INTO {SCHEMA}.unattended AS u (queue)
    SELECT unnest(CAST(:queues AS text[]))
    ON CONFLICT (queue) DO UPDATE SET seen_at = now(), since = CASE
        WHEN u.seen_at > now() - interval '{GONE_SECONDS:g} seconds' THEN u.since
        ELSE now() END
    RETURNING queue, xmax = 0 AS is_new
    """
)

# Where one step of a run has waited for long enough, so has the run for that queue: what the
# window has kept back of it would only wait as long again. Those come first, as the others show
# that the time is over, should there be more than one pass can do.
_LATE = f"""
    WITH late AS (
        SELECT r.id, u.queue FROM {SCHEMA}.unattended u CROSS JOIN {SCHEMA}.runs r
        WHERE {GOES_ON} AND u.since <= now() - make_interval(secs => :timeout)
          AND EXISTS (
            SELECT FROM ({QUEUED}) s
            WHERE s.queue = u.queue AND s.queued_at <= now() - make_interval(secs => :timeout))
    ), found AS (
        SELECT s.id FROM late r CROSS JOIN LATERAL ({STARTABLE}) s
        WHERE s.queue = r.queue
        ORDER BY s.state = 'queued', s.id LIMIT :batch
    )
    SELECT s.id, s.run_id, s.asset, s.partition, s.queue, s.canvas
    FROM {SCHEMA}.steps s JOIN found ON found.id = s.id
    WHERE s.state IN ('pending', 'queued') AND s.open_deps = 0
    ORDER BY s.id
"""

_TAKE_BACK = text(
    f"""
    UPDATE {SCHEMA}.steps SET state = 'pending', canvas = NULL, queued_at = NULL
    WHERE id = ANY(CAST(:ids AS bigint[])) AND state = 'queued'
    """
)


@dataclass(frozen=True)
class TimedOut:
    """A step that has failed, as no worker has consumed its queue."""

    step_id: int
    run_id: UUID


def note(conn: Connection) -> list[Unattended]:
    """Note which queues hold steps that could start, and are consumed by no worker.

    Returns those of which it was not known yet.
    """
    waiting = [Unattended(row.queue, row.steps) for row in conn.execute(_WAITING)]
    queues = {"queues": [one.queue for one in waiting]}
    conn.execute(_FORGET, queues)
    noted = conn.execute(_NOTE, queues)
    new = {row.queue for row in noted if row.is_new}
    return [one for one in waiting if one.queue in new]


def find(conn: Connection, timeout: float) -> list[Found]:
    """Return the steps that wait since `timeout` seconds for a worker of their queue."""
    return found.steps(conn, _LATE, timeout=timeout, batch=BATCH)


def time_out(conn: Connection, timeout: float) -> list[TimedOut]:
    """Fail the steps that wait since `timeout` seconds for a worker of their queue."""
    late = conn.execute(text(_LATE + LOCKED_STEPS), {"timeout": timeout, "batch": BATCH}).all()
    if not late:
        return []
    # So that their messages, should a worker ever see them, claim nothing.
    conn.execute(_TAKE_BACK, {"ids": [row.id for row in late]})
    dispatch.release(conn, {row.canvas for row in late if row.canvas is not None})
    for row in late:
        said = (
            f"no worker has consumed the queue {row.queue!r} for {timeout:g} s; start one, "
            f"celery -A tasks worker -Q {row.queue}, and resume the run"
        )
        name = step_name(row.asset, row.partition)
        failing.fail_pending(
            conn, row.id, name, row.run_id, Reason("queue_timeout", said), actor=ACTOR
        )
    return [TimedOut(row.id, row.run_id) for row in late]
