"""The audit log: one row for whatever changes state. The database refuses to change a row."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, insert

from flowstone.store.tables import audit


def record(
    conn: Connection,
    *,
    actor: str,
    action: str,
    run_id: UUID,
    step_id: int | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """Append a row; `details` holds JSON values, and never a secret."""
    conn.execute(
        insert(audit).values(
            actor=actor, action=action, run_id=run_id, step_id=step_id, details=details or {}
        )
    )
