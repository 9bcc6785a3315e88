"""Old and new versions side by side: what one does not understand is refused, and not lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import canvas
from flowstone.canvas import Publisher
from flowstone.coordinator import coordinate
from flowstone.messages import StepMessage
from flowstone.runtime import Runtime
from flowstone.store.ledger import HEAD
from tests.worker.broker_view import Broker
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


class NewerStepMessage(StepMessage):
    """What a version might send that does not exist yet."""

    shard: int = 7

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"shard": self.shard}


@pytest.fixture
def worker_options() -> tuple[str, ...]:
    """It leaves the coordinator to this test, which plays one of another version."""
    return ("-Q", "assets")


@pytest.mark.parametrize(
    ("what", "newer", "said"),
    [
        (
            "StepMessage",
            NewerStepMessage,
            "or by another version of FlowStone: let all processes run one version",
        ),
        ("STEP", "flowstone.step_of_another_kind", "Received unregistered task of type"),
    ],
)
def test_what_a_newer_version_sends_is_refused_and_comes_again_in_a_form_that_is_understood(
    celery_setup: CeleryTestSetup,
    here: Runtime,
    view: LedgerView,
    broker: Broker,
    publisher: Publisher,
    full_pass: Callable[[], Mapping[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    newer: object,
    said: str,
) -> None:
    handle = flowstone.materialize_all("left")
    with monkeypatch.context() as patched:
        patched.setattr(canvas, what, newer)
        coordinate(here, handle.id, publisher.publish)
    assert view.canvases(handle.id) == [["top", "left"]]
    celery_setup.worker.wait_for_log(said)
    assert what == "STEP" or "argument 'shard': Extra inputs" in celery_setup.worker.logs()
    wait_until(lambda: broker.waiting("assets") == broker.unacked() == 0, "it is refused")

    # It is neither an attempt, nor a failure, nor the loss of a process: the steps just wait.
    assert view.states(handle.id) == {"top": "queued", "left": "queued"}
    for name, step in view.steps(handle.id).items():
        assert (step.attempt, step.failures, step.lost) == (0, 0, 0)
        assert view.attempts(handle.id, name) == []

    with here.ledger.begin() as conn:
        conn.exec_driver_sql("UPDATE flowstone.steps SET queued_at = queued_at - interval '1 hour'")
    full_pass()

    def has_succeeded() -> bool:
        coordinate(here, handle.id, publisher.publish)
        return handle.status() == "succeeded"

    wait_until(has_succeeded, "the worker understands what is sent now")
    for name in ("top", "left"):
        assert view.attempts(handle.id, name) == [(1, "succeeded")]


def test_a_process_that_finds_another_schema_than_its_own_leaves_the_step_to_others(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView, publisher: Publisher
) -> None:
    """The schema is upgraded while a worker runs; its processes look when they first need it."""
    wait_until(lambda: view.rows("SELECT * FROM flowstone.workers"), "its main process has looked")
    handle = flowstone.materialize("top")
    as_of = "UPDATE flowstone.alembic_version SET version_num = '{}' RETURNING version_num"
    view.rows(as_of.format("9999"))
    coordinate(here, handle.id, publisher.publish)
    celery_setup.worker.wait_for_log("upgrade the package flowstone")
    assert view.states(handle.id) == {"top": "queued"}
    view.rows(as_of.format(HEAD))
    wait_until(lambda: view.states(handle.id) == {"top": "succeeded"}, "the message comes again")
    assert view.attempts(handle.id, "top") == [(1, "succeeded")]
