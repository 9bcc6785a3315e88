"""Decisions: the votes on approvals. Of two that would decide, one does, and the other is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, insert, select, text

from flowstone.approval import person
from flowstone.errors import AlreadyDecided, ApprovalVoid, FlowStoneError, UnknownApproval
from flowstone.quorum import Roles, Vote, after, decided, tally
from flowstone.states import GateState
from flowstone.store import gates
from flowstone.store.gates import Asked
from flowstone.store.tables import SCHEMA
from flowstone.store.tables import votes as table

_MAX_ID: Final = 2**63 - 1


@dataclass(frozen=True)
class Edit:
    """What is put in the place of the proposed value: `Gate.edited`, and `Gate.difference`."""

    edited: Mapping[str, Any]
    difference: Sequence[Mapping[str, Any]]


# Whoever has started a run that this one goes on with has started what is left of it, too.
_LAUNCHERS = text(
    f"""
    WITH RECURSIVE chain AS (
        SELECT actor, resumed_from FROM {SCHEMA}.runs WHERE id = :run_id
        UNION ALL
        SELECT r.actor, r.resumed_from FROM chain JOIN {SCHEMA}.runs r ON r.id = chain.resumed_from
    )
    SELECT DISTINCT actor FROM chain
    """
)

_REPLACED_BY = text(
    f"""
    WITH RECURSIVE chain AS (
        SELECT id FROM {SCHEMA}.gates WHERE replaces = :id
        UNION ALL
        SELECT g.id FROM chain JOIN {SCHEMA}.gates g ON g.replaces = chain.id
    )
    SELECT max(id) FROM chain
    """
)

# An approval that was given before it was void keeps the reason of who has given it.
_ENDED = text(
    f"""
    SELECT reason FROM {SCHEMA}.audit
    WHERE run_id = :run_id AND action = :action AND details->'gate' = to_jsonb(CAST(:id AS bigint))
    ORDER BY id DESC LIMIT 1
    """
)


def approval(conn: Connection, gate_id: int) -> Asked:
    """Return an approval; raise UnknownApproval."""
    return _checked(gates.get(conn, gate_id) if 0 < gate_id <= _MAX_ID else None, gate_id)


def votes_on(conn: Connection, gate_ids: Iterable[int]) -> Mapping[int, list[Vote]]:
    """Return the votes on each of these approvals, in the order in which they came."""
    query = select(table).where(table.c.gate_id.in_(list(gate_ids)))
    found: dict[int, list[Vote]] = {}
    for row in conn.execute(query.order_by(table.c.at, table.c.person)):
        found.setdefault(row.gate_id, []).append(_vote(row))
    return found


def launchers(conn: Connection, run_id: UUID) -> list[str]:
    """Return who has started a run, and the runs that it goes on with."""
    return list(conn.scalars(_LAUNCHERS, {"run_id": run_id}))


def replaced_by(conn: Connection, gate_id: int) -> int | None:
    """Return the approval that asks for the same after this one was void, if there is one."""
    found = conn.scalar(_REPLACED_BY, {"id": gate_id})
    return None if found is None else int(found)


def decide(
    conn: Connection, gate_id: int, vote: Vote, *, roles: Roles, edit: Edit | None = None
) -> Asked:
    """Record a vote, and close the approval where that decides; return how it stands then.

    Where an input has changed since it was asked for, it is void instead: no vote is recorded,
    and the caller wakes the run. Raises UnknownApproval, AlreadyDecided, ApprovalVoid for one
    that was so before, and what `quorum.after` raises.
    """
    if 0 < gate_id <= _MAX_ID:
        gates.lock(conn, gate_id)
    asked = still_open(conn, gate_id)
    before = votes_on(conn, [gate_id]).get(gate_id, [])
    state = after(
        asked.gate,
        before,
        vote,
        launchers=launchers(conn, asked.run_id),
        roles=roles,
        edits=edit is not None,
    )
    if gates.is_outdated(conn, asked.gate):
        gates.void(conn, asked, by=vote.actor, reason=gates.OUTDATED)
        return approval(conn, gate_id)
    _add(conn, gate_id, vote)
    stands = tally(asked.gate.quorum, [*before, vote])
    if state == GateState.OPEN:
        _record_vote(conn, asked, vote, stands)
    else:
        _close(conn, asked, state, vote, edit=edit, stands=stands)
    return approval(conn, gate_id)


def still_open(conn: Connection, gate_id: int) -> Asked:
    """Return an approval that is open now; raise UnknownApproval, AlreadyDecided, ApprovalVoid."""
    asked = approval(conn, gate_id)
    if asked.gate.state != GateState.OPEN:
        raise _closed(conn, asked)
    return asked


def _checked(asked: Asked | None, gate_id: int) -> Asked:
    if asked is None:
        raise UnknownApproval(
            f"there is no approval {gate_id}; `flowstone approvals list` shows those that are open"
        )
    if asked.gate.kind != "approval":
        raise UnknownApproval(
            f"{gate_id} is no approval, but the {asked.gate.label}, which is to come from outside"
        )
    return asked


def _vote(row: Row[*tuple[Any, ...]]) -> Vote:
    return Vote(row.actor, row.approves, row.channel, row.reason, row.chosen, row.at)


def _add(conn: Connection, gate_id: int, vote: Vote) -> None:
    conn.execute(
        insert(table).values(
            gate_id=gate_id,
            person=person(vote.actor),
            actor=vote.actor,
            approves=vote.approves,
            reason=vote.reason,
            chosen=vote.option,
            channel=vote.channel,
        )
    )


def _record_vote(conn: Connection, asked: Asked, vote: Vote, stands: str) -> None:
    details = {"channel": vote.channel, "option": vote.option, "approvals": stands}
    given = {name: value for name, value in details.items() if value is not None}
    gates.record(conn, asked, "voted", by=vote.actor, reason=vote.reason, details=given)


def _close(
    conn: Connection, asked: Asked, state: GateState, vote: Vote, *, edit: Edit | None, stands: str
) -> None:
    details: dict[str, Any] = {"approvals": stands}
    values: dict[str, Any] = {"chosen": vote.option}
    if vote.option is not None:
        details["option"] = vote.option
    if edit is not None:
        # Not the values themselves: the log is kept for ever, and may be read by others.
        details["edited"] = [change["path"] for change in edit.difference]
        values |= {"edited": dict(edit.edited), "difference": list(edit.difference)}
    closed = gates.close(
        conn,
        asked,
        state,
        by=vote.actor,
        channel=vote.channel,
        reason=vote.reason,
        details=details,
        **values,
    )
    assert closed, "it is open, and locked"


def _closed(conn: Connection, asked: Asked) -> FlowStoneError:
    """Return the error that tells how an approval has ended already."""
    gate = asked.gate
    if gate.state == GateState.VOID:
        again = replaced_by(conn, gate.id)
        asks = f"asked again as approval {again}" if again else "it is asked again"
        return ApprovalVoid(
            f"{gate.label} is void, as {_reason(conn, asked) or gates.OUTDATED}; {asks}"
        )
    if gate.state == GateState.WITHDRAWN:
        why = _reason(conn, asked)
        return AlreadyDecided(
            f"{gate.label} was withdrawn, and is not asked for any more"
            + (f": {why}" if why else "")
        )
    return AlreadyDecided(f"{gate.label} is decided: {decided(gate)}")


def _reason(conn: Connection, asked: Asked) -> str | None:
    values = {"run_id": asked.run_id, "action": f"approval.{asked.gate.state}", "id": asked.gate.id}
    found = conn.scalar(_ENDED, values)
    return None if found is None else str(found)
