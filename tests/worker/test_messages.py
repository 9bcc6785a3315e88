"""What goes over the broker: JSON, small, strict; anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, Signature
from celery.canvas import _chain as CeleryChain  # noqa: N812 - `chain` itself is a proxy
from celery.canvas import _chord as CeleryChord  # noqa: N812 - the same
from pytest_celery import CeleryTestSetup
from redis import Redis

import flowstone
from flowstone import UNPARTITIONED, RunHandle, RunState, runtime
from flowstone.canvas import Publisher, to_signature
from flowstone.coordinator import coordinate
from flowstone.execution import Ended, execute
from flowstone.expand import MAX_CHAIN, Canvas, members
from flowstone.messages import COORDINATE, STEP, CoordinateMessage, StepMessage
from flowstone.partition import Key
from flowstone.registry import build_registry, load_registry
from flowstone.runtime import Runtime
from flowstone.store.dispatch import DispatchedStep
from tests.worker import worker_assets
from tests.worker.broker_view import Broker, Sent
from tests.worker.conftest import needs_chords
from tests.worker.ledger_view import LedgerView

MAX_ARGUMENT_BYTES = 1024
MAX_MESSAGE_BYTES = 32 * 1024


class RecordingPublisher(Publisher):
    """Publishes for real, and keeps what it was given."""

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self.canvases: list[tuple[Canvas, Mapping[int, DispatchedStep]]] = []

    def publish(self, canvas: Canvas, steps: Mapping[int, DispatchedStep]) -> None:
        super().publish(canvas, steps)
        self.canvases.append((canvas, steps))

    def signatures(self) -> list[Signature]:
        return [to_signature(self.app, canvas, steps) for canvas, steps in self.canvases]


@pytest.fixture
def publisher(celery_setup_app: Celery) -> RecordingPublisher:
    return RecordingPublisher(celery_setup_app)


def waves(
    here: Runtime, handle: RunHandle, broker: Broker, publisher: RecordingPublisher
) -> Iterator[list[Sent]]:
    """Be the coordinator and the workers of a run; yield the messages of each wave."""
    yield broker.take()
    while handle.status() not in (RunState.SUCCEEDED, RunState.FAILED):
        publisher.canvases.clear()
        coordinate(here, handle.id, publisher.publish)
        yield broker.take()
        for canvas, steps in publisher.canvases:
            for member in members(canvas):
                assert isinstance(execute(here, member, steps[member].canvas, worker="test"), Ended)


def assert_small(message: Sent) -> None:
    assert message.argument_bytes < MAX_ARGUMENT_BYTES
    assert len(message.raw) < MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("asset", "partition"),
    [
        ("bottom", UNPARTITIONED),
        (worker_assets.link(30), UNPARTITIONED),
        ("month", "2013-01"),
        ("tail", UNPARTITIONED),
        (worker_assets.longest("j", MAX_CHAIN), worker_assets.LONGEST_KEY),
    ],
    ids=["diamond", "chain of 30", "fan-in of 31", "chord", "longest names in longest chains"],
)
def test_every_message_of_a_run_is_small_json(
    here: Runtime, broker: Broker, publisher: RecordingPublisher, asset: str, partition: Key
) -> None:
    handle = flowstone.materialize_all(asset, partition=partition)
    sent = [message for wave in waves(here, handle, broker, publisher) for message in wave]
    assert handle.status() == RunState.SUCCEEDED
    assert len(sent) > 1
    for message in sent:
        assert_small(message)


def test_every_message_of_the_flights_of_a_month_is_small_json(
    here: Runtime, broker: Broker, publisher: RecordingPublisher
) -> None:
    real = load_registry(["examples.flights.assets"]).graph
    flights = [
        replace(asset, function=lambda **_: {}, approval=None) for asset in real.assets.values()
    ]
    stubs = Runtime(here.settings, build_registry(flights))
    runtime.use(stubs)
    try:
        handle = flowstone.materialize_all("monthly_report", partition="2013-01")
        sent = [message for wave in waves(stubs, handle, broker, publisher) for message in wave]
        assert handle.status() == RunState.SUCCEEDED
        # 31 days of six assets, three tables, one report; each began in one of these messages.
        assert handle.progress().count() == 31 * 6 + 4
        assert len(sent) > 31
        for message in sent:
            assert_small(message)
    finally:
        stubs.close()


@needs_chords
def test_messages_say_when_their_process_is_killed_where_the_asset_does(
    here: Runtime, broker: Broker, publisher: RecordingPublisher
) -> None:
    name = worker_assets.longest("j", MAX_CHAIN)
    handle = flowstone.materialize_all(name, partition=worker_assets.LONGEST_KEY)
    sent = [message for wave in waves(here, handle, broker, publisher) for message in wave]
    steps = [message for message in sent if message.headers["task"] == STEP]
    hard = worker_assets.LONGEST_TIMEOUT.hard
    # By Celery's clock, which begins a moment before the ledger's; and nothing by its soft limit.
    assert [message.headers["timelimit"] for message in steps] == [[hard + 1, None]] * 2
    rest = [signature for message in steps for signature in message.rest]
    assert {signature["options"]["time_limit"] for signature in rest} == {hard + 1}
    assert len(rest) > MAX_CHAIN

    handle = flowstone.materialize_all("bottom")
    sent = [message for wave in waves(here, handle, broker, publisher) for message in wave]
    assert {tuple(message.headers["timelimit"]) for message in sent} == {(None, None)}


def test_a_linear_stretch_is_one_celery_chain(
    here: Runtime, broker: Broker, publisher: RecordingPublisher, view: LedgerView
) -> None:
    handle = flowstone.materialize_all(worker_assets.link(30))
    broker.take()
    coordinate(here, handle.id, publisher.publish)
    (signature,) = publisher.signatures()
    assert isinstance(signature, CeleryChain)
    (message,) = broker.take()
    ids = [row.id for row in view.steps(handle.id).values()]
    carried = [message.kwargs, *(signature["kwargs"] for signature in message.rest)]
    assert [kwargs["step_id"] for kwargs in carried] == ids[:MAX_CHAIN]
    assert message.headers["shadow"] == "link_01"
    assert message.queue == "assets"


@needs_chords
def test_stretches_that_meet_are_one_celery_chord(
    here: Runtime, broker: Broker, publisher: RecordingPublisher, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("tail")
    broker.take()
    coordinate(here, handle.id, publisher.publish)
    (signature,) = publisher.signatures()
    assert isinstance(signature, CeleryChord)
    id_of = {name: row.id for name, row in view.steps(handle.id).items()}
    to_a1, to_b1 = broker.take()
    assert [to_a1.kwargs["step_id"], to_b1.kwargs["step_id"]] == [id_of["a1"], id_of["b1"]]
    (a2,) = to_a1.rest
    assert a2["kwargs"]["step_id"] == id_of["a2"]
    for chord in (a2["options"]["chord"], to_b1.embed["chord"]):
        body = [task["kwargs"]["step_id"] for task in chord["kwargs"]["tasks"]]
        assert body == [id_of["join"], id_of["tail"]]


@needs_chords
def test_a_month_is_the_body_of_a_chord_of_its_days(
    here: Runtime, broker: Broker, publisher: RecordingPublisher, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("month", partition="2013-01")
    broker.take()
    coordinate(here, handle.id, publisher.publish)
    month = view.steps(handle.id)["month[2013-01]"].id
    days = broker.take()
    assert len(days) == 31
    assert {day.embed["chord"]["kwargs"]["step_id"] for day in days} == {month}


@pytest.mark.parametrize(
    "message", [CoordinateMessage(run_id=uuid4()), StepMessage(step_id=2**62, canvas=uuid4())]
)
def test_a_message_comes_back_from_json_as_it_was(message: CoordinateMessage | StepMessage) -> None:
    text = json.dumps(message.arguments())
    assert len(text) < MAX_ARGUMENT_BYTES
    assert type(message).model_validate_json(text) == message


def test_an_argument_that_was_not_given_stays_absent() -> None:
    class Optional(StepMessage):
        note: str | None = None

    given: dict[str, Any] = {"step_id": 1, "canvas": uuid4()}
    assert "note" not in Optional(**given).arguments()
    assert Optional(**given, note=None).arguments()["note"] is None


VALID = {"step_id": 1, "canvas": str(uuid4())}


@pytest.fixture
def send(celery_setup: CeleryTestSetup) -> Callable[..., str]:
    """Send a message of any form to the worker, and return the id of its task."""

    def send(task: str, *args: Any, serializer: str = "json", **kwargs: Any) -> str:
        queue = "control" if task == COORDINATE else "assets"
        sent = celery_setup.app.send_task(
            task, args, kwargs, queue=queue, serializer=serializer, ignore_result=True
        )
        return str(sent.id)

    return send


def test_a_message_with_wrong_arguments_fails_and_says_which(
    celery_setup: CeleryTestSetup, view: LedgerView, send: Callable[..., str]
) -> None:
    before = view.snapshot()
    cases = [
        (send(STEP, **VALID, force=True), "flowstone.step: argument 'force': Extra inputs"),
        (send(STEP, step_id=1), "flowstone.step: argument 'canvas': Field required"),
        (send(STEP, **VALID | {"step_id": "1"}), "flowstone.step: argument 'step_id': Input"),
        (
            send(STEP, 1, VALID["canvas"]),
            "flowstone.step takes no positional arguments, but got 2",
        ),
        (send(COORDINATE), "flowstone.coordinate: argument 'run_id': Field required"),
        (send(COORDINATE, run_id="x"), "flowstone.coordinate: argument 'run_id': Input"),
    ]
    for id, complaint in cases:
        # FAILURE is what Celery makes of an exception; the line names the fault.
        celery_setup.worker.assert_log_exists(f"[{id}] raised unexpected: BadMessage(")
        assert complaint in celery_setup.worker.logs()
    assert view.snapshot() == before
    assert flowstone.materialize("top").result(timeout=30) == 1


def test_a_pickle_is_refused_unread_and_the_worker_goes_on(
    celery_setup: CeleryTestSetup, view: LedgerView, send: Callable[..., str], broker: Broker
) -> None:
    before = view.snapshot()
    send(STEP, serializer="pickle", **VALID)
    celery_setup.worker.assert_log_exists(
        "Refusing to deserialize untrusted content of type pickle"
    )
    assert view.snapshot() == before
    assert flowstone.materialize("top").result(timeout=30) == 1
    # It is not given out again, either.
    assert broker.waiting("assets") == 0
    assert broker.unacked() == 0


def commandlog(redis: Redis, action: str) -> object:
    client: Any = redis
    return client.execute_command("COMMANDLOG", action, "large-request")


def test_no_message_that_a_worker_sends_is_larger_than_those_of_the_coordinator(
    celery_setup: CeleryTestSetup, redis: Redis
) -> None:
    redis.config_set("commandlog-request-larger-than", MAX_MESSAGE_BYTES)
    commandlog(redis, "RESET")
    handle = flowstone.materialize_all(
        worker_assets.longest("j", MAX_CHAIN), partition=worker_assets.LONGEST_KEY
    )
    assert handle.result(timeout=60) == 3 * MAX_CHAIN - 1
    assert commandlog(redis, "LEN") == 0
