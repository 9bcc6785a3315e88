"""Rates on a real ledger: starts keep to them, whoever comes when; what waits blocks nobody."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from flowstone import (
    Rate,
    RetryAfter,
    StaticPartitions,
    asset,
    claiming,
    list_pools,
    materialize_sync,
)
from flowstone.bucket import Bucket
from flowstone.claiming import Early
from flowstone.client import run as run_of
from flowstone.errors import RunFailed
from flowstone.execution import Ended, execute
from flowstone.expand import Canvas, members
from flowstone.reconcile import reconcile
from flowstone.registry import Registry, build_registry
from flowstone.runtime import Runtime
from flowstone.states import StepState
from flowstone.store import cancellation, rates, repairs, slots, steps
from flowstone.store.dispatch import DispatchedStep
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Claim, Refused
from tests.rate_law import assert_kept
from tests.store.dispatcher import Dispatcher
from tests.store.runs_by_hand import FAILURE, overtake, query, run_sql
from tests.store.test_concurrency import at_once
from tests.store.test_repairs import age

PATIENCE = 30
STARTS = "SELECT extract(epoch FROM started_at)::float8 FROM flowstone.attempts ORDER BY 1"


def _one() -> int:
    return 1


def pages(
    rate: Rate, many: int, name: str = "page", function: Callable[[], int] = _one
) -> Registry:
    """An asset with a rate and so many partitions, and one that reads them all."""
    parts = StaticPartitions([f"p{number:02}" for number in range(many)])
    page = asset(name=name, partitions=parts, rate=rate)(function)
    whole = asset(name=f"{name}s", deps={"read": name})(_count)
    return build_registry([page, whole])


def _count(read: dict[Any, int]) -> int:
    return len(read)


def both(one: Registry, other: Registry) -> Registry:
    return build_registry([*one.graph.assets.values(), *other.graph.assets.values()])


def later(ledger: Ledger, seconds: float) -> None:
    """Let the clock of all that is stored go on by so much."""
    age(ledger, seconds)
    with ledger.begin() as conn:
        for column in ("rates SET next_at = next_at", "rates SET free_at = free_at",
                       "steps SET starts_at = starts_at", "attempts SET started_at = started_at",
                       "attempts SET finished_at = finished_at"):  # fmt: skip
            run_sql(conn, f"UPDATE flowstone.{column} - make_interval(secs => :s)", s=seconds)


class Worker(Dispatcher):
    """A dispatcher whose worker claims as one does.

    Its messages are those of steps with a rate; `rest` are the others.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.rest: list[DispatchedStep] = []

    def _publish(self, canvas: Canvas, dispatched: Mapping[int, DispatchedStep]) -> None:
        for step in (dispatched[member] for member in members(canvas)):
            (self.messages if self.row(step).takes else self.rest).append(step)

    def take(self, message: DispatchedStep) -> Claim | Refused | Early:
        return claiming.claim(self.runtime, message.id, message.canvas, worker="w")

    def start(self, message: DispatchedStep) -> Claim:
        """Take a message as often as it is put off, in the time of the clock."""
        end = time.monotonic() + PATIENCE
        while isinstance(claim := self.take(message), Early):
            assert not claim.has_left
            assert time.monotonic() < end
            time.sleep(claim.wait)
        assert isinstance(claim, Claim)
        return claim

    def row(self, message: DispatchedStep) -> Any:
        (row,) = query(self.runtime.ledger, "SELECT * FROM flowstone.steps WHERE id = :i",
                       i=message.id)  # fmt: skip
        return row


@pytest.fixture
def worker_of(make_runtime: Any) -> Callable[[Registry], Worker]:
    return lambda registry: Worker(make_runtime(registry))


def bucket(ledger: Ledger) -> Bucket:
    with ledger.begin() as conn:
        (one,) = rates.standings(conn)
    return one.bucket


def room(ledger: Ledger, key: str = "rate:api") -> int:
    with ledger.begin() as conn:
        return rates.room(conn, [key])[key]


