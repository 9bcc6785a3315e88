"""Steps that wait at gates on a real ledger, without a worker and without the code of assets."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import text

from flowstone.approval import Ask
from flowstone.outcome import StoredOutput, Succeeded, Waiting
from flowstone.signalling import SignalAsk
from flowstone.store import asking
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import MADE_OF, HandRun, output


def ask_for(
    ledger: Ledger,
    what: Ask | SignalAsk | None = None,
    *,
    staged: StoredOutput | None = None,
    run: HandRun | None = None,
    step: int = 0,
    **options: Any,
) -> int:
    """Have a step wait, with a staged value perhaps; return its gate.

    It is a step of a `run` that was dispatched, or else the only one of a new run.
    """
    if run is None:
        options.setdefault("name", f"asset{uuid4().hex[:8]}_")
        run = HandRun(ledger, {step: ()}, **options)
        run.dispatch()
    claim = run.claim(step)
    value = Succeeded(staged or output(), MADE_OF) if isinstance(what, Ask | None) else None
    with ledger.begin() as conn:
        assert asking.ask(conn, claim, Waiting(what or Ask(message="May it?"), MADE_OF, value))
        return int(
            conn.scalar(text("SELECT id FROM flowstone.gates ORDER BY id DESC LIMIT 1")) or 0
        )


def row(ledger: Ledger, gate_id: int) -> Any:
    """Return the row of a gate."""
    with ledger.begin() as conn:
        query = text("SELECT * FROM flowstone.gates WHERE id = :id")
        return conn.execute(query, {"id": gate_id}).one()


def shift(ledger: Ledger, gate_id: int, seconds: float) -> None:
    """Let time pass for a gate: all that it waits for comes so much sooner."""
    with ledger.begin() as conn:
        conn.execute(
            text(
                "UPDATE flowstone.gates SET created_at = created_at - make_interval(secs => :s), "
                "expires_at = expires_at - make_interval(secs => :s), "
                "remind_at = remind_at - make_interval(secs => :s) WHERE id = :id"
            ),
            {"s": seconds, "id": gate_id},
        )
