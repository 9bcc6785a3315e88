"""How the partitions of an asset stand, for thousands of them in one statement.

One statement sees one moment, so that a partition which is just being committed is either what
runs or what is there, and never missing. Each partition costs a few looks into indexes, however
long its history is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from flowstone.states import (
    FINAL_RUN_STATES,
    FINAL_STEP_STATES,
    PartitionState,
    StepState,
    sql_list,
)
from flowstone.store.tables import SCHEMA

BATCH: Final = 5_000
"""How many partitions are best asked about at once."""

_AWAITING: Final = "awaiting"

CUT_OTHERWISE: Final = "the partition is cut otherwise now"

# First whether what was read is still the latest, which one look tells for nearly all: a CASE keeps
# the order. Else the value counts, and not that there is another version of it. OFFSET 0 keeps
# PostgreSQL from reading all that there is of it, to look each of these up in that.
_READ_OTHERS: Final = f"""
    EXISTS (
        SELECT FROM {SCHEMA}.lineage l
        WHERE l.step_id = o.step_id AND CASE
            WHEN EXISTS (
                SELECT FROM {SCHEMA}.latest same WHERE same.output_id = l.upstream_output_id
                OFFSET 0)
            THEN false
            ELSE EXISTS (
                SELECT FROM {SCHEMA}.steps u
                JOIN {SCHEMA}.latest p ON p.asset = u.asset AND p.partition = u.partition
                JOIN {SCHEMA}.outputs n ON n.id = p.output_id
                WHERE u.id = l.upstream_step_id AND n.sha256 <> l.upstream_sha256
                OFFSET 0) END
        OFFSET 0)
"""

# Of what it was made without, and what is there by now. What it would read besides, because a set
# has grown, only a plan knows.
_READ_FEWER: Final = f"""
    EXISTS (
        SELECT FROM {SCHEMA}.edges e
        WHERE e.downstream = o.step_id AND e.optional
          AND NOT EXISTS (
            SELECT FROM {SCHEMA}.lineage l
            WHERE l.step_id = e.downstream AND l.upstream_step_id = e.upstream OFFSET 0)
          AND EXISTS (
            SELECT FROM {SCHEMA}.steps u
            JOIN {SCHEMA}.latest p ON p.asset = u.asset AND p.partition = u.partition
            WHERE u.id = e.upstream OFFSET 0)
        OFFSET 0)
"""

# The reasons are those of a plan, in its order.
_WHY_STALE: Final = f"""
    CASE WHEN o.id IS NULL THEN NULL
        WHEN o.stale_at IS NOT NULL THEN o.stale_reason
        WHEN o.cut <> coalesce(CAST(:cut AS text), '') THEN '{CUT_OTHERWISE}'
        WHEN o.fingerprint IS NULL THEN 'not known what it was made of'
        WHEN split_part(o.fingerprint, '.', 1) <> :code THEN 'code changed'
        WHEN {_READ_OTHERS} THEN 'input changed'
        WHEN {_READ_FEWER} THEN 'input changed' END
"""

_LAST_END: Final = f"""
    SELECT s.state FROM {SCHEMA}.steps s
    WHERE s.asset = :asset AND s.partition = a.partition AND s.finished_at IS NOT NULL
    ORDER BY s.finished_at DESC, s.id DESC LIMIT 1
