"""Questions to the broker: whether it is there, what its queues hold, and what it has kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.utils.url import maybe_sanitize_url

from flowstone.errors import BadConfig, BrokerUnavailable
from flowstone.urls import NO_BROKER

ANSWER_SECONDS: Final = 3.0
"""How long a process that is no worker waits for a server."""

MARK: Final = "flowstone.mark."
"""How the key begins under which a broker that may lose its messages keeps a mark."""

NO_QUEUE: Final = 404
"""What a broker answers that does not have a queue (AMQP 0-9-1, reply-code not-found)."""


def without_password(url: str) -> str:
    """Return an address that may be shown."""
    return ";".join(str(maybe_sanitize_url(one)) for one in url.split(";"))


def connection_to(app: Celery) -> Any:  # noqa: ANN401 - kombu has no types
    """Return a connection that is not open yet; raise BadConfig where the address is none."""
    try:
        connection = app.connection_for_write()
        _ = connection.transport
    except (KeyError, ValueError, ImportError):
        # Without what it says, as that may quote a part of the password.
        raise BadConfig(NO_BROKER) from None
    return connection


@contextmanager
def translated(app: Celery) -> Iterator[None]:
    """Turn the errors of a broker that is away, or refuses, into BrokerUnavailable.

    Those of an address that is none become BadConfig.
    """
    try:
        yield
    except Exception as error:
        connection = connection_to(app)
        # Celery translates the errors of what it tries again, and no others.
        own = (*connection.connection_errors, *connection.channel_errors)
        if not isinstance(error, (OperationalError, OSError, *own)):
            raise
        raise BrokerUnavailable(
            f"the broker at {without_password(app.conf.broker_url)} cannot be reached: {error}; "
            "start `flowstone dev`, or set FLOWSTONE_BROKER_URL to one that runs",
            original=error,
        ) from error


@contextmanager
def connected(app: Celery) -> Iterator[Any]:
    """Connect to the broker for questions; raise BrokerUnavailable, or BadConfig."""
    connection = connection_to(app)
    with translated(app), connection:
        # Another try is for a server that has just started again, or is the next of several.
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=ANSWER_SECONDS)
        yield connection


def held(connection: Any, queue: str) -> int:  # noqa: ANN401 - kombu has no types
    """Return how many messages wait in a queue; one that the broker does not know holds none.

    What a worker has taken in reserve, and not acknowledged, does not wait there.
    """
    # RabbitMQ closes the channel where there is no such queue.
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors as error:
            # An empty queue of Redis is none.
            if int(error.reply_code) != NO_QUEUE:
                raise
            return 0


def knows(connection: Any, mark: str) -> bool:  # noqa: ANN401 - kombu has no types
    """Return whether a broker on Redis has kept a mark."""
    return bool(connection.default_channel.client.exists(MARK + mark))


def remember(connection: Any, mark: str) -> None:  # noqa: ANN401 - kombu has no types
    """Have a broker on Redis keep a mark as long as its messages."""
    connection.default_channel.client.set(MARK + mark, 1)