@pytest.mark.parametrize("burst", [1, 4])
def test_the_starts_of_many_workers_at_once_keep_to_the_rate(
    worker_of: Callable[[Registry], Worker], ledger: Ledger, burst: int
) -> None:
    worker = worker_of(pages(Rate(100, key="api", burst=burst), 40))
    worker.submit("pages")
    assert len(worker.messages) == 40
    todo = list(worker.messages)

    def work() -> None:
        while True:
            try:
                message = todo.pop()
            except IndexError:
                return
            worker.start(message)

    at_once(*[work] * 8)
    starts = [row[0] for row in query(ledger, STARTS)]
    assert len(starts) == 40
    assert_kept(starts, 0.01, burst)


def test_a_step_with_a_rate_is_claimed_only_with_a_token(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(60, per="minute", key="api"), 3))
    worker.submit("pages")
    one, two, three = worker.messages
    with ledger.begin() as conn:
        refused = steps.claim(conn, one.id, one.canvas, worker="w", lease=60)
    assert refused == Refused(StepState.QUEUED, "rate:api")
    assert isinstance(worker.take(one), Claim)
    # The next two are promised a start each, and keep it, however often their messages come.
    waits = [worker.take(message) for message in (two, three, two, three)]
    assert [wait.key for wait in waits if isinstance(wait, Early)] == ["rate:api"] * 4
    promised = [worker.row(message).starts_at for message in (two, three)]
    assert [worker.row(message).attempt for message in (two, three)] == [0, 0]
    assert (promised[1] - promised[0]).total_seconds() == 1
    begun = worker.row(one).started_at
    assert (promised[0] - begun).total_seconds() == 1
    # In its time the promise is kept, and used up.
    later(ledger, 1)
    assert isinstance(worker.take(two), Claim)
    assert worker.row(two).starts_at is None
    early = worker.take(three)
    assert isinstance(early, Early)
    assert 0.5 < early.wait <= 1


def test_a_promise_that_was_missed_is_no_right_to_start_together_with_others(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, key="api"), 8))
    worker.submit("pages")
    assert isinstance(worker.take(worker.messages[0]), Claim)
    for message in worker.messages[1:]:
        assert isinstance(worker.take(message), Early)
    later(ledger, 100)
    taken = [worker.take(message) for message in worker.messages[1:]]
    assert [type(one) for one in taken] == [Claim] + [Early] * 6
    promised = sorted(worker.row(message).starts_at for message in worker.messages[2:])
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(promised)]
    assert gaps == [1] * 5


def test_without_a_key_the_rate_is_that_of_the_asset_alone(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    slow = Rate(1, per="hour")
    shared = replace(slow, key="page")
    worker = worker_of(both(pages(slow, 2), pages(shared, 2, "other")))
    worker.submit("pages")
    worker.submit("others")
    keys = [row.key for row in query(ledger, "SELECT key FROM flowstone.rates ORDER BY key")]
    assert keys == ["rate:asset:page", "rate:page"]
    # Each has a token of its own.
    assert [type(worker.take(message)) for message in list(worker.messages)] == [Claim, Claim]


def test_of_a_slow_rate_a_step_is_dispatched_shortly_before_its_start(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(10, per="hour", key="api"), 3))
    run_id = worker.submit("pages")
    # One can start: the others hold no message.
    assert worker.dispatched() == {"page": 1}
    worker.succeed(worker.start(worker.messages.pop()))
    assert worker.messages == []
    later(ledger, 340)
    worker.coordinate(run_id)
    assert worker.messages == []
    with ledger.begin() as conn:
        assert run_id not in slots.may_go_on(conn)
    later(ledger, 12)
    # The reconciler wakes it, as nothing else does.
    with ledger.begin() as conn:
        assert run_id in slots.may_go_on(conn)
    worker.coordinate(run_id)
    (message,) = worker.messages
    early = worker.take(message)
    assert isinstance(early, Early)
    assert not early.has_left
    assert 0 < early.wait <= 8
    later(ledger, early.wait)
    worker.succeed(worker.start(message))


