"""Rates: one token bucket by key, shared by all workers, and the starts that it has promised.

Whoever starts holds the lock on the bucket until its claim is committed, and the claim bears the
time of the same transaction. So the starts that the ledger has of a key keep to its rate, whatever
the queue did; a promise only spaces out those who wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone import bucket
from flowstone.bucket import MOST, Bucket, Leaves, Starts, Turn, Waits
from flowstone.limits import Rate
from flowstone.states import StepState, in_state
from flowstone.store import dispatch
from flowstone.store.prepared import Prepared
from flowstone.store.tables import SCHEMA
from flowstone.store.waiting import TAKEN, WANTED

_S = StepState

MAX_PAUSE: Final = 365 * 86_400.0
"""The most seconds for which a server may pause a key."""


def _seconds(column: str) -> str:
    """Return SQL for how far a time lies ahead; one of long ago is that of a full bucket."""
    return f"""CAST(extract(epoch FROM
        greatest({column}, now() - interval '100 years') - now()) AS double precision)"""


_BUCKET = f"""r.seconds, r.burst,
    {_seconds("r.next_at")} AS next_at, {_seconds("r.free_at")} AS free_at"""

# The row of the pool is the lock of those who dispatch: that of the bucket is for those who start.
_DECLARE = (
    text(
        f"""
        INSERT INTO {SCHEMA}.pools (name) SELECT unnest(CAST(:keys AS text[])) ORDER BY 1
        ON CONFLICT DO NOTHING
        """
    ),
    text(
        f"""
        INSERT INTO {SCHEMA}.rates (key, seconds, burst)
        SELECT * FROM unnest(
            CAST(:keys AS text[]), CAST(:seconds AS double precision[]), CAST(:bursts AS int[]))
        ORDER BY 1
        ON CONFLICT DO NOTHING
        """
    ),
    # Not by the statement above, which would lock each row, and hold up those who start.
    text(
        f"""
        WITH changed AS (
            SELECT r.key, n.seconds, n.burst
            FROM unnest(
                CAST(:keys AS text[]), CAST(:seconds AS double precision[]),
                CAST(:bursts AS int[])) AS n(key, seconds, burst)
            JOIN {SCHEMA}.rates r ON r.key = n.key
            WHERE (r.seconds, r.burst) IS DISTINCT FROM (n.seconds, n.burst)
            ORDER BY r.key FOR NO KEY UPDATE OF r
        )
        UPDATE {SCHEMA}.rates r SET seconds = changed.seconds, burst = changed.burst
        FROM changed WHERE r.key = changed.key
        """
    ),
)

# A process that is stopped, or cut off, between this and its commit must not hold up all others.
_LOCK = Prepared(
    f"""
    SELECT {_BUCKET}
    FROM {SCHEMA}.rates r
    CROSS JOIN set_config('idle_in_transaction_session_timeout', '10s', true)
    WHERE r.key = :key FOR NO KEY UPDATE OF r
    """
)

_CLAIMABLE = f"""
    id = :step_id AND canvas = :canvas AND open_deps = 0
    AND ({in_state("state", _S.QUEUED)}
        OR {in_state("state", _S.RETRYING)} AND retry_at <= now() + interval '1 second')
