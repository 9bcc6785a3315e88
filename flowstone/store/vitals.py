"""Whether things go on, as the ledger sees it: its clock, beat, the reconciler, what has waited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from flowstone.queues import CONTROL_QUEUE
from flowstone.store.tables import SCHEMA
from flowstone.store.waiting import GOES_ON, QUEUED

_WATCH: Final = text(
    f"""
    SELECT extract(epoch FROM clock_timestamp()) AS clock,
        extract(epoch FROM now() - w.ticked_at) AS ticked,
        extract(epoch FROM now() - w.passed_at) AS passed
    FROM (VALUES (1)) AS one LEFT JOIN {SCHEMA}.watch w ON true
    """
)

# Beat sends for the reconciler all the time, so where that does not come, its message waits.
_WAITS: Final = text(
    f"""
    SELECT s.queue, extract(epoch FROM now() - min(s.queued_at)) AS seconds
    FROM {SCHEMA}.runs r CROSS JOIN LATERAL ({QUEUED}) s
    WHERE {GOES_ON} GROUP BY s.queue
    UNION ALL
    SELECT '{CONTROL_QUEUE}', extract(epoch FROM now() - least(
        (SELECT min(created_at) FROM {SCHEMA}.runs
            WHERE driver = 'celery' AND state = 'requested'),
        (SELECT ticked_at FROM {SCHEMA}.watch)))
    """
)

_TICK: Final = text(
    f"""
    INSERT INTO {SCHEMA}.watch (one, ticked_at) VALUES (true, now())
    ON CONFLICT (one) DO UPDATE SET ticked_at = now()
    """
)


@dataclass(frozen=True)
class Vitals:
    """When what was done last; None is never."""

    clock: float
    """The clock of the ledger, in seconds since 1970."""
    ticked: float | None
    """The seconds since a message of beat's has arrived."""
    passed: float | None
    """The seconds since the reconciler has looked at everything."""


def vitals(conn: Connection) -> Vitals:
    """Return when beat and the reconciler were seen last."""
    row = conn.execute(_WATCH).one()
    return Vitals(float(row.clock), _seconds(row.ticked), _seconds(row.passed))


def tick(conn: Connection) -> None:
    """Note that a message of beat's has arrived."""
    conn.execute(_TICK)


def waits(conn: Connection) -> Mapping[str, float]:
    """Return by queue for how many seconds what has been there longest is under way.

    That it is still in the queue, only the broker can tell.
    """
    found = conn.execute(_WAITS)
    return {row.queue: float(row.seconds) for row in found if row.seconds is not None}


def _seconds(value: object) -> float | None:
    return None if value is None else float(str(value))
