"""Lineage: what values were made of, what was made of them, and what produced them.

All but the lineage of columns is read from the ledger alone; the assets' code is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from flowstone import columns, runtime
from flowstone.asset import Asset
from flowstone.columns import TracedColumn
from flowstone.errors import BadQuery
from flowstone.partition import UNPARTITIONED, Key
from flowstone.store import lineage as walks
from flowstone.store import nodes, pointers, provenance, runs
from flowstone.store.approvals import ApprovalRequest
from flowstone.store.checks import RecordedCheck
from flowstone.store.ledger import Connection
from flowstone.store.lineage import Affected, Standing, TracedOutput
from flowstone.store.pointers import Start
from flowstone.store.provenance import (
    Attempt,
    MadeOutput,
    MissingPartition,
    Provenance,
    ReadInput,
    RequestedStep,
)

__all__ = [
    "Affected",
    "ApprovalRequest",
    "Attempt",
    "MadeOutput",
    "MissingPartition",
    "Provenance",
    "Question",
    "ReadInput",
    "RecordedCheck",
    "RequestedStep",
    "Standing",
    "TracedColumn",
    "TracedOutput",
    "columns_downstream",
    "columns_upstream",
    "downstream",
    "impact",
    "produced",
    "upstream",
]


@dataclass(frozen=True)
class Question:
    """Which output a question is about, and how much of the answer is wanted.

    It is the one that the asset x partition points at now, pointed at `as_of` a time, or has
    in a `run`.
    """

    asset: str | Asset
    partition: Key = UNPARTITIONED
    depth: int | None = None
    as_of: datetime | None = None
    run: str | UUID | None = None

    def start(self, conn: Connection) -> Start:
        """Return the output that it is about."""
        self._check()
        node = nodes.find(conn, str(self.asset), self.partition)
        if self.run is None:
            return pointers.latest(conn, node, self.as_of)
        return pointers.of_run(conn, node, runs.find(conn, str(self.run)))

    def _check(self) -> None:
        if self.depth is not None and self.depth < 1:
            raise BadQuery(f"depth is {self.depth}; it counts from 1, that is what is next")
        if self.as_of is not None and self.as_of.utcoffset() is None:
            raise BadQuery(
                f"as_of is {self.as_of}, which has no time zone; write it as "
                f"{self.as_of.isoformat()}+00:00, or give a datetime with a tzinfo"
            )
        if self.as_of is not None and self.run is not None:
            raise BadQuery("a run and as_of both say which output is meant; give one of the two")


def upstream(
    asset: str | Asset,
    partition: Key = UNPARTITIONED,
    *,
    depth: int | None = None,
    as_of: datetime | None = None,
    run: str | UUID | None = None,
) -> list[TracedOutput]:
    """Return the exact outputs that an output was made of, directly or through others.

    The output is the latest of the asset x partition; the one that was so `as_of` a time,
    which must have a zone, and then everything is told as it stood at that time; or the one
    that a `run` has made or used, named by its id or how that begins. `partition` is the key
    itself or its text, `depth` the most steps from there. The nearest come first.

    Raises UnknownAsset or BadPartition for what was never materialized, NeverMaterialized for
    what was not at that time or in that run, UnknownRun or BadQuery.
    """
    return walk_upstream(Question(asset, partition, depth, as_of, run))[1:]


def downstream(
    asset: str | Asset,
    partition: Key = UNPARTITIONED,
    *,
    depth: int | None = None,
    as_of: datetime | None = None,
    run: str | UUID | None = None,
) -> list[TracedOutput]:
    """Return the outputs that were made of an exact output, directly or through others.

    Arguments and errors are those of `upstream`.
    """
    return walk_downstream(Question(asset, partition, depth, as_of, run))[1:]


def impact(
    asset: str | Asset,
    partition: Key = UNPARTITIONED,
    *,
    depth: int | None = None,
    as_of: datetime | None = None,
) -> list[Affected]:
    """Return what would be affected now if the asset x partition changed.

    That is the latest output of each asset x partition that has read it, in this version or
    an earlier one, and of all that has read those, with how it stands: `CURRENT`,
    `OUT_OF_DATE` or `STALE`. Arguments and errors are those of `upstream`.
    """
    return walk_impact(Question(asset, partition, depth, as_of))[1:]


def produced(
    asset: str | Asset,
    partition: Key = UNPARTITIONED,
    *,
    run: str | UUID | None = None,
    as_of: datetime | None = None,
) -> Provenance:
    """Return what produced a value: run, attempt, code, config, inputs, checks, approvals.

    Arguments and errors are those of `upstream`. Where the run has not computed the value,
    but found it fresh or joined another run, both are told: who has made it, and which step
    reuses it.
    """
    question = Question(asset, partition, None, as_of, run)
    with runtime.current().ledger.begin() as conn:
        return provenance.produced(conn, question.start(conn), as_of)


def columns_upstream(asset: str | Asset, column: str) -> list[TracedColumn]:
    """Return the columns that a column is made of, directly or through others.

    It follows the declarations, `@asset(columns=...)`, so it needs the assets' code. Raises
    UnknownAsset, UnknownColumn, or DefinitionError.
    """
    return columns.upstream(runtime.current().registry.graph, str(asset), column)


def columns_downstream(asset: str | Asset, column: str) -> list[TracedColumn]:
    """Return the columns that are made of a column, as `columns_upstream` does."""
    return columns.downstream(runtime.current().registry.graph, str(asset), column)


def walk_upstream(question: Question) -> list[TracedOutput]:
    """Return what `upstream` does, after the output that it begins with."""
    with runtime.current().ledger.begin() as conn:
        start = question.start(conn)
        return walks.upstream(conn, start.output_id, question.depth, question.as_of)


def walk_downstream(question: Question) -> list[TracedOutput]:
    """Return what `downstream` does, after the output that it begins with."""
    with runtime.current().ledger.begin() as conn:
        start = question.start(conn)
        return walks.downstream(conn, start.output_id, question.depth, question.as_of)


def walk_impact(question: Question) -> list[Affected]:
    """Return what `impact` does, after the output that it begins with."""
    with runtime.current().ledger.begin() as conn:
        start = question.start(conn)
        return walks.impact(conn, start.output_id, question.depth, question.as_of)
