"""A process is killed at each marked point of a step's way, and the record is right in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunHandle, RunState
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.worker import deadly_assets
from tests.worker.deadly_assets import AFTER_COMMIT, BEFORE_COMMIT, COMMITTING, POINTS
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until

pytestmark = pytest.mark.slow

READERS_VALUE = 20 * 1000

SLOW_COMMIT = f"""
CREATE FUNCTION flowstone.slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON flowstone.latest FOR EACH ROW
WHEN (NEW.asset = 'dies_at_{COMMITTING}') EXECUTE FUNCTION flowstone.slow()
"""

REPAIRS: Mapping[str, str | None] = {
    **dict.fromkeys(BEFORE_COMMIT, "step.lost"),
    # Nobody tells the run of what has been committed: the reconciler wakes it.
    **dict.fromkeys(AFTER_COMMIT, None),
}
"""What the reconciler does to the step whose process was killed."""


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([deadly_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"message_seconds": 3.0})


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.fixture
def worker_environment(worker_environment: dict[str, str], marks: Path) -> dict[str, str]:
    mine = {"FLOWSTONE_ASSETS": deadly_assets.__name__, deadly_assets.MARKS_FOLDER: str(marks)}
    return worker_environment | mine


@pytest.fixture
def worker_options() -> tuple[str, ...]:
    # Else a process would claim its first step before it has loaded the definitions.
    return ("--include", deadly_assets.__name__)


def test_the_end_is_right_wherever_a_process_is_killed(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    full_pass: Callable[[], Mapping[str, int]],
    marks: Path,
) -> None:
    with here.ledger.engine.begin() as conn:
        conn.exec_driver_sql(SLOW_COMMIT)
    flowstone.materialize("before_all").wait(timeout=30)
    handles: dict[str, RunHandle] = {}
    seen: dict[str, bool] = {}

    def look() -> None:
        for point in POINTS:
            if point not in seen and (marks / point).exists():
                seen[point] = is_visible(point)

    for point in POINTS:
        handles[point] = submit(point)
        # To submit takes its time on RabbitMQ, and the first may have come to its end by then.
        look()
    passes: list[float] = [time.monotonic()]

    def done() -> bool:
        look()
        # Not at each look: its wake-ups would take much of the time of the worker.
        if time.monotonic() > passes[-1] + 1:
            full_pass()
            passes.append(time.monotonic())
        return all(h.status() == RunState.SUCCEEDED for h in handles.values())

    wait_until(done, "every run comes to its end", deadline=120)
    assert seen.keys() == set(POINTS), "each process was killed"
    # A killed process lets nothing half-made be seen, nor anything before its commit.
    assert {point for point in BEFORE_COMMIT if seen[point]} == set()
    assert {point for point in AFTER_COMMIT if not seen[point]} == set()
    for point, handle in handles.items():
        assert_right(view, point, handle)
    assert_collected(here)


def assert_collected(here: Runtime) -> None:
    """The collector finds what the dead have left behind, that and no more."""
    left = {"write": ".json.part", "stage": ".json", "check": ".json"}
    found = {one.location for one in flowstone.collect()}
    of_points = {location for location in found if f"dies_at_{COMMITTING}/" not in location}
    for at in of_points:
        name = at.partition("/")[0].removeprefix("dies_at_")
        assert at.endswith(left.pop(name)), at
    assert not left
    assert not any(Path(here.settings.outputs, location).exists() for location in found)
    for point in POINTS:
        assert is_visible(point)


def submit(point: str) -> RunHandle:
    readers = [a.name for a in deadly_assets.DEADLY if a.name.endswith(f"_after_{point}")]
    return flowstone.materialize_all(readers)


def is_visible(point: str) -> bool:
    """Return whether there is a value, which must then be all of it."""
    name = f"dies_at_{point}"
    if not flowstone.exists(name):
        return False
    assert sum(flowstone.get(name).values()) == READERS_VALUE, point
    return True


def assert_right(view: LedgerView, point: str, handle: RunHandle) -> None:
    name = f"dies_at_{point}"
    assert handle.result(f"a_after_{point}") == READERS_VALUE, point
    outcomes = [outcome for _, outcome in view.attempts(handle.id, name)]
    step = view.steps(handle.id)[name].id
    audit = "SELECT action FROM flowstone.audit WHERE step_id = :s AND action LIKE 'step.%'"
    # On a machine that is busy a message that is only late may count as lost.
    harmless = {"step.succeeded", "step.message_lost"}
    repairs = {row.action for row in view.rows(audit, s=step)} - harmless
    if point == COMMITTING:
        # PostgreSQL may have gone on without whoever asked, or not: both are right.
        assert outcomes in (["succeeded"], ["lost", "succeeded"])
    else:
        expected = REPAIRS[point]
        assert repairs == ({expected} if expected else set()), point
        assert outcomes == (["lost"] if expected == "step.lost" else []) + ["succeeded"], point
    made = view.rows("SELECT id FROM flowstone.outputs WHERE step_id = :s", s=step)
    assert len(made) == 1, point
    traced = view.rows(
        "SELECT l.upstream_output_id FROM flowstone.lineage l JOIN flowstone.steps s "
        "ON s.id = l.step_id WHERE s.run_id = :r AND s.asset LIKE '%after%'",
        r=handle.id,
    )
    assert {row.upstream_output_id for row in traced} == {made[0].id}, point
    committed = (
        "SELECT action FROM flowstone.audit WHERE step_id = :s AND action = 'step.succeeded'"
    )
    assert len(view.rows(committed, s=step)) == 1, point