def test_a_step_that_would_wait_for_long_leaves_its_canvas(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    api = Rate(1, key="api")
    first = asset(name="first", rate=api)(lambda: 1)
    second = asset(name="second", deps={"value": "first"})(lambda value: value)
    worker = worker_of(build_registry([first, second]))
    run_id = worker.submit("second")
    other = worker.submit("second", on_conflict="queue")
    (message,), (rest,) = worker.messages, worker.rest
    assert (rest.asset, worker.row(rest).canvas) == ("second", message.canvas)
    with ledger.begin() as conn:
        rates.pause(conn, message.id, 60)
    early = worker.take(message)
    assert isinstance(early, Early)
    assert early.has_left
    assert 59 < early.wait <= 60
    # It is ready as before; what waited for it, in its canvas or another run, is free.
    rows = [worker.row(one) for one in (message, rest)]
    assert [(row.state, row.canvas, row.starts_at) for row in rows] == [("pending", None, None)] * 2
    assert early.wake == {other}
    joined = "SELECT count(*) FROM flowstone.steps WHERE state = 'joined'"
    assert query(ledger, joined) == [(0,)]
    # The late copy of its message finds nothing, and nothing is dispatched before the time.
    assert worker.take(message) == Refused(None)
    worker.messages.clear()
    worker.coordinate(run_id)
    worker.coordinate(other)
    assert worker.messages == []
    later(ledger, 55)
    worker.coordinate(run_id)
    assert worker.dispatched() == {"first": 1}


@pytest.mark.parametrize("pool", [None, "warehouse"])
def test_what_else_is_ready_takes_the_place_of_a_step_that_leaves(
    worker_of: Callable[[Registry], Worker], ledger: Ledger, pool: str | None
) -> None:
    limited = asset(name="a", rate=Rate(1, key="api"))(lambda: 1)
    other = asset(name="b", pool=pool)(lambda: 1)
    worker = worker_of(build_registry([limited, other]))
    with ledger.begin() as conn:
        run_sql(conn, "INSERT INTO flowstone.pools (name, slots) VALUES ('warehouse', 0)")
    run_id = worker.submit("a", "b", max_in_flight=1)
    (message,) = worker.messages
    assert (message.asset, worker.rest) == ("a", [])
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.pools SET slots = 1 WHERE name = 'warehouse'")
        rates.pause(conn, message.id, 60)
    early = worker.take(message)
    assert isinstance(early, Early)
    assert early.has_left
    assert early.wake == {run_id}
    worker.messages.clear()
    worker.coordinate(run_id)
    assert [step.asset for step in worker.rest + worker.messages] == ["b"]


def test_each_attempt_takes_a_token_of_its_own(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, key="api"), 1))
    run_id = worker.submit("pages")
    worker.retry(worker.start(worker.messages.pop(0)), delay=0)
    reconcile(worker.runtime, lambda *_: None)
    worker.coordinate(run_id)
    assert worker.dispatched() == {"page": 1}
    claim = worker.start(worker.messages.pop(0))
    assert claim.attempt == 2
    assert_kept([row[0] for row in query(ledger, STARTS)], 1)


def test_a_retry_in_its_canvas_takes_a_token_when_it_is_due(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, key="api"), 1))
    worker.submit("pages")
    (message,) = worker.messages
    with ledger.begin() as conn:
        steps.retry(conn, worker.start(message), FAILURE, 100)
    assert worker.take(message) == Refused(StepState.RETRYING, "rate:api")
    assert worker.row(message).starts_at is None
    later(ledger, 100)
    assert isinstance(worker.take(message), Claim)
    worker_row = worker.row(message)
    assert (worker_row.attempt, worker_row.starts_at) == (2, None)


def test_a_process_that_dies_costs_its_token_and_no_more(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, key="api"), 2))
    run_id = worker.submit("pages")
    one, two = worker.messages
    worker.messages.clear()
    assert isinstance(worker.take(one), Claim)
    assert isinstance(worker.take(two), Early)
    later(ledger, 1000)
    # The lease of the first has expired, and the message of the second is lost.
    with ledger.begin() as conn:
        assert [step.step_id for step in repairs.expired_leases(conn)] == [one.id]
    overtake(ledger)
    with ledger.begin() as conn:
        assert [step.step_id for step in repairs.stranded(conn, 300)] == [two.id]
    worker.coordinate(run_id)
    assert [worker.start(message).step_id for message in list(worker.messages)] == [one.id, two.id]
    own = "SELECT extract(epoch FROM a.started_at) FROM flowstone.attempts a JOIN flowstone.steps s"
    own += " ON s.id = a.step_id WHERE s.asset <> 'overtaker1' ORDER BY a.started_at"
    assert_kept([float(row[0]) for row in query(ledger, own)], 1)


