"""What is to be told of gates: a row for each event, written with the change that it tells of."""

from __future__ import annotations

from sqlalchemy import Connection, insert

from flowstone.store.tables import notifications


def tell(conn: Connection, gate_id: int, event: str) -> None:
    """Have people told of an event of an approval; one of `gate_tables.EVENTS`."""
    conn.execute(insert(notifications).values(gate_id=gate_id, event=event))
