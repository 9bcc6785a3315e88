"""What the reconciler finds amiss, as people name it: read by the queries of its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from flowstone.partition_key import step_name

LOCKED: Final = " FOR NO KEY UPDATE SKIP LOCKED"
"""What turns the query of a rule into that of who repairs: no two reconcilers get the same row."""

LOCKED_STEPS: Final = " FOR NO KEY UPDATE OF s SKIP LOCKED"
"""The same for a query that joins the steps, as `s`, to others."""


@dataclass(frozen=True)
class Found:
    """Something that a rule would put right."""

    what: str
    """The name of the step or of the worker, or the id of the run."""
    run_id: UUID | None = None

    def __str__(self) -> str:
        if self.run_id is None or self.what == str(self.run_id):
            return self.what
        return f"{self.what} of run {str(self.run_id)[:8]}"


def steps(conn: Connection, query: str, **values: Any) -> list[Found]:  # noqa: ANN401
    """Return the steps that a query selects, with run_id, asset and partition."""
    return [
        Found(step_name(row.asset, row.partition), row.run_id)
        for row in conn.execute(text(query), values)
    ]


def runs(conn: Connection, query: str, **values: Any) -> list[Found]:  # noqa: ANN401
    """Return the runs whose id a query selects."""
    return [Found(str(run_id), run_id) for run_id in conn.scalars(text(query), values)]
