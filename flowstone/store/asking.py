"""Asking: a running step waits at a gate, outside of its canvas, in one transaction."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, bindparam, select, text
from sqlalchemy.dialects.postgresql import insert

from flowstone.approval import Ask
from flowstone.errors import LedgerRefused
from flowstone.gate import Gate, subject
from flowstone.outcome import Waiting
from flowstone.signalling import SignalAsk, token_hash
from flowstone.states import GateState
from flowstone.store import dispatch, early_signals, notifications
from flowstone.store import gates as gates_store
from flowstone.store import steps as steps_store
from flowstone.store.gate_tables import IN_USE
from flowstone.store.gates import Asked
from flowstone.store.steps import Claim
from flowstone.store.tables import SCHEMA, gates

ANEW: Final = "its step begins anew, and has got the signal already"
"""Why the gate of a signal is void in whose place another one has the same signal."""

# A step begins anew after a gate that is void. What has come since then does not come again, or a
# step that waits for one signal twice would never end.
_COME_BEFORE = text(
    f"""
    SELECT g.id FROM {SCHEMA}.gates g
    WHERE g.token_hash = :token_hash AND g.step_id = :step_id AND g.state = 'received'
      AND EXISTS (SELECT FROM {SCHEMA}.gates WHERE step_id = :step_id AND id > g.id
        AND state = 'void')
    """
)


def ask(conn: Connection, claim: Claim, waiting: Waiting) -> bool:
    """Let a running step wait, outside of its canvas, with what it asks for; False if stale.

    The rest of its canvas is released. Raises LedgerRefused for the token of a signal that another
    step waits for, or that has come already.
    """
    if not steps_store.holds(conn, claim):
        return False
    come = None if isinstance(waiting.ask, Ask) else _come_before(conn, claim, waiting.ask)
    gate_id = _insert(conn, claim, waiting)
    said = waiting.ask.message or None
    values = {"canvas": None, "queued_at": None, "gate": gate_id}
    steps_store.finish(conn, claim, waiting.state, values, details={"gate": gate_id}, reason=said)
    dispatch.release(conn, [claim.canvas])
    asked = gates_store.get(conn, gate_id)
    assert asked is not None
    gates_store.record(
        conn, asked, "requested", by=claim.worker, reason=said, after={"state": GateState.OPEN}
    )
    if isinstance(waiting.ask, Ask):
        notifications.tell(conn, gate_id, "requested")
    elif come is not None:
        _bring_again(conn, asked, come)
    else:
        _take_early(conn, asked, waiting.ask)
    return True


def _come_before(conn: Connection, claim: Claim, ask: SignalAsk) -> Gate | None:
    """Return the gate of this step that has got the signal before the step began anew.

    It is void from now on, so that another one has its token.
    """
    values = {"step_id": claim.step_id, "token_hash": token_hash(ask.token)}
    gate_id = conn.scalar(_COME_BEFORE, values)
    come = None if gate_id is None else gates_store.lock(conn, gate_id)
    if come is None:
        return None
    gates_store.close(conn, come, GateState.VOID, by=claim.worker, reason=ANEW)
    return come.gate


def _bring_again(conn: Connection, asked: Asked, come: Gate) -> None:
    """Close the gate of a signal that has come before; who has sent it is not asked twice."""
    assert come.closed_at is not None
    gates_store.close(
        conn,
        asked,
        GateState.RECEIVED,
        by=come.closed_by or "",
        channel=come.channel,
        details={"came_at": come.closed_at.isoformat()},
        payload=come.payload,
    )


def _take_early(conn: Connection, asked: Asked, ask: SignalAsk) -> None:
    """Close the gate of a signal that came before anybody waited; its step is to be carried on."""
    early = early_signals.take(conn, token_hash(ask.token))
    if early is not None:
        gates_store.close(
            conn,
            asked,
            GateState.RECEIVED,
            by=early.actor,
            channel=early.channel,
            details={"came_at": early.received_at.isoformat()},
            payload=early.payload,
        )


def _insert(conn: Connection, claim: Claim, waiting: Waiting) -> int:
    ask, value, made_of = waiting.ask, waiting.value, str(waiting.fingerprint)
    given: dict[str, Any] = {}
    if isinstance(ask, Ask):
        given = {
            "kind": "approval",
            "context": dict(ask.context),
            "options": list(ask.options),
            "subject": subject(
                value.output.sha256 if value else None, made_of, ask.message, ask.context
            ),
            "approvers": list(ask.approvers),
            "quorum": ask.quorum,
            "four_eyes": ask.four_eyes,
            "remind_every": ask.remind_every,
            "remind_at": _after(ask.remind_every),
            "escalation": [asdict(level) for level in ask.escalation],
            "notify": None if ask.notify is None else list(ask.notify),
        }
    else:
        empty: dict[str, Any] = {"context": {}, "options": [], "approvers": [], "escalation": []}
        given = {"kind": "signal", "name": ask.name, "token_hash": token_hash(ask.token), **empty}
    if value is not None:
        given |= asdict(value.output)
        given |= {
            "fingerprint": str(value.fingerprint),
            "version": value.version,
            "checks": [asdict(check) for check in value.checks],
        }
    gate_id = conn.scalar(
        insert(gates)
        .values(
            step_id=claim.step_id,
            attempt=claim.attempt,
            message=ask.message,
            expires_at=_after(ask.timeout),
            on_timeout=ask.on_timeout,
            replaces=_replaced(claim.step_id, str(given["kind"])),
            **given,
        )
        .on_conflict_do_nothing(index_elements=["token_hash"], index_where=text(IN_USE))
        .returning(gates.c.id)
    )
    if gate_id is None:
        raise LedgerRefused(
            f"{claim.name} waits for a signal with a token that another step waits for, or that "
            "has come already; a token is used once: take that of context.signal_token"
        )
    return int(gate_id)


def _replaced(step_id: int, kind: str) -> Any:  # noqa: ANN401 - an SQL expression
    """Return the last gate of a kind of a step, if it is void: what is asked is asked again."""
    query = select(gates.c.id, gates.c.state).where(gates.c.step_id == step_id)
    last = query.where(gates.c.kind == kind).order_by(gates.c.id.desc()).limit(1).subquery()
    return select(last.c.id).where(last.c.state == GateState.VOID).scalar_subquery()


def _after(seconds: float | None) -> Any:  # noqa: ANN401 - an SQL expression
    if seconds is None:
        return None
    # Of two in one statement, each has seconds of its own.
    bound: BindParameter[float] = bindparam("seconds", seconds, unique=True)
    return text("now() + make_interval(secs => :seconds)").bindparams(bound)
