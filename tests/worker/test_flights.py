"""Two runs of the same assets on a real worker: each asset is computed once, or one by one."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunHandle, RunState
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gate"
    made.mkdir()
    return made


def submit(folder: Path, **options: Any) -> RunHandle:
    config = {"gate": {"folder": str(folder)}}
    return flowstone.materialize_all("after_gate", config=config, **options)


def at_the_gate(folder: Path) -> RunHandle:
    """A run whose second step is being computed, until the gate is opened."""
    handle = submit(folder)
    wait_until((folder / "attempt-1").exists, "the first run comes to the gate")
    return handle


def wait_for_state(view: LedgerView, handle: RunHandle, step: str, state: str) -> None:
    wait_until(lambda: view.states(handle.id).get(step) == state, f"{step} is {state}")


def attempts(view: LedgerView) -> Counter[tuple[str, str | None]]:
    """Return how often each asset was computed, by outcome, over all runs."""
    found = view.rows(
        "SELECT s.asset, a.outcome FROM flowstone.attempts a"
        " JOIN flowstone.steps s ON s.id = a.step_id"
    )
    return Counter((row.asset, row.outcome) for row in found)


def test_two_runs_of_a_diamond_submitted_at_once_compute_each_asset_once(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    both = [flowstone.materialize_all("bottom") for _ in range(2)]
    assert [handle.result(timeout=60) for handle in both] == [[2, 3]] * 2
    computed = {asset: n for (asset, outcome), n in attempts(view).items() if outcome != "skipped"}
    assert computed == {"top": 1, "left": 1, "right": 1, "bottom": 1}
    outputs = view.rows("SELECT count(*) AS n FROM flowstone.outputs")
    assert outputs[0].n == 4


def test_a_run_joins_what_another_one_computes_and_both_have_the_value(
    celery_setup: CeleryTestSetup, view: LedgerView, folder: Path
) -> None:
    first = at_the_gate(folder)
    second = submit(folder)
    wait_for_state(view, second, "gate", "joined")
    assert second.status() == RunState.RUNNING
    (folder / "open").touch()
    # Nobody reconciles here: the commit of the one wakes the run of the other.
    assert [handle.result(timeout=30) for handle in (first, second)] == [3, 3]
    assert attempts(view)["gate", "succeeded"] == 1
    assert view.steps(second.id)["gate"].reuses == view.steps(first.id)["gate"].id
    assert "Traceback" not in celery_setup.worker.logs()


def test_if_the_one_is_cancelled_the_other_computes(
    celery_setup: CeleryTestSetup, view: LedgerView, folder: Path
) -> None:
    config = {"heeds": {"folder": str(folder)}}
    first = flowstone.materialize("heeds", config=config)
    wait_until((folder / "heeds").exists, "the first run computes")
    second = flowstone.materialize("heeds", config=config)
    wait_for_state(view, second, "heeds", "joined")
    (folder / "heeds").unlink()
    first.cancel()
    wait_until((folder / "heeds").exists, "the second run computes")
    assert first.wait(timeout=20) == RunState.CANCELLED
    second.cancel()
    assert second.wait(timeout=20) == RunState.CANCELLED


def test_a_run_that_queues_computes_afterwards(
    celery_setup: CeleryTestSetup, view: LedgerView, folder: Path
) -> None:
    first = at_the_gate(folder)
    second = submit(folder, on_conflict="queue", force=True)
    wait_for_state(view, second, "gate", "joined")
    (folder / "open").touch()
    assert [handle.result(timeout=30) for handle in (first, second)] == [3, 3]
    assert attempts(view)["gate", "succeeded"] == 2
    one, two = (view.steps(handle.id)["gate"] for handle in (first, second))
    assert one.finished_at <= two.started_at


def test_a_run_that_refuses_fails_at_once_and_leaves_the_other_alone(
    celery_setup: CeleryTestSetup, view: LedgerView, folder: Path
) -> None:
    first = at_the_gate(folder)
    second = submit(folder, on_conflict="refuse")
    assert second.wait(timeout=30) == RunState.FAILED
    assert f"gate is being computed by run {first.id}" in second.explain()
    (folder / "open").touch()
    assert first.result(timeout=30) == 3
    assert submit(folder, on_conflict="refuse").result(timeout=30) == 3


def test_a_sync_run_shares_what_a_worker_computes(
    celery_setup: CeleryTestSetup, view: LedgerView, folder: Path
) -> None:
    at_the_gate(folder)
    config = {"gate": {"folder": str(folder)}}
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(flowstone.materialize_sync, "after_gate", upstream=True, config=config)
        joined = "SELECT FROM flowstone.steps WHERE state = 'joined' AND asset = 'gate'"
        wait_until(lambda: view.rows(joined), "the run of this process waits for the worker")
        (folder / "open").touch()
        assert mine.result(30).result() == 3
    assert attempts(view)["gate", "succeeded"] == 1


def test_the_same_key_gives_the_same_run(celery_setup: CeleryTestSetup, view: LedgerView) -> None:
    one = flowstone.materialize("top", idempotency_key="today")
    assert one.result(timeout=30) == 1
    again = flowstone.materialize("top", idempotency_key="today")
    assert (again.id, again.result()) == (one.id, 1)
    assert view.actions(one.id)["run.succeeded"] == 1
