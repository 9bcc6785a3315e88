"""What checks have said: of an output, or of a value in quarantine, never of an asset at large."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from flowstone.check import Checked
from flowstone.outcome import RefusedValue
from flowstone.plan import Node
from flowstone.store.pointers import NOW
from flowstone.store.tables import SCHEMA

CHECKED: Final = (
    "jsonb_to_recordset(CAST(:checks AS jsonb)) AS c(name text, passed boolean, blocking boolean,"
    " severity text, message text, metadata jsonb)"
)
"""The rows of the parameter `checks`, which `as_json` makes, as `c`."""

_QUARANTINE = text(
    f"""
    WITH refused AS (
        INSERT INTO {SCHEMA}.quarantine
            (step_id, attempt, io, location, format, size, sha256, rows)
        VALUES (:step_id, :attempt, :io, :location, :format, :size, :sha256, :rows)
        RETURNING id
    )
    INSERT INTO {SCHEMA}.check_results
        (quarantine_id, actor, name, passed, blocking, severity, message, metadata)
    SELECT refused.id, :actor, c.* FROM refused, {CHECKED}
    """
)

_ADD = text(
    f"""
    INSERT INTO {SCHEMA}.check_results
        (output_id, actor, name, passed, blocking, severity, message, metadata)
    SELECT :output_id, :actor, c.* FROM {CHECKED}
    """
)

# Of a value that was refused, the step knows what it was to be.
_HISTORY = text(
    f"""
    WITH mine AS (
        SELECT id, run_id FROM {SCHEMA}.steps WHERE asset = :asset AND partition = :partition
    )
    SELECT r.*, mine.run_id, mine.id AS step_id FROM mine
    JOIN {SCHEMA}.outputs o ON o.step_id = mine.id
    JOIN {SCHEMA}.check_results r ON r.output_id = o.id
    UNION ALL
    SELECT r.*, mine.run_id, mine.id AS step_id FROM mine
    JOIN {SCHEMA}.quarantine q ON q.step_id = mine.id
    JOIN {SCHEMA}.check_results r ON r.quarantine_id = q.id
    ORDER BY id DESC LIMIT :limit
    """
)


_LAST = text(
    f"""
    SELECT DISTINCT ON (r.name) r.*, s.run_id, s.id AS step_id
    FROM {SCHEMA}.check_results r
    JOIN {SCHEMA}.outputs o ON o.id = r.output_id
    JOIN {SCHEMA}.steps s ON s.id = o.step_id
    WHERE r.output_id = :output_id AND r.checked_at <= CAST(:at AS timestamptz)
    ORDER BY r.name, r.id DESC
    """
)


@dataclass(frozen=True)
class RecordedCheck(Checked):
    """What a check said of one value of an asset x partition, and when."""

    step_id: int
    run_id: UUID
    output_id: int | None
    """None for a value that went to quarantine."""
    checked_at: datetime
    actor: str


def as_json(checks: Sequence[Checked]) -> str:
    """Return what checks said as the parameter of a statement that records it."""
    return json.dumps([asdict(check) for check in checks])


def quarantine(
    conn: Connection, step_id: int, attempt: int, refused: RefusedValue, *, actor: str
) -> None:
    """Record a value that was refused, with what all checks said of it."""
    values = {"step_id": step_id, "attempt": attempt, "actor": actor}
    conn.execute(_QUARANTINE, values | asdict(refused.output) | {"checks": as_json(refused.checks)})


def add(conn: Connection, output_id: int, checks: Sequence[Checked], *, actor: str) -> None:
    """Record what checks have said of an output that was there already."""
    conn.execute(_ADD, {"output_id": output_id, "actor": actor, "checks": as_json(checks)})


def history(conn: Connection, node: Node, limit: int = 100) -> list[RecordedCheck]:
    """Return what checks have said of the values of an asset x partition, the newest first."""
    asset, partition = node
    found = conn.execute(_HISTORY, {"asset": asset, "partition": partition, "limit": limit})
    return [_recorded(row) for row in found]


def last_of(conn: Connection, output_id: int, at: datetime | None = None) -> list[RecordedCheck]:
    """Return what each check has said last of an output, in the order of their names.

    With `at`, that is what it had said by that time.
    """
    found = conn.execute(_LAST, {"output_id": output_id, "at": at or NOW})
    return [_recorded(row) for row in found]


def _recorded(row: Row[*tuple[Any, ...]]) -> RecordedCheck:
    return RecordedCheck(
        name=row.name,
        passed=row.passed,
        blocking=row.blocking,
        severity=row.severity,
        message=row.message,
        metadata=row.metadata,
        step_id=row.step_id,
        run_id=row.run_id,
        output_id=row.output_id,
        checked_at=row.checked_at,
        actor=row.actor,
    )
