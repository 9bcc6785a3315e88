"""The workers that are there, what they consume and do, and the queues that nobody consumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, delete, func, select, text

from flowstone.queues import CONTROL_QUEUE
from flowstone.store.found import Found
from flowstone.store.tables import SCHEMA, workers
from flowstone.store.waiting import GOES_ON, STARTABLE

BEAT_SECONDS: Final = 20.0
"""How often a worker reports itself."""

GONE_SECONDS: Final = 3 * BEAT_SECONDS
"""How long a worker may be silent before it counts as gone."""

IS_THERE: Final = f"seen_at > now() - interval '{GONE_SECONDS:g} seconds'"
"""The condition that a worker is there."""

# How long it has been up is all that is taken from its own clock. Who has no process free need
# not take a message; so that is like having taken one.
_REPORT = text(
    f"""
    INSERT INTO {SCHEMA}.workers AS w (name, queues, started_at, version, processes, busy, taken,
        taken_at, clock_ahead)
    VALUES (:name, CAST(:queues AS text[]), now() - make_interval(secs => :up), :version,
        :processes, :busy, :taken, now(),
        CAST(:clock AS double precision) - extract(epoch FROM clock_timestamp()))
    ON CONFLICT (name) DO UPDATE
    SET queues = excluded.queues, started_at = excluded.started_at, seen_at = now(),
        version = excluded.version, processes = excluded.processes, busy = excluded.busy,
        taken = excluded.taken, clock_ahead = excluded.clock_ahead,
        taken_at = CASE
            WHEN excluded.taken = w.taken AND excluded.busy < excluded.processes THEN w.taken_at
            ELSE now() END
    """
)

BATCH: Final = 500
"""The most workers that one pass forgets."""

_SILENT = f"SELECT name FROM {SCHEMA}.workers WHERE NOT ({IS_THERE}) ORDER BY name LIMIT :batch"
_GONE = text(
    f"""
    WITH silent AS ({_SILENT} FOR UPDATE SKIP LOCKED)
    DELETE FROM {SCHEMA}.workers w USING silent WHERE w.name = silent.name RETURNING w.name
    """
)


def is_attended(queue: str) -> str:
    """Return the condition that some worker consumes a queue, whose name is given in SQL."""
    return f"EXISTS (SELECT FROM {SCHEMA}.workers WHERE {queue} = ANY(queues) AND {IS_THERE})"


# A run that nobody has planned yet has no steps: what waits is its message to the coordinator.
_UNATTENDED = text(
    f"""
    SELECT queue, steps, 0 AS runs FROM (
        SELECT s.queue, count(*) AS steps
        FROM {SCHEMA}.runs r CROSS JOIN LATERAL ({STARTABLE}) s
        WHERE {GOES_ON} AND (CAST(:run_id AS uuid) IS NULL OR r.id = :run_id)
        GROUP BY s.queue) waiting
    WHERE NOT {is_attended("waiting.queue")}
    UNION ALL
    SELECT '{CONTROL_QUEUE}', 0, count(*) FROM {SCHEMA}.runs r
    WHERE r.driver = 'celery' AND r.state = 'requested'
      AND (CAST(:run_id AS uuid) IS NULL OR r.id = :run_id)
      AND NOT {is_attended(f"'{CONTROL_QUEUE}'")}
    HAVING count(*) > 0
    ORDER BY queue
    """
)


@dataclass(frozen=True)
class Work:
    """What a worker says of itself, besides its name and its queues."""

    version: str
    """The version of FlowStone that it runs."""
    processes: int
    """How many messages it can work on at once."""
    busy: int
    """How many it works on."""
    taken: int
    """How many it has begun to work on so far."""
    clock: float
    """Its own clock, in seconds since 1970."""


@dataclass(frozen=True)
class Worker:
    """A worker that has reported itself a moment ago; None is what it has not told."""

    name: str
    queues: tuple[str, ...]
    """What it consumes."""
    started_at: datetime
    silent: float
    """The seconds since it was seen last."""
    version: str | None = None
    """The version of FlowStone that it runs."""
    processes: int | None = None
    """How many messages it can work on at once."""
    busy: int | None = None
    """How many it works on."""
    idle: float = 0.0
    """The seconds, until it was seen last, in which it took nothing and had a process free."""
    clock_ahead: float | None = None
    """The seconds by which its clock is ahead of the ledger's, with what the way takes."""


@dataclass(frozen=True)
class Unattended:
    """A queue that no worker consumes, and what waits in it."""

    queue: str
    steps: int
    """Steps that could start."""
    runs: int = 0
    """Runs that wait for a coordinator."""

    def __str__(self) -> str:
        what = _count(self.steps, "step") if self.steps else _count(self.runs, "run")
        return (
            f"{what} in the queue {self.queue!r}, which no worker consumes; "
            f"start one: celery -A tasks worker -Q {self.queue}"
        )


def _count(number: int, what: str) -> str:
    return f"1 {what} waits" if number == 1 else f"{number} {what}s wait"


def report(
    conn: Connection, name: str, queues: Sequence[str], *, up: float, work: Work | None = None
) -> None:
    """Note that a worker is there, has been for `up` seconds, and consumes these queues."""
    said = dict.fromkeys(("version", "processes", "busy", "taken", "clock"))
    conn.execute(
        _REPORT,
        {"name": name, "queues": list(queues), "up": up, **(asdict(work) if work else said)},
    )


def remove(conn: Connection, name: str) -> None:
    """Note that a worker takes no more messages."""
    conn.execute(delete(workers).where(workers.c.name == name))


def find_gone(conn: Connection) -> list[Found]:
    """Return the workers that are silent."""
    return [Found(name) for name in conn.scalars(text(_SILENT), {"batch": BATCH})]


def gone(conn: Connection) -> list[str]:
    """Forget the workers that are silent, and return their names."""
    return list(conn.scalars(_GONE, {"batch": BATCH}))


def listed(conn: Connection) -> list[Worker]:
    """Return the workers that are there, by name."""
    silent = func.extract("epoch", func.now() - workers.c.seen_at).label("silent")
    # It may be there again, with the row of the one before.
    since = func.greatest(workers.c.taken_at, workers.c.started_at)
    idle = func.extract("epoch", workers.c.seen_at - since).label("idle")
    query = select(workers, silent, idle).where(text(IS_THERE)).order_by(workers.c.name)
    return [
        Worker(
            name=row.name,
            queues=tuple(row.queues),
            started_at=row.started_at,
            silent=float(row.silent),
            version=row.version,
            processes=row.processes,
            busy=row.busy,
            idle=float(row.idle),
            clock_ahead=row.clock_ahead,
        )
        for row in conn.execute(query)
    ]


def unattended(conn: Connection, run_id: UUID | None = None) -> list[Unattended]:
    """Return the queues that no worker consumes, and in which something of a run waits.

    Without a `run_id` it is about all runs.
    """
    found = conn.execute(_UNATTENDED, {"run_id": run_id})
    return [Unattended(row.queue, row.steps, row.runs) for row in found]
