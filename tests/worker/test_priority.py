"""Who goes first on a real broker and a real worker: the urgent, and the first of each run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pytest_celery import CeleryTestSetup
from redis import Redis

import flowstone
from flowstone import RunHandle, RunState
from flowstone.canvas import Publisher
from flowstone.coordinator import coordinate
from flowstone.execution import execute
from flowstone.priority import CONTROL, FIRST, Priority, message_level
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from flowstone.store import workers
from flowstone.store.steps import Refused
from tests.worker import priority_assets
from tests.worker.broker_view import Broker
from tests.worker.conftest import orders_all_queues
from tests.worker.ledger_view import LedgerView
from tests.worker.priority_assets import BACKFILL_STEPS
from tests.worker.waiting import wait_until

pytestmark = pytest.mark.slow

WINDOW = 200
NORMAL, LOW = Priority.NORMAL.level, Priority.LOW.level


def small(priority: int, boost: int = 0) -> int:
    """The level of a step of a small run."""
    return message_level(priority, boost, place=0, in_flight=1)


def large(priority: int, place: int) -> int:
    """The level of a step of a large run."""
    return message_level(priority, 0, place=place, in_flight=WINDOW)


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([priority_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    own = {"assets": (priority_assets.__name__,), "park_after": 60.0, "queues": ("gpu",)}
    return settings.model_copy(update=own)


@pytest.fixture
def worker_environment(worker_environment: dict[str, str], settings: Settings) -> dict[str, str]:
    return worker_environment | {"FLOWSTONE_QUEUES": ",".join(settings.queues)}


class Backfill:
    """A run of 10,000 steps, of which each waits until it is let go."""

    def __init__(self, folder: Path, view: LedgerView, priority: Any) -> None:
        self._folder = folder
        self._view = view
        config = {"filled": {"folder": str(folder)}}
        self.handle = flowstone.materialize_all("backfilled", config=config, priority=priority)
        wait_until(lambda: len(self.begun()) == 2, "both processes are busy with it", 60)

    def begun(self) -> set[str]:
        return {path.name.removeprefix("began-") for path in self._folder.glob("began-*")}

    def let_one_end(self) -> None:
        held = [key for key in self.begun() if not (self._folder / f"open-{key}").exists()]
        (self._folder / f"open-{min(held)}").touch()

    def starts_between(self, began: object, ended: object) -> int:
        (found,) = self._view.rows(
            "SELECT count(*) AS n FROM flowstone.steps WHERE run_id = :r"
            " AND started_at BETWEEN :began AND :ended",
            r=self.handle.id,
            began=began,
            ended=ended,
        )
        return int(found.n)


@orders_all_queues
@pytest.mark.parametrize("backfills", ["normal", "low"])
def test_a_run_of_three_steps_waits_for_none_of_a_backfill_but_those_that_run(
    celery_setup: CeleryTestSetup, view: LedgerView, broker: Broker, tmp_path: Path, backfills: str
) -> None:
    backfill = Backfill(tmp_path, view, backfills)
    assert backfill.handle.progress().count() == BACKFILL_STEPS + 1
    wait_until(lambda: broker.waiting("assets") == WINDOW - 2, "the window is full")
    asked = flowstone.materialize_all("told")
    wait_until(lambda: broker.waiting("control") == 1, "the coordinator is sent for")

    # Two steps run; where one of them ends, all that is asked for comes before a third. That a
    # process holds no message in reserve is FLOWSTONE_PREFETCH; each more is one more step.
    backfill.let_one_end()
    assert asked.result(timeout=60) == "WHAT? THAT!"
    (run,) = view.rows("SELECT planned_at FROM flowstone.runs WHERE id = :r", r=asked.id)
    steps = view.steps(asked.id)
    assert len(steps) == 3
    last_start = max(row.started_at for row in steps.values())
    assert backfill.starts_between(run.planned_at, last_start) == 0
    wait_until(lambda: len(backfill.begun()) == 3, "the backfill goes on")


@orders_all_queues
def test_a_run_of_a_low_priority_waits_behind_all_that_is_normal(
    celery_setup: CeleryTestSetup, view: LedgerView, broker: Broker, tmp_path: Path
) -> None:
    backfill = Backfill(tmp_path, view, "normal")
    asked = flowstone.materialize_all("told", priority="low")
    wait_until(lambda: broker.waiting("control") == 1, "the coordinator is sent for")
    backfill.let_one_end()
    wait_until(lambda: len(backfill.begun()) == 3, "the backfill goes on")
    assert set(view.states(asked.id).values()) == {"queued"}
    backfill.let_one_end()
    wait_until(lambda: len(backfill.begun()) == 4, "the backfill goes on")
    assert set(view.states(asked.id).values()) == {"queued"}


def coordinated(here: Runtime, publisher: Publisher, asset: str, **options: Any) -> RunHandle:
    """Submit a run, and be its coordinator; no worker runs."""
    handle = flowstone.materialize_all(asset, **options)
    coordinate(here, handle.id, publisher.publish)
    return handle


def test_the_first_messages_of_a_run_are_a_level_ahead_of_its_bulk(
    here: Runtime, broker: Broker, publisher: Publisher
) -> None:
    coordinated(here, publisher, "backfilled")
    found = Counter((sent.queue, sent.priority) for sent in broker.take())
    assert found == {
        ("control", CONTROL): 1,
        ("assets", large(NORMAL, 0)): FIRST,
        ("assets", large(NORMAL, FIRST)): WINDOW - FIRST,
    }


def test_a_run_that_starves_is_sent_again_with_its_first_steps_at_a_better_level(
    here: Runtime,
    broker: Broker,
    publisher: Publisher,
    view: LedgerView,
    reconcile: Callable[[], Mapping[str, int]],
) -> None:
    handle = coordinated(here, publisher, "backfilled", priority="low")
    old = {view_id(sent): UUID(sent.kwargs["canvas"]) for sent in broker.take("assets")}
    with here.ledger.begin() as conn:
        workers.report(conn, "one@host", ["assets"], up=0)
    reconcile()
    assert reconcile()["run_aged"] == 0
    with here.ledger.begin() as conn:
        conn.exec_driver_sql(
            "UPDATE flowstone.runs SET waits_since = waits_since - interval '301 seconds'"
        )
    broker.take()
    counts = reconcile()
    assert (counts["run_aged"], counts["run_woken"]) == (1, 1)
    # What each pass sends anew is no more urgent than the steps that it is about.
    assert [sent.priority for sent in broker.take("control")] == [small(LOW, boost=1)]
    coordinate(here, handle.id, publisher.publish)
    again = broker.take()
    assert [sent.priority for sent in again] == [small(LOW, boost=1)] * FIRST
    # It is ahead even of large runs that were more urgent, and what was sent before is void.
    assert small(LOW, boost=1) < large(NORMAL, 0)
    for sent in again:
        refused = execute(here, view_id(sent), old[view_id(sent)], worker="late")
        assert refused == Refused(None)


def view_id(sent: Any) -> int:
    return int(sent.kwargs["step_id"])


@pytest.mark.parametrize("worker_options", [("-Q", "assets,control")])
@pytest.mark.parametrize("asset", ["follows", "meets"])
@pytest.mark.parametrize("priority", list(Priority))
def test_what_follows_in_a_chain_or_a_chord_has_the_priority_of_its_run(
    celery_setup: CeleryTestSetup,
    worker_options: tuple[str, ...],
    broker: Broker,
    asset: str,
    priority: Priority,
) -> None:
    flowstone.materialize_all(asset, priority=priority.value)
    wait_until(lambda: broker.waiting("backfill") == 1, "it waits where nobody consumes")
    assert [sent.priority for sent in broker.take("backfill")] == [small(priority.level)]


@pytest.mark.parametrize("priority", list(Priority))
def test_a_retry_keeps_the_priority(
    celery_setup: CeleryTestSetup, redis: Redis, view: LedgerView, priority: Priority
) -> None:
    handle = flowstone.materialize("comes_back", priority=priority.value)

    def retries() -> list[int]:
        """Return the priorities of what the worker holds until it is due."""
        held = [json.loads(raw)[0] for raw in redis.hvals("unacked")]
        return [m["properties"]["priority"] for m in held if m["headers"]["retries"] == 1]

    wait_until(retries, "the worker holds the retry")
    assert retries() == [small(priority.level)]
    assert view.attempts(handle.id, "comes_back") == [(1, "retrying")]


def test_a_coordinator_that_is_sent_for_goes_before_every_step(
    here: Runtime, broker: Broker, publisher: Publisher
) -> None:
    handle = coordinated(here, publisher, "told", priority="high")
    publisher.wake(handle.id)
    sent = broker.take()
    assert handle.status() == RunState.RUNNING
    control = [one.priority for one in sent if one.queue == "control"]
    assert control == [CONTROL, CONTROL]
    assert all(one.priority > CONTROL for one in sent if one.queue == "assets")
