"""Canvases become Celery signatures, by the names of tasks, and go to the broker."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID, uuid5

from celery import Celery, Signature, chain, chord
from kombu.entity import Exchange, Queue

from flowstone.broker import (
    ANSWER_SECONDS,
    connected,
    connection_to,
    held,
    knows,
    remember,
    translated,
    without_password,
)
from flowstone.errors import BrokerUnavailable
from flowstone.expand import Canvas, Chain, members
from flowstone.limits import KILL_LATER
from flowstone.messages import (
    CONTINUE_AFTER_APPROVAL,
    CONTINUE_AFTER_SIGNAL,
    COORDINATE,
    NOTIFY,
    STEP,
    ApprovalMessage,
    CoordinateMessage,
    Message,
    SignalMessage,
    StepMessage,
)
from flowstone.partition_key import step_name
from flowstone.priority import CONTROL
from flowstone.queues import (
    CHECKPOINTS_QUEUE,
    CONTROL_QUEUE,
    MAX_MESSAGE_PRIORITY,
    REDIS,
    message_priority,
)
from flowstone.store.dispatch import DispatchedStep
from flowstone.store.gates import Asked

MAX_SHADOW: Final = 200
"""Bytes of a step's name in JSON. It is for people, and messages carry those of the whole rest."""


NOTIFY_EXPIRES: Final = 60
"""Seconds after which a message that sends for a delivery of notifications has come too late."""


def as_queue(name: str) -> Queue:
    """Return a queue as Celery is told of it.

    Each has an exchange of its own: with Celery's defaults all would hang on one key. RabbitMQ
    orders the messages of a queue by priority if that is declared with it.
    """
    exchange = Exchange(name)  # type: ignore[no-untyped-call]
    return Queue(  # type: ignore[no-untyped-call]
        name, exchange, routing_key=name, max_priority=MAX_MESSAGE_PRIORITY
    )


def task_id(step_id: int, canvas: UUID) -> str:
    """Return the id of the Celery task that runs a step of a canvas.

    It follows from the two, so that the task can be found without having been noted down.
    """
    return str(uuid5(canvas, str(step_id)))


def to_signature(app: Celery, canvas: Canvas, steps: Mapping[int, DispatchedStep]) -> Signature:
    """Return the Celery chain or chord of a canvas."""
    if isinstance(canvas, Chain):
        return _chain(app, canvas.steps, steps)
    header = [_chain(app, stretch, steps) for stretch in canvas.header]
    return chord(header, _chain(app, canvas.body, steps), app=app)


def _chain(app: Celery, ids: tuple[int, ...], steps: Mapping[int, DispatchedStep]) -> Signature:
    members = [_step(app, steps[id]) for id in ids]
    return members[0] if len(members) == 1 else chain(*members, app=app)


def _step(app: Celery, step: DispatchedStep) -> Signature:
    message = StepMessage(step_id=step.id, canvas=step.canvas)
    # Immutable: results never travel from step to step, values are read through the ledger.
    # A process that is no worker would subscribe to each result that it does not ignore.
    return app.signature(STEP, kwargs=message.arguments(), immutable=True).set(
        queue=step.queue,
        # Celery's retries keep it, and what follows in the canvas has its own.
        priority=message_priority(step.level, app.conf.broker_url),
        shadow=shortened(step_name(step.asset, step.partition)),
        ignore_result=True,
        task_id=task_id(step.id, step.canvas),
        **_time_limit(step.hard_timeout),
    )


def _time_limit(hard: float | None) -> dict[str, float]:
    """Return what the message says of the time, where the step has a timeout of its own."""
    # Celery has no part in the soft one: it would also interrupt what records the outcome.
    return {} if hard is None else {"time_limit": hard + KILL_LATER}


def shortened(name: str) -> str:
    """Return what Flower shows of a step, which messages carry, at most MAX_SHADOW bytes of it."""
    # A key may hold characters of which each takes six bytes, so characters do not bound bytes.
    while len(json.dumps(name)) > MAX_SHADOW:
        name = name[: min(MAX_SHADOW, len(name)) - 1]
    return name


