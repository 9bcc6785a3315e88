"""How far the sweep has come in the storage of each IO manager."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, text

from flowstone.store.tables import SCHEMA

_PLACES = text(f"SELECT io, place FROM {SCHEMA}.sweeps ORDER BY swept_at")
_NOTE = text(
    f"""
    INSERT INTO {SCHEMA}.sweeps (io, place) VALUES (:io, :place)
    ON CONFLICT (io) DO UPDATE SET place = excluded.place, swept_at = now()
    """
)


def places(conn: Connection) -> Mapping[str, int]:
    """Return by IO manager how many values lie before the next to look at.

    In the order in which they were swept; absent are those that never were.
    """
    return {row.io: int(row.place) for row in conn.execute(_PLACES)}


def note(conn: Connection, io: str, place: int) -> None:
    """Note how many values of an IO manager lie before the next to look at."""
    conn.execute(_NOTE, {"io": io, "place": place})
