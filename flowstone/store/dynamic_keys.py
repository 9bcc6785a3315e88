"""The keys of dynamic partitions: those that there are now, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from flowstone.partition_key import Key, decode_key
from flowstone.store import audit
from flowstone.store.schema import SCHEMA

_KEYS = text(f"SELECT key FROM {SCHEMA}.dynamic_keys WHERE name = :name ORDER BY position")

# Two who add the same keys in another order would wait for each other.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('flowstone.keys.' || :name, 0))")

_ADD = text(
    f"""
    INSERT INTO {SCHEMA}.dynamic_keys (name, key, added_by)
    SELECT :name, given.key, :actor
    FROM unnest(CAST(:keys AS text[])) WITH ORDINALITY AS given(key, place) ORDER BY given.place
    ON CONFLICT (name, key) DO NOTHING RETURNING key, position
    """
)

_REMOVE = text(
    f"DELETE FROM {SCHEMA}.dynamic_keys WHERE name = :name AND key = ANY(:keys) "
    "RETURNING key, position"
)


def keys(conn: Connection, name: str) -> dict[str, Key]:
    """Return the keys by their encoded forms, in the order in which they were added."""
    return {encoded: decode_key(encoded) for encoded in conn.scalars(_KEYS, {"name": name})}


def lock(conn: Connection, name: str) -> None:
    """Let nobody else add or remove keys of that name until the transaction ends."""
    conn.execute(_LOCK, {"name": name})


def add(
    conn: Connection, name: str, encoded: Sequence[str], *, actor: str, reason: str | None
) -> list[str]:
    """Add keys, and return those that were not there."""
    rows = conn.execute(_ADD, {"name": name, "keys": list(encoded), "actor": actor})
    if added := _in_order(rows):
        about = {"name": name, "keys": added}
        audit.record(conn, actor=actor, action="partitions.added", details=about, reason=reason)
    return added


def remove(
    conn: Connection, name: str, encoded: Sequence[str], *, actor: str, reason: str | None
) -> list[str]:
    """Remove keys, and return those that were there; what was made for them stays."""
    rows = conn.execute(_REMOVE, {"name": name, "keys": list(encoded)})
    if removed := _in_order(rows):
        about = {"name": name, "keys": removed}
        audit.record(conn, actor=actor, action="partitions.removed", details=about, reason=reason)
    return removed


def _in_order(rows: Iterable[Row[Any]]) -> list[str]:
    return [row.key for row in sorted(rows, key=lambda row: row.position)]
