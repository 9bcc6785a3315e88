"""The steps of a run that wait for people or for signals, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from flowstone.gate import Kind
from flowstone.partition_key import Key, decode_key, encode_key, step_name
from flowstone.states import WAITING_STEP_STATES, is_open, sql_list
from flowstone.store.tables import SCHEMA
from flowstone.texts import lasting


@dataclass(frozen=True)
class WaitingStep:
    """A step that waits for an approval or a signal, itself or joined to one of another run."""

    asset: str
    partition: Key
    kind: Kind
    id: int
    """That of the approval; of a signal, only the ledger knows it."""
    message: str
    signal: str | None
    """What people call the signal; None for an approval."""
    since: datetime
    seconds: float
    """Since then."""
    expires_at: datetime | None

    @property
    def name(self) -> str:
        """What people call the asset x partition."""
        return step_name(self.asset, encode_key(self.partition))

    def __str__(self) -> str:
        """Return a line that says what it waits for, and what to do."""
        what = f"approval {self.id}" if self.kind == "approval" else f"the signal {self.signal}"
        said = f": {self.message}" if self.message else ""
        remedy = f" (flowstone approvals approve {self.id})" if self.kind == "approval" else ""
        return f"{self.name} waits for {what} since {lasting(self.seconds)}{said}{remedy}"


_WAITS = f"IN ({sql_list(WAITING_STEP_STATES)})"

# Each way has an index of its own.
_OF_RUN = text(
    f"""
    WITH waiting AS (
        SELECT s.id, s.asset, s.partition, s.gate FROM {SCHEMA}.steps s
        WHERE s.run_id = :run_id AND s.state {_WAITS}
        UNION ALL
        SELECT s.id, s.asset, s.partition, l.gate
        FROM {SCHEMA}.steps s JOIN {SCHEMA}.steps l ON l.id = s.joined_to
        WHERE s.run_id = :run_id AND {is_open("s.state")} AND s.state = 'joined'
          AND l.state {_WAITS}
    )
    SELECT w.asset, w.partition, g.kind, g.id, g.message, g.name, g.created_at, g.expires_at,
        extract(epoch FROM now() - g.created_at) AS seconds
    FROM waiting w JOIN {SCHEMA}.gates g ON g.id = w.gate
    WHERE g.state = 'open'
    ORDER BY w.id
    """
)


def of_run(conn: Connection, run_id: object) -> list[WaitingStep]:
    """Return the steps of a run that wait for a decision or a signal, in the order of the plan."""
    return [
        WaitingStep(
            asset=row.asset,
            partition=decode_key(row.partition),
            kind=row.kind,
            id=row.id,
            message=row.message,
            signal=row.name,
            since=row.created_at,
            seconds=float(row.seconds),
            expires_at=row.expires_at,
        )
        for row in conn.execute(_OF_RUN, {"run_id": run_id})
    ]
