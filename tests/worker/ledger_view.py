"""What the ledger holds of a run, as the tests ask for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from flowstone.partition_key import step_name
from flowstone.store.ledger import Ledger

TABLES = ("runs", "steps", "edges", "attempts", "outputs", "latest", "lineage", "audit")


class LedgerView:
    """Reads the ledger past the store, so that a fault of the store cannot hide itself."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def rows(self, query: str, **values: Any) -> Sequence[Row[Any]]:
        with self._ledger.begin() as conn:
            return conn.execute(text(query), values).all()

    def steps(self, run_id: UUID) -> dict[str, Row[Any]]:
        """Return the rows of the steps of a run by their names, in the order of the plan."""
        found = self.rows("SELECT * FROM flowstone.steps WHERE run_id = :r ORDER BY id", r=run_id)
        return {step_name(row.asset, row.partition): row for row in found}

    def states(self, run_id: UUID) -> dict[str, str]:
        return {name: row.state for name, row in self.steps(run_id).items()}

    def attempts(self, run_id: UUID, step: str) -> list[tuple[int, str | None]]:
        """Return the number and the outcome of each attempt at a step."""
        found = self.rows(
            "SELECT number, outcome FROM flowstone.attempts WHERE step_id = :s ORDER BY number",
            s=self.steps(run_id)[step].id,
        )
        return [(row.number, row.outcome) for row in found]

    def canvases(self, run_id: UUID) -> list[list[str]]:
        """Return the steps of each canvas, in the order of the plan."""
        members: dict[UUID, list[str]] = {}
        for name, row in self.steps(run_id).items():
            members.setdefault(row.canvas, []).append(name)
        return list(members.values())

    def actions(self, run_id: UUID) -> Counter[str]:
        """Return how often the audit log has each action of a run."""
        found = self.rows("SELECT action FROM flowstone.audit WHERE run_id = :r", r=run_id)
        return Counter(row.action for row in found)

    def edges(self, run_id: UUID) -> int:
        """Return the number of edges of the plan."""
        found = self.rows(
            "SELECT count(*) AS n FROM flowstone.edges e JOIN flowstone.steps s"
            " ON s.id = e.downstream WHERE s.run_id = :r",
            r=run_id,
        )
        return int(found[0].n)

    def snapshot(self) -> dict[str, Sequence[Row[Any]]]:
        """Return all rows of all tables, to see that nothing has changed."""
        return {
            table: self.rows(f"SELECT t::text FROM flowstone.{table} t ORDER BY 1")
            for table in TABLES
        }
