"""The audit log as it is read: as lines of JSON, whole or in part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.errors import UnknownRun
from flowstone.store.schema import SCHEMA
from flowstone.store.seals import LINE, STREAMED

# The log of an older version does not say itself which asset a row is about.
_OF_ASSET = f"""(
    a.details->>'asset' = :asset
    OR EXISTS (SELECT FROM {SCHEMA}.steps s WHERE s.id = a.step_id AND s.asset = :asset)
)"""

_CONDITIONS = {
    "since": "a.at >= CAST(:since AS timestamptz)",
    "run": "a.run_id = CAST(:run AS uuid)",
    "asset": _OF_ASSET,
}


def _select(end: str) -> str:
    return f"""
    SELECT {LINE} AS line, s.position, encode(s.hash, 'hex') AS hash
    FROM {SCHEMA}.audit a LEFT JOIN {SCHEMA}.audit_seals s ON s.audit_id = a.id
    {end}
    """


def lines(
    conn: Connection,
    *,
    since: datetime | None = None,
    run: UUID | None = None,
    asset: str | None = None,
    latest: int | None = None,
) -> Iterator[str]:
    """Yield rows as JSON, in the order of their ids; of all, or the `latest` ones backwards.

    The text up to `position` is what the hash is made of, once that follows the hash before
    it; both are null while a row awaits its seal.
    """
    values: dict[str, Any] = {"since": since, "run": run, "asset": asset}
    given = {name: value for name, value in values.items() if value is not None}
    where = " AND ".join(_CONDITIONS[name] for name in given) or "true"
    order = "a.id" if latest is None else "a.id DESC LIMIT :latest"
    if latest is not None:
        given["latest"] = latest
    query = text(_select(f"WHERE {where} ORDER BY {order}"))
    # Who reads it page by page locks nothing, and may take longer than others are given.
    conn.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    # Closed here, as who takes the lines may stop before the last.
    with conn.execute(query, given, execution_options=STREAMED) as found:
        for row in found:
            hash = "null" if row.hash is None else f'"{row.hash}"'
            position = "null" if row.position is None else row.position
            yield f'{row.line[:-1]},"position":{position},"hash":{hash}}}'


def find_run(conn: Connection, prefix: str) -> UUID:
    """Return the run whose id begins with `prefix`, be it pruned or not; raise UnknownRun."""
    digits = prefix.strip().lower().replace("-", "")
    if not re.fullmatch("[0-9a-f]{1,32}", digits):
        raise UnknownRun(f"{prefix!r} is not the beginning of a run's id")
    ends = {"low": UUID(digits.ljust(32, "0")), "high": UUID(digits.ljust(32, "f"))}
    found = {
        conn.scalar(
            text(
                f"SELECT run_id FROM {SCHEMA}.audit WHERE run_id BETWEEN :low AND :high "
                f"ORDER BY run_id {direction} LIMIT 1"
            ),
            ends,
        )
        for direction in ("ASC", "DESC")
    }
    if len(found) > 1:
        raise UnknownRun(f"several runs begin with {prefix!r}; give more of the id")
    (run_id,) = found
    if run_id is None:
        raise UnknownRun(f"the audit log knows no run that begins with {prefix!r}")
    return UUID(str(run_id))
