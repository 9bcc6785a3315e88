"""Signals that came before their step has begun to wait: kept until it does, or ends.

Who keeps one and who asks for it take the same lock first, so that none is missed in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, text
from sqlalchemy.dialects.postgresql import insert

from flowstone.states import FINAL_STEP_STATES, in_state
from flowstone.store.tables import SCHEMA, early_signals

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('flowstone.signal.' || :hash, 0))")

# What another transaction deletes at this moment is skipped, so that none waits for another.
_FORGET = text(
    f"""
    DELETE FROM {SCHEMA}.early_signals WHERE token_hash IN (
        SELECT e.token_hash FROM {SCHEMA}.early_signals e
        JOIN {SCHEMA}.steps s ON s.id = e.step_id
        WHERE {in_state("s.state", *FINAL_STEP_STATES)}
        FOR UPDATE OF e SKIP LOCKED
    )
    """
)


def lock(conn: Connection, token_hash: str) -> None:
    """Let nobody else keep or ask for a signal with this token until the transaction ends."""
    conn.execute(_LOCK, {"hash": token_hash})


def keep(
    conn: Connection,
    step_id: int,
    token_hash: str,
    payload: Mapping[str, Any],
    *,
    by: str,
    channel: str,
) -> datetime | None:
    """Keep a signal to a step, or return since when one is kept; the caller holds the lock.

    Those whose step has ended meanwhile are forgotten.
    """
    conn.execute(_FORGET)
    values = {"payload": dict(payload), "actor": by, "channel": channel, "step_id": step_id}
    kept = conn.execute(
        insert(early_signals)
        .values(token_hash=token_hash, **values)
        .on_conflict_do_nothing()
        .returning(early_signals.c.token_hash)
    ).one_or_none()
    if kept is not None:
        return None
    query = early_signals.select().where(early_signals.c.token_hash == token_hash)
    found: datetime = conn.execute(query).one().received_at
    return found


def take(conn: Connection, token_hash: str) -> Row[*tuple[Any, ...]] | None:
    """Return a signal that is kept, which then is so no longer; None if there is none.

    Until the transaction ends, nobody else keeps one: who comes later finds the step that waits.
    """
    lock(conn, token_hash)
    gone = delete(early_signals).where(early_signals.c.token_hash == token_hash)
    return conn.execute(gone.returning(*early_signals.c)).one_or_none()
