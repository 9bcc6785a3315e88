"""A broker loses all that it holds, or one message: the runs come to their end all the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup
from redis import Redis

import flowstone
from flowstone import RunHandle, coordinator, submission
from flowstone.canvas import Publisher
from flowstone.embedded import ValkeyServer
from flowstone.errors import BrokerUnavailable
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.worker.broker_view import Broker
from tests.worker.ledger_view import LedgerView
from tests.worker.nodes import ValkeyNode
from tests.worker.waiting import wait_until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"message_seconds": 1.0})


def request(here: Runtime, asset: str) -> RunHandle:
    """Record a request whose message to a coordinator is lost."""
    asked = submission.request(asset, flowstone.UNPARTITIONED, upstream=True, force=True)
    run_id, _ = submission.record(here, asked, None, None, driver="celery", key=None)
    return RunHandle(run_id, here)


def test_a_worker_goes_on_when_the_broker_has_lost_everything(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    redis: Redis,
    broker: Broker,
    full_pass: Callable[[], Mapping[str, int]],
    tmp_path: Path,
) -> None:
    control = celery_setup.app.control
    running = flowstone.materialize_all("after_gate", config={"gate": {"folder": str(tmp_path)}})
    wait_until((tmp_path / "attempt-1").exists, "the gate is reached")
    control.cancel_consumer("assets", reply=True)
    queued = flowstone.materialize_all("tail")
    wait_until(lambda: broker.waiting("assets") == 2, "two messages wait")
    assert full_pass()["broker_lost_messages"] == 0
    # Not before that pass, which would wake its coordinator.
    requested = request(here, "bottom")

    redis.flushall()
    control.add_consumer("assets", reply=True)
    assert full_pass()["broker_lost_messages"] == 2
    assert queued.result(timeout=30) == "(a1 a2, b1) tail"
    assert requested.result(timeout=30) == [2, 3]
    # What was computed meanwhile is not disturbed.
    (tmp_path / "open").touch()
    assert running.result(timeout=30) == 3
    assert view.attempts(running.id, "gate") == [(1, "succeeded")]
    assert full_pass()["broker_lost_messages"] == 0

    # One message is lost, be it on the way to the broker.
    lost = request(here, "a2")
    coordinator.coordinate(here, lost.id, lambda *_: None)
    wait_until(lambda: full_pass()["message_lost"] == 1, "the message counts as lost")
    assert lost.result(timeout=30) == "a1 a2"


def test_what_the_broker_is_asked(celery_setup_app: Celery, redis: Redis) -> None:
    publisher = Publisher(celery_setup_app)
    publisher.remember("mine")
    assert publisher.empty(["control", "assets"]) == ["control", "assets"]
    publisher.wake(uuid4(), level=3)
    assert publisher.empty(["control", "assets"]) == ["assets"]
    assert [publisher.knows(mark) for mark in ("mine", "other")] == [True, False]
    # A process that has declared its queues before reaches them without these.
    redis.flushall()
    publisher.wake(uuid4())
    assert publisher.empty(["control", "assets"]) == ["assets"]
    assert not publisher.knows("mine")


def test_a_broker_that_is_away_says_so(
    celery_setup_app: Celery, redis: Redis, valkey: ValkeyServer
) -> None:
    publisher = Publisher(celery_setup_app)
    publisher.remember("mine")
    node = ValkeyNode(valkey, "broker", 0)
    node.kill()
    try:
        for ask in (
            lambda: publisher.knows("mine"),
            lambda: publisher.remember("mine"),
            lambda: publisher.empty(["control"]),
        ):
            with pytest.raises(BrokerUnavailable):
                ask()
    finally:
        node.teardown()
