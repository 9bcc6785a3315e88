"""Steps start in their order, as soon as they can, and once: whoever wakes the coordinator."""

from __future__ import annotations

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import UUID

import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState, coordinator
from flowstone.canvas import Publisher
from flowstone.runtime import Runtime
from tests.worker.broker_view import Broker
from tests.worker.ledger_view import LedgerView
from tests.worker.test_shapes import (
    assert_each_step_succeeded_once,
    assert_every_step_began_after_those_it_reads,
    assert_lineage_is_the_plan,
)
from tests.worker.waiting import wait_until
from tests.worker.worker_assets import MESH_ENDS, MESH_STEPS

COORDINATORS = 4
PATIENCE = 120.0


def test_a_slow_step_holds_up_only_what_reads_it(
    celery_setup: CeleryTestSetup, view: LedgerView, tmp_path: Path
) -> None:
    config = {"gate": {"folder": str(tmp_path)}}
    handle = flowstone.materialize_all("all_around_gate", config=config)

    # The gate and beside_gate read the same step. What comes two steps after the one is done
    # while the other still runs.
    def beside_is_done() -> bool:
        return view.states(handle.id).get("meets_beside_gate") == "succeeded"

    wait_until(beside_is_done, "everything beside the gate is done")
    wait_until((tmp_path / "attempt-1").exists, "the gate is computed")
    states = view.states(handle.id)
    assert states["gate"] == "running"
    assert {step for step, state in states.items() if state != "succeeded"} == {
        "gate",
        "after_gate",
        "all_around_gate",
    }
    (tmp_path / "open").touch()
    assert handle.result(timeout=30) == 3 + 22
    rows = view.steps(handle.id)
    assert rows["meets_beside_gate"].finished_at < rows["gate"].finished_at


class Draw(NamedTuple):
    """What a test with chance in it depends on."""

    seed: int
    window: int


class RandomCoordinator:
    """Coordinates a run at moments that a seed draws, until it is told to stop."""

    def __init__(self, here: Runtime, run_id: UUID, app: Celery, seed: int) -> None:
        self._here = here
        self._run_id = run_id
        self._app = app
        self._random = Random(seed)

    def work(self, stop: threading.Event) -> int:
        """Return how often it was woken."""
        publisher = Publisher(self._app)
        times = 0
        try:
            while not stop.wait(self._random.expovariate(1 / 0.02)):
                coordinator.coordinate(self._here, self._run_id, publisher.publish)
                times += 1
        finally:
            # Celery leaves the client open that its result backend has in each thread.
            if self._here.settings.counts_chords:
                self._app.backend.client.connection_pool.disconnect()
        return times


@pytest.mark.parametrize("draw", [Draw(2013, window=7), Draw(2014, window=40)])
def test_four_coordinators_woken_at_random_run_each_step_once_and_in_order(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView, broker: Broker, draw: Draw
) -> None:
    seed, window = draw
    print(f"seed {seed}")  # noqa: T201 - a failure shows it
    stop = threading.Event()
    handle = flowstone.materialize_all(MESH_ENDS, max_in_flight=window)
    with ThreadPoolExecutor(COORDINATORS) as pool:
        made = [
            RandomCoordinator(here, handle.id, celery_setup.app, seed + number)
            for number in range(COORDINATORS)
        ]
        working = [pool.submit(one.work, stop) for one in made]
        try:
            state = handle.wait(timeout=PATIENCE)
        finally:
            stop.set()
        woken = [future.result(PATIENCE) for future in working]
    assert state == RunState.SUCCEEDED, handle.explain()
    assert min(woken) > 0

    # In the ledger each step ran once, after what it reads; the run was closed once.
    assert len(view.steps(handle.id)) == MESH_STEPS
    assert_each_step_succeeded_once(view, handle)
    assert_every_step_began_after_those_it_reads(view, handle)
    assert_lineage_is_the_plan(view, handle)
    numbers = view.rows(
        "SELECT a.number FROM flowstone.attempts a JOIN flowstone.steps s ON s.id = a.step_id"
        " WHERE s.run_id = :r",
        r=handle.id,
    )
    assert [row.number for row in numbers] == [1] * MESH_STEPS

    # So it was outside: one message and one stored value for each, and nothing left over.
    wait_until(lambda: broker.unacked() == 0, "all messages are acknowledged")
    assert broker.waiting() == 0
    received = Counter(re.findall(r"Task (mesh_\S+)\[\S+\] received", celery_setup.worker.logs()))
    assert set(received) == set(view.steps(handle.id))
    assert set(received.values()) == {1}
    stored = list(Path(here.settings.outputs).rglob("mesh_*/**/*.json"))
    assert len(stored) == MESH_STEPS
