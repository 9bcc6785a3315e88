"""Each rule of the reconciler: found by a look, put right once by many passes, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowstone import reconcile as reconciler
from flowstone.approval import Ask
from flowstone.asset import Asset, asset
from flowstone.hours import Hours
from flowstone.registry import build_registry
from flowstone.rules import RULES
from flowstone.runtime import Runtime
from flowstone.store import (
    ageing,
    awaited,
    backfill_hours,
    backfills,
    cancellation,
    continuing,
    deadlines,
    flights,
    gate_clock,
    lost_messages,
    queue_timeout,
    repairs,
    steps,
    workers,
)
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import ask_for, shift
from tests.store.runs_by_hand import FAILURE, HandRun, overtake, query, run_sql
from tests.store.test_lost_messages import Told

WAKING = {"run_unplanned", "run_idle", "slots_idle", "run_unclosed", "run_not_waiting"}
"""The rules that wake a coordinator: it puts the thing right, and until then each pass wakes it."""

ALONE = {"broker_lost_messages"}
"""It frees all that is queued, so that others would find nothing: see test_lost_messages.py."""


def change(ledger: Ledger, table: str, assignment: str, where: str = "true") -> None:
    with ledger.begin() as conn:
        run_sql(conn, f"UPDATE flowstone.{table} SET {assignment} WHERE {where}")


def of(run: HandRun) -> str:
    return f"id = '{run.id}'"


def step_of(run: HandRun) -> str:
    return f"run_id = '{run.id}'"


def begun(ledger: Ledger, name: str, **options: Any) -> HandRun:
    run = HandRun(ledger, {1: (), 2: (1,)}, name=name, **options)
    run.dispatch()
    return run


def is_late(ledger: Ledger, name: str) -> None:
    late = "deadline_at = now() - interval '1 s', request = jsonb_set(request, '{deadline}', '1')"
    change(ledger, "runs", late, of(begun(ledger, name)))


def ignores_its_end(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name)
    run.claim(1)
    with ledger.begin() as conn:
        cancellation.request(conn, run.id, grace=0, reason=None, actor="test")


def has_gone(ledger: Ledger, name: str) -> None:
    with ledger.begin() as conn:
        workers.report(conn, f"{name}1", ["other"], up=100)
    change(ledger, "workers", "seen_at = now() - interval '100 s'", f"name = '{name}1'")


def waits_for_nobody(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name, queue="gpu")
    with ledger.begin() as conn:
        queue_timeout.note(conn)
    change(ledger, "unattended", "since = now() - interval '5000 s'")
    change(ledger, "steps", "queued_at = now() - interval '5000 s'", step_of(run))


def starves(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name, queue="backfill")
    change(ledger, "runs", "waits_since = now() - interval '400 s'", of(run))


def waits_in_the_ledger(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name)
    with ledger.begin() as conn:
        assert steps.retry(conn, run.claim(1), FAILURE, 0, park=True)


def is_asked_in_vain(ledger: Ledger, name: str) -> None:
    # A reminder: what ends goes on, too, which is the work of another rule.
    shift(ledger, ask_for(ledger, Ask(remind_every=60), name=name), 61)


def has_waited(ledger: Ledger, name: str) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)}, name=name)
    over = "awaits_until = now() - interval '1 s', open_deps = 1"
    change(ledger, "steps", over, f"asset = '{name}1' AND {step_of(run)}")


def overruns(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name)
    run.claim(1)
    change(ledger, "steps", "ends_by = now() - interval '1 s'", step_of(run))


def has_lost_its_process(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name, driver="inline")
    change(ledger, "runs", "lease_until = now() - interval '1 s'", of(run))


def is_silent(ledger: Ledger, name: str) -> None:
    begun(ledger, name).claim(1, lease=-1)


def has_no_message(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name)
    change(ledger, "steps", "queued_at = now() - interval '40 s'", step_of(run))


def retries_late(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name, queue="backfill")
    run.retry(run.claim(1))
    change(
        ledger,
        "steps",
        "retry_at = now() - interval '400 s'",
        "retry_at IS NOT NULL AND " + step_of(run),
    )


def is_overtaken(ledger: Ledger, name: str) -> None:
    run = begun(ledger, name, queue="other")
    change(ledger, "steps", "queued_at = now() - interval '400 s'", step_of(run))
    if not query(ledger, "SELECT FROM flowstone.steps WHERE asset = 'overtaker1'"):
        overtake(ledger, "other")


def follows_nobody(ledger: Ledger, name: str) -> None:
    leader = begun(ledger, name)
    HandRun(ledger, {1: ()}, name=name).dispatch()
    leader.commit(leader.claim(1))


def is_decided(ledger: Ledger, name: str) -> None:
    gate = ask_for(ledger, run=begun(ledger, name), step=1)
    long_ago = "state = 'approved', closed_by = 'ann', closed_at = now() - interval '40 s'"
    change(ledger, "gates", long_ago, f"id = {gate}")


def asks_nothing(ledger: Ledger, name: str) -> None:
    gate = ask_for(ledger, run=begun(ledger, name), step=1)
    change(ledger, "gates", "state = 'withdrawn', closed_at = now()", f"id = {gate}")


def opens_too_late(ledger: Ledger, name: str) -> None:
    run = HandRun(ledger, {1: ()}, name=name)
    with ledger.begin() as conn:
        # At any time but in the last minute of a day; then it is not to open in an hour, either.
        hours = Hours.parse("00:00-23:59", "UTC")
        backfills.create(conn, run.id, max_parallel=1, stop_ratio=None, hours=hours, actor="test")
        later = "UPDATE flowstone.runs SET opens_at = now() + interval '1 hour'"
        run_sql(conn, f"{later} WHERE {of(run)}")


CASES: dict[str, Callable[[Ledger, str], None]] = {
    "deadline_passed": is_late,
    "cancel_overdue": ignores_its_end,
    "worker_gone": has_gone,
    "queue_timeout": waits_for_nobody,
    "run_aged": starves,
    "retry_due": waits_in_the_ledger,
    "gate_due": is_asked_in_vain,
    "awaited": has_waited,
    "timed_out": overruns,
    "inline_abandoned": has_lost_its_process,
    "lease_expired": is_silent,
    "message_lost": has_no_message,
    "retry_overdue": retries_late,
    "backfill_hours": opens_too_late,
    "step_stranded": is_overtaken,
    "continuation_lost": is_decided,
    "nothing_asked": asks_nothing,
    "followers_left": follows_nobody,
}


BATCHES = (
    ageing, awaited, backfill_hours, cancellation, continuing, deadlines, flights, gate_clock,
    lost_messages, queue_timeout, repairs, workers,
)  # fmt: skip

NAMES = [f"{rule}_{number}_" for number, rule in enumerate(CASES)]
SECOND = [f"{name}second_" for name in NAMES]


def known(name: str) -> Asset:
    """Define the first asset of a case: what times out is ended by who knows it."""

    @asset(name=f"{name}1")
    def made() -> None: ...

    return made


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def here(make_runtime: RuntimeFactory, ledger: Ledger, told: Told) -> Runtime:
    """A ledger in which each rule finds one thing amiss."""
    made = make_runtime(build_registry([known(name) for name in (*NAMES, *SECOND)]))
    with ledger.begin() as conn:
        workers.report(conn, "w", ["assets", "backfill", "other"], up=0)
    # The first pass gives the broker its mark.
    reconciler.reconcile(made, lambda *_: None, broker=told)
    for rule, name in zip(CASES, NAMES, strict=True):
        CASES[rule](ledger, name)
    return made


def test_each_rule_finds_its_case_and_many_passes_at_once_repair_each_once(
    here: Runtime, ledger: Ledger, told: Told
) -> None:
    found = reconciler.find(here, told)
    assert {rule: len(found[rule]) for rule in CASES} == dict.fromkeys(CASES, 1)
    of_runs = {
        "deadline_passed",
        "cancel_overdue",
        "run_aged",
        "inline_abandoned",
        "backfill_hours",
    }
    for rule in set(CASES) - of_runs:
        assert found[rule][0].what.startswith(rule), found[rule]
    assert reconciler.repaired(here) == {}

    with ThreadPoolExecutor(4) as pool:
        passes = [
            pool.submit(reconciler.reconcile, here, lambda *_: None, broker=told) for _ in range(8)
        ]
        total = Counter[str]()
        for done in passes:
            total.update(done.result(60))
    assert {rule: total[rule] for rule in CASES} == dict.fromkeys(CASES, 1)
    counted = reconciler.repaired(here)
    assert {rule: counted[rule].repaired for rule in CASES} == dict.fromkeys(CASES, 1)
    # Nothing is left to do but by the coordinators, who were woken.
    left = {rule for rule, number in reconciler.backlog(here).items() if number}
    assert left <= WAKING


def test_each_rule_is_bounded(
    here: Runtime, ledger: Ledger, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rule, name in zip(CASES, SECOND, strict=True):
        CASES[rule](ledger, name)
    for module in BATCHES:
        for name in {"BATCH", "DUE_BATCH"}.intersection(vars(module)):
            monkeypatch.setattr(module, name, 1)
    found = reconciler.find(here, told)
    assert {rule: len(found[rule]) for rule in CASES} == dict.fromkeys(CASES, 1)
    for _ in range(2):
        done = reconciler.reconcile(here, lambda *_: None, broker=told)
        assert {rule: done[rule] for rule in CASES} == dict.fromkeys(CASES, 1)
    done = reconciler.reconcile(here, lambda *_: None, broker=told)
    assert {rule: done[rule] for rule in CASES} == dict.fromkeys(CASES, 0)


def test_no_rule_is_without_a_case() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))
    assert set(names) == CASES.keys() | WAKING | ALONE


def test_nothing_is_written_where_nothing_was_repaired(
    make_runtime: RuntimeFactory, ledger: Ledger
) -> None:
    here = make_runtime(build_registry([]))
    reconciler.reconcile(here, lambda *_: None)
    assert query(ledger, "SELECT * FROM flowstone.repairs") == []
