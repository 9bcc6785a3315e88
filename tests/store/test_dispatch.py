"""Dispatch: what is ready goes out once, within the window, and comes back if it was not sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from flowstone import coordinator, planning
from flowstone.asset import asset
from flowstone.coordinator import coordinate
from flowstone.errors import BrokerUnavailable, UnknownRun
from flowstone.execution import Ended, execute
from flowstone.expand import Canvas, Chain, members
from flowstone.partition import StaticPartitions
from flowstone.registry import Registry, build_registry
from flowstone.request import Request
from flowstone.runtime import Runtime
from flowstone.store import dispatch, runs
from flowstone.store.dispatch import DispatchedStep
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, query


class Outbox:
    """Takes canvases as the broker would; `room` is how many before it is away."""

    def __init__(self, room: int = 1000) -> None:
        self.sent: list[tuple[Canvas, Mapping[int, DispatchedStep]]] = []
        self._room = room

    def publish(self, canvas: Canvas, steps: Mapping[int, DispatchedStep]) -> None:
        if len(self.sent) == self._room:
            raise BrokerUnavailable("the broker is away")
        self.sent.append((canvas, steps))

    def steps(self) -> list[int]:
        return [id for canvas, _ in self.sent for id in members(canvas)]


def test_what_is_ready_goes_out_in_canvases_and_only_once(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (), 4: (2, 3), 5: ()})
    assert [run.numbers(c) for c in run.dispatch()] == [(1, 2, 3, 4), (5,)]
    assert run.dispatch() == []
    rows = run.rows()
    assert {row["state"] for row in rows.values()} == {"queued"}
    assert len({rows[n]["canvas"] for n in (1, 2, 3, 4)}) == 1
    assert rows[5]["canvas"] != rows[4]["canvas"]
    assert all(row["queued_at"] is not None for row in rows.values())


def test_expansion_sees_as_far_as_a_chord_of_long_chains_can_reach(ledger: Ledger) -> None:
    dag: dict[int, tuple[int, ...]] = {}
    for start in (1, 17):
        dag |= {start + i: (start + i - 1,) if i else () for i in range(16)}
    dag |= {33: (16, 32)} | {i: (i - 1,) for i in range(34, 60)}
    run = HandRun(ledger, dag)
    (canvas,) = run.dispatch()
    assert run.numbers(canvas) == tuple(range(1, 33 + 16))


def test_the_window_counts_all_that_is_dispatched(ledger: Ledger) -> None:
    run = HandRun(ledger, dict.fromkeys(range(1, 9), ()), max_in_flight=3)
    assert len(run.dispatch()) == 3
    assert run.dispatch() == []
    run.retry(run.claim(1), delay=100)
    assert run.dispatch() == []
    run.commit(run.claim(2))
    assert [run.numbers(c) for c in run.dispatch()] == [(4,)]
    run.fail(run.claim(3))
    run.claim(4)
    assert [run.numbers(c) for c in run.dispatch()] == [(5,)]


def test_only_pending_steps_are_marked(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()})
    run.dispatch()
    run.commit(run.claim(1))
    before = run.rows()
    with ledger.begin() as conn:
        assert dispatch.mark(conn, [Chain((run.ids[1],)), Chain((run.ids[2],))]) == {}
    assert run.rows() == before


def test_withdrawn_canvases_are_ready_again_unless_a_worker_has_begun(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: ()})
    canvases = run.dispatch()
    steps_ = {
        run.ids[n]: DispatchedStep(run.ids[n], run.id, f"a{n}", "-", "assets", run.canvas[n])
        for n in (1, 2, 3)
    }
    run.claim(3)
    with ledger.begin() as conn:
        assert dispatch.withdraw(conn, canvases, steps_) == 2
    assert run.states() == {1: "pending", 2: "pending", 3: "running"}
    assert run.rows()[1]["canvas"] is None
    assert [run.numbers(c) for c in run.dispatch()] == [(1, 2)]


def test_release_leaves_what_can_run_in_its_canvas(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (), 4: (2, 3)})
    run.dispatch()
    with ledger.begin() as conn:
        assert dispatch.release(conn, [run.canvas[1]]) == 2
    assert run.states() == {1: "queued", 2: "pending", 3: "queued", 4: "pending"}
    with ledger.begin() as conn:
        assert dispatch.release(conn, [uuid4()]) == 0


def registry() -> Registry:
    regions = StaticPartitions([f"r{i}" for i in range(6)])

    @asset(partitions=regions)
    def raw() -> int:
        return 1

    @asset(partitions=regions)
    def clean(raw: int) -> int:
        return raw + 1

    @asset
    def total(clean: dict[str, int]) -> int:
        return sum(clean.values())

    @asset
    def other(clean: dict[str, int]) -> int:
        return len(clean)

    @asset
    def both(total: int, other: int) -> int:
        return total + other

    return build_registry([raw, clean, total, other, both])


def request(runtime: Runtime, name: str = "both", max_in_flight: int = 200) -> Any:
    run_id = uuid4()
    with runtime.ledger.begin() as conn:
        wanted = Request((name,), "-", upstream=True)
        runs.create(
            conn,
            run_id,
            wanted,
            config={},
            driver="celery",
            max_in_flight=max_in_flight,
            actor="test",
        )
    return run_id


@pytest.mark.parametrize("window", [200, 3])
def test_coordinators_at_once_miss_no_step_and_send_none_twice(
    make_runtime: Any, window: int
) -> None:
    runtime = make_runtime(registry())
    run_id = request(runtime, max_in_flight=window)
    seen: Counter[int] = Counter()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(40):
            outbox = Outbox()
            for future in [
                pool.submit(coordinate, runtime, run_id, outbox.publish) for _ in range(3)
            ]:
                future.result(20)
            with runtime.ledger.begin() as conn:
                if runs.get(conn, run_id).is_final:
                    break
            for canvas, steps in outbox.sent:
                seen.update(members(canvas))
                for id in members(canvas):
                    ended = execute(runtime, id, steps[id].canvas, worker="w")
                    assert isinstance(ended, Ended)
    with runtime.ledger.begin() as conn:
        assert runs.get(conn, run_id).state == "succeeded"
    assert len(seen) == 15
    assert set(seen.values()) == {1}
    closed = "SELECT count(*) FROM flowstone.audit WHERE action = 'run.succeeded'"
    assert query(runtime.ledger, closed) == [(1,)]


def test_a_run_is_planned_once_however_many_plan_it(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run_id = request(runtime)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(planning.plan_run, runtime, run_id) for _ in range(4)]:
            future.result(20)
    planned = "SELECT details FROM flowstone.audit WHERE action = 'run.planned'"
    assert query(runtime.ledger, planned) == [({"steps": 15, "skipped": 0},)]
    assert query(runtime.ledger, "SELECT count(*) FROM flowstone.steps") == [(15,)]


def test_what_the_broker_did_not_take_is_ready_again(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run_id = request(runtime)
    full = Outbox(room=2)
    with pytest.raises(BrokerUnavailable):
        coordinate(runtime, run_id, full.publish)
    assert all(isinstance(canvas, Chain) for canvas, _ in full.sent)
    queued = query(runtime.ledger, "SELECT id FROM flowstone.steps WHERE state = 'queued'")
    assert {row.id for row in queued} == set(full.steps())
    again = Outbox()
    coordinate(runtime, run_id, again.publish)
    assert len(again.sent) == 4
    assert set(full.steps()).isdisjoint(again.steps())


def test_a_worker_goes_on_with_the_run_of_its_step_without_a_message(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run_id = request(runtime)
    planning.plan_run(runtime, run_id)
    outbox = Outbox()
    coordinator.go_on_or_wake(
        runtime, run_id, outbox.publish, lambda _: pytest.fail("nobody is to be woken")
    )
    assert len(outbox.sent) == 6


def test_where_a_worker_cannot_go_on_it_wakes_a_coordinator(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run_id = request(runtime)
    planning.plan_run(runtime, run_id)
    woken: list[UUID] = []

    def refuse(_canvas: Canvas, _steps: Mapping[int, DispatchedStep]) -> None:
        raise ValueError("no such queue")

    coordinator.go_on_or_wake(runtime, run_id, refuse, woken.append)
    assert woken == [run_id]
    queued = "SELECT count(*) FROM flowstone.steps WHERE state = 'queued'"
    assert query(runtime.ledger, queued) == [(0,)]


def test_where_the_broker_is_away_nothing_is_lost(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run_id = request(runtime)
    planning.plan_run(runtime, run_id)
    away = Outbox(room=2)
    coordinator.go_on_or_wake(
        runtime, run_id, away.publish, lambda _: pytest.fail("the broker is away")
    )
    again = Outbox()
    coordinate(runtime, run_id, again.publish)
    assert len(away.sent) + len(again.sent) == 6


def test_a_run_that_cannot_be_planned_fails_with_the_reason(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run_id = request(runtime, "bth")
    coordinate(runtime, run_id, lambda _c, _s: pytest.fail("nothing is to be sent"))
    with runtime.ledger.begin() as conn:
        run = runs.get(conn, run_id)
    assert (run.state, run.is_final) == ("failed", True)
    assert run.error == {
        "type": "unknown_asset",
        "message": "asset 'bth' is not defined; did you mean 'both'?",
    }


def test_a_run_that_nobody_requested_is_unknown(make_runtime: Any) -> None:
    with pytest.raises(UnknownRun):
        coordinate(make_runtime(registry()), uuid4(), lambda _c, _s: None)


def test_a_run_of_no_steps_succeeds_at_once(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run = HandRun(runtime.ledger, {})
    assert coordinator.take_ready(runtime, run.id) == coordinator.Taken()
    with runtime.ledger.begin() as conn:
        assert runs.get(conn, run.id).state == "succeeded"


def test_a_run_that_its_own_process_drives_is_left_to_it(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run = HandRun(runtime.ledger, {1: ()}, driver="inline")
    coordinate(runtime, run.id, lambda _c, _s: pytest.fail("nothing is to be sent"))
    assert run.states() == {1: "pending"}


def test_a_process_takes_one_step_at_a_time_into_flight(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    run = HandRun(runtime.ledger, {1: (), 2: (), 3: (1,)}, driver="inline")
    coordinator.take_ready(runtime, run.id)
    assert Counter(run.states().values()) == {"queued": 1, "pending": 2}
