"""Pools, and the most of an asset that runs at once: on the ledger, move by move."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

import flowstone
from flowstone import StaticPartitions, asset, materialize_sync
from flowstone.errors import BadConfig, RunFailed, UnknownPool
from flowstone.outcome import Succeeded
from flowstone.registry import Registry, build_registry
from flowstone.store import pools, repairs, slots, steps
from tests.store.dispatcher import Dispatcher
from tests.store.runs_by_hand import MADE_OF, output, query, run_sql
from tests.store.test_repairs import runs_to_wake

PARTS = StaticPartitions([f"p{number:02}" for number in range(20)])


PARTITIONED: dict[str, dict[str, Any]] = {
    "light": {"pool": "warehouse"},
    "also_light": {"pool": "warehouse"},
    "heavy": {"pool": "warehouse", "weight": 3},
    "few": {"max_running": 2},
    "free": {},
}


def _one() -> int:
    return 1


def _none() -> None: ...


def definitions() -> Registry:
    """Partitioned assets, each with one named in the plural that reads all of it; and a path."""
    parts = [asset(name=n, partitions=PARTS, **options)(_one) for n, options in PARTITIONED.items()]
    wholes = [asset(name=f"{name}s", deps=[name])(_none) for name in PARTITIONED]
    everything = asset(name="everything", deps=[f"{name}s" for name in PARTITIONED])(_none)

    @asset
    def first() -> int:
        return 1

    @asset(pool="warehouse")
    def second(first: int) -> int:
        return first

    @asset
    def third(second: int) -> int:
        return second

    @asset(pool="warehouse")
    def meets(first: int, third: int) -> int:
        return first + third

    return build_registry([*parts, *wholes, everything, first, second, third, meets])


@pytest.fixture
def here(make_runtime: Any) -> Any:
    return make_runtime(definitions(), pools={"warehouse": 4, "nightly": 2})


@pytest.fixture
def celery(here: Any) -> Dispatcher:
    return Dispatcher(here)


def held(here: Any, key: str = "warehouse") -> int:
    with here.ledger.begin() as conn:
        return sum(pool.taken for pool in pools.status(conn) if pool.name == key)


def test_no_more_is_dispatched_than_there_are_slots(celery: Dispatcher) -> None:
    celery.submit("lights")
    assert celery.dispatched() == {"light": 4}
    done = 0
    while celery.dispatched()["light"]:
        assert held(celery.runtime) <= 4
        celery.succeed(celery.begin("light"))
        done += 1
    assert done == 20


def test_a_free_slot_is_taken_at_once_and_what_waits_holds_no_message(celery: Dispatcher) -> None:
    celery.submit("lights")
    claims = [celery.begin() for _ in range(4)]
    assert not celery.messages
    celery.succeed(claims.pop())
    assert celery.dispatched() == {"light": 1}


def test_a_slot_that_one_run_leaves_goes_to_another(celery: Dispatcher) -> None:
    celery.submit("lights")
    other = celery.submit("also_lights")
    assert celery.of(other) == 0
    claims = [celery.begin() for _ in range(4)]
    assert other in celery.succeed(claims.pop())
    assert celery.of(other) == 1


def test_runs_that_share_a_pool_get_the_same_of_it(celery: Dispatcher) -> None:
    one = celery.submit("lights")
    other = celery.submit("also_lights")
    for _ in range(12):
        celery.succeed(celery.begin())
    assert {celery.of(one), celery.of(other)} == {2}


def test_an_urgent_run_gets_the_next_slots(celery: Dispatcher) -> None:
    celery.submit("lights")
    urgent = celery.submit("also_lights", priority="high")
    claims = [celery.begin() for _ in range(4)]
    for claim in claims:
        celery.succeed(claim)
    assert celery.of(urgent) == 4


def test_a_heavy_step_is_not_kept_out_by_light_ones(celery: Dispatcher) -> None:
    celery.submit("lights")
    celery.submit("heavys")
    for _ in range(10):
        if celery.dispatched()["heavy"]:
            break
        celery.succeed(celery.begin("light"))
    assert celery.dispatched()["heavy"] == 1
    assert held(celery.runtime) <= 4


def test_only_so_many_of_an_asset_run_at_once_over_all_runs(celery: Dispatcher) -> None:
    celery.submit("few", partition="p00")
    celery.submit("few", partition="p01")
    third = celery.submit("few", partition="p02")
    assert celery.dispatched() == {"few": 2}
    celery.succeed(celery.begin())
    assert celery.of(third) == 1


def test_what_needs_no_slots_does_not_wait_behind_what_does(celery: Dispatcher) -> None:
    celery.submit("everything", max_in_flight=60)
    found = celery.dispatched()
    assert (found["free"], found["few"]) == (20, 2)
    assert 0 < found["light"] + found["also_light"] + 3 * found["heavy"] <= 4


def test_a_pool_of_the_run_holds_for_all_its_steps(celery: Dispatcher) -> None:
    celery.submit("frees", pool="nightly")
    assert celery.dispatched() == {"free": 2}
    celery.submit("lights", pool="nightly")
    assert celery.dispatched() == {"free": 2}
    assert held(celery.runtime, "nightly") == 2


def test_what_takes_slots_begins_a_canvas_and_waits_in_none(celery: Dispatcher) -> None:
    celery.submit("meets")
    assert celery.dispatched() == {"first": 1}
    celery.succeed(celery.begin())
    # The one after it needs none, and may wait in the canvas.
    assert celery.dispatched() == {"second": 1, "third": 1}
    assert held(celery.runtime) == 1
    celery.succeed(celery.begin("second"))
    assert held(celery.runtime) == 0
    celery.succeed(celery.begin("third"))
    assert celery.dispatched() == {"meets": 1}


def test_a_step_that_waits_for_its_retry_holds_no_slot(celery: Dispatcher) -> None:
    celery.submit("lights")
    claims = [celery.begin() for _ in range(4)]
    celery.retry(claims[0], 300)
    assert held(celery.runtime) == 4
    assert celery.dispatched() == {"light": 1}


def test_a_failed_step_leaves_its_slot(celery: Dispatcher) -> None:
    run_id = celery.submit("lights")
    celery.fail(celery.begin())
    assert celery.dispatched() == {"light": 4}
    assert query(
        celery.runtime.ledger,
        "SELECT state FROM flowstone.steps WHERE run_id = :r AND asset = 'lights'",
        r=run_id,
    ) == [("upstream_failed",)]


def test_the_slots_of_a_dead_process_are_free_when_its_lease_is_over(celery: Dispatcher) -> None:
    celery.submit("lights")
    other = celery.submit("also_lights")
    for _ in range(4):
        celery.begin()
    query_all = "UPDATE flowstone.steps SET lease_until = now() - interval '1 s' WHERE state = "
    with celery.runtime.ledger.begin() as conn:
        conn.exec_driver_sql(query_all + "'running'")
        assert len(repairs.expired_leases(conn)) == 4
    assert held(celery.runtime) == 0
    celery.coordinate(other)
    # Half of what is free: the other half is for the other run, whose turn it is as well.
    assert celery.of(other) == 2


def test_a_cancelled_run_leaves_its_slots_and_wakes_who_waits_for_them(
    celery: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = celery.submit("lights")
    other = celery.submit("also_lights")
    woken: set[UUID] = set()
    monkeypatch.setattr("flowstone.handle.wake_others", lambda _, runs: woken.update(runs))
    flowstone.cancel(str(run_id))
    assert other in woken
    celery.coordinate(other)
    assert celery.of(other) == 4


def test_a_coordinator_that_finds_it_is_the_turn_of_another_run_wakes_that(
    celery: Dispatcher,
) -> None:
    celery.submit("lights")
    second = celery.submit("also_lights")
    third = celery.submit("heavys", priority="low")
    claims = [celery.begin() for _ in range(4)]
    with celery.runtime.ledger.begin() as conn:
        # It ends, and nobody hears of the slot that it leaves.
        steps.commit(conn, claims[0], Succeeded(output(), MADE_OF))
    assert second in celery.coordinate(third)
    assert celery.of(second) == 1


def test_a_run_with_slots_uses_them_before_it_fills_its_window_with_the_rest(
    celery: Dispatcher,
) -> None:
    # Those without a limit come first in the plan.
    celery.submit("free", "light", partition="p00", max_in_flight=1)
    assert celery.dispatched() == {"light": 1}


def test_a_message_that_was_lost_does_not_keep_its_slots_while_its_run_goes_on(
    celery: Dispatcher,
) -> None:
    run_id = celery.submit("lights", "frees")
    lost = [message for message in celery.messages if message.asset == "light"]
    assert len(lost) == 4
    celery.messages = [message for message in celery.messages if message not in lost]
    with celery.runtime.ledger.begin() as conn:
        age = "UPDATE flowstone.steps SET queued_at = queued_at - interval '1 h' "
        conn.exec_driver_sql(age + "WHERE state = 'queued' AND asset = 'light'")
    celery.begin("free")
    with celery.runtime.ledger.begin() as conn:
        assert {step.step_id for step in repairs.stranded(conn, 360)} == {m.id for m in lost}
    celery.coordinate(run_id)
    assert celery.dispatched()["light"] == 4


def test_a_full_queue_is_no_loss_while_nothing_has_overtaken(celery: Dispatcher) -> None:
    celery.submit("lights", "frees")
    celery.begin("free")
    with celery.runtime.ledger.begin() as conn:
        conn.exec_driver_sql("UPDATE flowstone.steps SET queued_at = queued_at - interval '1 h'")
        assert repairs.stranded(conn, 360) == []


def test_the_messages_of_what_holds_slots_go_before_the_bulk_of_their_run(
    make_runtime: Any,
) -> None:
    celery = Dispatcher(make_runtime(definitions(), pools={"warehouse": 20}))
    celery.submit("lights", "frees")
    levels = {
        name: {message.level for message in celery.messages if message.asset == name}
        for name in ("light", "free")
    }
    assert max(levels["light"]) < max(levels["free"])


def test_the_reconciler_wakes_those_whose_turn_it_is_and_no_others(celery: Dispatcher) -> None:
    runs = [celery.submit("light", partition=f"p{number:02}") for number in range(12)]
    with celery.runtime.ledger.begin() as conn:
        assert not set(runs).intersection(runs_to_wake(conn, 0))
        assert slots.may_go_on(conn) == frozenset()
    claims = [celery.begin() for _ in range(4)]
    with celery.runtime.ledger.begin() as conn:
        steps.commit(conn, claims[0], Succeeded(output(), MADE_OF))
        assert slots.may_go_on(conn) == {runs[4]}


def rows_of_a_look(here: Any) -> int:
    """Return how many rows one look handles, those included that a join throws away."""
    explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {slots._WAITING.text}")
    with here.ledger.begin() as conn:
        (explained,) = conn.scalar(explain, {"keys": None, "most": slots.MOST})

    def rows(node: dict[str, Any]) -> int:
        kinds = ("Actual Rows", "Rows Removed by Join Filter", "Rows Removed by Filter")
        own = sum(int(node.get(kind, 0)) for kind in kinds) * int(node["Actual Loops"])
        return own + sum(rows(below) for below in node.get("Plans", ()))

    return rows(explained["Plan"])


def test_the_cost_of_a_look_grows_with_the_runs_that_wait_and_not_with_their_square(
    celery: Dispatcher,
) -> None:
    flowstone.set_pool("warehouse", 0)

    def wait(runs: int) -> None:
        for number in range(runs):
            celery.submit("light", partition=f"p{number % 20:02}", on_conflict="queue")

    wait(15)
    few = rows_of_a_look(celery.runtime) / 15
    wait(105)
    assert rows_of_a_look(celery.runtime) / 120 < 1.5 * few


@pytest.mark.parametrize(
    "unable",
    [
        "state = 'paused'",
        "cancel_requested_at = now(), cancel_grace = 1, cancel_reason = 'x'",
        "driver = 'inline', lease_until = now() - interval '1 s'",
    ],
)
def test_nothing_is_kept_for_a_run_that_could_not_use_it(celery: Dispatcher, unable: str) -> None:
    celery.submit("lights")
    urgent = celery.submit("also_lights", priority="high")
    with celery.runtime.ledger.begin() as conn:
        conn.exec_driver_sql(f"UPDATE flowstone.runs SET {unable} WHERE id = '{urgent}'")
    for _ in range(8):
        celery.succeed(celery.begin())
    assert celery.dispatched() == {"light": 4}


def test_nothing_is_kept_for_a_run_whose_window_is_full(celery: Dispatcher) -> None:
    celery.submit("lights")
    urgent = celery.submit("also_lights", priority="high", max_in_flight=1)
    for _ in range(8):
        celery.succeed(celery.begin("light"))
    assert celery.of(urgent) == 1
    assert celery.dispatched()["light"] == 3


def test_one_that_another_run_computes_joins_it_without_a_slot(celery: Dispatcher) -> None:
    celery.submit("light", partition="p00")
    for part in ("p01", "p02", "p03"):
        celery.submit("light", partition=part)
    follower = celery.submit("light", partition="p00")
    assert celery.of(follower) == 0
    state = "SELECT state FROM flowstone.steps WHERE run_id = :r"
    assert query(celery.runtime.ledger, state, r=follower) == [("joined",)]


def test_an_operator_changes_a_pool_while_everything_runs(celery: Dispatcher) -> None:
    celery.submit("lights")
    flowstone.set_pool("warehouse", 6, reason="at night")
    (pool,) = [p for p in flowstone.list_pools() if p.name == "warehouse"]
    assert (pool.slots, pool.declared, pool.taken, pool.waiting) == (6, 4, 4, 16)
    assert pool.reason == "at night"
    for _ in range(2):
        celery.succeed(celery.begin())
    assert celery.dispatched() == {"light": 6}
    flowstone.set_pool("warehouse", 1)
    for _ in range(5):
        celery.succeed(celery.begin())
    assert celery.dispatched() == {"light": 1}
    flowstone.reset_pool("warehouse")
    celery.succeed(celery.begin())
    assert celery.dispatched() == {"light": 4}
    audit = "SELECT action, reason, before->>'slots', after->>'slots' FROM flowstone.audit"
    assert query(celery.runtime.ledger, f"{audit} WHERE action LIKE 'pool%' ORDER BY id") == [
        ("pool.set", "at night", None, "6"),
        ("pool.set", None, "6", "1"),
        ("pool.reset", None, "1", None),
    ]


def test_a_pool_without_slots_is_closed_and_not_an_error(celery: Dispatcher) -> None:
    flowstone.set_pool("warehouse", 0)
    run_id = celery.submit("lights")
    assert not celery.messages
    (wait,) = flowstone.client.run(run_id).waits()
    assert (wait.key, wait.steps, wait.slots, wait.taken) == ("warehouse", 20, 0, 0)


def test_other_settings_hold_from_the_next_look_of_a_process_that_has_them(
    celery: Dispatcher,
) -> None:
    celery.submit("lights")
    with celery.runtime.ledger.begin() as conn:
        slots.declare(conn, {"warehouse": 5})
    celery.succeed(celery.begin())
    assert celery.dispatched() == {"light": 5}


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ({}, "takes slots of the pool 'warehouse', which has none; say how many with FLOWSTONE_P"),
        ({"warehous": 1}, "which has none; did you mean 'warehous'"),
        ({"warehouse": 2}, "takes 3 slots of the pool 'warehouse', which has 2; give it more"),
    ],
)
def test_a_pool_that_could_never_serve_fails_the_run_when_it_is_planned(
    make_runtime: Any, pools: dict[str, int], message: str
) -> None:
    make_runtime(definitions(), pools=pools)
    with pytest.raises(RunFailed, match=message):
        materialize_sync("heavy", partition="p00")
    with pytest.raises(BadConfig, match=message):
        flowstone.preview("heavy", partition="p00")


def test_more_slots_in_the_settings_hold_for_whoever_has_these(make_runtime: Any) -> None:
    make_runtime(definitions(), pools={"warehouse": 2})
    materialize_sync("light", partition="p00")
    make_runtime(definitions(), pools={"warehouse": 4})
    materialize_sync("heavy", partition="p00")
    (pool,) = [pool for pool in flowstone.list_pools() if pool.name == "warehouse"]
    assert pool.declared == 4


def test_a_pool_that_only_an_operator_has_made_cannot_be_taken_away(here: Any) -> None:
    flowstone.set_pool("adhoc", 1)
    with pytest.raises(BadConfig, match="the settings know no pool 'adhoc'"):
        flowstone.reset_pool("adhoc")


def test_settings_that_say_nothing_new_hold_nobody_up(here: Any) -> None:
    with here.ledger.begin() as conn:
        slots.declare(conn, {"warehouse": 4})
    with here.ledger.begin() as one:
        slots.declare(one, {"warehouse": 4})
        with here.ledger.begin() as other:
            lock = "SELECT FROM flowstone.pools WHERE name = 'warehouse' FOR NO KEY UPDATE NOWAIT"
            run_sql(other, lock)


def test_names_and_numbers_that_make_no_sense_are_refused(here: Any) -> None:
    with pytest.raises(BadConfig, match="no name of a pool"):
        flowstone.set_pool("no pool", 1)
    with pytest.raises(BadConfig, match="make no sense"):
        flowstone.set_pool("warehouse", -1)
    with pytest.raises(UnknownPool, match="no pool 'warehous'"):
        flowstone.reset_pool("warehous")
    with pytest.raises(UnknownPool, match="no pool 'asset:nobody'"):
        flowstone.set_pool("asset:nobody", 1)


def test_of_many_coordinators_and_workers_at_once_none_gets_a_slot_too_many(
    celery: Dispatcher,
) -> None:
    runs = [celery.submit("lights"), celery.submit("also_lights"), celery.submit("heavys")]

    def work() -> int:
        most = 0
        while claim := celery.begin_any():
            most = max(most, held(celery.runtime))
            celery.succeed(claim)
        return most

    with ThreadPoolExecutor(6) as pool:
        most = [future.result(60) for future in [pool.submit(work) for _ in range(6)]]
    assert max(most) <= 4
    # A thread stops where there is nothing to do for the moment, so a few may be left.
    while claim := celery.begin_any():
        celery.succeed(claim)
    done = "SELECT count(*) FROM flowstone.steps WHERE state = 'succeeded' AND run_id = ANY(:r)"
    assert query(celery.runtime.ledger, done, r=runs) == [(63,)]


def test_a_run_in_this_process_waits_for_its_slots_too(celery: Dispatcher) -> None:
    celery.submit("lights")
    claims = [celery.begin() for _ in range(4)]
    done: list[UUID] = []
    thread = threading.Thread(
        target=lambda: done.append(materialize_sync("also_light", partition="p00").id)
    )
    thread.start()
    waiting = "SELECT count(*) FROM flowstone.steps WHERE asset = 'also_light' AND state='pending'"
    while query(celery.runtime.ledger, waiting) != [(1,)]:
        assert thread.is_alive()
    assert held(celery.runtime) == 4
    assert not done
    celery.succeed(claims.pop())
    thread.join(30)
    assert done