def test_what_is_cancelled_while_it_waits_blocks_nobody(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    api = Rate(1, key="api")
    worker = worker_of(both(pages(api, 3), pages(api, 1, "other")))
    run_id = worker.submit("pages")
    one, two, three = worker.messages
    worker.messages.clear()
    worker.succeed(worker.start(one))
    assert [type(worker.take(message)) for message in (two, three)] == [Early, Early]
    with ledger.begin() as conn:
        cancellation.request(conn, run_id, grace=0, reason=None, actor="test")
    assert worker.take(two) == Refused(StepState.CANCELLED)
    worker.submit("others")
    (message,) = worker.messages
    early = worker.take(message)
    # Behind those who were promised a start, and no further.
    assert isinstance(early, Early)
    assert early.wait <= 3
    later(ledger, early.wait)
    assert isinstance(worker.take(message), Claim)


def test_a_failure_that_names_a_delay_pauses_all_that_share_the_rate(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    def busy() -> int:
        raise RetryAfter(14)

    api = Rate(1, key="api")
    worker = worker_of(both(pages(api, 4, function=busy), pages(api, 1, "other")))
    worker.submit("pages")
    one, two, three, four = worker.messages
    worker.messages.clear()
    assert isinstance(worker.take(one), Claim)
    assert isinstance(worker.take(two), Early)
    later(ledger, 3)
    ended = execute(worker.runtime, three.id, three.canvas, worker="w")
    assert isinstance(ended, Ended)
    assert 13 < bucket(ledger).next_at <= 14
    # For who was promised a start, for who was not, and for the other asset.
    waits = [worker.take(message) for message in (two, four)]
    assert [wait.wait > 13 for wait in waits if isinstance(wait, Early)] == [True, True]
    worker.submit("others")
    assert worker.messages == []


def test_a_pause_never_shortens_one_that_is_longer(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, key="api"), 1))
    worker.submit("pages")
    (message,) = worker.messages
    for seconds in (100.0, 5.0, 0.0):
        with ledger.begin() as conn:
            rates.pause(conn, message.id, seconds)
    assert 99 < bucket(ledger).next_at <= 100
    for seconds in (float("inf"), 1e300):
        with ledger.begin() as conn:
            rates.pause(conn, message.id, seconds)


def test_a_rate_that_is_declared_anew_keeps_what_was_taken(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, per="hour", key="api"), 2))
    worker.submit("pages")
    worker.start(worker.messages[0])
    with ledger.begin() as conn:
        rates.declare(conn, {"rate:api": Rate(1, per="minute", key="api", burst=2)})
    now = bucket(ledger)
    assert (now.seconds, now.burst) == (60, 2)
    assert 3590 < now.next_at <= 3600


def test_a_rate_that_somebody_has_deleted_lets_its_steps_start(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, per="hour", key="api"), 3))
    run_id = worker.submit("pages")
    with ledger.begin() as conn:
        run_sql(conn, "DELETE FROM flowstone.rates")
    worker.coordinate(run_id)
    assert [type(worker.take(message)) for message in worker.messages] == [Claim] * 3


