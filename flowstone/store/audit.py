"""The audit log: one row for whatever changes state. The database refuses to change a row.

What a row tells of may be pruned, so it says itself which step it is about: its details hold
`asset` and `partition`, the latter as it is encoded.

Not in it are the moves by which steps are dispatched: pending to queued and back, and queued or
retrying to running. The attempts tell of each start, and an end follows or a repair does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, insert

from flowstone.store.schema import SCHEMA
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


def of_step(asset: str, partition: str, **details: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the details of a row about a step, whose `partition` is encoded."""
    return {"asset": asset, "partition": partition, **details}


def recorded(
    moved: str, action: str, *, before: str, after: str, reason: str = "NULL", details: str = ""
) -> str:
    """Return the INSERT of a row for each step that a common table expression `moved` has.

    It has the columns id, run_id, asset and partition, and those that the other arguments
    name, which are SQL: `before` and `after` the states, `details` further pairs of key and
    value. The actor is bound as :actor.
    """
    about = "'asset', asset, 'partition', partition" + (f", {details}" if details else "")
    return f"""
        INSERT INTO {SCHEMA}.audit
            (actor, action, run_id, step_id, details, reason, before, after)
        SELECT CAST(:actor AS text), '{action}', run_id, id, jsonb_build_object({about}),
            {reason}, jsonb_build_object('state', {before}), jsonb_build_object('state', {after})
        FROM {moved}
    """
