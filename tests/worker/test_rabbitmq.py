"""What RabbitMQ alone does; see docs/brokers.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

from tests.worker.conftest import ON_RABBITMQ
from tests.worker.ledger_view import LedgerView
from tests.worker.rabbitmq import RabbitServer
from tests.worker.test_outcomes import Gate
from tests.worker.waiting import wait_until

pytestmark = pytest.mark.skipif(not ON_RABBITMQ, reason="is about what RabbitMQ alone does")

IMPATIENT = "{rabbit, [{consumer_timeout, 1000}, {channel_tick_interval, 500}]}"
"""A server that waits for a second, and looks every half of one; by default, 30 minutes and one."""

TIMED_OUT = "delivery acknowledgement on channel"


@pytest.fixture(scope="module")
def rabbitmq(server_home: Path) -> Iterator[RabbitServer]:
    server = RabbitServer(server_home / "impatient", IMPATIENT)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def received(log: str) -> int:
    """Return how often a worker was given the message of the gate."""
    return len(re.findall(r"Task gate\[\S+\] received", log))


def test_a_step_that_takes_longer_than_rabbitmq_waits_is_done_once_by_a_worker_that_goes_on(
    celery_setup: CeleryTestSetup, view: LedgerView, tmp_path: Path
) -> None:
    worker = celery_setup.worker
    process = worker.container.pid
    gate = Gate(tmp_path, worker)
    gate.wait_for_attempt(1)
    wait_until(lambda: received(worker.logs()) == 2, "RabbitMQ gives it out again")
    assert TIMED_OUT in celery_setup.broker.logs()
    assert view.attempts(gate.handle.id, "gate") == [(1, None)]
    gate.open()
    assert gate.handle.result(timeout=60) == 3
    assert view.attempts(gate.handle.id, "gate") == [(1, "succeeded")]
    assert worker.container.pid == process
    assert worker.container.status == "running"
