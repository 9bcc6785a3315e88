"""A backfill on a real worker: never more at once than it may, halted and killed, and right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup
from redis import Redis

import flowstone
from flowstone import BackfillHandle, Month, RunState, StepState
from flowstone.registry import Registry, load_registry
from flowstone.settings import Settings
from tests.worker import backfill_assets
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until

DAYS = {Month(2013, 1): sum(range(1, 32)), Month(2013, 2): sum(range(1, 29))}


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([backfill_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"assets": (backfill_assets.__name__,)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gate"
    made.mkdir()
    return made


def begin(folder: Path) -> BackfillHandle:
    config = {"day": {"folder": str(folder)}}
    return flowstone.backfill("+month", max_parallel=2, order="newest", config=config)


def began(folder: Path) -> set[str]:
    return {path.name.removeprefix("began-") for path in folder.glob("began-*")}


def most_at_once(view: LedgerView) -> int:
    """Return how many attempts ran at the same time, at most."""
    rows = view.rows("SELECT started_at, finished_at FROM flowstone.attempts")
    ends = [(row.started_at, 1) for row in rows] + [(row.finished_at, -1) for row in rows]
    now = most = 0
    for _, change in sorted(ends):
        now += change
        most = max(most, now)
    return most


def test_a_backfill_is_halted_and_goes_on_and_never_runs_more_than_it_may(
    celery_setup: CeleryTestSetup, view: LedgerView, folder: Path
) -> None:
    handle = begin(folder)
    wait_until(lambda: len(began(folder)) == 2, "two days have begun")
    assert began(folder) == {"2013-02-28", "2013-02-27"}
    progress = handle.progress()
    assert progress.count(StepState.QUEUED, StepState.RUNNING) == 2
    assert handle.pause("the source is moved").running == 2
    (folder / "open").touch()
    wait_until(lambda: handle.progress().ended == 2, "what ran has ended")
    assert handle.progress().state == RunState.PAUSED
    assert len(began(folder)) == 2
    handle.resume()
    assert handle.wait(timeout=60) == RunState.SUCCEEDED
    assert handle.run.result("month") == DAYS
    assert most_at_once(view) == 2
    queues = view.rows("SELECT DISTINCT queue FROM flowstone.steps")
    assert [row.queue for row in queues] == ["backfill"]
    # All of it is fresh now, and the same call says so.
    again = begin(folder)
    assert again.wait(timeout=30) == RunState.SUCCEEDED
    assert again.progress().fresh == 61


@pytest.mark.slow
def test_a_backfill_survives_the_death_of_its_worker_and_of_all_messages(
    celery_setup: CeleryTestSetup,
    view: LedgerView,
    redis: Redis,
    full_pass: Callable[[], Mapping[str, int]],
    folder: Path,
) -> None:
    handle = begin(folder)
    wait_until(lambda: len(began(folder)) == 2, "two days have begun")
    celery_setup.worker.container.kill()
    redis.flushall()
    (folder / "open").touch()
    celery_setup.worker.container.start()

    def has_ended() -> bool:
        full_pass()
        return handle.progress().is_final

    wait_until(has_ended, "the reconciler brings it to its end", deadline=60)
    assert handle.progress().state == RunState.SUCCEEDED
    assert handle.run.result("month") == DAYS
    assert most_at_once(view) <= 2
    outputs = view.rows("SELECT count(*) AS n FROM flowstone.outputs")
    assert outputs[0].n == 61
