"""How the partitions of an asset stand, for thousands of them in one statement.

One statement sees one moment, so that a partition which is just being committed is either what
runs or what is there, and never missing. Each partition costs a few looks into indexes, however
long its history is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from flowstone.states import (
    FINAL_RUN_STATES,
    FINAL_STEP_STATES,
    WAITING_STEP_STATES,
    PartitionState,
    StepState,
    sql_list,
)
from flowstone.store.tables import SCHEMA

BATCH: Final = 5_000
"""How many partitions are best asked about at once."""

CUT_OTHERWISE: Final = "the partition is cut otherwise now"

# What has other inputs by now has read another value, and not just another version of the same.
_READ_OTHERS: Final = f"""
    EXISTS (
        SELECT FROM {SCHEMA}.lineage l
        JOIN {SCHEMA}.steps u ON u.id = l.upstream_step_id
        JOIN {SCHEMA}.latest newer ON newer.asset = u.asset AND newer.partition = u.partition
        JOIN {SCHEMA}.outputs n ON n.id = newer.output_id
        WHERE l.step_id = o.step_id AND newer.output_id <> l.upstream_output_id
          AND n.sha256 <> l.upstream_sha256)
"""

# The reasons are those of a plan, in its order.
_WHY_STALE: Final = f"""
    CASE WHEN o.stale_at IS NOT NULL THEN o.stale_reason
        WHEN o.cut <> coalesce(CAST(:cut AS text), '') THEN '{CUT_OTHERWISE}'
        WHEN o.fingerprint IS NULL THEN 'not known what it was made of'
        WHEN split_part(o.fingerprint, '.', 1) <> :code THEN 'code changed'
        WHEN {_READ_OTHERS} THEN 'input changed' END
"""

# What is open and what has failed is read from the first of these partitions to the last, as the
# indexes have them: there is little of the one, and the other is asked for over all open runs.
STATEMENT: Final = f"""
    WITH asked AS MATERIALIZED (
        SELECT unnest(CAST(:keys AS text[])) AS partition
    ), bounds AS MATERIALIZED (
        SELECT min(partition) AS first, max(partition) AS last FROM asked
    )
    SELECT a.partition, 'made' AS what, p.updated_at AS at, {_WHY_STALE} AS why
    FROM asked a
    JOIN {SCHEMA}.latest p ON p.asset = :asset AND p.partition = a.partition
    JOIN {SCHEMA}.outputs o ON o.id = p.output_id
    UNION ALL
    SELECT s.partition, s.state, NULL, NULL
    FROM bounds CROSS JOIN {SCHEMA}.runs r
    JOIN {SCHEMA}.steps s ON s.run_id = r.id AND s.asset = :asset
        AND s.partition BETWEEN bounds.first AND bounds.last
    WHERE r.state NOT IN ({sql_list(FINAL_RUN_STATES)})
      AND s.state NOT IN ({sql_list(FINAL_STEP_STATES)})
    UNION ALL
    (SELECT DISTINCT ON (s.partition) s.partition, 'failed', s.finished_at, NULL
    FROM bounds JOIN {SCHEMA}.steps s ON s.asset = :asset
        AND s.partition BETWEEN bounds.first AND bounds.last
    WHERE s.state IN ('failed', 'upstream_failed')
    ORDER BY s.partition, s.id DESC)
    UNION ALL
    SELECT a.partition, 'skipped', NULL, NULL
    FROM asked a
    WHERE NOT EXISTS (
        SELECT FROM {SCHEMA}.latest p WHERE p.asset = :asset AND p.partition = a.partition)
      AND (
        SELECT s.state FROM {SCHEMA}.steps s
        WHERE s.asset = :asset AND s.partition = a.partition AND s.finished_at IS NOT NULL
        ORDER BY s.finished_at DESC, s.id DESC LIMIT 1) = 'skipped'
"""
_STATEMENT = text(STATEMENT)

_PARTITIONS = text(
    f"SELECT partition FROM {SCHEMA}.latest WHERE asset = :asset ORDER BY partition"
).execution_options(yield_per=BATCH)


@dataclass(frozen=True, slots=True)
class Stand:
    """How one partition stands."""

    state: PartitionState
    why: str | None = None
    """Why its output is stale."""


@dataclass(slots=True)
class _Seen:
    """What was found of one partition."""

    open: PartitionState | None = None
    made_at: datetime | None = None
    why: str | None = None
    failed_at: datetime | None = None
    skipped: bool = False


_NOTHING: Final = Stand(PartitionState.MISSING)
_OK: Final = Stand(PartitionState.OK)
_OPEN: Final = {
    StepState.RUNNING.value: PartitionState.RUNNING,
    StepState.RETRYING.value: PartitionState.RUNNING,
    **dict.fromkeys((state.value for state in WAITING_STEP_STATES), PartitionState.WAITING),
}
"""What all other open steps are is queued."""
_FIRST: Final = (PartitionState.RUNNING, PartitionState.WAITING, PartitionState.QUEUED)
"""Where several runs are to compute a partition, the one that has come farthest says it."""


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
    seen: dict[str, _Seen] = {}
    values = {"asset": asset, "keys": list(keys), "code": code, "cut": cut}
    for partition, what, at, why in conn.execute(_STATEMENT, values):
        found = seen.setdefault(partition, _Seen())
        if what == "made":
            found.made_at, found.why = at, why
        elif what == "failed":
            found.failed_at = at
        elif what == "skipped":
            found.skipped = True
        else:
            found.open = min(
                _OPEN.get(what, PartitionState.QUEUED), found.open or _FIRST[-1], key=_FIRST.index
            )
    return {key: _stand(seen[key]) if key in seen else _NOTHING for key in keys}


def _stand(seen: _Seen) -> Stand:
    if seen.open is not None:
        return Stand(seen.open)
    if seen.failed_at is not None and (seen.made_at is None or seen.failed_at > seen.made_at):
        return Stand(PartitionState.FAILED)
    if seen.made_at is not None:
        return _OK if seen.why is None else Stand(PartitionState.STALE, seen.why)
    return Stand(PartitionState.SKIPPED) if seen.skipped else _NOTHING


def others(conn: Connection, asset: str, keys: Collection[str]) -> Iterator[str]:
    """Yield the encoded partitions that have an output and are none of these."""
    found = conn.scalars(_PARTITIONS, {"asset": asset})
    return (partition for partition in found if partition not in keys)
