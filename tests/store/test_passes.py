"""A pass of the reconciler goes on, whatever one of its rules meets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowstone import reconcile as reconciler
from flowstone.errors import LedgerRefused
from flowstone.registry import build_registry
from flowstone.rules import RULES, Repaired, Rule, Sight
from flowstone.runtime import Runtime
from flowstone.states import GateState
from flowstone.store import gates, watch
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import ask_for
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.store.test_repairs import CHORD, age


@pytest.fixture
def here(make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(reconciler, "LOCK_SECONDS", 0.05)
    return make_runtime(build_registry([]))


def expired(ledger: Ledger, name: str = "x") -> HandRun:
    run = HandRun(ledger, CHORD, name=name)
    run.dispatch()
    run.claim(1, lease=-1)
    return run


def nobody(*_: object) -> None:
    pass


def test_one_who_was_paused_in_the_middle_holds_up_no_pass_and_no_beat(
    here: Runtime, ledger: Ledger
) -> None:
    reconciler.reconcile(here, nobody)
    run = expired(ledger)
    with ledger.begin() as paused:
        watch.look(paused, 60)
        assert reconciler.reconcile(here, nobody)["lease_expired"] == 1
        reconciler.heard_beat(here)
        reconciler.repair(here)
    assert run.states()[1] == "pending"


def lock_follower(ledger: Ledger) -> str:
    leader = HandRun(ledger, {1: ()}, name="f")
    leader.dispatch()
    follower = HandRun(ledger, {1: ()}, name="f")
    follower.dispatch()
    leader.commit(leader.claim(1))
    return f"SELECT FROM flowstone.steps WHERE id = {follower.ids[1]} FOR UPDATE"


def lock_member(ledger: Ledger) -> str:
    run = expired(ledger, "m")
    return f"SELECT FROM flowstone.steps WHERE id = {run.ids[4]} FOR UPDATE"


@pytest.mark.parametrize(
    ("prepare", "rule"), [(lock_follower, "followers_left"), (lock_member, "lease_expired")]
)
def test_what_needs_a_row_that_is_locked_is_left_to_the_next_pass(
    here: Runtime, ledger: Ledger, prepare: Callable[[Ledger], str], rule: str
) -> None:
    lock = prepare(ledger)
    run = HandRun(ledger, {1: ()}, name="late")
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.runs SET created_at = now() - interval '9 s'")
    with ledger.begin() as paused:
        run_sql(paused, lock)
        woken = set()
        done = reconciler.reconcile(here, lambda run_id, _: woken.add(run_id))
        assert done[rule] == 0
        # The others are applied, and whoever can go on is woken.
        assert run.id in woken
    assert reconciler.reconcile(here, nobody)[rule] == 1


def test_where_a_step_behind_a_gate_is_locked_those_before_it_are_woken(
    here: Runtime, ledger: Ledger
) -> None:
    run_of = {}
    for name in "de":
        run = HandRun(ledger, {1: ()}, name=name)
        run.dispatch()
        gate = ask_for(ledger, run=run, step=1)
        run_of[name] = run
        with ledger.begin() as conn:
            asked = gates.lock(conn, gate)
            assert asked is not None
            gates.close(conn, asked, GateState.APPROVED, by="timeout")
    first, second = run_of["d"], run_of["e"]
    with ledger.begin() as paused:
        run_sql(paused, f"SELECT FROM flowstone.steps WHERE id = {second.ids[1]} FOR UPDATE")
        woken = set()
        done = reconciler.reconcile(here, lambda run_id, _: woken.add(run_id))
    assert done["continuation_lost"] == 1
    assert (first.states()[1], second.states()[1]) == ("pending", "waiting_approval")
    assert first.id in woken
    assert reconciler.reconcile(here, nobody)["continuation_lost"] == 1


def test_a_transaction_that_is_idle_is_ended_and_only_a_pass_is_impatient(
    here: Runtime, ledger: Ledger
) -> None:
    reconciler.reconcile(here, nobody)
    setting = "SELECT current_setting('idle_in_transaction_session_timeout')"
    locks = "SELECT current_setting('lock_timeout')"
    assert query(here.ledger, setting) == [("2min",)]
    assert query(here.ledger, locks) == [("0",)]
    with here.ledger.impatient(3):
        assert query(here.ledger, locks) == [("3s",)]
        with here.ledger.impatient(1), here.ledger.autocommit() as conn:
            assert conn.exec_driver_sql(locks).scalar() == "1s"
        assert query(here.ledger, locks) == [("3s",)]
    assert query(here.ledger, locks) == [("0",)]


def broken(error: Exception) -> Rule:
    def fail(sight: Sight, count: object) -> Repaired:
        raise error

    return Rule("broken", "-", lambda *_: (), fail)


@pytest.mark.parametrize("place", [0, 8, len(RULES)])
@pytest.mark.parametrize("error", [TypeError("a row that cannot be"), LedgerRefused("no")])
def test_a_rule_that_raises_ends_no_pass(
    here: Runtime,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
    error: Exception,
) -> None:
    rules = (*RULES[:place], broken(error), *RULES[place:])
    monkeypatch.setattr(reconciler, "RULES", rules)
    run = expired(ledger)
    age(ledger, 9)
    woken = []
    with pytest.raises(type(error)):
        reconciler.reconcile(here, lambda run_id, _: woken.append(run_id))
    assert run.states()[1] == "pending"
    assert woken == [run.id]
    done = reconciler.make_pass(here, nobody)
    assert (done.failed, done.unsent) == ({"broken": error}, None)


def test_a_run_that_cannot_be_keeps_no_lease_from_ending(here: Runtime, ledger: Ledger) -> None:
    odd = HandRun(ledger, {1: ()}, name="odd")
    with ledger.begin() as conn:
        sql = "UPDATE flowstone.runs SET deadline_at = now() - interval '1 s' WHERE id = :r"
        run_sql(conn, sql, r=odd.id)
    run = expired(ledger)
    assert reconciler.make_pass(here, nobody).failed.keys() == {"deadline_passed"}
    assert run.states()[1] == "pending"


def test_who_asks_for_a_run_after_an_outage_takes_none_for_dead(
    here: Runtime, ledger: Ledger
) -> None:
    reconciler.reconcile(here, nobody)
    lives = HandRun(ledger, {1: ()}, driver="inline", lease=60)
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.watch SET seen_at = now() - interval '10 min'")
        run_sql(conn, "UPDATE flowstone.runs SET lease_until = now() - interval '9 min'")
    reconciler.close_abandoned(here)
    assert lives.states() == {1: "pending"}
    # It has had the time of a lease to renew its own.
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.watch SET waits_since = waits_since - interval '61 s'")
    reconciler.close_abandoned(here)
    assert lives.states() == {1: "cancelled"}
    assert reconciler.repaired(here)["inline_abandoned"].repaired == 1


def test_who_waits_for_a_run_of_its_own_is_no_pass(here: Runtime, ledger: Ledger) -> None:
    reconciler.repair(here)
    reconciler.close_abandoned(here)
    assert query(ledger, "SELECT passed_at FROM flowstone.watch") == [(None,)]
    reconciler.reconcile(here, nobody)
    assert query(ledger, "SELECT passed_at IS NULL FROM flowstone.watch") == [(False,)]
