"""Which output an asset x partition points at: now, at a time in the past, or in a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.errors import NeverMaterialized
from flowstone.partition_key import step_name
from flowstone.plan import Node
from flowstone.store.tables import SCHEMA

NOW: Final = "infinity"
"""The time of whoever asks how things stand, in place of one in the past."""


@dataclass(frozen=True)
class Start:
    """The output that a question is about, and the step that asked for it in the given run."""

    output_id: int
    asked_by: int | None = None
    """A step whose own output it is, or one that reuses it; None where no run was named."""


def pointed_at(pointer: str) -> str:
    """Return the SQL for what a row of the table latest, by its alias, pointed at, at :at.

    Where it has not been moved since, the row itself says it. Else it is the last success
    until then, or what the pointer was moved back to by hand, whichever came later.
    """
    return f"""
        CASE WHEN {pointer}.updated_at <= CAST(:at AS timestamptz) THEN {pointer}.output_id
        ELSE (
            SELECT moved.output_id FROM (
                SELECT o.id AS output_id, o.created_at AS at, 0 AS by_hand, o.id AS place
                FROM {SCHEMA}.steps s JOIN {SCHEMA}.outputs o ON o.step_id = s.id
                WHERE s.asset = {pointer}.asset AND s.partition = {pointer}.partition
                UNION ALL
                SELECT b.output_id, b.at, 1, b.id FROM {SCHEMA}.rollbacks b
                WHERE b.asset = {pointer}.asset AND b.partition = {pointer}.partition
            ) moved
            WHERE moved.at <= CAST(:at AS timestamptz)
            ORDER BY moved.at DESC, moved.by_hand DESC, moved.place DESC LIMIT 1
        ) END
    """


_AT = text(
    f"""
    SELECT {pointed_at("p")} FROM {SCHEMA}.latest p
    WHERE p.asset = :asset AND p.partition = :partition
    """
)

_FIRST = text(
    f"""
    SELECT min(o.created_at) FROM {SCHEMA}.steps s JOIN {SCHEMA}.outputs o ON o.step_id = s.id
    WHERE s.asset = :asset AND s.partition = :partition
    """
)

# A run that resumes another one goes on with what that has done.
_OF_RUN = text(
    f"""
    WITH RECURSIVE chain AS (
        SELECT id, resumed_from, 0 AS place FROM {SCHEMA}.runs WHERE id = :run_id
        UNION ALL
        SELECT r.id, r.resumed_from, chain.place + 1
        FROM chain JOIN {SCHEMA}.runs r ON r.id = chain.resumed_from
    )
    SELECT s.id, s.state, o.id AS output_id
    FROM chain
    JOIN {SCHEMA}.steps s
        ON s.run_id = chain.id AND s.asset = :asset AND s.partition = :partition
    LEFT JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(s.reuses, s.id)
    ORDER BY o.id IS NULL, chain.place LIMIT 1
    """
)


def latest(conn: Connection, node: Node, at: datetime | None = None) -> Start:
    """Return the output that an asset x partition points at, or has pointed at, at a time.

    Raises NeverMaterialized where there was none yet.
    """
    values = {"asset": node[0], "partition": node[1]}
    found = conn.scalar(_AT, {**values, "at": at or NOW})
    if found is not None:
        return Start(found)
    since = conn.scalar(_FIRST, values)
    raise NeverMaterialized(
        f"there was no output of {step_name(*node)} at {at} yet"
        + (f"; the first one was made at {since}" if since else "")
    )


def of_run(conn: Connection, node: Node, run_id: UUID) -> Start:
    """Return the output of an asset x partition in a run, or in one that it resumes.

    Raises NeverMaterialized where the run has none.
    """
    values = {"run_id": run_id, "asset": node[0], "partition": node[1]}
    row = conn.execute(_OF_RUN, values).one_or_none()
    if row is not None and row.output_id is not None:
        return Start(row.output_id, row.id)
    why = "is no step of it" if row is None else f"is {row.state} there"
    raise NeverMaterialized(f"run {run_id} has no output of {step_name(*node)}, which {why}")
