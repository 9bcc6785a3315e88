"""A step that waits is outside of everything: no slot, no canvas, one open request."""

from __future__ import annotations

from flowstone.approval import Ask
from flowstone.store import gates
from flowstone.store.ledger import Ledger
from tests.store.gates_by_hand import ask_for, row


def test_asking_is_one_transaction(ledger: Ledger) -> None:
    gate = ask_for(ledger, Ask(message="May it?", approvers=["ann"], timeout=60, remind_every=9))
    asked = row(ledger, gate)
    assert (asked.state, asked.kind, asked.message) == ("open", "approval", "May it?")
    assert asked.sha256
    assert asked.subject
    assert (asked.expires_at - asked.created_at).total_seconds() == 60
    assert (asked.remind_at - asked.created_at).total_seconds() == 9
    with ledger.begin() as conn:
        found = gates.get(conn, gate)
    assert found is not None
    assert found.gate.approvers == ["ann"]
    assert found.launcher
