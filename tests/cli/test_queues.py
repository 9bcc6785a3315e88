"""What the command line says of queues that nobody consumes, and of the workers that are there."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from flowstone.cli.display import follow
from flowstone.errors import RunTimeout
from flowstone.handle import RunHandle
from flowstone.registry import build_registry
from flowstone.store import workers
from flowstone.store.ledger import Ledger
from tests.cli.conftest import Ran
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun

# Each of them starts the command line, as a process of its own, several times.
pytestmark = pytest.mark.slow

GPU = (
    "2 steps wait in the queue 'gpu', which no worker consumes; "
    "start one: celery -A tasks worker -Q gpu"
)
CONTROL = (
    "1 run waits in the queue 'control', which no worker consumes; "
    "start one: celery -A tasks worker -Q control"
)


@pytest.fixture
def waiting(ledger: Ledger) -> UUID:
    """A run of which two steps are dispatched, on a queue that the only worker does not consume."""
    with ledger.begin() as conn:
        work = workers.Work("0.9", processes=4, busy=1, taken=7, clock=time.time())
        workers.report(conn, "one@host", ["assets", "control"], up=60, work=work)
    run = HandRun(ledger, {1: (), 2: (), 3: (1, 2)}, queue="gpu")
    run.dispatch()
    return run.id


def lines(shown: Ran) -> list[str]:
    return shown.out.splitlines()


def test_status_says_in_which_queue_steps_wait_for_nobody(flowstone: Any, waiting: UUID) -> None:
    assert GPU in lines(flowstone("status", str(waiting)))
    told = json.loads(flowstone("status", str(waiting), "--json").out)
    assert told["unattended"] == [{"queue": "gpu", "steps": 2, "runs": 0}]


def test_the_lists_of_runs_and_of_workers_say_it_too(flowstone: Any, waiting: UUID) -> None:
    assert GPU in lines(flowstone("runs"))
    shown = flowstone("workers")
    assert GPU in lines(shown)
    (row,) = [line for line in lines(shown) if "one@host" in line]
    _, name, queues, version, busy, _, seen, _ = (cell.strip() for cell in row.split("│"))
    assert (name, queues, version, busy) == ("one@host", "assets, control", "0.9", "1 of 4")
    assert seen.endswith(" s ago")


def test_where_a_worker_consumes_it_nothing_is_said(
    flowstone: Any, ledger: Ledger, waiting: UUID
) -> None:
    with ledger.begin() as conn:
        workers.report(conn, "two@host", ["gpu"], up=0)
    for command in (["status", str(waiting)], ["runs"], ["workers"]):
        assert "no worker" not in flowstone(*command).out


def test_whoever_watches_a_run_that_nobody_takes_is_told_what_to_start(flowstone: Any) -> None:
    shown = flowstone("run", "numbers", "--timeout", "2")
    assert shown.code == 4
    assert lines(shown).count(CONTROL) == 1
    assert "is still requested after 2 s" in shown.err


@pytest.mark.parametrize("terminal", [False, True])
def test_whoever_watches_a_run_is_told_of_a_queue_that_nobody_consumes(
    make_runtime: RuntimeFactory, waiting: UUID, terminal: bool
) -> None:
    here = make_runtime(build_registry([]))
    console = Console(record=True, width=300, force_terminal=terminal)
    with pytest.raises(RunTimeout):
        follow(RunHandle(waiting, here), console, 0.5)
    assert console.export_text().count(GPU) == 1
