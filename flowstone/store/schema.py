"""The schema of the ledger: its name, and how its constraints are named and written."""

from __future__ import annotations

from typing import Final

from sqlalchemy import DateTime, MetaData, text

from flowstone.states import GateState, RunState, StepState, sql_list

SCHEMA: Final = "flowstone"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)

TIME = DateTime(timezone=True)
NOW = text("now()")


def only(column: str, states: type[RunState | StepState | GateState]) -> str:
    """Return the condition that a column holds nothing else."""
    return f"{column} IN ({sql_list(states)})"


def exactly_in(column: str, final: frozenset[RunState] | frozenset[StepState]) -> str:
    """Return the condition that a column is set in the `final` states, and in no others."""
    return f"({column} IS NOT NULL) = (state IN ({sql_list(final)}))"
