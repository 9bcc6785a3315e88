"""Slots: how many steps of a pool, of an asset or of a rate may be dispatched at once.

A step holds its slots while it is dispatched: its own row, with the lease of its attempt, is
what counts, so that nothing can leak. One that waits for slots waits in the ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.admission import Group, Slots, share_out
from flowstone.limits import is_rate
from flowstone.states import WORKING_RUN_STATES, StepState, in_state, sql_list
from flowstone.store import rates
from flowstone.store.dispatch import Follower
from flowstone.store.tables import SCHEMA
from flowstone.store.urgency import urgency
from flowstone.store.waiting import TAKEN, WANTED

MOST: Final = 1000
"""The most steps of a run that one look admits."""


def each_group(where: str = "true") -> str:
    """Return a common table expression `groups`: run_id, and each kind of slots it waits for.

    It goes from one pair to the next along the index, as the steps themselves may be many.
    """
    return f"""groups AS (
        (SELECT run_id, takes FROM {SCHEMA}.steps WHERE {where} AND {WANTED}
        ORDER BY run_id, takes LIMIT 1)
        UNION ALL
        SELECT n.run_id, n.takes FROM groups g CROSS JOIN LATERAL (
            SELECT run_id, takes FROM {SCHEMA}.steps
            WHERE {where} AND {WANTED} AND (run_id, takes) > (g.run_id, g.takes)
            ORDER BY run_id, takes LIMIT 1) n
    )"""


# Dispatchers of the same limit come one after the other.
_LOCK = text(
    f"""
    SELECT name FROM {SCHEMA}.pools WHERE name = ANY(CAST(:keys AS text[]))
    ORDER BY name FOR NO KEY UPDATE
    """
)

_MY_KEYS = text(
    f"""
    WITH RECURSIVE {each_group("run_id = :run_id")}
    SELECT DISTINCT jsonb_object_keys(takes) FROM groups
    """
)

# A run whose process is busy, or that has no room in its window, could not use what it got.
_WAITING = text(
    f"""
    WITH RECURSIVE {each_group()}, wanted AS (
        SELECT run_id, takes FROM groups
        WHERE CAST(:keys AS text[]) IS NULL OR takes ?| CAST(:keys AS text[])
    )
    SELECT g.run_id, g.takes, a.driver, a.level, a.created_at, a.room, (
        SELECT count(*) FROM (
            SELECT FROM {SCHEMA}.steps WHERE run_id = g.run_id AND takes = g.takes AND {WANTED}
            LIMIT :most) few) AS waiting
    FROM wanted g CROSS JOIN LATERAL (
        SELECT r.driver, {urgency("r")} AS level, r.created_at,
            CASE r.driver WHEN 'inline' THEN 1 ELSE r.max_in_flight END - (
                SELECT count(*) FROM {SCHEMA}.steps
                WHERE run_id = r.id AND state IN ('queued', 'running', 'retrying')
                  AND canvas IS NOT NULL) AS room
        FROM {SCHEMA}.runs r
        WHERE r.id = g.run_id AND r.state IN ({sql_list(WORKING_RUN_STATES)})
          AND r.cancel_requested_at IS NULL
          AND (r.opens_at IS NULL OR r.opens_at <= now())
          AND (r.driver <> 'inline' OR r.lease_until > now())
        OFFSET 0
    ) a
    WHERE a.room > 0
    ORDER BY a.created_at, g.run_id, g.takes
    """
)

_HELD = text(
    f"""
    SELECT s.run_id, t.key, sum(t.value::int) AS slots
    FROM {SCHEMA}.steps s CROSS JOIN LATERAL jsonb_each_text(s.takes) t
    WHERE {TAKEN}
    GROUP BY s.run_id, t.key
    """
)

_TOTAL = text(
    f"""
    SELECT name, declared, slots FROM {SCHEMA}.pools
    WHERE name = ANY(CAST(:keys AS text[])) AND coalesce(slots, declared) IS NOT NULL
    """
)

_FIRST = text(
    f"""
    SELECT id FROM {SCHEMA}.steps
    WHERE run_id = :run_id AND takes = CAST(:takes AS jsonb) AND {WANTED}
    ORDER BY place, id LIMIT :count
    """
)

# From what is dispatched, which the slots bound, to the same asset x partition in this run.
_FOLLOWERS = text(
    f"""
    SELECT s.id, s.asset, s.partition, o.id AS leader, o.run_id AS leading_run
    FROM (SELECT id, run_id, asset, partition FROM {SCHEMA}.steps WHERE {TAKEN}) o
    CROSS JOIN LATERAL (
        SELECT * FROM {SCHEMA}.steps
        WHERE run_id = :run_id AND asset = o.asset AND partition = o.partition OFFSET 0) s
    WHERE o.run_id <> :run_id AND {in_state("s.state", StepState.PENDING)} AND s.open_deps = 0
    ORDER BY s.id
    """
)

# In two, as ON CONFLICT DO UPDATE would lock each row, changed or not, and hold up all dispatchers.
_DECLARE = (
    text(
        f"""
        INSERT INTO {SCHEMA}.pools (name, declared)
        SELECT name, declared
        FROM unnest(CAST(:names AS text[]), CAST(:declared AS int[])) AS n(name, declared)
        ORDER BY name
        ON CONFLICT DO NOTHING
        """
    ),
    text(
        f"""
        WITH changed AS (
            SELECT p.name, n.declared
            FROM unnest(CAST(:names AS text[]), CAST(:declared AS int[])) AS n(name, declared)
            JOIN {SCHEMA}.pools p ON p.name = n.name
            WHERE p.declared IS DISTINCT FROM n.declared
            ORDER BY p.name FOR NO KEY UPDATE OF p
        )
        UPDATE {SCHEMA}.pools p SET declared = changed.declared, updated_at = now()
        FROM changed WHERE p.name = changed.name
        """
    ),
)


def declare(conn: Connection, declared: Mapping[str, int]) -> None:
    """Note how many slots there are by key, as the definitions and the settings say."""
    for statement in _DECLARE if declared else ():
        conn.execute(statement, {"names": list(declared), "declared": list(declared.values())})


def totals(
    conn: Connection, keys: Iterable[str], settings: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return how many slots there are, by key; absent where nobody has said.

    That is what an operator has set, else what the `settings` of the caller say, else what
    was declared last.
    """
    ours = settings or {}
    found = {row.name: row for row in conn.execute(_TOTAL, {"keys": list(keys)})}
    return {**ours} | {
        name: ours.get(name, row.declared) if row.slots is None else row.slots
        for name, row in found.items()
    }