"""

# What waits for what other runs are to make is told by that, of which there is little. What is
# open and what has failed is read from the first of these partitions to the last, as the
# indexes have them: there is little of the one, and the other is asked for in the open runs. It is
# compared as rows, so that only the index of runs answers: that of assets has all history.
STATEMENT: Final = f"""
    WITH asked AS MATERIALIZED (
        SELECT unnest(CAST(:keys AS text[])) AS partition
    ), bounds AS MATERIALIZED (
        SELECT min(partition) AS first, max(partition) AS last FROM asked
    ), failed AS MATERIALIZED (
        SELECT DISTINCT ON (s.partition) s.partition, s.finished_at
        FROM bounds JOIN {SCHEMA}.steps s ON s.asset = :asset
            AND s.partition BETWEEN bounds.first AND bounds.last
        WHERE s.state IN ('failed', 'upstream_failed')
        ORDER BY s.partition, s.finished_at DESC, s.id DESC
    ), waiting AS MATERIALIZED (
        SELECT e.downstream FROM {SCHEMA}.steps w
        JOIN {SCHEMA}.edges e ON e.upstream = w.id
        WHERE w.state = 'pending' AND w.awaits_until IS NOT NULL
    ), found AS (
        SELECT a.partition, {_WHY_STALE} AS why,
            CASE WHEN p.output_id IS NOT NULL THEN 'made' ELSE ({_LAST_END}) END AS what
        FROM asked a
        LEFT JOIN {SCHEMA}.latest p ON p.asset = :asset AND p.partition = a.partition
        LEFT JOIN {SCHEMA}.outputs o ON o.id = p.output_id
        UNION ALL
        SELECT f.partition, NULL, 'failed'
        FROM failed f
        LEFT JOIN {SCHEMA}.latest p ON p.asset = :asset AND p.partition = f.partition
        WHERE p.updated_at IS NULL OR p.updated_at < f.finished_at
        UNION ALL
        SELECT s.partition, NULL,
            CASE WHEN s.state = 'pending' AND s.id IN (SELECT downstream FROM waiting)
                THEN '{_AWAITING}' ELSE s.state END
        FROM bounds CROSS JOIN {SCHEMA}.runs r
        JOIN {SCHEMA}.steps s
            ON (s.run_id, s.asset, s.partition) >= (r.id, :asset, bounds.first)
            AND (s.run_id, s.asset, s.partition) <= (r.id, :asset, bounds.last)
        WHERE r.state NOT IN ({sql_list(FINAL_RUN_STATES)})
          AND s.state NOT IN ({sql_list(FINAL_STEP_STATES)}) AND s.awaits_until IS NULL
    )
    SELECT what, why, array_agg(partition) AS partitions FROM found GROUP BY what, why
"""
_STATEMENT = text(STATEMENT)

_PARTITIONS = text(
    f"SELECT partition FROM {SCHEMA}.latest WHERE asset = :asset ORDER BY partition"
).execution_options(yield_per=BATCH)

_AT_THE_ENDS = text(
    f"""
    (SELECT partition FROM {SCHEMA}.latest WHERE asset = :asset ORDER BY partition LIMIT :count)
    UNION
    (SELECT partition FROM {SCHEMA}.latest WHERE asset = :asset
    ORDER BY partition DESC LIMIT :count)
    ORDER BY partition
    """
)


@dataclass(frozen=True, slots=True)
class Stand:
    """How one partition stands."""

    state: PartitionState
    why: str | None = None
    """Why its output is stale."""


MISSING: Final = Stand(PartitionState.MISSING)
"""How a partition stands of which there is nothing."""

_STATES: Final = {
    "made": PartitionState.OK,
    StepState.SKIPPED: PartitionState.SKIPPED,
    StepState.FAILED: PartitionState.FAILED,
    StepState.PENDING: PartitionState.QUEUED,
    StepState.QUEUED: PartitionState.QUEUED,
    StepState.JOINED: PartitionState.QUEUED,
    _AWAITING: PartitionState.WAITING,
    StepState.WAITING_APPROVAL: PartitionState.WAITING,
    StepState.WAITING_SIGNAL: PartitionState.WAITING,
    StepState.RETRYING: PartitionState.RUNNING,
    StepState.RUNNING: PartitionState.RUNNING,
}
"""What is said of a partition by what was found of it; the last one that is, counts."""
_PLACES: Final = {what: place for place, what in enumerate(_STATES)}


def standing(
    conn: Connection, asset: str, keys: Sequence[str], code: str, cut: str | None
) -> dict[str, PartitionState]:
    """Return how each of these encoded keys stands, in their order.

    `code` is the asset's `code_hash`, and `cut` that of its partition set: an output of others
    is stale.
    """
    return {key: found.state for key, found in look(conn, asset, keys, code, cut).items()}


def look(
    conn: Connection, asset: str, keys: Sequence[str], code: str, cut: str | None
) -> dict[str, Stand]:
    """Return what `standing` does, and why."""
    if not keys:
        return {}
    found = dict.fromkeys(keys, MISSING)
    values = {"asset": asset, "keys": list(keys), "code": code, "cut": cut}
    rows = [row for row in conn.execute(_STATEMENT, values) if row.what in _STATES]
    for what, why, partitions in sorted(rows, key=lambda row: _PLACES[row.what]):
        stand = Stand(_STATES[what] if why is None else PartitionState.STALE, why)
        found.update((key, stand) for key in partitions if key in found)
    return found


def others(conn: Connection, asset: str, keys: Collection[str]) -> Iterator[str]:
    """Yield the encoded partitions that have an output and are none of these."""
    found = conn.scalars(_PARTITIONS, {"asset": asset})
    return (partition for partition in found if partition not in keys)


def at_the_ends(conn: Connection, asset: str, count: int) -> list[str]:
    """Return the first and the last partitions that have an output, so many each."""
    return list(conn.scalars(_AT_THE_ENDS, {"asset": asset, "count": count}))
