"""Those who decide in a scenario, and what sends signals: each tells twice, and is heard once."""

from __future__ import annotations

import contextlib

from sqlalchemy import text

import flowstone
from flowstone import runtime
from flowstone.errors import (
    AlreadyDecided,
    ApprovalVoid,
    LedgerUnavailable,
    UnknownApproval,
    UnknownSignal,
)
from tests.chaos.world import token_of

_OPEN = text(
    """
    SELECT g.id, g.kind, g.message, s.run_id, s.asset
    FROM flowstone.gates g JOIN flowstone.steps s ON s.id = g.step_id WHERE g.state = 'open'
    """
)


def decide() -> None:
    """Decide about all that is asked, and send all signals that are waited for.

    Where the ledger is away, whoever asks for it comes again.
    """
    with contextlib.suppress(LedgerUnavailable):
        with runtime.current().ledger.begin() as conn:
            asked = conn.execute(_OPEN).all()
        for gate in asked:
            if gate.kind == "signal":
                _send(token_of(gate.run_id, gate.asset), int(gate.message))
            else:
                _answer(gate.id, gate.message)


def _send(token: str, payload: int) -> None:
    for other in (payload, payload + 1):
        # A run may be cancelled meanwhile; the second one comes too late.
        with contextlib.suppress(UnknownSignal):
            flowstone.signal(token, other)


def _answer(approval: int, wanted: str) -> None:
    answers = {"approval": flowstone.approve, "rejection": flowstone.reject}
    with contextlib.suppress(AlreadyDecided, ApprovalVoid, UnknownApproval):
        answers.pop(wanted)(approval, by="ann")
        for other in answers.values():
            other(approval, by="bob")
            raise AssertionError(f"approval {approval} was decided twice")
