"""Small values as rows: what the IO manager of rows keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from flowstone.store.tables import stored_values


@dataclass(frozen=True)
class RowInfo:
    """What is known of a row without its value."""

    size: int
    stored_at: datetime


def put(conn: Connection, location: str, data: bytes) -> None:
    """Keep a value; a second try of the same attempt replaces that of the first."""
    made = insert(stored_values).values(location=location, data=data)
    conn.execute(
        made.on_conflict_do_update(
            index_elements=[stored_values.c.location],
            set_={"data": made.excluded.data, "stored_at": func.now()},
        )
    )


def get(conn: Connection, location: str) -> bytes | None:
    """Return the value, or None if there is none."""
    query = select(stored_values.c.data).where(stored_values.c.location == location)
    data = conn.scalar(query)
    return None if data is None else bytes(data)


def info(conn: Connection, location: str) -> RowInfo | None:
    """Return what is known of the value without reading it, or None if there is none."""
    query = select(func.octet_length(stored_values.c.data), stored_values.c.stored_at)
    row = conn.execute(query.where(stored_values.c.location == location)).one_or_none()
    return None if row is None else RowInfo(row[0], row[1])


def remove(conn: Connection, location: str) -> None:
    """Delete the value, if there is one."""
    conn.execute(delete(stored_values).where(stored_values.c.location == location))


def after(conn: Connection, location: str, limit: int) -> Sequence[str]:
    """Return the first locations that come after one, in their order."""
    query = (
        select(stored_values.c.location)
        .where(stored_values.c.location > location)
        .order_by(stored_values.c.location)
        .limit(limit)
    )
    return conn.scalars(query).all()
