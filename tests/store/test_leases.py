"""Leases: renewed for a whole process at once, and also while the code of an asset is busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import event

from flowstone import asset, materialize_sync
from flowstone.leases import Leases
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun, query
from tests.worker.waiting import wait_until

LEASE = 2.5
"""A pass of the reconciler has to take less than half of it, beside a thread that is busy."""
BUSY = 2 * LEASE


@pytest.fixture
def leases(ledger: Ledger) -> Iterator[Leases]:
    made = Leases(ledger, 60)
    yield made
    made.close()


def test_one_statement_renews_all_that_a_process_runs(ledger: Ledger, leases: Leases) -> None:
    run = HandRun(ledger, dict.fromkeys(range(1, 31), ()))
    run.dispatch()
    claims = [run.claim(number, lease=5) for number in run.ids]
    driven = [HandRun(ledger, {1: ()}, name=name, driver="inline").id for name in "bcd"]
    statements: list[str] = []
    with ExitStack() as held:
        for claim in claims:
            held.enter_context(leases.held(claim.token))
        for run_id in driven:
            held.enter_context(leases.driven(run_id))
        event.listen(
            ledger.engine, "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        leases._renew_steps()
        leases._renew_runs()
    # One for all attempts, and one for the runs that the process drives itself.
    assert len(statements) == 2
    for table in ("steps", "runs"):
        renewed = (
            f"SELECT count(*) FROM flowstone.{table} WHERE lease_until > now() + interval '50s'"
        )
        assert query(ledger, renewed) == [(30 if table == "steps" else 3,)]
    assert not any(leases.is_cancelled(claim.token) for claim in claims)


def test_a_fault_does_not_end_the_renewals(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Leases(ledger, 0.3)
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    claim = run.claim(1, lease=0.3)
    failures = [ValueError("a bug")]
    in_turn = ledger.in_turn

    def fails_once(work: object) -> object:
        if failures:
            raise failures.pop()
        return in_turn(work)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger, "in_turn", fails_once)
    with made.held(claim.token):
        first = run.rows()[1]["lease_until"]
        wait_until(
            lambda: run.rows()[1]["lease_until"] > first, "the lease is renewed all the same"
        )
    made.close()


def test_who_is_busy_or_asleep_for_longer_than_its_lease_keeps_its_step(
    make_runtime: RuntimeFactory, ledger: Ledger
) -> None:
    @asset
    def busy() -> int:
        end, rounds = time.monotonic() + BUSY, 0
        while time.monotonic() < end:
            rounds += 1
        return rounds

    @asset
    def sleeps() -> int:
        time.sleep(BUSY)
        return 1

    here = make_runtime(build_registry([busy, sleeps]), lease_seconds=LEASE)
    # One that nobody renews shows that leases do end meanwhile.
    dead = HandRun(ledger, {1: ()})
    dead.dispatch()
    dead.claim(1, lease=LEASE)
    threads = [
        threading.Thread(target=materialize_sync, args=(name,)) for name in ("busy", "sleeps")
    ]
    expired = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        expired += reconcile(here, lambda *_: None)["lease_expired"]
    assert expired == 1
    assert dead.rows()[1]["lost"] == 1
    others = "SELECT s.asset, a.number, a.outcome FROM flowstone.attempts a JOIN flowstone.steps s "
    assert query(ledger, others + "ON s.id = a.step_id WHERE s.asset <> 'a1' ORDER BY 1") == [
        ("busy", 1, "succeeded"),
        ("sleeps", 1, "succeeded"),
    ]
