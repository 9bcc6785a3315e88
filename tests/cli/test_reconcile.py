"""`flowstone reconcile` as an operator calls it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis

from flowstone.approval import Ask
from flowstone.embedded import ValkeyServer
from flowstone.embedded.place import socket_folder
from flowstone.store.ledger import Ledger
from tests.store.gates_by_hand import ask_for, shift
from tests.store.gates_by_hand import row as gate_row
from tests.store.runs_by_hand import HandRun
from tests.store.test_repairs import age


@pytest.fixture(autouse=True)
def _empty(valkey: ValkeyServer) -> None:
    with Redis(unix_socket_path=str(socket_folder(valkey.home, "valkey") / "valkey.sock")) as redis:
        redis.flushall()


def rule(printed: str, name: str) -> dict[str, Any]:
    (found,) = [row for row in json.loads(printed)["rules"] if row["rule"] == name]
    return dict(found)


@pytest.mark.slow
def test_one_pass_by_hand_and_what_it_would_do(flowstone: Any, ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    run.claim(1)
    age(ledger, 1000)
    gate = ask_for(ledger, Ask(remind_every=60))
    shift(ledger, gate, 61)
    before, asked = run.rows(), gate_row(ledger, gate)
    name = f"a1 of run {str(run.id)[:8]}"

    look = flowstone("reconcile", "--dry-run")
    assert look.code == 0, look
    assert "lease_expired" in look.out
    assert name in look.out
    told = rule(flowstone("reconcile", "--dry-run", "--json").out, "lease_expired")
    assert (told["count"], told["names"], told["so_far"], told["last_at"]) == (1, [name], 0, None)
    assert rule(flowstone("reconcile", "--dry-run", "--json").out, "gate_due")["count"] == 1
    assert (run.rows(), gate_row(ledger, gate)) == (before, asked)

    done = flowstone("reconcile", "--json").out
    for name in ("lease_expired", "gate_due"):
        told = rule(done, name)
        assert (told["count"], told["so_far"]) == (1, 1)
    assert gate_row(ledger, gate).remind_at > asked.remind_at
    assert run.states() == {1: "pending", 2: "pending"}
    # Without a broker, too, one can look; a pass says that nobody could be woken.
    away = {"broker_url": "redis://127.0.0.1:1/0", "result_url": "redis://127.0.0.1:1/1"}
    run.dispatch()
    run.claim(1)
    age(ledger, 1000)
    told = rule(flowstone("reconcile", "--json", **away).out, "lease_expired")
    assert (told["count"], told["so_far"]) == (1, 2)
    look = flowstone("reconcile", "--dry-run", **away)
    assert (look.code, "run_idle" in look.out) == (0, True), look
    assert "nobody looks for lost messages" in look.err
    refused = flowstone("reconcile", "--json", **away)
    assert refused.code == 3
    assert rule(refused.out, "run_idle")["count"] == 1
    assert refused.err.splitlines()[-1].startswith("error: the broker at redis://")
    assert "Traceback" not in refused.err
