"""Single flight: of an asset x partition one step at a time is active, and others join it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection

from flowstone.asset import asset
from flowstone.coordinator import coordinate
from flowstone.errors import Conflict, LedgerUnavailable
from flowstone.execution import Ended, execute
from flowstone.expand import members
from flowstone.reconcile import reconcile
from flowstone.registry import Registry, build_registry
from flowstone.request import OnConflict
from flowstone.runtime import Runtime
from flowstone.store import cancellation, dispatch, flights, repairs, runs, steps
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, query
from tests.store.test_concurrency import PATIENCE, at_once, until_somebody_waits_for_a_lock
from tests.store.test_dispatch import Outbox, request
from tests.store.test_linear import rows_read

PAIR = {1: (), 2: (1,)}
DIAMOND = {1: (), 2: (1,), 3: (1,), 4: (2, 3)}


def leader_and_follower(ledger: Ledger, **options: Any) -> tuple[HandRun, HandRun]:
    """Two runs of one asset; the first is computing it, the second waits for that."""
    leader, follower = HandRun(ledger, {1: ()}), HandRun(ledger, {1: ()}, **options)
    leader.dispatch()
    follower.dispatch()
    assert follower.rows()[1]["joined_to"] == leader.ids[1]
    assert follower.states() == {1: "joined"}
    return leader, follower


def assert_it_takes_its_turn(follower: HandRun) -> None:
    row = follower.rows()[1]
    assert (row["state"], row["joined_to"], row["fingerprint"]) == ("pending", None, None)
    assert actions(follower)[-1] == "step.left"
    follower.do(1)
    assert follower.states() == {1: "succeeded"}
    assert follower.rows()[1]["reuses"] is None


def actions(run: HandRun) -> list[str]:
    sql = "SELECT action FROM flowstone.audit WHERE run_id = :r ORDER BY id"
    return [row.action for row in query(run.ledger, sql, r=run.id)]


def test_one_commit_completes_the_other_with_a_lineage_of_its_own(ledger: Ledger) -> None:
    one, two = HandRun(ledger, PAIR), HandRun(ledger, PAIR)
    one.dispatch()
    assert two.dispatch() == []
    # The second step of the other run is in a canvas, too, so this one's is kept out of any.
    assert two.states() == {1: "joined", 2: "pending"}
    one.do(1)
    assert one.settle() == {two.id}
    assert (two.states(), two.rows()[2]["open_deps"]) == ({1: "succeeded", 2: "pending"}, 0)
    assert two.needs_coordinator()
    two.dispatch()
    assert two.states()[2] == "joined"
    one.do(2)
    assert one.settle() == {two.id}
    assert two.states() == {1: "succeeded", 2: "succeeded"}
    assert two.needs_coordinator()
    assert {n: row["reuses"] for n, row in two.rows().items()} == one.ids
    assert query(ledger, "SELECT step_id FROM flowstone.outputs ORDER BY 1") == [
        (one.ids[1],),
        (one.ids[2],),
    ]
    lineage = (
        "SELECT l.step_id, l.upstream_step_id, o.step_id FROM flowstone.lineage l "
        "JOIN flowstone.outputs o ON o.id = l.upstream_output_id ORDER BY 1"
    )
    assert query(ledger, lineage) == [
        (run.ids[2], run.ids[1], one.ids[1]) for run in (one, two)
    ]  # fmt: skip
    assert actions(two) == [
        "run.requested", "run.planned", "step.joined", "run.started", "step.succeeded",
        "step.joined", "step.succeeded",
    ]  # fmt: skip


@pytest.mark.parametrize("expects", ["made.of.other", None])
def test_an_output_that_does_not_serve_leaves_the_follower_its_turn(
    ledger: Ledger, expects: str | None
) -> None:
    leader, follower = leader_and_follower(ledger, expects=expects)
    leader.do(1)
    assert leader.settle() == {follower.id}
    assert_it_takes_its_turn(follower)


def test_if_the_one_fails_the_other_takes_its_turn(ledger: Ledger) -> None:
    leader, follower = leader_and_follower(ledger)
    leader.fail(leader.claim(1))
    assert leader.settle() == {follower.id}
    assert_it_takes_its_turn(follower)


def test_whoever_waits_for_a_step_behind_the_one_that_fails_takes_its_turn(
    ledger: Ledger,
) -> None:
    # The failure ends a chain and breaks a chord: 2 fails with 1, and 4 is free again.
    leader = HandRun(ledger, {1: (), 2: (1,), 3: (), 4: (3,), 5: (2, 4)})
    assert len(leader.dispatch()) == 1
    others = [HandRun(ledger, {number: ()}) for number in (2, 4)]
    for other in others:
        other.dispatch()
    leader.fail(leader.claim(1))
    assert leader.states() == {
        1: "failed",
        2: "upstream_failed",
        3: "queued",
        4: "pending",
        5: "upstream_failed",
    }
    assert leader.settle() == {other.id for other in others}
    # Now it is the first run that waits for another one.
    others[1].dispatch()
    leader.do(3)
    leader.dispatch()
    assert leader.rows()[4]["joined_to"] == others[1].ids[4]


def test_a_step_that_is_tried_again_is_still_waited_for(ledger: Ledger) -> None:
    leader, follower = leader_and_follower(ledger)
    leader.retry(leader.claim(1))
    assert leader.settle() == frozenset()
    assert follower.states() == {1: "joined"}


def test_if_the_one_is_cancelled_the_other_takes_its_turn(ledger: Ledger) -> None:
    leader, follower = leader_and_follower(ledger)
    with ledger.begin() as conn:
        cancellation.request(conn, leader.id, grace=0, reason=None, actor="me")
    assert leader.settle() == {follower.id}
    assert_it_takes_its_turn(follower)


def test_a_run_that_waits_can_be_cancelled(ledger: Ledger) -> None:
    leader, follower = leader_and_follower(ledger)
    with ledger.begin() as conn:
        done = cancellation.request(conn, follower.id, grace=0, reason=None, actor="me")
    assert (done.state, follower.states()) == ("cancelled", {1: "cancelled"})
    leader.do(1)
    assert leader.settle() == frozenset()
    assert follower.states() == {1: "cancelled"}


def test_the_reconciler_frees_those_who_wait_for_a_worker_that_has_died(
    ledger: Ledger, make_runtime: Any
) -> None:
    leader, follower = leader_and_follower(ledger)
    leader.claim(1, lease=-1)
    woken: list[UUID] = []
    counts = reconcile(make_runtime(build_registry([])), lambda run_id, _: woken.append(run_id))
    assert (counts["lease_expired"], counts["followers_left"]) == (1, 1)
    # The other run is too young to be looked at otherwise.
    assert woken == [follower.id]
    assert leader.states() == follower.states() == {1: "pending"}
    follower.dispatch()
    leader.dispatch()
    assert leader.rows()[1]["joined_to"] == follower.ids[1]
    follower.do(1)
    assert follower.settle() == {leader.id}
    assert leader.rows()[1]["reuses"] == follower.ids[1]


def test_the_reconciler_serves_what_a_crash_after_the_commit_has_left(
    ledger: Ledger, make_runtime: Any
) -> None:
    leader, follower = leader_and_follower(ledger)
    leader.do(1)
    counts = reconcile(make_runtime(build_registry([])), lambda *_: None)
    assert counts["followers_left"] == 1
    assert follower.states() == {1: "succeeded"}


def test_a_leader_that_has_itself_joined_another_serves_with_the_output_of_that(
    ledger: Ledger,
) -> None:
    one, two = leader_and_follower(ledger)
    one.claim(1, lease=-1)
    with ledger.begin() as conn:
        repairs.expired_leases(conn)
    third = HandRun(ledger, {1: ()})
    third.dispatch()
    one.dispatch()
    third.do(1)
    assert third.settle() == {one.id}
    assert one.settle() == {two.id}
    assert [run.rows()[1]["reuses"] for run in (one, two)] == [third.ids[1]] * 2


def test_the_window_does_not_count_what_waits_for_others(ledger: Ledger) -> None:
    leader = HandRun(ledger, {1: (), 2: (), 3: ()})
    leader.dispatch()
    follower = HandRun(ledger, dict.fromkeys(range(1, 6), ()), max_in_flight=1)
    assert [follower.numbers(canvas) for canvas in follower.dispatch()] == [(4,)]
    assert follower.states() == {1: "joined", 2: "joined", 3: "joined", 4: "queued", 5: "pending"}


def test_a_chain_ends_before_a_step_that_another_run_computes(ledger: Ledger) -> None:
    leader = HandRun(ledger, {3: ()})
    leader.dispatch()
    follower = HandRun(ledger, {1: (), 2: (1,), 3: (2,), 4: (3,)})
    assert [follower.numbers(canvas) for canvas in follower.dispatch()] == [(1, 2)]
    leader.do(3)
    # Free again when its turn comes: it goes on as one chain.
    follower.do(1, 2)
    assert [follower.numbers(canvas) for canvas in follower.dispatch()] == [(3, 4)]


def test_a_chord_whose_header_is_computed_elsewhere_goes_out_in_parts(ledger: Ledger) -> None:
    leader = HandRun(ledger, {1: ()})
    leader.dispatch()
    follower = HandRun(ledger, {1: (), 2: (), 3: (1, 2)})
    assert [follower.numbers(canvas) for canvas in follower.dispatch()] == [(2,)]
    leader.do(1)
    leader.settle()
    follower.do(2, 3)
    assert set(follower.states().values()) == {"succeeded"}


def test_a_forced_run_takes_nothing_that_was_there_before_it(ledger: Ledger) -> None:
    old = HandRun(ledger, {1: ()})
    old.do(1)
    leader, follower = leader_and_follower(ledger, force=True)
    other = HandRun(ledger, {1: ()})
    other.dispatch()
    with ledger.begin() as conn:
        assert steps.skip(conn, leader.claim(1), reuses=old.ids[1])
    leader.settle()
    assert other.rows()[1]["reuses"] == old.ids[1]
    assert_it_takes_its_turn(follower)


def test_a_forced_run_takes_what_was_computed_for_another_one_meanwhile(ledger: Ledger) -> None:
    leader, follower = leader_and_follower(ledger, force=True)
    leader.do(1)
    leader.settle()
    assert follower.rows()[1]["reuses"] == leader.ids[1]


def test_a_commit_waits_for_one_who_joins_and_then_sees_him(ledger: Ledger) -> None:
    leader, follower = HandRun(ledger, {1: ()}), HandRun(ledger, {1: ()})
    leader.dispatch()
    claim = leader.claim(1)
    with ThreadPoolExecutor(1) as pool:
        with ledger.begin() as conn:
            runs.lock(conn, follower.id)
            (found,) = dispatch.ready(conn, follower.id).followers
            flights.join(conn, {found: follower.expects}, actor="test")
            commit = pool.submit(leader.commit, claim)
            until_somebody_waits_for_a_lock(ledger)
            assert not due(leader).followers
        assert commit.result(PATIENCE)
    assert due(leader).followers
    leader.settle()
    assert follower.states() == {1: "succeeded"}


def due(run: HandRun) -> dispatch.Due:
    with run.ledger.autocommit() as conn:
        return dispatch.due(conn, run.id, run.ids[1])


def test_one_who_joins_waits_for_a_commit_and_then_joins_nobody(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = HandRun(ledger, {1: ()}), HandRun(ledger, {1: ()})
    leader.dispatch()
    claim = leader.claim(1)
    real = flights.join
    committed: list[bool] = []

    def late(conn: Connection, followers: Any, *, actor: str) -> None:
        # It has seen the leader active, and comes with its lock when that has ended.
        committed.append(leader.commit(claim))
        real(conn, followers, actor=actor)

    monkeypatch.setattr(flights, "join", late)
    follower.dispatch()
    assert committed == [True]
    assert follower.states() == {1: "queued"}


def test_two_that_settle_at_once_do_it_once(ledger: Ledger) -> None:
    for number in range(10):
        leader = HandRun(ledger, DIAMOND, name=f"run{number}_")
        others = [HandRun(ledger, DIAMOND, name=f"run{number}_") for _ in range(3)]
        for run in (leader, *others):
            run.dispatch()
        leader.do(1)
        at_once(leader.settle, leader.settle)
        for other in others:
            assert [other.rows()[n]["open_deps"] for n in (2, 3, 4)] == [0, 0, 2]
            assert actions(other).count("step.succeeded") == 1


@pytest.mark.parametrize("order", [1, -1])
def test_two_runs_that_dispatch_the_same_assets_at_once_share_them_out(
    ledger: Ledger, order: int
) -> None:
    many = 300
    refusals: list[str] = []

    def dispatch_patiently(run: HandRun) -> None:
        while True:
            try:
                with ledger.begin() as conn:
                    run._dispatch(conn)
            except LedgerUnavailable as error:
                refusals.append(error.message)
            else:
                return

    for number in range(12):
        name = f"run{number}_"
        one = HandRun(ledger, dict.fromkeys(range(many), ()), many, name=name)
        two = HandRun(ledger, dict.fromkeys(range(many)[::order], ()), many, name=name)
        at_once(partial(dispatch_patiently, one), partial(dispatch_patiently, two))
        states = one.states(), two.states()
        pairs = Counter(tuple(sorted(of[n] for of in states)) for n in range(many))
        assert pairs == {("joined", "queued"): many}
    # Even where their plans have the assets in opposite orders, they do not wait for each other.
    assert refusals
    assert not [said for said in refusals if "deadlock" in said]


def test_earlier_runs_of_the_same_assets_cost_a_dispatch_nothing(ledger: Ledger) -> None:
    read = []
    for number in range(120):
        run = HandRun(ledger, PAIR)
        before = rows_read(ledger)
        run.dispatch()
        read.append(rows_read(ledger) - before)
        if number == 0:
            run.do(1, 2)
        else:
            with ledger.begin() as conn:
                cancellation.request(conn, run.id, grace=0, reason=None, actor="me")
    assert read[-1] <= read[1]


def registry(calls: list[str]) -> Registry:
    """A diamond whose assets note down when they are computed."""

    @asset
    def top() -> int:
        calls.append("top")
        return 1

    @asset
    def left(top: int) -> int:
        calls.append("left")
        return top + 1

    @asset
    def right(top: int) -> int:
        calls.append("right")
        return top + 2

    @asset
    def bottom(left: int, right: int) -> int:
        calls.append("bottom")
        return left + right

    return build_registry([top, left, right, bottom])


def drive(runtime: Runtime, run_id: UUID) -> None:
    """Be coordinator and worker of a run until it has ended, and wake the others by no message."""
    for _ in range(5000):
        outbox = Outbox()
        coordinate(runtime, run_id, outbox.publish)
        for canvas, marked in outbox.sent:
            for member in members(canvas):
                execute(runtime, member, marked[member].canvas, worker="w")
        with runtime.ledger.begin() as conn:
            if runs.get(conn, run_id).is_final:
                return
    pytest.fail("the run does not end")


def test_runs_of_one_diamond_at_once_compute_each_asset_once(make_runtime: Any) -> None:
    for _ in range(5):
        calls: list[str] = []
        runtime = make_runtime(registry(calls))
        with runtime.ledger.begin() as conn:
            conn.exec_driver_sql("DELETE FROM flowstone.latest")
        ids = [request(runtime, "bottom") for _ in range(3)]
        at_once(*[partial(drive, runtime, run_id) for run_id in ids])
        assert sorted(calls) == ["bottom", "left", "right", "top"]
        states = "SELECT DISTINCT state FROM flowstone.runs"
        assert query(runtime.ledger, states) == [("succeeded",)]
        open_ = "SELECT count(*) FROM flowstone.steps WHERE open_deps > 0"
        assert query(runtime.ledger, open_) == [(0,)]


def requested(runtime: Runtime, on_conflict: OnConflict, name: str = "bottom") -> UUID:
    run_id: UUID = request(runtime, name)
    with runtime.ledger.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE flowstone.runs SET request = request || "
            f"jsonb_build_object('on_conflict', '{on_conflict}') WHERE id = '{run_id}'"
        )
    return run_id


def run_of(runtime: Runtime, run_id: UUID) -> runs.Run:
    with runtime.ledger.begin() as conn:
        return runs.get(conn, run_id)


def test_a_run_that_refuses_conflicts_fails_when_it_is_planned(make_runtime: Any) -> None:
    runtime = make_runtime(registry([]))
    first = request(runtime, "bottom")
    coordinate(runtime, first, Outbox().publish)
    second = requested(runtime, OnConflict.REFUSE)
    coordinate(runtime, second, lambda *_: pytest.fail("nothing is to be sent"))
    assert run_of(runtime, second).error == {
        "type": "conflict",
        "message": f"top is being computed by run {first}; wait for its end or cancel it, or "
        "submit with on_conflict 'join' or 'queue'",
    }
    # What the other run is to compute later counts, what waits to be started does not.
    with runtime.ledger.begin() as conn:
        assert flights.open_elsewhere(conn, second, [("bottom", "-")]) is not None
        conn.exec_driver_sql("UPDATE flowstone.runs SET state = 'paused' WHERE state = 'running'")
        assert flights.open_elsewhere(conn, second, [("bottom", "-")]) is None


def test_a_conflict_that_arises_later_fails_the_step_of_a_run_that_refuses(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(registry([]))
    monkeypatch.setattr(flights, "open_elsewhere", lambda *_: None)
    first = request(runtime, "bottom")
    coordinate(runtime, first, Outbox().publish)
    second = requested(runtime, OnConflict.REFUSE)
    coordinate(runtime, second, lambda *_: pytest.fail("nothing is to be sent"))
    assert run_of(runtime, second).state == "failed"
    found = query(
        runtime.ledger,
        "SELECT asset, state, error->>'type', error->>'message' FROM flowstone.steps "
        "WHERE run_id = :r ORDER BY id",
        r=second,
    )
    assert {row.asset: row.state for row in found} == {
        "top": "failed",
        "left": "upstream_failed",
        "right": "upstream_failed",
        "bottom": "upstream_failed",
    }
    assert found[0][2] == Conflict.type
    assert f"top is being computed by run {first}" in found[0][3]


def test_a_run_that_queues_computes_when_the_other_has_ended(make_runtime: Any) -> None:
    calls: list[str] = []
    runtime = make_runtime(registry(calls))
    first, second = request(runtime, "top"), requested(runtime, OnConflict.QUEUE, "top")
    outbox = Outbox()
    coordinate(runtime, first, outbox.publish)
    coordinate(runtime, second, lambda *_: pytest.fail("nothing is to be sent"))
    assert run_of(runtime, second).state == "running"
    ((canvas, marked),) = outbox.sent
    (step,) = members(canvas)
    ended = execute(runtime, step, marked[step].canvas, worker="w")
    assert isinstance(ended, Ended)
    assert ended.wake == {first, second}
    states = "SELECT state FROM flowstone.steps ORDER BY id"
    assert query(runtime.ledger, states) == [("succeeded",), ("pending",)]