class Publisher:
    """Sends canvases and wake-ups with one Celery app.

    It belongs to the thread that makes it, as Celery has a result backend for each.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app

    def publish(self, canvas: Canvas, steps: Mapping[int, DispatchedStep]) -> None:
        """Send a canvas; raise BrokerUnavailable if it did not go out."""
        # Not before: whoever sends wake-ups alone must not depend on the result backend.
        wait_for_no_result(self.app)
        self._declare({steps[member].queue for member in members(canvas)})
        signature = to_signature(self.app, canvas, steps)
        with translated(self.app):
            signature.apply_async()

    def _declare(self, queues: Iterable[str]) -> None:
        # The settings may have lost a queue since the run was planned. What nobody consumes is
        # told and comes to an end; what nobody could send would be tried again for ever.
        known = self.app.amqp.queues
        for name in queues:
            if name not in known:
                known.add(as_queue(name))

    def wake(self, run_id: UUID, level: int = CONTROL) -> None:
        """Send a wake-up of a level to the coordinator of a run; raise BrokerUnavailable."""
        with translated(self.app):
            self.app.send_task(
                COORDINATE,
                kwargs=CoordinateMessage(run_id=run_id).arguments(),
                queue=CONTROL_QUEUE,
                priority=message_priority(level, self.app.conf.broker_url),
                ignore_result=True,
            )

    def carry_on(self, asked: Asked) -> None:
        """Send the continuation of a step whose gate was decided; raise BrokerUnavailable."""
        gate = asked.gate
        name, message = (
            (CONTINUE_AFTER_APPROVAL, ApprovalMessage(approval_id=gate.id, step_id=gate.step_id))
            if gate.kind == "approval"
            else (CONTINUE_AFTER_SIGNAL, SignalMessage(signal_id=gate.id, step_id=gate.step_id))
        )
        with translated(self.app):
            self.app.send_task(
                name,
                kwargs=message.arguments(),
                queue=CHECKPOINTS_QUEUE,
                priority=message_priority(CONTROL, self.app.conf.broker_url),
                shadow=shortened(f"{step_name(asked.asset, asked.partition)} after {gate.label}"),
                ignore_result=True,
                **_time_limit(asked.hard_timeout),
            )

    def notify(self) -> None:
        """Send for somebody to tell people what they are to be told; raise BrokerUnavailable."""
        with translated(self.app):
            self.app.send_task(
                NOTIFY,
                kwargs=Message().arguments(),
                queue=CHECKPOINTS_QUEUE,
                priority=message_priority(CONTROL, self.app.conf.broker_url),
                # By then, beat has sent for another one.
                expires=NOTIFY_EXPIRES,
                ignore_result=True,
            )

    def kill(self, steps: Iterable[tuple[int, UUID]]) -> None:
        """Kill the processes that run these steps, each with its canvas; raise BrokerUnavailable.

        Whoever does not hear of it is not waited for.
        """
        ids = [task_id(*step) for step in steps]
        with translated(self.app):
            self.app.control.revoke(ids, terminate=True, signal="SIGKILL")

    def check_address(self) -> None:
        """Raise BadConfig where the broker's address is none; nothing is connected."""
        connection_to(self.app)

    def knows(self, mark: str) -> bool:
        """Return whether the broker has kept a mark, and so its messages.

        RabbitMQ writes both queues and messages to disk, and is not asked. Raises
        BrokerUnavailable.
        """
        if not self.app.conf.broker_url.startswith(REDIS):
            return True
        with connected(self.app) as connection:
            return knows(connection, mark)

    def remember(self, mark: str) -> None:
        """Have the broker keep a mark as long as its messages; raise BrokerUnavailable."""
        if self.app.conf.broker_url.startswith(REDIS):
            with connected(self.app) as connection:
                remember(connection, mark)

    def empty(self, queues: Iterable[str]) -> list[str]:
        """Return those of the queues in which no message waits; raise BrokerUnavailable."""
        asked = list(queues)
        if not asked:
            return []
        with connected(self.app) as connection:
            return [queue for queue in asked if held(connection, queue) == 0]

    def check(self) -> None:
        """Raise BrokerUnavailable unless the broker and the result backend answer.

        Raises BadConfig for an address that is none.
        """
        with connected(self.app):
            pass
        check_results(self.app)


def check_results(app: Any) -> None:  # noqa: ANN401 - Celery has no types
    """Raise BrokerUnavailable unless the result backend answers; without it a chord waits for ever.

    Only that of Redis can be asked; any other is believed.
    """
    client = getattr(app.backend, "client", None)
    if client is None or not hasattr(client, "ping"):
        return
    try:
        client.ping()
    except Exception as error:
        raise BrokerUnavailable(
            f"the result backend at {without_password(app.conf.result_backend)} cannot be reached: "
            f"{error}; start `flowstone dev`, or set FLOWSTONE_RESULT_URL to one that runs",
            original=error,
        ) from error


def wait_for_no_result(app: Any) -> None:  # noqa: ANN401 - Celery has no types
    """Let the thread that calls this subscribe to no result of what it sends with `app`."""
    # Celery subscribes to each part of a chord's header, and unsubscribes when the garbage
    # collector comes, perhaps after the server has gone. Nobody waits for these results; they
    # only count, and no setting says so.
    consumer = getattr(app.backend, "result_consumer", None)
    if consumer is not None:
        consumer.consume_from = lambda _: None


def client_app(broker: str, results: str) -> Celery:
    """Return a Celery app that can send FlowStone's tasks, and knows none of them."""
    app: Any = Celery("flowstone", set_as_current=False)
    app.config_from_object("celeryconfig")
    options = app.conf.broker_transport_options
    if broker.startswith(REDIS):
        # Its client would wait for ever for a server that does not answer.
        options = options | dict.fromkeys(
            ("socket_timeout", "socket_connect_timeout"), ANSWER_SECONDS
        )
    app.conf.update(
        broker_url=broker,
        result_backend=results,
        broker_transport_options=options,
        broker_connection_timeout=ANSWER_SECONDS,
        redis_socket_timeout=ANSWER_SECONDS,
        redis_socket_connect_timeout=ANSWER_SECONDS,
    )
    return app
