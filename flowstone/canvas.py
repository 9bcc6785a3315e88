"""Canvases become Celery signatures, by the names of tasks, and go to the broker."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID, uuid5

from celery import Celery, Signature, chain, chord
from kombu.entity import Exchange, Queue
from kombu.exceptions import ChannelError, OperationalError

from flowstone.errors import BadConfig, BrokerUnavailable
from flowstone.expand import Canvas, Chain, members
from flowstone.limits import KILL_LATER
from flowstone.messages import COORDINATE, STEP, CoordinateMessage, StepMessage
from flowstone.partition_key import step_name
from flowstone.priority import CONTROL
from flowstone.queues import CONTROL_QUEUE, MAX_MESSAGE_PRIORITY, REDIS, message_priority
from flowstone.store.dispatch import DispatchedStep

ANSWER_SECONDS: Final = 3.0
"""How long a process that is no worker waits for the broker, at each of a few tries."""

MAX_SHADOW: Final = 200
"""Bytes of a step's name in JSON. It is for people, and messages carry those of the whole rest."""

MARK: Final = "flowstone.mark."
"""How the key begins under which a broker that may lose its messages keeps a mark."""

NO_QUEUE: Final = 404
"""What a broker answers that does not have a queue (AMQP 0-9-1, reply-code not-found)."""


def as_queue(name: str, patience: float | None = None) -> Queue:
    """Return a queue as Celery is told of it.

    Each has an exchange of its own: with Celery's defaults all would hang on one key. RabbitMQ
    orders the messages of a queue by priority if that is declared with it. From version 3.12 on it
    waits `patience` seconds for the acknowledgement of each, where a worker asks for that; it is
    no property of the queue, which could not be declared with another value then.
    """
    exchange = Exchange(name)  # type: ignore[no-untyped-call]
    asked = None if patience is None else {"x-consumer-timeout": int(patience * 1000)}
    return Queue(  # type: ignore[no-untyped-call]
        name,
        exchange,
        routing_key=name,
        max_priority=MAX_MESSAGE_PRIORITY,
        consumer_arguments=asked,
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
        shadow=_shadow(step),
        ignore_result=True,
        task_id=task_id(step.id, step.canvas),
        **_time_limit(step),
    )


def _time_limit(step: DispatchedStep) -> dict[str, float]:
    """Return what the message says of the time, where the step has a timeout of its own."""
    # Celery has no part in the soft one: it would also interrupt what records the outcome.
    return {} if step.hard_timeout is None else {"time_limit": step.hard_timeout + KILL_LATER}


def _shadow(step: DispatchedStep) -> str:
    name = step_name(step.asset, step.partition)
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

    def kill(self, steps: Iterable[tuple[int, UUID]]) -> None:
        """Kill the processes that run these steps, each with its canvas; raise BrokerUnavailable.

        Whoever does not hear of it is not waited for.
        """
        ids = [task_id(*step) for step in steps]
        with translated(self.app):
            self.app.control.revoke(ids, terminate=True, signal="SIGKILL")

    def check_address(self) -> None:
        """Raise BadConfig where the broker's address is none; nothing is connected."""
        try:
            _ = self.app.connection_for_write().transport
        except (KeyError, ValueError, ImportError) as error:
            raise BadConfig(f"FLOWSTONE_BROKER_URL is no address of a broker: {error}") from error

    def knows(self, mark: str) -> bool:
        """Return whether the broker has kept a mark, and so its messages.

        RabbitMQ writes both queues and messages to disk, and is not asked. Raises
        BrokerUnavailable.
        """
        if not self.app.conf.broker_url.startswith(REDIS):
            return True
        with self._asking() as channel:
            return bool(channel.client.exists(MARK + mark))

    def remember(self, mark: str) -> None:
        """Have the broker keep a mark as long as its messages; raise BrokerUnavailable."""
        if self.app.conf.broker_url.startswith(REDIS):
            with self._asking() as channel:
                channel.client.set(MARK + mark, 1)

    def is_empty(self, queue: str) -> bool:
        """Return whether no message waits in a queue; raise BrokerUnavailable.

        What a worker has taken in reserve, and not acknowledged, does not wait there.
        """
        with self._asking() as channel:
            try:
                return not channel.queue_declare(queue=queue, passive=True).message_count
            except ChannelError as error:
                # An empty queue of Redis is none.
                if int(error.reply_code) != NO_QUEUE:
                    raise
                return True

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """Open a channel to the broker for questions."""
        connection = self.app.connection_for_write()
        with translated(self.app), connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
            yield connection.default_channel

    def check(self) -> None:
        """Raise BrokerUnavailable unless the broker and the result backend answer.

        Raises BadConfig for an address that is none.
        """
        self.check_address()
        with translated(self.app), self.app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        _check_results(self.app)


def _check_results(app: Any) -> None:  # noqa: ANN401 - Celery has no types
    # Without it a chord would wait for ever. Only the client of Redis can be asked.
    client = getattr(app.backend, "client", None)
    if client is None or not hasattr(client, "ping"):
        return
    try:
        client.ping()
    except Exception as error:
        raise BrokerUnavailable(
            f"the result backend at {app.backend.as_uri()} cannot be reached: {error}; "
            "start `flowstone dev`, or set FLOWSTONE_RESULT_URL to one that runs",
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


@contextmanager
def translated(app: Celery) -> Iterator[None]:
    """Turn the errors of a broker that is away, or refuses, into BrokerUnavailable."""
    try:
        yield
    except Exception as error:
        connection = app.connection_for_write()
        # Celery translates the errors of what it tries again, and no others.
        own = (*connection.connection_errors, *connection.channel_errors)
        if not isinstance(error, (OperationalError, OSError, *own)):
            raise
        raise BrokerUnavailable(
            f"the broker at {connection.as_uri()} cannot be reached: {error}; "
            "start `flowstone dev`, or set FLOWSTONE_BROKER_URL to one that runs",
            original=error,
        ) from error


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
    )
    return app
