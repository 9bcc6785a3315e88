"""A process of the pool dies: its parent tells the ledger, which need not wait for the lease."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from flowstone.registry import Registry, load_registry
from flowstone.settings import Settings
from tests.worker import mortal_assets
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until

LEASE_SECONDS = 600.0
"""Longer than any of these tests; and nobody runs the reconciler."""


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([mortal_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    mine = {"assets": (mortal_assets.__name__,), "lease_seconds": LEASE_SECONDS}
    return settings.model_copy(update=mine)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gate"
    made.mkdir()
    return made


def attempt_at(folder: Path, name: str) -> int:
    """Return the id of the process that waits at the gate."""
    wait_until((folder / name).exists, f"{name} comes to the gate")
    return int((folder / name).read_text())


def test_a_step_whose_process_is_killed_runs_again_at_once(
    celery_setup: CeleryTestSetup, view: LedgerView, folder: Path
) -> None:
    handle = flowstone.materialize_all("after_gate", config={"gate": {"folder": str(folder)}})
    os.kill(attempt_at(folder, "attempt-1"), signal.SIGKILL)
    attempt_at(folder, "attempt-2")
    (folder / "open").touch()
    assert handle.result(timeout=30) == 3
    assert view.attempts(handle.id, "gate") == [(1, "lost"), (2, "succeeded")]
    row = view.steps(handle.id)["gate"]
    assert (row.lost, row.failures) == (1, 0)
    (lost,) = view.rows("SELECT * FROM flowstone.attempts WHERE outcome = 'lost'")
    assert (lost.error_type, lost.error_message) == ("lost", "signal 9 (SIGKILL)")
    (told,) = view.rows("SELECT * FROM flowstone.audit WHERE action = 'step.lost'")
    assert (told.actor, told.reason) == ("tests@local", "signal 9 (SIGKILL)")
    assert (told.before, told.after) == ({"state": "running"}, {"state": "pending"})
    assert told.details["attempt"] == 1
    assert told.details["worker"] == "tests@local"
    assert told.details["began"].startswith(f"{lost.started_at:%Y-%m-%dT%H:%M:%S}")


@pytest.mark.slow
def test_a_step_that_kills_its_process_each_time_fails_with_the_evidence_and_alone(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    worker = celery_setup.worker.container
    pid = worker.pid
    handle = flowstone.materialize_all(["after_deadly", "after_harmless"])
    assert handle.wait(timeout=60) == RunState.FAILED
    assert view.states(handle.id) == {
        "deadly": "failed",
        "harmless": "succeeded",
        "after_deadly": "upstream_failed",
        "after_harmless": "succeeded",
    }
    assert view.attempts(handle.id, "deadly") == [(1, "lost"), (2, "lost"), (3, "lost")]
    assert view.steps(handle.id)["deadly"].lost == 3
    (error,) = handle.errors()
    first, *each = error.message.splitlines()
    assert error.type == "poison"
    assert first.startswith(
        "the process that ran deadly has died 3 times (3 times signal 9 (SIGKILL); the last one "
    )
    assert "on tests@local); look for what kills it" in first
    assert first in handle.explain()
    assert [line.split(" began ")[0] for line in each] == ["attempt 1", "attempt 2", "attempt 3"]
    assert all(" UTC on tests@local, and ran " in line for line in each)
    assert all(line.endswith(" s: signal 9 (SIGKILL)") for line in each)
    assert worker.pid == pid
    assert flowstone.materialize("harmless").result(timeout=30) == 1


def test_an_asset_says_how_often_its_process_may_die(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize("deadly_at_once")
    assert handle.wait(timeout=30) == RunState.FAILED
    assert view.attempts(handle.id, "deadly_at_once") == [(1, "lost")]
    assert "has died once (exitcode 3; the last one after" in handle.explain()


def test_a_death_uses_up_none_of_the_attempts_that_may_fail(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize("unlucky")
    assert handle.result(timeout=30) == 3
    outcomes = [(1, "lost"), (2, "retrying"), (3, "succeeded")]
    assert view.attempts(handle.id, "unlucky") == outcomes
