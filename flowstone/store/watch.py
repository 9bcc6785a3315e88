"""Whether the ledger could be reached while leases ended, so that their end says something.

A ledger that is away for longer than a lease looks like the death of all processes. Nobody can
tell afterwards how long it was away: it may not have stopped, only the network. But the passes
of the reconciler were missing, too.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from flowstone.store.tables import SCHEMA

# A lease is renewed each third of it, so that an outage of less than half of it ends none. Where
# passes are always that rare, each second one or so finds the time over and ends the wait: what
# is dead is found late then, and not never.
_WAITS_SINCE = """CASE
    WHEN w.waits_since IS NULL AND w.seen_at < now() - make_interval(secs => :lease) / 2
        THEN now()
    WHEN w.waits_since > now() - make_interval(secs => :lease) THEN w.waits_since
END"""
_LOOK = text(
    f"""
    INSERT INTO {SCHEMA}.watch AS w (one, passed_at)
    VALUES (true, CASE WHEN :is_pass THEN now() END)
    ON CONFLICT (one) DO UPDATE SET seen_at = now(), waits_since = {_WAITS_SINCE},
        passed_at = coalesce(excluded.passed_at, w.passed_at)
    RETURNING waits_since IS NULL
    """
)
_GLANCE = text(f"SELECT {_WAITS_SINCE} IS NULL FROM {SCHEMA}.watch w")


def look(conn: Connection, lease: float, *, is_pass: bool = True) -> bool:
    """Note that somebody looks at the leases, and return whether those that ended mean a death.

    Where nobody has looked, processes are given `lease` seconds to renew theirs first. It
    `is_pass` where the reconciler does so, and not one who waits for a run of its own. The row is
    locked until the end of the transaction, so it should have no other statement.
    """
    return bool(conn.scalar(_LOOK, {"lease": lease, "is_pass": is_pass}))


def glance(conn: Connection, lease: float) -> bool:
    """Return what `look` would, and note nothing."""
    told = conn.scalar(_GLANCE, {"lease": lease})
    return True if told is None else bool(told)
