"""What time does to gates: reminders, escalations, and the ends of those nobody decides in time.

The reconciler looks. Whoever decides locks the step and the gate, and so does this: which of the
two comes first is told by the row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, assert_never
from uuid import UUID

from sqlalchemy import Connection, text, update

from flowstone.due import Approve, Continue, Due, Escalate, Fail, Reject, Remind, due
from flowstone.gate import TIMEOUT, Gate
from flowstone.quorum import Vote
from flowstone.states import GateState
from flowstone.store import decisions, found, notifications
from flowstone.store import gates as gates_store
from flowstone.store.found import LOCKED_STEPS, Found
from flowstone.store.gate_tables import DUE_AT, IS_OPEN
from flowstone.store.gates import Asked
from flowstone.store.tables import SCHEMA, gates

BATCH = 500
"""The most gates that one pass looks after."""

_DUE: Final = f"""
    SELECT g.id AS gate, g.now, s.run_id, s.asset, s.partition
    FROM (
        SELECT id, step_id, {DUE_AT} AS due_at, now() FROM {SCHEMA}.gates
        WHERE {IS_OPEN} AND {DUE_AT} <= now()
    ) g JOIN {SCHEMA}.steps s ON s.id = g.step_id
    ORDER BY g.due_at LIMIT :batch
"""

NO_DECISION: Final = "nobody has decided in time"
ENOUGH: Final = "all who would be asked next have approved already"
NO_SIGNAL: Final = "it has not come in time"


@dataclass(frozen=True)
class Looked:
    """What a look at the gates has done."""

    count: int = 0
    """How many were closed, escalated, or reminded of."""
    freed: frozenset[UUID] = frozenset()
    """The runs of steps that are computed anew, as what was to be approved is outdated."""


def find(conn: Connection) -> list[Found]:
    """Return the steps at whose gates something is due: a reminder, an escalation, an end."""
    return found.steps(conn, _DUE, batch=BATCH)


def look(conn: Connection) -> Looked:
    """Do what is due at gates; those are left out at which somebody is just about to decide.

    The steps of those that have ended stay where they are, as after any decision.
    """
    rows = conn.execute(text(_DUE + LOCKED_STEPS), {"batch": BATCH}).all()
    if not rows:
        return Looked()
    count, freed = 0, set[UUID]()
    # Only now are they as they will stay: one may have been decided while its step was locked.
    for asked in gates_store.lock_free(conn, [row.gate for row in rows]):
        is_open = asked.gate.state == GateState.OPEN
        what = due(asked.gate, rows[0].now, _approved(conn, asked.gate)) if is_open else None
        if what is None:
            continue
        count += 1
        if isinstance(what, Approve) and gates_store.is_outdated(conn, asked.gate):
            gates_store.void(conn, asked, by=TIMEOUT, reason=gates_store.OUTDATED)
            freed.add(asked.run_id)
        else:
            _do(conn, asked, what)
    return Looked(count, frozenset(freed))


def _approved(conn: Connection, gate: Gate) -> list[Vote]:
    votes = decisions.votes_on(conn, [gate.id]) if gate.quorum > 1 else {}
    return [vote for vote in votes.get(gate.id, ()) if vote.approves]


def _do(conn: Connection, asked: Asked, what: Due) -> None:
    match what:
        case Remind():
            _change(conn, asked, what)
            notifications.tell(conn, asked.gate.id, "reminder")
        case Escalate():
            _escalate(conn, asked, what)
        case Approve(chosen, by_votes):
            reason = ENOUGH if by_votes else NO_DECISION
            _close(conn, asked, GateState.APPROVED, reason, chosen=chosen)
        case Reject():
            _close(conn, asked, GateState.REJECTED)
        case Fail() | Continue():
            # What becomes of the step tells `on_timeout`.
            _close(conn, asked, GateState.EXPIRED)
        case _:
            assert_never(what)


def _change(conn: Connection, asked: Asked, what: Remind | Escalate) -> None:
    is_same = (gates.c.id == asked.gate.id, gates.c.state == GateState.OPEN)
    conn.execute(update(gates).where(*is_same).values(**asdict(what)))


def _escalate(conn: Connection, asked: Asked, what: Escalate) -> None:
    _change(conn, asked, what)
    gates_store.record(
        conn,
        asked,
        "escalated",
        by=TIMEOUT,
        reason=NO_DECISION,
        before=_asked(asked.gate),
        after=_asked(what),
    )
    notifications.tell(conn, asked.gate.id, "escalated")


def _asked(who: Gate | Escalate) -> dict[str, object]:
    return {"level": who.level, "approvers": list(who.approvers), "quorum": who.quorum}


def _close(
    conn: Connection,
    asked: Asked,
    target: GateState,
    reason: str | None = None,
    *,
    chosen: str | None = None,
) -> None:
    reason = reason or (NO_DECISION if asked.gate.kind == "approval" else NO_SIGNAL)
    gates_store.close(
        conn, asked, target, by=TIMEOUT, reason=reason, event="expired", chosen=chosen
    )
