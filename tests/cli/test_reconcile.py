"""`flowstone reconcile` as an operator calls it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis

from flowstone.embedded import ValkeyServer
from flowstone.embedded.place import socket_folder
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun
from tests.store.test_repairs import age


@pytest.fixture(autouse=True)
def _empty(valkey: ValkeyServer) -> None:
    with Redis(unix_socket_path=str(socket_folder(valkey.home, "valkey") / "valkey.sock")) as redis:
        redis.flushall()


def rule(printed: str, name: str) -> dict[str, Any]:
    (found,) = [row for row in json.loads(printed)["rules"] if row["rule"] == name]
    return dict(found)


def test_one_pass_by_hand_and_what_it_would_do(flowstone: Any, ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    run.claim(1)
    age(ledger, 1000)
    before = run.rows()
    name = f"a1 of run {str(run.id)[:8]}"

    look = flowstone("reconcile", "--dry-run")
    assert look.code == 0, look
    assert "lease_expired" in look.out
    assert name in look.out
    told = rule(flowstone("reconcile", "--dry-run", "--json").out, "lease_expired")
    assert (told["count"], told["names"], told["so_far"], told["last_at"]) == (1, [name], 0, None)
    assert run.rows() == before

    told = rule(flowstone("reconcile", "--json").out, "lease_expired")
    assert (told["count"], told["so_far"]) == (1, 1)
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
