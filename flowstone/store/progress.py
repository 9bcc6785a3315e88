"""Progress: how far a run is, read in one query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select

from flowstone.partition_key import step_name
from flowstone.states import StepState
from flowstone.store.tables import runs, steps


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


def by_asset(conn: Connection, run_id: UUID) -> dict[str, dict[StepState, int]]:
    """Return the number of steps by asset and state, the assets in the order of the plan."""
    query = (
        select(steps.c.asset, steps.c.state, func.count(), func.min(steps.c.id))
        .where(steps.c.run_id == run_id)
        .group_by(steps.c.asset, steps.c.state)
        .order_by(func.min(steps.c.id))
    )
    rows = conn.execute(query).all()
    first: dict[str, int] = {}
    for asset, _, _, step_id in rows:
        first[asset] = min(first.get(asset, step_id), step_id)
    counts: dict[str, dict[StepState, int]] = {
        asset: {} for asset in sorted(first, key=first.__getitem__)
    }
    for asset, state, count, _ in rows:
        counts[asset][StepState(state)] = count
    return counts


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
