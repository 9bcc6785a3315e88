"""Inline runs: they wait for other processes, and one whose process was killed is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowstone import cancel, materialize_sync
from flowstone.asset import asset
from flowstone.errors import RunFailed
from flowstone.reconcile import reconcile
from flowstone.registry import build_registry
from flowstone.store import cancellation
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, query, run_sql
from tests.worker.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 1.5

BLOCKING = """
import time
from flowstone import asset, materialize_sync

@asset
def before() -> int:
    return 1

@asset(version="1")
def shared(before: int) -> int:
    print("computing", flush=True)
    time.sleep(600)
    return 0

@asset
def after(shared: int) -> int:
    return shared

materialize_sync("after", upstream=True)
"""


@pytest.fixture
def blocked(tmp_path: Path, database: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of its `materialize_sync`."""
    script = tmp_path / "blocking.py"
    script.write_text(BLOCKING)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "FLOWSTONE_DATABASE_URL": database,
        "FLOWSTONE_HOME": str(tmp_path / "home"),
        "FLOWSTONE_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def no_run_left(ledger: Ledger) -> Iterator[None]:
    """Cancel what is open in the end, so that a test that fails does not wait for its threads."""
    try:
        yield
    finally:
        open_ = "SELECT id FROM flowstone.runs WHERE finished_at IS NULL"
        for (run_id,) in query(ledger, open_):
            cancel(run_id, grace=0)


@pytest.fixture
def mine(make_runtime: Any) -> list[str]:
    """Define the same assets here; these come to an end."""
    calls: list[str] = []

    @asset
    def before() -> int:
        return 1

    @asset(version="1")
    def shared(before: int) -> int:
        calls.append("shared")
        return before + 1

    @asset
    def after(shared: int) -> int:
        return shared + 1

    make_runtime(build_registry([before, shared, after]), lease_seconds=LEASE_SECONDS)
    return calls


def test_a_run_that_was_killed_stands_in_nobodys_way(
    blocked: subprocess.Popen[str], mine: list[str], ledger: Ledger
) -> None:
    with ThreadPoolExecutor(1) as pool, no_run_left(ledger):
        waiting = pool.submit(lambda: materialize_sync("after", upstream=True).result())
        joined = "SELECT id FROM flowstone.steps WHERE state = 'joined' AND asset = 'shared'"
        wait_until(lambda: query(ledger, joined), "this run waits for the other process")
        # As long as that lives, its lease is renewed, and nothing is taken from it.
        held = "SELECT lease_until FROM flowstone.runs WHERE driver = 'inline' ORDER BY created_at"
        before = query(ledger, held)[0].lease_until
        wait_until(lambda: query(ledger, held)[0].lease_until > before, "the lease is renewed")
        assert mine == []
        blocked.send_signal(signal.SIGKILL)
        assert waiting.result(60) == 3
        # The lease of the step may have expired a moment before that of its run.
        wait_until(lambda: closed(ledger), "the run is closed")
    assert mine == ["shared"]
    found = query(
        ledger, "SELECT state, error->>'message' AS said FROM flowstone.runs ORDER BY created_at"
    )
    assert [row.state for row in found] == ["cancelled", "succeeded"]
    assert found[0].said == "cancelled, as the process that drove the run has died"
    states = "SELECT asset, state FROM flowstone.steps ORDER BY id LIMIT 3"
    assert query(ledger, states) == [
        ("before", "succeeded"),
        ("shared", "cancelled"),
        ("after", "cancelled"),
    ]
    outcomes = "SELECT outcome FROM flowstone.attempts WHERE outcome IN ('lost', 'cancelled')"
    assert query(ledger, outcomes) in ([("cancelled",)], [("lost",)])


def closed(ledger: Ledger) -> bool:
    with ledger.begin() as conn:
        cancellation.abandoned(conn, actor="test")
    return not query(ledger, "SELECT FROM flowstone.runs WHERE finished_at IS NULL")


def expire(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.runs SET lease_until = now() - interval '1 second'")


def test_a_new_run_closes_those_that_were_abandoned_before_it(
    mine: list[str], ledger: Ledger
) -> None:
    dead = HandRun(ledger, {1: (), 2: (1,)}, driver="inline", lease=60)
    dead.dispatch()
    materialize_sync("before")
    assert dead.states() == {1: "queued", 2: "queued"}
    expire(ledger)
    materialize_sync("before")
    assert dead.states() == {1: "cancelled", 2: "cancelled"}


def test_the_reconciler_closes_an_abandoned_run_in_any_state_once(
    mine: list[str], ledger: Ledger, make_runtime: Any
) -> None:
    here = make_runtime(build_registry([]))
    dead = HandRun(ledger, {1: ()}, driver="inline", lease=60)
    done = HandRun(ledger, {1: ()}, name="b", driver="inline", lease=60)
    done.do(1)
    on_workers = HandRun(ledger, {1: ()}, name="c")
    on_workers.dispatch()
    with ledger.begin() as conn:
        run_sql(
            conn,
            "INSERT INTO flowstone.runs (id, driver, request, config, max_in_flight, actor) "
            "SELECT gen_random_uuid(), driver, request, config, max_in_flight, actor "
            "FROM flowstone.runs WHERE id = :i",
            i=dead.id,
        )
    expire(ledger)
    assert reconcile(here, lambda *_: None)["inline_abandoned"] == 3
    states = "SELECT state FROM flowstone.runs ORDER BY state"
    assert [row.state for row in query(ledger, states)] == [
        "cancelled",
        "cancelled",
        "running",
        "succeeded",
    ]
    assert reconcile(here, lambda *_: None)["inline_abandoned"] == 0


def test_a_run_that_lives_but_was_silent_ends_as_cancelled(
    make_runtime: Any, ledger: Ledger
) -> None:
    @asset
    def silent() -> None:
        expire(ledger)
        reconcile(here, lambda *_: None)

    here = make_runtime(build_registry([silent]))
    with pytest.raises(RunFailed, match="the process that drove the run has died"):
        materialize_sync("silent")
    assert query(ledger, "SELECT count(*) FROM flowstone.outputs") == [(0,)]


def test_two_sync_runs_of_one_process_share_what_they_compute(make_runtime: Any) -> None:
    calls: list[str] = []
    gate = threading.Event()

    @asset
    def slow() -> int:
        calls.append("slow")
        assert gate.wait(30)
        return 7

    here = make_runtime(build_registry([slow]))
    with ThreadPoolExecutor(2) as pool, no_run_left(here.ledger):
        both = [pool.submit(lambda: materialize_sync("slow").result()) for _ in range(2)]
        joined = "SELECT id FROM flowstone.steps WHERE state = 'joined'"
        wait_until(lambda: query(here.ledger, joined), "one of them waits for the other")
        gate.set()
        assert [future.result(30) for future in both] == [7, 7]
    assert calls == ["slow"]