def test_what_has_started_leaves_room_for_the_next(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    """An attempt that takes longer than the interval must not hold the others back."""
    worker = worker_of(pages(Rate(10, per="minute", key="api"), 30))
    run_id = worker.submit("pages")
    # In 12 seconds three can start, now, in 6 and in 12 seconds.
    assert len(worker.messages) == 3
    for begun in range(1, 6):
        worker.start(worker.messages.pop(0))
        later(ledger, 6)
        worker.coordinate(run_id)
        assert 2 <= len(worker.messages) <= 3, begun
    assert query(ledger, "SELECT count(*) FROM flowstone.steps WHERE state = 'running'") == [(5,)]


def test_dispatchers_at_once_send_no_more_than_can_start(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    rate = Rate(1, key="api")
    registries = [pages(rate, 20, f"page{number}") for number in range(3)]
    worker = worker_of(build_registry([a for r in registries for a in r.graph.assets.values()]))
    with ledger.begin() as conn:
        rates.declare(conn, {"rate:api": rate})
    at_once(*[lambda n=n: worker.submit(f"page{n}s") for n in range(3)])
    assert len(worker.messages) == 13


def test_two_runs_that_share_a_rate_each_have_their_part(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    rate = Rate(1, key="api")
    worker = worker_of(both(pages(rate, 40), pages(rate, 3, "other")))
    worker.submit("pages")
    worker.submit("others")
    order: list[str] = []
    while worker.messages:
        message = worker.messages.pop(0)
        while isinstance(claim := worker.take(message), Early):
            assert not claim.has_left
            later(ledger, claim.wait)
        assert isinstance(claim, Claim), claim
        order.append(message.asset)
        worker.succeed(claim)
    assert len(order) == 43
    # Thirteen were dispatched before the second run came; then both have their turn.
    assert [n for n, name in enumerate(order) if name == "other"][-1] < 13 + 2 * 3
    assert_kept([row[0] for row in query(ledger, STARTS_OF_PAGES)], 1)


STARTS_OF_PAGES = """
    SELECT extract(epoch FROM a.started_at)::float8 FROM flowstone.attempts a
    JOIN flowstone.steps s ON s.id = a.step_id AND s.takes IS NOT NULL
"""


def test_a_run_in_this_process_waits_for_its_turn(make_runtime: Any, ledger: Ledger) -> None:
    make_runtime(pages(Rate(20, key="api"), 6))
    assert materialize_sync("pages", upstream=True).result() == 6
    assert_kept([row[0] for row in query(ledger, STARTS_OF_PAGES)], 0.05)


def test_a_run_in_this_process_waits_for_a_slow_rate_until_it_is_due_or_cancelled(
    make_runtime: Any, ledger: Ledger
) -> None:
    make_runtime(pages(Rate(1, per="hour", key="api"), 3))
    done: list[str] = []

    def drive() -> None:
        try:
            materialize_sync("pages", upstream=True)
        except RunFailed as error:
            done.append(error.message)

    thread = threading.Thread(target=drive)
    thread.start()
    until(lambda: _counts(ledger) == {"succeeded": 1, "pending": 3})
    later(ledger, 3600 - 5)
    # It is dispatched, and waits for the rest of its time.
    until(lambda: _counts(ledger).get("queued") == 1)
    until(lambda: query(ledger, PROMISED)[0][0] == 1)
    later(ledger, 5)
    until(lambda: _counts(ledger) == {"succeeded": 2, "pending": 2})
    (run_id,) = [row.id for row in query(ledger, "SELECT id FROM flowstone.runs")]
    run_of(run_id).cancel()
    thread.join(PATIENCE)
    assert "cancelled" in done[0]


PROMISED = "SELECT count(*) FROM flowstone.steps WHERE starts_at IS NOT NULL"


def _counts(ledger: Ledger) -> Mapping[str, int]:
    found = query(ledger, "SELECT state, count(*) FROM flowstone.steps GROUP BY state")
    return {row.state: row.count for row in found}


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_rate_is_no_pool(worker_of: Callable[[Registry], Worker]) -> None:
    worker = worker_of(pages(Rate(1, key="api"), 1))
    worker.submit("pages")
    assert list_pools() == []


def test_a_process_that_is_stopped_while_it_takes_a_token_does_not_keep_the_lock(
    worker_of: Callable[[Registry], Worker], ledger: Ledger
) -> None:
    worker = worker_of(pages(Rate(1, key="api"), 1))
    worker.submit("pages")
    (message,) = worker.messages
    setting = "SELECT current_setting('idle_in_transaction_session_timeout')"
    with ledger.begin() as conn:
        assert rates.turn(conn, message.id, message.canvas, "rate:api", patience=1)
        assert conn.execute(text(setting)).scalar() == "10s"
    # For that transaction alone.
    assert query(ledger, setting) == [("2min",)]
