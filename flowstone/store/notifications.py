"""What is to be told of gates: a row for each event, written with the change that it tells of.

Whoever tells takes a row for a while first, and holds no lock meanwhile; where they die, the next
one takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, text

from flowstone.store.tables import SCHEMA, notifications

TRIED_OFTEN = 3
"""The tries after which an operator should know of it."""

GIVEN_UP_HOURS = 24
"""For how long an operator is told of what was given up."""

_ALONE = text("SELECT pg_try_advisory_xact_lock(hashtext('flowstone.notify'))")

_TAKE = text(
    f"""
    UPDATE {SCHEMA}.notifications
    SET tries = tries + 1, due_at = now() + make_interval(secs => :lease)
    WHERE id = (
        SELECT id FROM {SCHEMA}.notifications WHERE done_at IS NULL AND due_at <= now()
        ORDER BY due_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, gate_id, event, tries, told
    """
)

_TOLD = text(f"UPDATE {SCHEMA}.notifications SET told = array_append(told, :name) WHERE id = :id")

# Who has taken it longer than the lease has lost it to somebody else.
_SETTLE = text(
    f"""
    UPDATE {SCHEMA}.notifications
    SET error = :error, tries = :counted,
        done_at = CASE WHEN CAST(:delay AS double precision) IS NULL THEN now() END,
        due_at = now() + make_interval(secs => coalesce(:delay, 0))
    WHERE id = :id AND tries = :tries AND done_at IS NULL
    """
)

_STUCK = text(
    f"""
    SELECT count(*) AS number, (array_agg(error ORDER BY id DESC))[1] AS error
    FROM {SCHEMA}.notifications
    WHERE error IS NOT NULL
      AND (done_at > now() - interval '{GIVEN_UP_HOURS} hours'
           OR done_at IS NULL AND tries > {TRIED_OFTEN})
    """
)


@dataclass(frozen=True)
class Notification:
    """What is to be told, as one who has taken it sees it."""

    id: int
    gate_id: int
    event: str
    tries: int
    """How often it was taken, this time included."""
    told: Sequence[str]
    """Who knows it already, by name."""


@dataclass(frozen=True)
class Stuck:
    """What is tried in vain, or was given up a short while ago."""

    number: int = 0
    error: str | None = None
    """Why, of the last one."""


def tell(conn: Connection, gate_id: int, event: str) -> None:
    """Have people told of an event of an approval; one of `gate_tables.EVENTS`."""
    conn.execute(insert(notifications).values(gate_id=gate_id, event=event))


def is_alone(conn: Connection) -> bool:
    """Return whether nobody else tells just now; until its end, this transaction is who does."""
    return bool(conn.scalar(_ALONE))


def take(conn: Connection, lease: float) -> Notification | None:
    """Take what is due first, so that nobody else does for `lease` seconds; None if nothing is."""
    row = conn.execute(_TAKE, {"lease": lease}).one_or_none()
    return None if row is None else Notification(**row._mapping)  # noqa: SLF001 - its public name


def told(conn: Connection, id: int, name: str) -> None:
    """Note that somebody was told, and is not told again."""
    conn.execute(_TOLD, {"id": id, "name": name})


def settle(
    conn: Connection,
    taken: Notification,
    *,
    error: str | None = None,
    delay: float | None = None,
    tries: int | None = None,
) -> None:
    """Give back what was taken: it is done, or is to be tried again in `delay` seconds.

    `tries` is how often it was tried, where that is less often than it was taken.
    """
    counted = taken.tries if tries is None else tries
    values = {"id": taken.id, "tries": taken.tries, "counted": counted}
    conn.execute(_SETTLE, {**values, "error": error, "delay": delay})


def stuck(conn: Connection) -> Stuck:
    """Return how much was tried in vain for several times, or given up within a day."""
    row = conn.execute(_STUCK).one()
    return Stuck(row.number, row.error)
