"""How an asset x partition stands: what of it there is, what computes it, what went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.errors import BadPartition, UnknownAsset
from flowstone.partition_key import Key, encode_key
from flowstone.plan import Node
from flowstone.states import FINAL_STEP_STATES, StepState, sql_list
from flowstone.store import nodes
from flowstone.store.tables import SCHEMA

_LAST_ENDED = text(
    f"""
    SELECT id, run_id, state, error, finished_at FROM {SCHEMA}.steps
    WHERE asset = :asset AND partition = :partition AND finished_at IS NOT NULL
      AND state <> 'skipped'
    ORDER BY finished_at DESC, id DESC LIMIT 1
    """
)

_OPEN = text(
    f"""
    SELECT id, run_id, state FROM {SCHEMA}.steps
    WHERE asset = :asset AND partition = :partition
      AND state NOT IN ({sql_list(FINAL_STEP_STATES)}) AND awaits_until IS NULL
    ORDER BY id
    """
)

_PLANNED = text(
    f"SELECT 1 FROM {SCHEMA}.steps WHERE asset = :asset AND partition = :partition LIMIT 1"
)


@dataclass(frozen=True)
class OpenStep:
    """A step that is to compute, or computes, the asset x partition."""

    run_id: UUID
    state: StepState


@dataclass(frozen=True)
class LastFailure:
    """The end of the last step that ended, where it was not a good one."""

    run_id: UUID
    state: StepState
    message: str
    at: datetime


def open_steps(conn: Connection, node: Node) -> list[OpenStep]:
    """Return the steps that have not ended, in the order of their runs' plans."""
    return [OpenStep(row.run_id, StepState(row.state)) for row in conn.execute(_OPEN, _of(node))]


def last_failure(conn: Connection, node: Node) -> LastFailure | None:
    """Return how the last step ended, if it made nothing."""
    row = conn.execute(_LAST_ENDED, _of(node)).one_or_none()
    if row is None or row.state == StepState.SUCCEEDED:
        return None
    said = (row.error or {}).get("message", "")
    return LastFailure(row.run_id, StepState(row.state), said, row.finished_at)


def find(conn: Connection, asset: str, key: Key) -> Node:
    """Return the asset x partition that a caller means, which may never have had an output.

    Raises UnknownAsset or BadPartition where there was never a step of it.
    """
    try:
        return nodes.find(conn, asset, key)
    except (UnknownAsset, BadPartition):
        forms = nodes.forms(key) if isinstance(key, str) else [encode_key(key)]
        for node in ((asset, encoded) for encoded in forms):
            if conn.execute(_PLANNED, _of(node)).one_or_none() is not None:
                return node
        raise


def _of(node: Node) -> dict[str, str]:
    return {"asset": node[0], "partition": node[1]}
