"""A worker that is connected and takes nothing is found: by the doctor, health, and workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler
from pytest_celery import CeleryTestSetup
from typer.testing import CliRunner, Result

import flowstone
from flowstone import __version__, health
from flowstone.checkup import examine
from flowstone.cli import app
from flowstone.doctor import Finding, diagnose
from flowstone.messages import RECONCILE
from flowstone.queues import CONTROL_QUEUE
from flowstone.runtime import Runtime
from tests.worker.broker_view import Broker
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until

NAME = "tests@local"
DEAF = ("-I", "tests.worker.deaf_worker")
"""Not imported here, as it would make this process deaf, too."""


def found(here: Runtime, check: str) -> Finding:
    return next(one for one in diagnose(examine(here)) if one.check == check)


def let_pass(here: Runtime, *columns: str) -> None:
    """Let a minute pass in which nothing happens."""
    with here.ledger.begin() as conn:
        for table, column in (column.split(".") for column in columns):
            conn.exec_driver_sql(
                f"UPDATE flowstone.{table} SET {column} = {column} - interval '60 seconds'"
            )


def listed(view: LedgerView) -> Any:
    return view.rows("SELECT * FROM flowstone.workers")


@pytest.fixture
def command(
    here: Runtime, worker_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    for name, value in worker_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: CliRunner().invoke(app, arguments)


def tick(app: Celery) -> None:
    """Be Celery's beat, whose time has come."""
    schedule = app.conf.beat_schedule["flowstone-reconcile"]
    entry = Scheduler.Entry(name="flowstone-reconcile", app=app, **schedule)
    Scheduler(app, lazy=True).apply_async(entry)


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize("worker_options", [DEAF])
def test_a_worker_that_answers_and_takes_nothing_is_found(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    worker_options: tuple[str, ...],
    command: Callable[..., Result],
) -> None:
    wait_until(lambda: listed(view), "the worker is listed")
    flowstone.materialize("top")
    # Celery's own question finds nothing, as it goes another way.
    assert celery_setup.app.control.inspect(destination=[NAME]).ping() == {NAME: {"ok": "pong"}}
    assert broker.waiting("control") == 1

    # What has just come is no proof, nor is a worker that has just taken something.
    assert found(here, "consuming").level == "ok"
    let_pass(here, "workers.taken_at", "workers.started_at")
    assert found(here, "consuming").level == "ok"
    assert health.of_worker(here.settings, NAME).is_alive

    let_pass(here, "runs.created_at")
    consuming = found(here, "consuming")
    assert (consuming.level, consuming.seen) == (
        "error",
        f"{NAME} takes nothing from control, though it has processes free and messages wait",
    )
    assert consuming.remedy.startswith(f"restart {NAME}")
    ill = command("health", "worker", NAME)
    assert (ill.exit_code, ill.output.strip().partition(", ")[2]) == (
        1,
        "but takes nothing from control",
    )
    shown = command("workers")
    assert f"{NAME} takes nothing from control, where messages wait; restart it" in shown.output
    assert "0 of 2" in shown.output

    # What the remedy says is so.
    broker.lose_all()
    assert health.of_worker(here.settings, NAME).is_alive


def test_a_worker_tells_what_it_is_and_does(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    wait_until(lambda: listed(view), "the worker is listed")
    (told,) = listed(view)
    assert (told.version, told.processes) == (__version__, 2)
    assert abs(told.clock_ahead) < 5
    assert told.busy <= told.processes
    assert told.taken >= 0


def test_beat_is_known_by_what_it_sends_and_by_nothing_else(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView, broker: Broker
) -> None:
    wait_until(lambda: listed(view), "the worker is listed")
    well = health.of_beat_service(here.settings)
    assert well.is_alive
    assert well.said.startswith("beat has never ticked; but the workers have been up for ")
    assert [found(here, check).level for check in ("beat", "reconciler")] == ["warning"] * 2

    let_pass(here, "workers.started_at")
    ill = health.of_beat_service(here.settings)
    assert (ill.is_alive, ill.said) == (False, "beat has never ticked, and its queue is empty")
    assert found(here, "beat").level == "error"

    # As a worker does that has killed a process.
    celery_setup.app.send_task(RECONCILE, queue=CONTROL_QUEUE, ignore_result=True)
    wait_until(lambda: view.rows("SELECT * FROM flowstone.watch"), "the reconciler comes")
    let_pass(here, "workers.started_at")
    assert not health.of_beat_service(here.settings).is_alive

    tick(celery_setup.app)
    wait_until(lambda: health.of_beat_service(here.settings).is_alive, "the tick arrives")
    assert [found(here, check).level for check in ("beat", "reconciler")] == ["ok", "ok"]

    # It goes on, but nobody hears it.
    celery_setup.worker.container.kill()
    let_pass(here, "watch.ticked_at", "watch.passed_at", "watch.seen_at", "workers.started_at")
    tick(celery_setup.app)
    assert health.of_beat_service(here.settings).is_alive
    beat = found(here, "beat")
    assert "1 message lies in the queue 'control': nobody takes it" in beat.seen

    broker.lose_all()
    assert not health.of_beat_service(here.settings).is_alive
    assert "beat does not run" in found(here, "beat").seen
