"""Assets that wait for people."""

from __future__ import annotations

import polars as pl
from pydantic import BaseModel

from flowstone import Approval, MonthlyPartitions, asset

MONTHS = MonthlyPartitions("2013-01", "2013-12")


class Report(BaseModel):
    """What people approve."""

    total: int
    rows: list[int]


@asset(
    partitions=MONTHS,
    approval=Approval(
        message=lambda made: f"Publish a total of {made.total:,} to the whole company?",
        context={"source": "flights"},
        options=["full", "sample"],
        approvers=["ann", "role:finance"],
        timeout=3600,
    ),
)
def monthly_report() -> Report:
    """Is published."""
    return Report(total=1234, rows=[1, 2])


@asset(partitions=MONTHS, approval=Approval(quorum=2, four_eyes=True))
def ledger_of() -> int:
    """Needs two."""
    return 7


@asset
def nobodys() -> int:
    """Needs nobody."""
    return 8


@asset(approval=Approval())
def table_of() -> pl.DataFrame:
    """Is a table."""
    return pl.DataFrame({"name": [f"row {n}" for n in range(9)], "part": [1 / 3] * 9})
