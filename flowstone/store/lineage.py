"""Lineage as it is asked for: what an output was made of, and what was made of it.

The walks go from output to output: a step that reuses the output of another run leads to the
step that made it, and so to what that has read. Each passes an output once, whatever the number
of ways to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from flowstone.partition_key import Key, decode_key, encode_key, step_name
from flowstone.store.pointers import NOW, pointed_at
from flowstone.store.tables import SCHEMA
from flowstone.walk import depths

COUNTED: Final = 16
"""The deepest walk that counts its steps in the database; one beyond is cut off here."""


class Standing(StrEnum):
    """How what is affected by an asset x partition stands to it."""

    CURRENT = "current"
    """It was made of the values that are the latest on the way from there."""
    OUT_OF_DATE = "out of date"
    """What it was made of has a newer value by now, or is stale or out of date itself."""
    STALE = "stale"
    """It was declared stale."""


@dataclass(frozen=True)
class TracedOutput:
    """An output that a walk has found."""

    asset: str
    partition: Key
    output_id: int
    sha256: str
    step_id: int
    """The step that made it."""
    run_id: UUID
    requested_by: str
    """Who asked for the run that made it."""
    made_at: datetime
    depth: int
    """The least number of steps from the start."""
    via: tuple[int, ...]
    """The outputs that lead to it directly, by their ids."""
    is_latest: bool
    """Whether its asset x partition points at it."""
    stale: str | None
    """Why it counts as fresh no longer; None if it does."""
    is_deleted: bool
    """Whether its value was given up; the record stays."""

    @property
    def name(self) -> str:
        """What people call the asset x partition."""
        return step_name(self.asset, encode_key(self.partition))


@dataclass(frozen=True)
class Affected(TracedOutput):
    """The latest output of an asset x partition that depends on another one."""

    standing: Standing


# What leads from the output w, which is on the way already, to the next one.
_UPSTREAM: Final = f"""
    JOIN {SCHEMA}.outputs here ON here.id = w.id
    JOIN {SCHEMA}.lineage l ON l.step_id = here.step_id
    JOIN {SCHEMA}.outputs o ON o.id = l.upstream_output_id
"""
_DOWNSTREAM: Final = f"""
    JOIN {SCHEMA}.outputs here ON here.id = w.id
    JOIN {SCHEMA}.lineage l ON l.upstream_output_id = w.id
    JOIN {SCHEMA}.outputs o ON o.step_id = l.step_id AND o.created_at <= CAST(:at AS timestamptz)
"""
# Whatever has read any output of the same asset x partition, and is the latest of its own.
_IMPACT: Final = f"""
    JOIN {SCHEMA}.outputs here ON here.id = w.id
    JOIN {SCHEMA}.steps mine ON mine.id = here.step_id
    JOIN {SCHEMA}.steps version
        ON version.asset = mine.asset AND version.partition = mine.partition
    JOIN {SCHEMA}.outputs other ON other.step_id = version.id
    JOIN {SCHEMA}.lineage l ON l.upstream_output_id = other.id
    JOIN {SCHEMA}.outputs o ON o.step_id = l.step_id AND o.created_at <= CAST(:at AS timestamptz)
    JOIN {SCHEMA}.steps reader ON reader.id = o.step_id
    JOIN {SCHEMA}.latest p ON p.asset = reader.asset AND p.partition = reader.partition
        AND {pointed_at("p")} = o.id