"""

_PROMISED = Prepared(
    f"""
    SELECT CAST(extract(epoch FROM starts_at - now()) AS double precision) AS promised
    FROM {SCHEMA}.steps WHERE {_CLAIMABLE} FOR NO KEY UPDATE
    """
)

_MOVE = Prepared(
    f"""
    WITH moved AS (
        UPDATE {SCHEMA}.rates
        SET next_at = now() + make_interval(secs => :next_at),
            free_at = now() + make_interval(secs => :free_at)
        WHERE key = :key
    )
    UPDATE {SCHEMA}.steps
    SET starts_at = now() + make_interval(secs => CAST(:promised AS double precision))
    WHERE id = :step_id
    RETURNING id
    """
)

_LEAVE = text(
    f"""
    UPDATE {SCHEMA}.steps
    SET state = 'pending', canvas = NULL, queued_at = NULL, retry_at = NULL, starts_at = NULL
    WHERE {_CLAIMABLE}
    RETURNING run_id, takes
    """
)

_PAUSE = text(
    f"""
    UPDATE {SCHEMA}.rates r
    SET next_at = greatest(r.next_at, now() + make_interval(secs => :seconds)),
        free_at = greatest(r.free_at, now() + make_interval(secs => :seconds))
    FROM {SCHEMA}.steps s WHERE s.id = :step_id AND s.takes ? r.key
    """
)

# Those that have started, and those that have been promised a start, want no other.
_ROOM = text(
    f"""
    SELECT r.key, {_BUCKET}, (
        SELECT count(*) FROM {SCHEMA}.steps s
        WHERE {TAKEN} AND takes ? r.key
          AND (state = 'running' OR starts_at > now())) AS served
    FROM {SCHEMA}.rates r WHERE r.key = ANY(CAST(:keys AS text[]))
    """
)

_ALL = text(
    f"""
    SELECT r.key, {_BUCKET}, (
        SELECT count(*) FROM {SCHEMA}.steps s
        WHERE {TAKEN} AND takes ? r.key AND state <> 'running'
    ) + (
        SELECT count(*) FROM {SCHEMA}.steps s
        WHERE {WANTED} AND takes ? r.key
    ) AS waiting
    FROM {SCHEMA}.rates r ORDER BY r.key
    """
)


@dataclass(frozen=True)
class Left:
    """A step that has left its canvas."""

    run_id: UUID
    keys: frozenset[str]
    """The keys of the limits whose slots it has given back."""
    wait: float
    """The seconds until it is its turn."""


@dataclass(frozen=True)
class Standing:
    """How a rate stands."""

    key: str
    """That of the limit."""
    bucket: Bucket
    waiting: int
    """The steps that could start if the rate let them."""


def declare(conn: Connection, rates: Mapping[str, Rate]) -> None:
    """Note the rates by the keys of their limits; what has been taken stays so."""
    if not rates:
        return
    values = {
        "keys": list(rates),
        "seconds": [rate.interval for rate in rates.values()],
        "bursts": [rate.burst for rate in rates.values()],
    }
    for statement in _DECLARE:
        conn.execute(statement, values)


def turn(conn: Connection, step_id: int, canvas: UUID, key: str, *, patience: float) -> Turn | None:
    """Take a token for a step that could be claimed, or promise it a start.

    None is for one that cannot be claimed. Where the step `Starts`, the caller claims it in the
    same transaction; where it `Leaves`, nothing is written.
    """
    row = _LOCK.first(conn, {"key": key})
    step = _PROMISED.first(conn, {"step_id": step_id, "canvas": canvas})
    if step is None:
        return None
    if row is None:
        # Somebody has deleted it: the step must not wait for ever.
        return Starts(Bucket(1, 1))
    decided = bucket.turn(_bucket(row), step.promised, patience)
    if isinstance(decided, Leaves):
        return decided
    values = {
        "key": key,
        "next_at": decided.bucket.next_at,
        "free_at": decided.bucket.free_at,
        "promised": decided.promised if isinstance(decided, Waits) else None,
        "step_id": step_id,
    }
    _MOVE.first(conn, values)
    return decided


def leave(conn: Connection, step_id: int, canvas: UUID, wait: float) -> Left:
    """Take a step out of its canvas to `wait` in the ledger, and free the rest of the canvas.

    That is for a step which `turn` has just looked at, in the same transaction.
    """
    row = conn.execute(_LEAVE, {"step_id": step_id, "canvas": canvas}).one()
    dispatch.release(conn, [canvas])
    return Left(row.run_id, frozenset(row.takes), wait)


def pause(conn: Connection, step_id: int, seconds: float) -> None:
    """Let nothing start for so long that shares the rate of a step, if it has one."""
    conn.execute(_PAUSE, {"step_id": step_id, "seconds": min(max(seconds, 0), MAX_PAUSE)})


def room(conn: Connection, keys: Iterable[str]) -> dict[str, int]:
    """Return how many steps may be dispatched at once, by the key of the limit.

    That is what can start within the next seconds, and what no longer waits for its start.
    """
    wanted = list(keys)
    found = {
        row.key: row.served + bucket.may_be_dispatched(_bucket(row))
        for row in conn.execute(_ROOM, {"keys": wanted})
    }
    return dict.fromkeys(wanted, MOST) | found


def standings(conn: Connection) -> Sequence[Standing]:
    """Return how all rates stand, by their keys."""
    return [Standing(row.key, _bucket(row), row.waiting) for row in conn.execute(_ALL)]


def _bucket(row: Any) -> Bucket:  # noqa: ANN401 - a row of either driver
    return Bucket(row.seconds, row.burst, row.next_at, row.free_at)
