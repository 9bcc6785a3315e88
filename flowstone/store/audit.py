"""The audit log: one row for whatever changes state. The database refuses to change a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, insert

from flowstone.store.tables import audit


def record(
    conn: Connection,
    *,
    actor: str,
    action: str,
    run_id: UUID | None = None,
    step_id: int | None = None,
    details: Mapping[str, Any] | None = None,
    reason: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Append a row.

    `reason` says why, in the words of who acts; `before` and `after` hold what has changed, such
    as `{"state": "running"}`. They and `details` hold JSON values, and never a secret.
    """
    conn.execute(
        insert(audit).values(
            actor=actor,
            action=action,
            run_id=run_id,
            step_id=step_id,
            details=dict(details or {}),
            reason=reason,
            # None as it is would be the JSON null, which is another thing than nothing.
            **{k: dict(v) for k, v in {"before": before, "after": after}.items() if v is not None},
        )
    )