"""


def _walk(onward: str) -> TextClause:
    """Return the statement that walks, and tells each output with what leads to it.

    Without a :depth all that is on the way has the same one, so that UNION lets an output
    pass once, be it on a circle. With one, it may pass once at each depth. What is joined
    then is found by index, row by row: no common table expression is joined to another one.
    """
    return text(
        f"""
        WITH RECURSIVE walk AS (
            SELECT CAST(:start AS bigint) AS id, 0 AS depth
            UNION
            SELECT o.id, CASE WHEN CAST(:depth AS integer) IS NULL THEN 0 ELSE w.depth + 1 END
            FROM walk w {onward}
            WHERE CAST(:depth AS integer) IS NULL OR w.depth < CAST(:depth AS integer)
        ), led AS (
            SELECT CAST(:start AS bigint) AS id, NULL::bigint AS via, false AS is_older
            UNION ALL
            SELECT o.id, w.id, l.upstream_sha256 <> here.sha256
            FROM (
                SELECT DISTINCT id FROM walk
                WHERE CAST(:depth AS integer) IS NULL OR depth < CAST(:depth AS integer)
            ) w {onward}
        )
        SELECT found.*, s.asset, s.partition, o.sha256, o.step_id, s.run_id, r.actor,
            o.created_at, coalesce({pointed_at("p")} = o.id, false) AS is_latest,
            CASE WHEN o.stale_at <= CAST(:at AS timestamptz) THEN o.stale_reason END AS stale,
            coalesce(o.deleted_at <= CAST(:at AS timestamptz), false) AS is_deleted
        FROM (
            SELECT id, array_remove(array_agg(DISTINCT via), NULL) AS via,
                bool_or(is_older) AS is_older
            FROM led GROUP BY id
        ) found
        JOIN {SCHEMA}.outputs o ON o.id = found.id
        JOIN {SCHEMA}.steps s ON s.id = o.step_id
        JOIN {SCHEMA}.runs r ON r.id = s.run_id
        LEFT JOIN {SCHEMA}.latest p ON p.asset = s.asset AND p.partition = s.partition
        ORDER BY s.asset, s.partition, o.id
        """
    )


_WALK_UPSTREAM = _walk(_UPSTREAM)
_WALK_DOWNSTREAM = _walk(_DOWNSTREAM)
_WALK_IMPACT = _walk(_IMPACT)


Found = Mapping[int, Row[*tuple[Any, ...]]]
"""The rows of a walk, by the ids of the outputs."""


def upstream(
    conn: Connection, start: int, depth: int | None, at: datetime | None
) -> list[TracedOutput]:
    """Return the output `start`, and all that it was made of, the nearest first."""
    return _traced(_run(conn, _WALK_UPSTREAM, start, depth, at), start, depth)


def downstream(
    conn: Connection, start: int, depth: int | None, at: datetime | None
) -> list[TracedOutput]:
    """Return the output `start`, and all that was made of it, the nearest first."""
    return _traced(_run(conn, _WALK_DOWNSTREAM, start, depth, at), start, depth)


def impact(conn: Connection, start: int, depth: int | None, at: datetime | None) -> list[Affected]:
    """Return `start`, which is the latest of its asset x partition, and what depends on that.

    That is the latest of each asset x partition that has read one of these, in this version
    or in another one. The nearest come first.
    """
    # How the near ones stand depends on far ones that they read, too.
    found = _run(conn, _WALK_IMPACT, start, None, at)
    behind = _behind(found)
    return [
        Affected(**vars(output), standing=_standing(output, behind))
        for output in _traced(found, start, depth)
    ]


def _run(
    conn: Connection, statement: TextClause, start: int, depth: int | None, at: datetime | None
) -> Found:
    counted = depth if depth is not None and depth <= COUNTED else None
    values = {"start": start, "depth": counted, "at": at or NOW}
    return {row.id: row for row in conn.execute(statement, values)}


def _traced(found: Found, start: int, depth: int | None) -> list[TracedOutput]:
    near = {
        one: steps
        for one, steps in depths([start], _onward(found)).items()
        if depth is None or steps <= depth
    }
    # Those at the same depth stay in the order of the rows.
    return [_output(found[one], near) for one in sorted(found.keys() & near, key=near.__getitem__)]


def _onward(found: Found) -> Callable[[int], Iterable[int]]:
    onward: dict[int, list[int]] = defaultdict(list)
    for row in found.values():
        for via in row.via:
            onward[via].append(row.id)
    return lambda one: onward.get(one, ())


def _output(row: Row[*tuple[Any, ...]], near: Mapping[int, int]) -> TracedOutput:
    return TracedOutput(
        asset=row.asset,
        partition=decode_key(row.partition),
        output_id=row.id,
        sha256=row.sha256,
        step_id=row.step_id,
        run_id=row.run_id,
        requested_by=row.actor,
        made_at=row.created_at,
        depth=near[row.id],
        via=tuple(one for one in row.via if one in near),
        is_latest=row.is_latest,
        stale=row.stale,
        is_deleted=row.is_deleted,
    )


def _behind(found: Found) -> AbstractSet[int]:
    """Return what was made, directly or through others, of what is not the latest, or is stale."""
    onward = _onward(found)
    older = [row.id for row in found.values() if row.is_older]
    of_stale = [reader for row in found.values() if row.stale for reader in onward(row.id)]
    return depths([*older, *of_stale], onward).keys()


def _standing(output: TracedOutput, behind: AbstractSet[int]) -> Standing:
    if output.stale is not None:
        return Standing.STALE
    return Standing.OUT_OF_DATE if output.output_id in behind else Standing.CURRENT
