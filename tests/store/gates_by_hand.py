"""Steps that wait at gates on a real ledger, without a worker and without the code of assets."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import text

from flowstone.approval import Ask
from flowstone.outcome import StoredOutput, Succeeded, Waiting
from flowstone.signalling import SignalAsk
from flowstone.store import gates
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import MADE_OF, HandRun, output


def ask(
    run: HandRun,
    number: int,
    what: Ask | SignalAsk | None = None,
    staged: StoredOutput | None = None,
) -> int:
    """Have a step that is dispatched wait, with a staged value if it asks people."""
    made = what or Ask(message="May it?")
    value = Succeeded(staged or output(), MADE_OF) if isinstance(made, Ask) else None
    claim = run.claim(number)
    with run.ledger.begin() as conn:
        assert gates.ask(conn, claim, Waiting(made, MADE_OF, value))
        query = text("SELECT gate FROM flowstone.steps WHERE id = :id")
        return int(conn.scalar(query, {"id": claim.step_id}) or 0)


def ask_for(
    ledger: Ledger,
    what: Ask | SignalAsk | None = None,
    *,
    staged: StoredOutput | None = None,
    **options: Any,
) -> int:
    """Have the only step of a new run wait, with a staged value perhaps; return its gate."""
    options.setdefault("name", f"asset{uuid4().hex[:8]}_")
    run = HandRun(ledger, {0: ()}, **options)
    run.dispatch()
    return ask(run, 0, what, staged)


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
