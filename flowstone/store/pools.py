"""Pools as operators see them: how many slots there are, who holds them, what waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.limits import RATE
from flowstone.store import audit
from flowstone.store.slots import each_group
from flowstone.store.tables import SCHEMA
from flowstone.store.waiting import TAKEN, WANTED

_STATUS = text(
    f"""
    WITH RECURSIVE {each_group()}, waiting AS (
        SELECT k.key, sum(n.steps) AS steps FROM groups g
        CROSS JOIN LATERAL (
            SELECT count(*) AS steps FROM {SCHEMA}.steps
            WHERE run_id = g.run_id AND takes = g.takes AND {WANTED}) n
        CROSS JOIN LATERAL jsonb_object_keys(g.takes) k(key)
        GROUP BY k.key
    ), held AS (
        SELECT t.key, sum(t.value::int) AS slots
        FROM (SELECT takes AS taken FROM {SCHEMA}.steps WHERE {TAKEN}) s
        CROSS JOIN LATERAL jsonb_each_text(s.taken) t
        GROUP BY t.key
    )
    SELECT p.name, p.declared, p.slots, p.actor, p.reason, p.updated_at,
        coalesce((SELECT slots FROM held WHERE held.key = p.name), 0) AS taken,
        coalesce((SELECT steps FROM waiting WHERE waiting.key = p.name), 0) AS waiting
    FROM {SCHEMA}.pools p WHERE NOT starts_with(p.name, '{RATE}') ORDER BY p.name
    """
)

_WAITS = text(
    f"""
    WITH RECURSIVE {each_group("run_id = :run_id")}
    SELECT k.key, sum(n.steps) AS steps, max(coalesce(p.slots, p.declared)) AS total, (
        SELECT coalesce(sum((takes->>k.key)::int), 0) FROM {SCHEMA}.steps WHERE {TAKEN}) AS taken
    FROM groups g
    CROSS JOIN LATERAL (
        SELECT count(*) AS steps FROM {SCHEMA}.steps
        WHERE run_id = g.run_id AND takes = g.takes AND {WANTED}) n
    CROSS JOIN LATERAL jsonb_object_keys(g.takes) k(key)
    LEFT JOIN {SCHEMA}.pools p ON p.name = k.key
    GROUP BY k.key ORDER BY k.key
    """
)

_SET = text(
    f"""
    INSERT INTO {SCHEMA}.pools AS p (name, slots, actor, reason)
    VALUES (:name, CAST(:slots AS int), :actor, CAST(:reason AS text))
    ON CONFLICT (name) DO UPDATE SET slots = excluded.slots, actor = excluded.actor,
        reason = excluded.reason, updated_at = now()
    """
)


@dataclass(frozen=True)
class PoolStatus:
    """How a pool stands, or the limit on the steps of an asset, which is named asset:NAME."""

    name: str
    slots: int
    taken: int
    """Slots that dispatched steps hold; more than there are, where these were made fewer."""
    waiting: int
    """Ready steps that wait for slots of it."""
    declared: int | None
    """How many slots it has unless an operator says otherwise."""
    actor: str | None
    """Who has set it, where somebody has."""
    reason: str | None
    updated_at: datetime


@dataclass(frozen=True)
class Wait:
    """Ready steps of a run that wait for slots."""

    key: str
    steps: int
    slots: int | None
    """How many there are; None where nobody has said."""
    taken: int


def status(conn: Connection) -> list[PoolStatus]:
    """Return all pools, and limits of assets, by name."""
    return [
        PoolStatus(
            name=row.name,
            slots=row.declared if row.slots is None else row.slots,
            taken=int(row.taken),
            waiting=int(row.waiting),
            declared=row.declared,
            actor=row.actor,
            reason=row.reason,
            updated_at=row.updated_at,
        )
        for row in conn.execute(_STATUS)
    ]


def waits(conn: Connection, run_id: UUID) -> Sequence[Wait]:
    """Return for what slots the ready steps of a run wait, if they do."""
    found = conn.execute(_WAITS, {"run_id": run_id})
    return [Wait(row.key, int(row.steps), row.total, int(row.taken)) for row in found]


def override(
    conn: Connection, name: str, slots: int | None, *, actor: str, reason: str | None
) -> None:
    """Give a pool so many slots, whatever the settings say; None goes back to those."""
    # Of two who set it at once, each tells what it has replaced.
    query = text(f"SELECT slots FROM {SCHEMA}.pools WHERE name = :name FOR UPDATE")
    before = conn.scalar(query, {"name": name})
    who = {"actor": actor if slots is not None else None, "reason": reason}
    conn.execute(_SET, {"name": name, "slots": slots, **who})
    audit.record(
        conn,
        actor=actor,
        action="pool.set" if slots is not None else "pool.reset",
        details={"pool": name},
        reason=reason,
        before={"slots": before},
        after={"slots": slots},
    )
