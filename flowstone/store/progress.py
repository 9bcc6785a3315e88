"""Progress: how far a run is, read in one query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, select, text

from flowstone.partition_key import step_name
from flowstone.states import StepState
from flowstone.store.tables import SCHEMA, runs, steps

PACE_MINUTES: Final = 5
"""The pace of a run is that of so many minutes."""


@dataclass(frozen=True)
class StepError:
    """Why a step has failed, or is tried again."""

    step: str
    state: StepState
    type: str
    message: str


@dataclass(frozen=True)
class RunSummary:
    """A line in a list of runs."""

    id: UUID
    state: str
    assets: tuple[str, ...]
    partition: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Tally:
    """How many steps of a run stand where, and how many end in a minute."""

    steps: Mapping[str, Mapping[StepState, int]]
    """By asset, in the order of the plan, and state."""
    fresh: int
    """Steps that the plan did not have to compute."""
    per_minute: float | None


# One look at the index of a run's steps, whatever is asked of them.
_TALLY = text(
    f"""
    SELECT asset, state, count(*) AS steps, min(id) AS first,
        -- What another run has made for this one has succeeded since.
        count(*) FILTER (WHERE state = 'skipped' AND reuses IS NOT NULL AND attempt = 0
            AND awaits_until IS NULL) AS fresh,
        count(*) FILTER (WHERE attempt > 0
            AND finished_at > clock_timestamp() - interval '{PACE_MINUTES} minutes') AS lately,
        min(started_at) FILTER (WHERE attempt > 0
            AND finished_at > clock_timestamp() - interval '{PACE_MINUTES} minutes') AS since,
        clock_timestamp() AS now
    FROM {SCHEMA}.steps WHERE run_id = :run_id
    GROUP BY asset, state ORDER BY first
    """
)


def by_asset(conn: Connection, run_id: UUID) -> Mapping[str, Mapping[StepState, int]]:
    """Return the number of steps by asset and state, the assets in the order of the plan."""
    return tally(conn, run_id).steps


def tally(conn: Connection, run_id: UUID) -> Tally:
    """Return how a run stands; the pace is that of the last five minutes."""
    rows = conn.execute(_TALLY, {"run_id": run_id}).all()
    steps: dict[str, dict[StepState, int]] = {}
    for row in rows:
        steps.setdefault(row.asset, {})[StepState(row.state)] = row.steps
    return Tally(steps, sum(row.fresh for row in rows), _pace(rows))


def _pace(rows: Sequence[Row[tuple[Any, ...]]]) -> float | None:
    ended = sum(row.lately for row in rows)
    if not ended:
        return None
    since = min(row.since for row in rows if row.since is not None)
    minutes = (rows[0].now - since).total_seconds() / 60
    return float(ended / min(max(minutes, 1 / 60), PACE_MINUTES))


def errors(conn: Connection, run_id: UUID, limit: int = 20) -> list[StepError]:
    """Return the failed and retrying steps with their errors, the first ones of the plan."""
    query = (
        select(steps.c.asset, steps.c.partition, steps.c.state, steps.c.error)
        .where(steps.c.run_id == run_id, steps.c.state.in_([StepState.FAILED, StepState.RETRYING]))
        .order_by(steps.c.id)
        .limit(limit)
    )
    return [
        StepError(
            step_name(row.asset, row.partition),
            StepState(row.state),
            *_type_and_message(row.error),
        )
        for row in conn.execute(query)
    ]


def _type_and_message(error: Mapping[str, Any]) -> tuple[str, str]:
    return error["type"], error["message"]


def recent(conn: Connection, limit: int) -> list[RunSummary]:
    """Return the latest runs, the newest first."""
    query = select(runs).order_by(runs.c.created_at.desc()).limit(limit)
    return [
        RunSummary(
            id=row.id,
            state=row.state,
            assets=tuple(row.request["assets"]),
            partition=row.request["partition"],
            created_at=row.created_at,
            finished_at=row.finished_at,
        )
        for row in conn.execute(query)
    ]
