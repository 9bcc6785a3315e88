"""Why steps are not done: their errors, what they wait for, and the way to what has failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from flowstone.partition_key import step_name
from flowstone.states import DONE_STEP_STATES, StepState, sql_list
from flowstone.store.tables import SCHEMA
from flowstone.summary import FirstError, cut, one_line

_FIRST = text(
    f"""
    SELECT DISTINCT ON (asset) asset, partition, state, error FROM {SCHEMA}.steps
    WHERE run_id = :run_id AND state IN ('failed', 'upstream_failed')
    ORDER BY asset, state, id
    """
)

_UNDONE = text(
    f"""
    SELECT id, asset, partition, state, error, open_deps FROM {SCHEMA}.steps
    WHERE run_id = :run_id AND asset = :asset AND state NOT IN ({sql_list(DONE_STEP_STATES)})
    ORDER BY id LIMIT :limit
    """
)

MAX_WAY: Final = 5
"""The most steps that a way shows to people; what is left out of the middle is counted."""

# From a step that could not run to the step that it reads and that could not run either, and so
# on, to the one that failed itself.
_WAYS = text(
    f"""
    WITH RECURSIVE way AS (
        SELECT id AS start, CAST(error->>'via' AS bigint) AS at, 1 AS place FROM {SCHEMA}.steps
        WHERE id = ANY(CAST(:ids AS bigint[])) AND state = 'upstream_failed'
        UNION ALL
        SELECT way.start, CAST(s.error->>'via' AS bigint), way.place + 1
        FROM way JOIN {SCHEMA}.steps s ON s.id = way.at
        WHERE s.state = 'upstream_failed'
    )
    SELECT way.start, s.asset, s.partition FROM way JOIN {SCHEMA}.steps s ON s.id = way.at
    ORDER BY way.start, way.place
    """
)


@dataclass(frozen=True)
class Reason:
    """Why a step is not done.

    `way` leads from the step that it reads, and that could not run, to the one that
    failed itself, all by name; it is empty unless the state is upstream_failed.
    """

    step: str
    state: StepState
    message: str
    way: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as one line, without the step and its state."""
        # The message begins with the last of the way.
        return " <- ".join((*_shortened(self.way)[:-1], self.message))


def _shortened(way: tuple[str, ...]) -> tuple[str, ...]:
    if len(way) <= MAX_WAY:
        return way
    return (*way[:2], f"({len(way) - 4} more)", *way[-2:])


def first_errors(conn: Connection, run_id: UUID) -> dict[str, FirstError]:
    """Return the first error of each asset of which a step failed or could not run."""
    return {
        row.asset: FirstError(cut(step_name(row.asset, row.partition)), _first(row))
        for row in conn.execute(_FIRST, {"run_id": run_id})
    }


def _first(row: Row[*tuple[Any, ...]]) -> str:
    if row.state == StepState.UPSTREAM_FAILED and "step" in row.error:
        # Its own asset tells why.
        return cut(f"{row.error['step']} failed")
    return _error(row)


def of_asset(conn: Connection, run_id: UUID, asset: str, limit: int) -> list[Reason]:
    """Return why the first `limit` steps of an asset that are not done are not done."""
    values = {"run_id": run_id, "asset": asset, "limit": limit}
    undone = conn.execute(_UNDONE, values).all()
    ways = _ways(conn, [row.id for row in undone])
    return [
        Reason(
            step_name(row.asset, row.partition),
            StepState(row.state),
            _error(row) if row.error else _waiting(row),
            tuple(ways[row.id]),
        )
        for row in undone
    ]


def _ways(conn: Connection, ids: list[int]) -> Mapping[int, list[str]]:
    ways: dict[int, list[str]] = defaultdict(list)
    for start, asset, partition in conn.execute(_WAYS, {"ids": ids}):
        ways[start].append(step_name(asset, partition))
    return ways


def _error(row: Row[*tuple[Any, ...]]) -> str:
    if row.state == StepState.UPSTREAM_FAILED:
        # It names the step that failed, and its error.
        return str(row.error["message"])
    return one_line(row.error["type"], row.error["message"])


def _waiting(row: Row[*tuple[Any, ...]]) -> str:
    if row.state == StepState.PENDING and row.open_deps:
        return f"waits for {row.open_deps} of the steps that it reads"
    return ""
