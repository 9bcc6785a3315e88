"""Pools on a real worker: who waits for a slot holds neither a process nor a message."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.worker import pool_assets
from tests.worker.broker_view import Broker
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([pool_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"assets": (pool_assets.__name__,), "pools": {"single": 1}})


@pytest.fixture
def worker_environment(worker_environment: dict[str, str]) -> dict[str, str]:
    return worker_environment | {"FLOWSTONE_POOLS": '{"single": 1}'}


OVERLAPS = """
    SELECT count(*) FROM flowstone.attempts a JOIN flowstone.attempts b
    ON (a.step_id, a.number) < (b.step_id, b.number)
        AND a.started_at < b.finished_at AND b.started_at < a.finished_at
    JOIN flowstone.steps s ON s.id = a.step_id AND s.takes IS NOT NULL
    JOIN flowstone.steps t ON t.id = b.step_id AND t.takes IS NOT NULL
"""


def test_two_processes_and_two_runs_share_one_slot(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handles = [flowstone.materialize_all("rows", force=True, on_conflict="queue") for _ in range(2)]
    assert [handle.result(timeout=60) for handle in handles] == [6, 6]
    assert view.rows("SELECT count(*) FROM flowstone.attempts") == [(14,)]
    assert view.rows(OVERLAPS) == [(0,)]


def test_a_step_without_a_slot_waits_in_the_ledger_alone(
    celery_setup: CeleryTestSetup, view: LedgerView, broker: Broker, tmp_path: Path
) -> None:
    config = {"gate": {"folder": str(tmp_path)}}
    first = flowstone.materialize_all("gate", config=config)
    wait_until((tmp_path / "attempt-1").exists, "the gate holds the slot")
    other = flowstone.materialize("row", partition="p0")
    wait_until(lambda: view.states(other.id), "the other run is planned")
    wait_until(lambda: broker.unacked() == 1, "only the gate has a message")
    assert broker.waiting() == 0
    (wait,) = other.waits()
    assert (wait.key, wait.steps, wait.taken, wait.slots) == ("single", 1, 1, 1)
    # The worker is not held up: it has another process for what needs no slot.
    assert flowstone.materialize("before_gate").wait(timeout=30) == RunState.SUCCEEDED
    assert view.states(other.id) == {"row[p0]": "pending"}
    (tmp_path / "open").touch()
    assert first.wait(timeout=30) == other.wait(timeout=30) == RunState.SUCCEEDED
    assert view.rows(OVERLAPS) == [(0,)]


def test_a_retry_gives_its_slot_away_while_it_waits(
    celery_setup: CeleryTestSetup,
    view: LedgerView,
    reconcile: Callable[[], Mapping[str, int]],
) -> None:
    handle = flowstone.materialize_all("after_flaky")
    wait_until(lambda: view.states(handle.id).get("flaky") == "retrying", "it is parked")
    assert view.steps(handle.id)["flaky"].canvas is None
    assert flowstone.materialize("row", partition="p1").wait(timeout=30) == RunState.SUCCEEDED
    wait_until(lambda: reconcile()["retry_due"], "the retry is due")
    assert handle.wait(timeout=30) == RunState.SUCCEEDED


def test_a_killed_process_loses_its_slot(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    reconcile: Callable[[], Mapping[str, int]],
    tmp_path: Path,
) -> None:
    config = {"gate": {"folder": str(tmp_path)}}
    handle = flowstone.materialize_all("gate", config=config)
    wait_until((tmp_path / "attempt-1").exists, "the gate holds the slot")
    other = flowstone.materialize("row", partition="p0")
    os.kill(int((tmp_path / "attempt-1").read_text()), signal.SIGKILL)

    def both_go_on() -> bool:
        reconcile()
        return (tmp_path / "attempt-2").exists() or view.states(other.id) == {
            "row[p0]": "succeeded"
        }

    wait_until(both_go_on, "the slot is free again")
    (tmp_path / "open").touch()
    assert handle.wait(timeout=30) == other.wait(timeout=30) == RunState.SUCCEEDED
    assert view.attempts(handle.id, "gate") == [(1, "lost"), (2, "succeeded")]
