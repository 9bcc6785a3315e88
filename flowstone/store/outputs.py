"""Outputs: which value lies where. Readers find values here, never by looking into storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, select

from flowstone.outcome import StoredOutput
from flowstone.plan import Node
from flowstone.store.tables import latest, outputs, runs, steps

_COLUMNS = (
    outputs.c.location,
    outputs.c.format,
    outputs.c.size,
    outputs.c.sha256,
    outputs.c.rows,
    outputs.c.io,
)


@dataclass(frozen=True)
class NamedOutput:
    """An output and the step that it belongs to."""

    asset: str
    partition: str
    output: StoredOutput

    @property
    def node(self) -> Node:
        """The asset x partition."""
        return self.asset, self.partition


def of_run(conn: Connection, run_id: UUID, assets: tuple[str, ...]) -> list[NamedOutput]:
    """Return the outputs that a run has made of the given assets, in the order of the plan.

    A run that resumes another one has made those of that, too.
    """
    chain = select(runs.c.id, runs.c.resumed_from).where(runs.c.id == run_id).cte(recursive=True)
    chain = chain.union(
        select(runs.c.id, runs.c.resumed_from).join(chain, runs.c.id == chain.c.resumed_from)
    )
    query = (
        select(steps.c.asset, steps.c.partition, *_COLUMNS)
        .join(outputs, outputs.c.step_id == func.coalesce(steps.c.reuses, steps.c.id))
        .where(steps.c.run_id.in_(select(chain.c.id)), steps.c.asset.in_(assets))
        .order_by(steps.c.id)
    )
    return [NamedOutput(row.asset, row.partition, _stored(row)) for row in conn.execute(query)]


def latest_of(conn: Connection, asset: str) -> list[NamedOutput]:
    """Return the latest output of each partition of an asset, in the order of the keys."""
    query = (
        select(latest.c.asset, latest.c.partition, *_COLUMNS)
        .join(outputs, outputs.c.id == latest.c.output_id)
        .where(latest.c.asset == asset)
        .order_by(latest.c.partition)
    )
    return [NamedOutput(row.asset, row.partition, _stored(row)) for row in conn.execute(query)]


def _stored(row: Row[*tuple[Any, ...]]) -> StoredOutput:
    return StoredOutput(
        location=row.location,
        format=row.format,
        size=row.size,
        sha256=row.sha256,
        rows=row.rows,
        io=row.io,
    )
