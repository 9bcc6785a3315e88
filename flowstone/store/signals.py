"""Who waits for a signal, or did: looked up by what the ledger keeps of its token."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from flowstone.partition_key import step_name
from flowstone.states import GateState, StepState
from flowstone.store.tables import gates, steps


@dataclass(frozen=True)
class Waiter:
    """A step, and the gate at which it waits, or did, for a signal; None if it never has."""

    step_id: int
    asset: str
    partition: str
    run_id: str
    step_state: StepState
    gate_id: int | None = None
    name: str = ""
    state: GateState | None = None
    closed_at: datetime | None = None

    @property
    def step(self) -> str:
        """What people call the step."""
        return step_name(self.asset, self.partition)


_STEP = (
    steps.c.id.label("step_id"),
    steps.c.asset,
    steps.c.partition,
    steps.c.run_id,
    steps.c.state.label("step_state"),
)


def find(conn: Connection, token_hash: str) -> Waiter | None:
    """Return who has waited last for a signal with this token, or None if nobody ever has."""
    query = (
        select(*_STEP, gates.c.id.label("gate_id"), gates.c.name, gates.c.state, gates.c.closed_at)
        .join(gates, gates.c.step_id == steps.c.id)
        .where(gates.c.token_hash == token_hash)
        .order_by(gates.c.id.desc())
        .limit(1)
    )
    row = conn.execute(query).one_or_none()
    if row is None:
        return None
    values = row._asdict() | {"state": GateState(row.state)}
    return Waiter(**values | {"step_state": StepState(row.step_state), "run_id": str(row.run_id)})


def step(conn: Connection, step_id: int) -> Waiter | None:
    """Return a step, whatever it waits for, or None if there is no such."""
    row = conn.execute(select(*_STEP).where(steps.c.id == step_id)).one_or_none()
    if row is None:
        return None
    values = row._asdict() | {"step_state": StepState(row.step_state), "run_id": str(row.run_id)}
    return Waiter(**values)
