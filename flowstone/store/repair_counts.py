"""How often each rule of the reconciler has put something right, and when last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, text

from flowstone.store.tables import SCHEMA, repairs

_ADD = text(
    f"""
    INSERT INTO {SCHEMA}.repairs AS r (rule, repaired) VALUES (:rule, :repaired)
    ON CONFLICT (rule) DO UPDATE SET repaired = r.repaired + excluded.repaired, last_at = now()
    """
)


@dataclass(frozen=True)
class RepairCount:
    """What one rule has done so far."""

    repaired: int
    last_at: datetime


def add(conn: Connection, rule: str, repaired: int) -> None:
    """Count the repairs of a rule, in the transaction that makes them; none writes nothing."""
    if repaired:
        conn.execute(_ADD, {"rule": rule, "repaired": repaired})


def by_rule(conn: Connection) -> Mapping[str, RepairCount]:
    """Return what each rule has repaired, by its name; absent are those that never had to."""
    query = select(repairs.c.rule, repairs.c.repaired, repairs.c.last_at).order_by(repairs.c.rule)
    return {row.rule: RepairCount(row.repaired, row.last_at) for row in conn.execute(query)}
