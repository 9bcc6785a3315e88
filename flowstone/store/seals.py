"""Seals: the audit log's rows are chained by hashes some time after they were written.

Were it part of writing, each commit would have to wait for the one before it. A trigger notes
which rows await a seal; whoever seals takes those that are committed, in the order of their ids.
A row of a transaction that takes long may so follow one with a higher id: what counts is the
position in the chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, text

from flowstone.chain import GENESIS, Finding, Link, extend
from flowstone.store.schema import SCHEMA

BATCH: Final = 1_000
"""The most rows that are sealed in one transaction."""

STREAMED: Final = {"stream_results": True, "yield_per": 1_000}
"""How a log is read that may not fit into memory: through a cursor of the server."""

# What is hashed, and what is exported. PostgreSQL alone writes it, so that sealing and checking
# see the same to the letter; from Python, numbers that a float cannot hold would look alike. A
# column that is added to the log later must be left out of it where it is null.
LINE: Final = """(
    SELECT row_to_json(said)::text FROM (
        SELECT a.id, (to_json(a.at AT TIME ZONE 'UTC') #>> '{}') || 'Z' AS at, a.actor, a.action,
            a.run_id, a.step_id, a.reason, a.before, a.after, a.details
    ) AS said
)"""

# One sealer at a time: the lock is the transaction's, so it goes with a sealer that dies.
_KEY = "hashtext('flowstone.seal')"
_TRY_LOCK = text(f"SELECT pg_try_advisory_xact_lock({_KEY})")
_LOCK = text(f"SELECT pg_advisory_xact_lock({_KEY})")

_LAST = text(f"SELECT position, hash FROM {SCHEMA}.audit_seals ORDER BY position DESC LIMIT 1")

# OFFSET keeps PostgreSQL from going through the log, and asking of each row whether it waits.
# What has been sealed, and awaits it again, was put there by hand; it must not stop the rest.
_NEXT = text(
    f"""
    SELECT u.audit_id, s.audit_id IS NOT NULL AS sealed, {LINE} AS line
    FROM (SELECT audit_id FROM {SCHEMA}.audit_unsealed ORDER BY audit_id OFFSET 0) AS u
    JOIN {SCHEMA}.audit a ON a.id = u.audit_id
    LEFT JOIN {SCHEMA}.audit_seals s ON s.audit_id = u.audit_id
    ORDER BY u.audit_id LIMIT :batch
    """
)

_APPEND = text(
    f"""
    INSERT INTO {SCHEMA}.audit_seals (position, audit_id, hash)
    SELECT CAST(:last AS bigint) + n, id, hash
    FROM unnest(CAST(:ids AS bigint[]), CAST(:hashes AS bytea[])) WITH ORDINALITY AS t(id, hash, n)
    """
)

_DONE = text(f"DELETE FROM {SCHEMA}.audit_unsealed WHERE audit_id = ANY(CAST(:ids AS bigint[]))")

_LINKS = text(
    f"""
    SELECT s.position, s.audit_id, s.hash, CASE WHEN a.id IS NOT NULL THEN {LINE} END AS line
    FROM {SCHEMA}.audit_seals s LEFT JOIN {SCHEMA}.audit a ON a.id = s.audit_id
    ORDER BY s.position
    """
)

# One statement, and so one moment: each row has a seal or awaits one, though it may be sealed now.
_PAST_THE_LOG = text(
    f"""
    SELECT a.id FROM {SCHEMA}.audit a
    WHERE NOT EXISTS (SELECT FROM {SCHEMA}.audit_seals s WHERE s.audit_id = a.id)
      AND NOT EXISTS (SELECT FROM {SCHEMA}.audit_unsealed u WHERE u.audit_id = a.id)
    ORDER BY a.id
    """
)

_GONE_UNSEALED = text(
    f"""
    SELECT u.audit_id FROM {SCHEMA}.audit_unsealed u
    WHERE NOT EXISTS (SELECT FROM {SCHEMA}.audit a WHERE a.id = u.audit_id)
    ORDER BY u.audit_id
    """
)

_AWAITING = text(
    f"""
    SELECT count(*) FROM {SCHEMA}.audit_unsealed u JOIN {SCHEMA}.audit a ON a.id = u.audit_id
    WHERE NOT EXISTS (SELECT FROM {SCHEMA}.audit_seals s WHERE s.audit_id = u.audit_id)
    """
)


def seal(conn: Connection, *, wait: bool = False) -> int:
    """Seal the next rows, at most BATCH of them; return how many no longer await it.

    Where somebody else seals at this moment there is nothing to do, unless it is to `wait`.
    """
    if not wait and not conn.scalar(_TRY_LOCK):
        return 0
    if wait:
        conn.execute(_LOCK)
    # A statement of its own, so that it sees what was sealed while it waited.
    last = conn.execute(_LAST).one_or_none()
    position, head = (last.position, last.hash) if last else (0, GENESIS)
    found = conn.execute(_NEXT, {"batch": BATCH}).all()
    ids, hashes = [], []
    for row in found:
        if not row.sealed:
            head = extend(head, row.line)
            ids.append(row.audit_id)
            hashes.append(head)
    conn.execute(_APPEND, {"last": position, "ids": ids, "hashes": hashes})
    conn.execute(_DONE, {"ids": [row.audit_id for row in found]})
    return len(found)


def links(conn: Connection) -> Iterator[Link]:
    """Yield the chain from its first link, each with its row as it is now."""
    for row in conn.execute(_LINKS, execution_options=STREAMED):
        yield Link(row.position, row.audit_id, row.hash, row.line)


def past_the_log(conn: Connection) -> Iterator[Finding]:
    """Yield the rows that no trigger has seen."""
    for id in conn.scalars(_PAST_THE_LOG, execution_options=STREAMED):
        said = (
            f"row {id} has no seal and awaits none: it was inserted past the trigger, or its seal"
        )
        yield Finding(f"{said} was removed", id)


def gone_unsealed(conn: Connection) -> Iterator[Finding]:
    """Yield the rows that were to be sealed, and are not there."""
    for id in conn.scalars(_GONE_UNSEALED, execution_options=STREAMED):
        yield Finding(f"row {id} was deleted before it was sealed", id)


def awaiting(conn: Connection) -> int:
    """Return how many rows await a seal."""
    return int(conn.scalar(_AWAITING) or 0)