@dataclass(frozen=True)
class Admitted:
    """What may be dispatched now of what waits for slots."""

    steps: Sequence[int] = ()
    """Steps of the run that has asked."""
    others: frozenset[UUID] = frozenset()
    """Other runs whose turn it is, and whose coordinators may not know."""


def admit(conn: Connection, run_id: UUID) -> Admitted:
    """Return the ready steps of a run for which there are slots, and keep others off these.

    The caller holds the lock on the run, and dispatches them in the same transaction.
    """
    keys = conn.scalars(_MY_KEYS, {"run_id": run_id}).all()
    if not keys:
        return Admitted()
    conn.execute(_LOCK, {"keys": list(keys)})
    # A new statement, which sees what those have dispatched that had the lock before.
    return _share(conn, keys, run_id)


def may_go_on(conn: Connection, keys: Iterable[str] | None = None) -> frozenset[UUID]:
    """Return the runs whose coordinator could dispatch steps that take slots of these keys.

    Without keys it is about all limits.
    """
    return _share(conn, None if keys is None else list(keys), None).others


def wanted_by(conn: Connection, run_id: UUID) -> Sequence[str]:
    """Return the keys of the limits for which ready steps of a run wait."""
    return conn.scalars(_MY_KEYS, {"run_id": run_id}).all()


def followers(conn: Connection, run_id: UUID) -> list[Follower]:
    """Return the waiting steps of a run that another one computes, so that they need no slot."""
    return [Follower(*row) for row in conn.execute(_FOLLOWERS, {"run_id": run_id})]


def _share(conn: Connection, keys: Sequence[str] | None, run_id: UUID | None) -> Admitted:
    found = conn.execute(_WAITING, {"keys": keys, "most": MOST}).all()
    if not found:
        return Admitted()
    groups = [Group(row.run_id, row.takes, row.waiting, row.level, row.created_at) for row in found]
    held = {(row.run_id, row.key): int(row.slots) for row in conn.execute(_HELD)}
    shares = share_out(groups, _slots(conn, groups, held), held, {r.run_id: r.room for r in found})
    going = [(group, count) for group, count in zip(groups, shares, strict=True) if count]
    mine = [
        step
        for group, count in going
        if group.run_id == run_id
        for step in _first(conn, group, count)
    ]
    # Whoever drives an inline run looks by itself.
    inline = {row.run_id for row in found if row.driver == "inline"}
    return Admitted(mine, frozenset(group.run_id for group, _ in going) - inline - {run_id})


def _slots(
    conn: Connection, groups: Iterable[Group], held: Mapping[tuple[UUID, str], int]
) -> dict[str, Slots]:
    taken: Counter[str] = Counter()
    for (_, key), count in held.items():
        taken[key] += count
    keys = {key for group in groups for key in group.takes}
    total = {**totals(conn, keys), **rates.room(conn, filter(is_rate, keys))}
    return {key: Slots(count, count - taken[key]) for key, count in total.items()}


def _first(conn: Connection, group: Group, count: int) -> Sequence[int]:
    takes = json.dumps(group.takes)
    return conn.scalars(_FIRST, {"run_id": group.run_id, "takes": takes, "count": count}).all()
