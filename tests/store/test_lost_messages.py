"""Lost messages: which ones the reconciler takes for lost, with what the broker tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from flowstone.errors import BrokerUnavailable
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.store import workers
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.store.test_repairs import age

CHORD = {1: (), 2: (1,), 3: (), 4: (2, 3)}


class Told:
    """What a broker would answer."""

    def __init__(self) -> None:
        self.marks: set[str] = set()
        self.none_in: set[str] = {"assets"}
        self.is_away = False

    def knows(self, mark: str) -> bool:
        self._answer()
        return mark in self.marks

    def remember(self, mark: str) -> None:
        self._answer()
        self.marks.add(mark)

    def empty(self, queues: Iterable[str]) -> list[str]:
        self._answer()
        return [queue for queue in queues if queue in self.none_in]

    def _answer(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("the broker is away")


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def here(make_runtime: RuntimeFactory, ledger: Ledger) -> Runtime:
    with ledger.begin() as conn:
        workers.report(conn, "w", ["assets"], up=0)
    return make_runtime(build_registry([]), message_seconds=30.0)


@pytest.fixture
def woken() -> list[UUID]:
    return []


@pytest.fixture
def put_right(here: Runtime, told: Told, woken: list[UUID]) -> Callable[[], Mapping[str, int]]:
    """A pass of the reconciler; it returns what it has found lost."""

    def put_right() -> Mapping[str, int]:
        woken.clear()
        counts = reconcile(here, lambda run_id, _: woken.append(run_id), broker=told)
        wanted = ("broker_lost_messages", "message_lost", "step_stranded", "retry_overdue")
        return {rule: counts[rule] for rule in wanted if counts[rule]}

    return put_right


def promise(ledger: Ledger, step_id: int, seconds: float) -> None:
    sql = "UPDATE flowstone.steps SET starts_at = now() + make_interval(secs => :s) WHERE id = :i"
    with ledger.begin() as conn:
        run_sql(conn, sql, s=seconds, i=step_id)


def test_the_first_mark_says_nothing_and_the_next_that_is_missing_says_all(
    ledger: Ledger, told: Told, put_right: Callable[[], Mapping[str, int]], woken: list[UUID]
) -> None:
    run = HandRun(ledger, {**CHORD, 5: (), 6: (5,), 7: ()})
    run.dispatch()
    run.claim(5)
    run.retry(run.claim(7), delay=50)
    assert put_right() == {}
    assert put_right() == {}
    assert run.states()[1] == "queued"

    told.marks.clear()
    assert put_right() == {"broker_lost_messages": 3}
    assert woken == [run.id]
    # What runs goes on, and what waits for its retry keeps its time, in the ledger now.
    states = {1: "pending", 2: "pending", 3: "pending", 4: "pending", 6: "pending"}
    assert run.states() == {**states, 5: "running", 7: "retrying"}
    row = run.rows()[7]
    assert (row["canvas"], row["retry_at"] is None) == (None, False)
    said = query(
        ledger,
        "SELECT step_id, before->>'state', after->>'state' FROM flowstone.audit"
        " WHERE action = 'step.message_lost' ORDER BY step_id",
    )
    assert said == [(run.ids[n], "queued", "pending") for n in (1, 3)]
    run.dispatch()
    assert put_right() == {}
    assert run.claim(1).attempt == 1


def test_of_a_chord_whose_header_runs_already_the_body_is_free(
    ledger: Ledger, told: Told, put_right: Callable[[], Mapping[str, int]]
) -> None:
    run = HandRun(ledger, {1: (), 2: (), 3: (1, 2)})
    run.dispatch()
    claims = [run.claim(1), run.claim(2)]
    put_right()
    told.marks.clear()
    assert put_right() == {}
    assert run.states()[3] == "pending"
    assert all(run.commit(claim) for claim in claims)
    run.do(3)


def test_of_several_reconcilers_one_frees_what_a_broker_has_lost(
    here: Runtime, ledger: Ledger, told: Told, put_right: Callable[[], Mapping[str, int]]
) -> None:
    put_right()
    made = [HandRun(ledger, CHORD, name=name) for name in "abcdefgh"]
    for run in made:
        run.dispatch()
    told.marks.clear()
    with ThreadPoolExecutor(4) as pool:
        passes = [pool.submit(reconcile, here, lambda *_: None, broker=told) for _ in range(8)]
        counts = [future.result(30)["broker_lost_messages"] for future in passes]
    assert sorted(counts) == [0] * 7 + [2 * len(made)]
    ((mark,),) = query(ledger, "SELECT broker_mark FROM flowstone.watch")
    assert told.knows(mark)


class Overtaken(Told):
    """A broker that answers so late that all of another pass comes first."""

    def __init__(self, first: Told, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self.marks, self.meanwhile = first.marks, meanwhile

    def remember(self, mark: str) -> None:
        self.meanwhile()
        super().remember(mark)


def test_what_was_sent_again_is_not_freed_by_who_has_seen_the_same_loss(
    here: Runtime, ledger: Ledger, told: Told, put_right: Callable[[], Mapping[str, int]]
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    put_right()
    told.marks.clear()

    def meanwhile() -> None:
        assert put_right() == {"broker_lost_messages": 2}
        run.dispatch()

    late = reconcile(here, lambda *_: None, broker=Overtaken(told, meanwhile))
    assert late["broker_lost_messages"] == 0
    assert set(run.states().values()) == {"queued"}
    assert put_right() == {}


def test_a_message_that_no_queue_holds_is_lost_after_a_while(
    ledger: Ledger, told: Told, put_right: Callable[[], Mapping[str, int]], woken: list[UUID]
) -> None:
    still, moving = HandRun(ledger, CHORD), HandRun(ledger, CHORD, name="b")
    still.dispatch()
    moving.dispatch()
    put_right()
    age(ledger, 25)
    assert put_right() == {}
    # It could start only now: its message is as young.
    moving.commit(moving.claim(1))
    age(ledger, 10)
    told.none_in.clear()
    assert put_right() == {}
    told.none_in.add("assets")
    assert put_right() == {"message_lost": 3}
    assert set(woken) == {still.id, moving.id}
    assert set(still.states().values()) == {"pending"}
    assert moving.states() == {1: "succeeded", 2: "queued", 3: "pending", 4: "pending"}
    age(ledger, 25)
    assert put_right() == {"message_lost": 1}


def test_what_a_worker_keeps_in_its_memory_is_lost_only_when_its_time_is_over(
    ledger: Ledger, put_right: Callable[[], Mapping[str, int]]
) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (), 4: (3,)})
    run.dispatch()
    run.retry(run.claim(1), delay=60)
    promise(ledger, run.ids[3], 20)
    put_right()
    # The retry is overdue for 25 seconds, and the start that was promised is over for 65.
    age(ledger, 85)
    promise(ledger, run.ids[3], -25)
    assert put_right() == {}
    age(ledger, 10)
    promise(ledger, run.ids[3], -35)
    assert put_right() == {"message_lost": 2}
    assert set(run.states().values()) == {"pending"}


def test_what_no_worker_consumes_is_not_sent_again(
    ledger: Ledger, told: Told, put_right: Callable[[], Mapping[str, int]]
) -> None:
    run = HandRun(ledger, {1: ()}, queue="gpu")
    run.dispatch()
    told.none_in.add("gpu")
    put_right()
    age(ledger, 40)
    assert put_right() == {}
    assert run.states() == {1: "queued"}


def test_a_broker_that_is_away_keeps_nothing_else_from_being_repaired(
    here: Runtime, ledger: Ledger, told: Told
) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    run.claim(1)
    age(ledger, 61)
    told.is_away = True

    def wake(run_id: UUID, level: int) -> None:
        raise BrokerUnavailable("the broker is away")

    with pytest.raises(BrokerUnavailable):
        reconcile(here, wake, broker=told)
    assert run.states() == {1: "pending", 2: "pending", 3: "queued", 4: "pending"}
    assert query(ledger, "SELECT broker_mark FROM flowstone.watch") == [(None,)]
    # The audit log is sealed as ever.
    assert query(ledger, "SELECT count(*) > 0 FROM flowstone.audit_seals")[0][0]
