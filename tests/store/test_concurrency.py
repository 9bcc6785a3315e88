"""Several connections at once: none waits for ever, and none undoes what another does."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection

from flowstone import coordinator
from flowstone.expand import members
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.states import StepState
from flowstone.store import dispatch, runs, steps
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Claim, Refused
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.strategies import Dag

PATIENCE = 20.0


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Call in a thread each, all starting together; raise what one of them raises."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], object]) -> object:
        barrier.wait(PATIENCE)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(PATIENCE) for future in [pool.submit(start, c) for c in calls]]


def until_somebody_waits_for_a_lock(ledger: Ledger) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + PATIENCE
    while query(ledger, waiting)[0][0] == 0:
        assert time.monotonic() < deadline, "nobody waits for a lock"


def test_of_many_that_claim_a_step_at_once_one_wins(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    run.dispatch()

    def claim() -> object:
        with ledger.begin() as conn:
            return steps.claim(conn, run.ids[1], run.canvas[1], worker="w", lease=60)

    claims = at_once(*[claim] * 6)
    assert sum(isinstance(c, Claim) for c in claims) == 1
    assert claims.count(Refused(StepState.RUNNING)) == 5


SHARED = {1: (), 2: (), 3: (1, 2), 4: (1, 2), 5: (1, 2), 6: (1, 2)}


def turn_round(run: HandRun, upstream: int) -> None:
    """Store readers and the edges of one step the other way round, so that scans find them so."""
    with run.ledger.begin() as conn:
        sql = "CREATE TEMP TABLE e ON COMMIT DROP AS SELECT * FROM flowstone.edges "
        run_sql(conn, sql + "WHERE upstream = :i", i=run.ids[upstream])
        run_sql(conn, "DELETE FROM flowstone.edges WHERE upstream = :i", i=run.ids[upstream])
        run_sql(conn, "INSERT INTO flowstone.edges SELECT * FROM e ORDER BY downstream DESC")
        for number in (6, 5, 4, 3):
            sql = "UPDATE flowstone.steps SET reason = 'moved' WHERE id = :i"
            run_sql(conn, sql, i=run.ids[number])


def test_commits_of_two_steps_that_share_readers_do_not_deadlock(ledger: Ledger) -> None:
    for _ in range(10):
        run = HandRun(ledger, SHARED)
        run.dispatch()
        turn_round(run, 2)
        one, two = run.claim(1), run.claim(2)
        assert at_once(partial(run.commit, one), partial(run.commit, two)) == [True, True]
        assert {run.rows()[n]["open_deps"] for n in (3, 4, 5, 6)} == {0}


def test_a_commit_locks_its_readers_in_the_order_of_their_ids(ledger: Ledger) -> None:
    run = HandRun(ledger, SHARED)
    run.dispatch()
    two = run.claim(2)
    turn_round(run, 2)
    lock = "SELECT id FROM flowstone.steps WHERE id = ANY(:ids) FOR NO KEY UPDATE NOWAIT"
    with ThreadPoolExecutor(1) as pool:
        with ledger.begin() as conn:
            run_sql(conn, lock, ids=[run.ids[3]])
            commit = pool.submit(run.commit, two)
            until_somebody_waits_for_a_lock(ledger)
            # It waits for the first of them, and so holds none of the others.
            run_sql(conn, lock, ids=[run.ids[n] for n in (4, 5, 6)])
        assert commit.result(PATIENCE) is True


def test_two_failures_in_one_chord_do_not_deadlock(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # [1 -> 2, 3] -> 4: the failure of 3 has marked 4 and goes on to release 2, while the failure
    # of 1 has marked 2 and goes on to 4.
    run = HandRun(ledger, {1: (), 2: (1,), 3: (), 4: (2, 3)})
    run.dispatch()
    first, third = run.claim(1), run.claim(3)
    real = dispatch.release
    other: list[Future[bool]] = []
    with ThreadPoolExecutor(1) as pool:

        def release(conn: Connection, canvases: Iterable[UUID]) -> int:
            monkeypatch.setattr(dispatch, "release", real)
            other.append(pool.submit(run.fail, first))
            until_somebody_waits_for_a_lock(ledger)
            return real(conn, canvases)

        monkeypatch.setattr(dispatch, "release", release)
        assert run.fail(third)
        assert other[0].result(PATIENCE)
    assert run.states() == {1: "failed", 2: "upstream_failed", 3: "failed", 4: "upstream_failed"}


def test_a_commit_and_a_failure_that_meet_in_a_reader_leave_it_failed(ledger: Ledger) -> None:
    for _ in range(10):
        run = HandRun(ledger, {1: (), 2: (), 3: (1, 2)})
        run.dispatch()
        one, two = run.claim(1), run.claim(2)
        woken, failed = at_once(partial(run.commit, one), partial(run.fail, two))
        assert failed is True
        assert run.states() == {1: "succeeded", 2: "failed", 3: "upstream_failed"}
        assert woken in (True, False)


def test_of_many_runs_that_dispatch_an_asset_at_once_one_computes_it(ledger: Ledger) -> None:
    made = [HandRun(ledger, {1: ()}) for _ in range(4)]
    at_once(*[run.dispatch for run in made])
    assert sorted(run.states()[1] for run in made) == ["joined", "joined", "joined", "queued"]
    (leader,) = [run for run in made if run.canvas]
    leader.do(1)
    leader.settle()
    assert all(run.states() == {1: "succeeded"} for run in made)
    assert query(ledger, "SELECT count(*) FROM flowstone.latest") == [(1,)]
    assert query(ledger, "SELECT count(*) FROM flowstone.outputs") == [(1,)]


class Swarm:
    """A run that several coordinators dispatch, and several workers do, all at once."""

    def __init__(self, run: HandRun, runtime: Runtime) -> None:
        self.run = run
        self.dispatched: Counter[int] = Counter()
        self._runtime = runtime
        self._messages: deque[tuple[int, UUID]] = deque()
        self._closed = threading.Event()
        self._end = time.monotonic() + PATIENCE

    def play(self, coordinators: int, workers: int) -> None:
        at_once(*[self._coordinate] * coordinators, *[self._work] * workers)

    def _coordinate(self) -> None:
        while not self._closed.is_set():
            assert time.monotonic() < self._end, self.run.states()
            taken = coordinator.take_ready(self._runtime, self.run.id)
            for step in (step for canvas in taken.canvases for step in members(canvas)):
                self.dispatched[step] += 1
                self._messages.append((step, taken.steps[step].canvas))
            with self.run.ledger.begin() as conn:
                if runs.get(conn, self.run.id).is_final:
                    self._closed.set()

    def _work(self) -> None:
        """Take messages, and put back those that have come before what their step reads."""
        while not self._closed.is_set():
            assert time.monotonic() < self._end, self.run.states()
            try:
                step, canvas = self._messages.popleft()
            except IndexError:
                continue
            with self.run.ledger.begin() as conn:
                claim = steps.claim(conn, step, canvas, worker="w", lease=60)
            if isinstance(claim, Claim):
                assert all(claim.inputs.values()), "claimed before what it reads has committed"
                assert self.run.commit(claim)
            else:
                assert claim == Refused(StepState.QUEUED)
                self._messages.append((step, canvas))


@pytest.mark.parametrize("seed", range(4))
def test_coordinators_at_once_dispatch_each_step_of_a_random_graph_once(
    make_runtime: Any, ledger: Ledger, seed: int
) -> None:
    random = Random(seed)
    dag: Dag = {}
    for step in range(1, 41):
        above = range(max(1, step - 6), step)
        dag[step] = tuple(sorted(random.sample(above, min(len(above), random.randint(0, 2)))))
    run = HandRun(ledger, dag, max_in_flight=random.randint(3, 9))
    swarm = Swarm(run, make_runtime(build_registry([])))
    swarm.play(coordinators=4, workers=2)
    assert set(run.states().values()) == {"succeeded"}
    assert swarm.dispatched == dict.fromkeys(run.ids.values(), 1)
    attempts = query(ledger, "SELECT number, outcome FROM flowstone.attempts")
    assert attempts == [(1, "succeeded")] * 40
    closed = "SELECT action FROM flowstone.audit WHERE action LIKE 'run.%' ORDER BY id"
    assert [row.action for row in query(ledger, closed)] == [
        "run.requested", "run.planned", "run.started", "run.succeeded",
    ]  # fmt: skip
