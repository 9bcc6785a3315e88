"""The ledger is away for longer than a lease: that is the death of nobody."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.store import steps
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Claim
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.store.test_repairs import age

LEASE = 60.0

Pass = Callable[[], tuple[int, int]]


@pytest.fixture
def put_right(make_runtime: RuntimeFactory) -> Pass:
    """A pass of the reconciler; it returns how many inline runs and steps it has taken."""
    here = make_runtime(build_registry([]), lease_seconds=LEASE)

    def put_right() -> tuple[int, int]:
        counts = reconcile(here, lambda *_: None)
        return counts["inline_abandoned"], counts["lease_expired"]

    return put_right


def later(ledger: Ledger, seconds: float) -> None:
    """Let the clock go on while nobody writes to the ledger."""
    age(ledger, seconds)
    with ledger.begin() as conn:
        for column in (
            "watch SET seen_at = seen_at",
            "watch SET waits_since = waits_since",
            "runs SET lease_until = lease_until",
        ):
            run_sql(conn, f"UPDATE flowstone.{column} - make_interval(secs => :s)", s=seconds)


def renew(ledger: Ledger, claim: Claim) -> None:
    with ledger.begin() as conn:
        assert steps.renew(conn, [claim.token], lease=LEASE) == {claim.token}


def started(ledger: Ledger) -> tuple[HandRun, Claim]:
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    return run, run.claim(1, lease=LEASE)


def test_who_renews_its_lease_after_an_outage_keeps_its_step(
    ledger: Ledger, put_right: Pass
) -> None:
    run, claim = started(ledger)
    put_right()
    for _ in range(3):
        later(ledger, 600)
        # The reconciler comes first, and may come again before the renewal.
        assert put_right() == (0, 0)
        later(ledger, 10)
        assert put_right() == (0, 0)
        for _ in range(5):
            renew(ledger, claim)
            later(ledger, 20)
            assert put_right() == (0, 0)
    assert run.rows()[1]["lost"] == 0
    assert run.commit(claim)


def test_who_does_not_is_dead_and_counted(ledger: Ledger, put_right: Pass) -> None:
    run, claim = started(ledger)
    put_right()
    later(ledger, 600)
    taken = []
    for _ in range(8):
        taken.append(put_right()[1])
        later(ledger, 10)
    assert taken == [0] * 6 + [1, 0]
    assert run.rows()[1]["lost"] == 1
    assert not run.commit(claim)


def test_without_an_outage_nobody_waits(ledger: Ledger, put_right: Pass) -> None:
    started(ledger)
    taken = []
    for _ in range(8):
        taken.append(put_right()[1])
        later(ledger, 10)
    # From 60 s to 60 s after the claim is nothing that a lease has not lasted.
    assert taken == [0] * 6 + [1, 0]


@pytest.mark.parametrize("apart", [35, 45, 61, 1000])
def test_where_passes_are_rare_the_dead_are_found_all_the_same(
    ledger: Ledger, put_right: Pass, apart: float
) -> None:
    run, _ = started(ledger)
    for _ in range(6):
        put_right()
        later(ledger, apart)
    assert run.rows()[1]["lost"] == 1


def test_a_run_that_its_own_process_drives_survives_too(ledger: Ledger, put_right: Pass) -> None:
    run = HandRun(ledger, {1: ()}, driver="inline", lease=LEASE)
    put_right()
    later(ledger, 600)
    assert put_right() == (0, 0)
    later(ledger, LEASE)
    assert put_right() == (1, 0)
    assert query(ledger, "SELECT state FROM flowstone.runs WHERE id = :r", r=run.id) == [
        ("cancelled",)
    ]
