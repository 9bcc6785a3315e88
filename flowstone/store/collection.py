"""What the collector asks of the ledger, and what it records before it deletes a value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, TextClause, text

from flowstone.collectable import Origin
from flowstone.outcome import StoredOutput
from flowstone.partition_key import step_name
from flowstone.states import FINAL_RUN_STATES, FINAL_STEP_STATES, sql_list
from flowstone.store.tables import SCHEMA

# An attempt that has not ended may still commit what it has staged. Of one that has, the ledger
# knows each value that is kept; not by the name of the IO manager, for two may reach one place.
# What people are asked about becomes an output if they approve, and is shown to whoever goes on
# after they have rejected it.
_UNREFERENCED = text(
    f"""
    SELECT n.location
    FROM unnest(CAST(:locations AS text[]), CAST(:names AS text[]), CAST(:steps AS bigint[]),
        CAST(:attempts AS int[]), CAST(:tokens AS text[]))
        AS n(location, name, step_id, number, token)
    JOIN {SCHEMA}.attempts a ON a.step_id = n.step_id AND a.number = n.number
    WHERE starts_with(a.token::text, n.token) AND a.outcome IS NOT NULL
      AND NOT EXISTS (SELECT FROM {SCHEMA}.outputs o
        WHERE o.step_id = n.step_id AND o.erased_at IS NULL
          AND right(o.location, length(n.name)) = n.name)
      AND NOT EXISTS (SELECT FROM {SCHEMA}.quarantine q
        WHERE q.step_id = n.step_id AND q.erased_at IS NULL
          AND right(q.location, length(n.name)) = n.name)
      AND NOT EXISTS (SELECT FROM {SCHEMA}.gates g JOIN {SCHEMA}.steps w ON w.id = g.step_id
        WHERE g.step_id = n.step_id AND g.state NOT IN ('void', 'withdrawn')
          AND w.state NOT IN ({sql_list(FINAL_STEP_STATES)})
          AND right(g.location, length(n.name)) = n.name)
    """
)


def _is_read(output: str) -> str:
    """Return the condition that a run which has not ended may read an output, or stands for it."""
    open_reader = f"""
        JOIN {SCHEMA}.steps d ON d.id = e.downstream JOIN {SCHEMA}.runs u ON u.id = d.run_id
        WHERE (d.state NOT IN ({sql_list(FINAL_STEP_STATES)})
            OR u.state NOT IN ({sql_list(FINAL_RUN_STATES)}))
    """
    return f"""
        EXISTS (SELECT FROM {SCHEMA}.edges e {open_reader} AND e.upstream = {output}.step_id)
        OR EXISTS (SELECT FROM {SCHEMA}.steps x JOIN {SCHEMA}.edges e ON e.upstream = x.id
            {open_reader} AND x.reuses = {output}.step_id)
    """


# Not what a rollback points to, nor what a step that has not ended may read or stand for.
# Somebody who plans a run just now may have seen a version as the latest that is no longer, so
# those that are younger than `grace` replace nothing yet.
_SURPLUS = text(
    f"""
    WITH policy AS (
        SELECT * FROM unnest(CAST(:assets AS text[]), CAST(:keeps AS int[])) AS p(asset, keep)
    ), ranked AS (
        SELECT o.id, o.step_id, coalesce(p.keep, CAST(:keep AS int)) AS keep,
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
      AND NOT ({_is_read("r")})
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


# Whoever plans, resumes or rolls back to one of them holds it until that is written; what these
# have done is seen after waiting for them, and so asked about in a statement of its own.
_LOCK = {
    table: text(
        f"""
        SELECT id FROM {SCHEMA}.{table} WHERE id = ANY(CAST(:ids AS bigint[]))
        ORDER BY id FOR UPDATE
        """
    )
    for table in ("outputs", "quarantine")
}


def _give_up(table: str, action: str, condition: str) -> TextClause:
    return text(
        f"""
        WITH gone AS (
            UPDATE {SCHEMA}.{table} o SET deleted_at = now()
            WHERE o.id = ANY(CAST(:ids AS bigint[])) AND o.deleted_at IS NULL {condition}
            RETURNING o.id, o.step_id, o.io, o.location
        ), recorded AS (
            INSERT INTO {SCHEMA}.audit
                (actor, action, run_id, step_id, details, reason, before, after)
            SELECT :actor, '{action}', s.run_id, s.id,
                jsonb_build_object('asset', s.asset, 'partition', s.partition,
                    'version', gone.id, 'io', gone.io, 'location', gone.location),
                CAST(:reason AS text), '{{"deleted": false}}', '{{"deleted": true}}'
            FROM gone JOIN {SCHEMA}.steps s ON s.id = gone.step_id
        )
        SELECT id FROM gone
        """
    )


_GIVE_UP = {
    "outputs": _give_up(
        "outputs",
        "output.deleted",
        f"""AND NOT EXISTS (SELECT FROM {SCHEMA}.latest l WHERE l.output_id = o.id)
            AND NOT ({_is_read("o")})""",
    ),
    "quarantine": _give_up("quarantine", "quarantine.deleted", ""),
}

_TO_ERASE = {
    table: text(
        f"{_VALUES % {'table': table}} "
        "WHERE o.deleted_at IS NOT NULL AND o.erased_at IS NULL ORDER BY o.id"
    )
    for table in ("outputs", "quarantine")
}

_ERASED = {
    table: text(f"UPDATE {SCHEMA}.{table} SET erased_at = now() WHERE id = :id")
    for table in ("outputs", "quarantine")
}

Table = Literal["outputs", "quarantine"]


@dataclass(frozen=True)
class Value:
    """A stored value that can be given up, and what it is a value of."""

    id: int
    name: str
    output: StoredOutput


def unreferenced(conn: Connection, locations: Sequence[str]) -> list[str]:
    """Return which of these locations, of any IO manager, no reader will ever be sent to.

    Whatever the attempts of this ledger have not staged is none of its business.
    """
    origins = [(at, origin) for at in locations if (origin := Origin.of(at)) is not None]
    values = {
        "locations": [at for at, _ in origins],
        "names": [at.rpartition("/")[2] for at, _ in origins],
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
    conn: Connection, table: Table, ids: Sequence[int], *, actor: str, reason: str
) -> set[int]:
    """Record that values are given up; return those of which that is so from now on.

    What somebody needs by now stays.
    """
    values = {"ids": sorted(ids), "actor": actor, "reason": reason}
    conn.execute(_LOCK[table], {"ids": values["ids"]})
    return set(conn.scalars(_GIVE_UP[table], values))


def to_erase(conn: Connection, table: Table) -> list[Value]:
    """Return the values that are given up, and not known to be deleted."""
    return [_value(row) for row in conn.execute(_TO_ERASE[table])]


def erased(conn: Connection, table: Table, id: int) -> None:
    """Record that a value is deleted."""
    conn.execute(_ERASED[table], {"id": id})


def _value(row: Row[*tuple[Any, ...]]) -> Value:
    output = StoredOutput(row.location, row.format, row.size, row.sha256, row.rows, row.io)
    return Value(row.id, step_name(row.asset, row.partition), output)
