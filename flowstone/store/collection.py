"""What the collector asks of the ledger, and what it records before it deletes a value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, text

from flowstone.collectable import Origin
from flowstone.outcome import StoredOutput
from flowstone.partition_key import step_name
from flowstone.states import FINAL_RUN_STATES, FINAL_STEP_STATES, sql_list
from flowstone.store.tables import SCHEMA

# An attempt that has not ended may still commit what it has staged. Of one that has, the ledger
# knows each value that is kept.
_UNREFERENCED = text(
    f"""
    SELECT n.location
    FROM unnest(CAST(:locations AS text[]), CAST(:steps AS bigint[]), CAST(:attempts AS int[]),
        CAST(:tokens AS text[])) AS n(location, step_id, number, token)
    JOIN {SCHEMA}.attempts a ON a.step_id = n.step_id AND a.number = n.number
    WHERE starts_with(a.token::text, n.token) AND a.outcome IS NOT NULL
      AND NOT EXISTS (SELECT FROM {SCHEMA}.outputs o
        WHERE o.io = :io AND o.location = n.location AND o.deleted_at IS NULL)
      AND NOT EXISTS (SELECT FROM {SCHEMA}.quarantine q
        WHERE q.io = :io AND q.location = n.location AND q.deleted_at IS NULL)
    """
)

# Not what a rollback points to, nor what a step that has not ended may read or stand for.
# Somebody who plans a run just now may have seen a version as the latest that is no longer, so
# those that are younger than `grace` replace nothing yet.
_SURPLUS = text(
    f"""
    WITH policy AS (
        SELECT * FROM unnest(CAST(:assets AS text[]), CAST(:keeps AS int[])) AS p(asset, keep)
    ), ranked AS (
        SELECT o.id, s.id AS step_id, coalesce(p.keep, CAST(:keep AS int)) AS keep,
            row_number() OVER (PARTITION BY s.asset, s.partition ORDER BY o.id DESC) AS place
        FROM {SCHEMA}.outputs o
        JOIN {SCHEMA}.steps s ON s.id = o.step_id
        LEFT JOIN policy p ON p.asset = s.asset
        WHERE o.deleted_at IS NULL AND o.created_at < now() - make_interval(secs => :grace)
          AND coalesce(p.keep, CAST(:keep AS int)) IS NOT NULL
    )
    SELECT r.id FROM ranked r
    WHERE r.place > r.keep
      AND NOT EXISTS (SELECT FROM {SCHEMA}.latest l WHERE l.output_id = r.id)
      AND NOT EXISTS (
        SELECT FROM {SCHEMA}.edges e JOIN {SCHEMA}.steps d ON d.id = e.downstream
        JOIN {SCHEMA}.runs u ON u.id = d.run_id
        WHERE e.upstream IN (
            SELECT r.step_id UNION ALL
            SELECT x.id FROM {SCHEMA}.steps x WHERE x.reuses = r.step_id)
          AND (d.state NOT IN ({sql_list(FINAL_STEP_STATES)})
            OR u.state NOT IN ({sql_list(FINAL_RUN_STATES)})))
    ORDER BY r.id
    """
)

# A joined step has no output of its own: what it read belongs to the output that it stands for.
_READERS = text(
    f"""
    SELECT l.upstream_output_id AS id, o.id AS reader
    FROM {SCHEMA}.lineage l
    JOIN {SCHEMA}.steps s ON s.id = l.step_id
    JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(s.reuses, s.id)
    WHERE l.upstream_output_id = ANY(CAST(:ids AS bigint[])) AND o.deleted_at IS NULL
    """
)

_VALUES = f"""
    SELECT o.*, s.id AS step, s.run_id, s.asset, s.partition
    FROM {SCHEMA}.%(table)s o JOIN {SCHEMA}.steps s ON s.id = o.step_id
"""
_VERSIONS = text(
    f"{_VALUES % {'table': 'outputs'}} WHERE o.id = ANY(CAST(:ids AS bigint[])) ORDER BY o.id"
)
_REFUSED = text(
    f"""
    {_VALUES % {"table": "quarantine"}}
    WHERE o.deleted_at IS NULL AND o.created_at < now() - make_interval(secs => :age)
    ORDER BY o.id
    """
)


def _give_up(table: str, action: str, condition: str) -> str:
    return f"""
    WITH gone AS (
        UPDATE {SCHEMA}.{table} o SET deleted_at = now()
        WHERE o.id = ANY(CAST(:ids AS bigint[])) AND o.deleted_at IS NULL {condition}
        RETURNING o.id, o.step_id, o.io, o.location
    ), recorded AS (
        INSERT INTO {SCHEMA}.audit (actor, action, run_id, step_id, details, reason, before, after)
        SELECT :actor, '{action}', s.run_id, s.id,
            jsonb_build_object('asset', s.asset, 'partition', s.partition, 'version', gone.id,
                'io', gone.io, 'location', gone.location),
            CAST(:reason AS text), '{{"deleted": false}}', '{{"deleted": true}}'
        FROM gone JOIN {SCHEMA}.steps s ON s.id = gone.step_id
    )
    SELECT id FROM gone
    """


_GIVE_UP = {
    # Somebody may have rolled back to it since it was looked up.
    "outputs": text(
        _give_up(
            "outputs",
            "output.deleted",
            f"AND NOT EXISTS (SELECT FROM {SCHEMA}.latest l WHERE l.output_id = o.id)",
        )
    ),
    "quarantine": text(_give_up("quarantine", "quarantine.deleted", "")),
}


@dataclass(frozen=True)
class Value:
    """A stored value that can be given up, and what it is a value of."""

    id: int
    name: str
    output: StoredOutput


def unreferenced(conn: Connection, io: str, locations: Sequence[str]) -> list[str]:
    """Return which of these locations of an IO manager no reader will ever be sent to.

    Whatever the attempts of this ledger have not staged is none of its business.
    """
    origins = [(at, origin) for at in locations if (origin := Origin.of(at)) is not None]
    values = {
        "io": io,
        "locations": [at for at, _ in origins],
        "steps": [origin.step_id for _, origin in origins],
        "attempts": [origin.attempt for _, origin in origins],
        "tokens": [origin.token for _, origin in origins],
    }
    return list(conn.scalars(_UNREFERENCED, values))


def surplus(
    conn: Connection, keep: Mapping[str, int], default: int | None, *, grace: float
) -> list[int]:
    """Return the versions beyond those that are kept of each asset x partition.

    `keep` says how many, by asset, and `default` for all others; None keeps all. Nothing that
    is younger than `grace` seconds is counted, or returned.
    """
    values = {"assets": list(keep), "keeps": list(keep.values()), "keep": default, "grace": grace}
    return list(conn.scalars(_SURPLUS, values))


def readers(conn: Connection, ids: Sequence[int]) -> Mapping[int, Sequence[int]]:
    """Return the versions, with a value, that were made of each of these."""
    found: dict[int, list[int]] = defaultdict(list)
    for row in conn.execute(_READERS, {"ids": list(ids)}):
        found[row.id].append(row.reader)
    return found


def versions(conn: Connection, ids: Sequence[int]) -> list[Value]:
    """Return these versions, in the order of their ids."""
    return [_value(row) for row in conn.execute(_VERSIONS, {"ids": list(ids)})]


def refused(conn: Connection, age: float) -> list[Value]:
    """Return the values that are in quarantine for longer than `age` seconds."""
    return [_value(row) for row in conn.execute(_REFUSED, {"age": age})]


def give_up(
    conn: Connection,
    table: Literal["outputs", "quarantine"],
    ids: Sequence[int],
    *,
    actor: str,
    reason: str,
) -> set[int]:
    """Record that values are given up; return those of which that is so from now on."""
    values = {"ids": sorted(ids), "actor": actor, "reason": reason}
    return set(conn.scalars(_GIVE_UP[table], values))


def _value(row: Row[*tuple[Any, ...]]) -> Value:
    output = StoredOutput(row.location, row.format, row.size, row.sha256, row.rows, row.io)
    return Value(row.id, step_name(row.asset, row.partition), output)
