"""What the broker and the result backend say of themselves, and what Celery is set to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from celery import Celery
from kombu.exceptions import OperationalError

from flowstone.canvas import NO_QUEUE, client_app
from flowstone.errors import BadConfig, BrokerUnavailable
from flowstone.facts import CelerySettings, Server
from flowstone.queues import REDIS
from flowstone.settings import Settings

CONNECT_SECONDS: Final = 3.0
"""Seconds after which a server that does not answer counts as away."""

KOMBU_VISIBILITY: Final = 3600.0
"""Seconds after which kombu gives out again what is not acknowledged, where not said."""


def short_app(settings: Settings) -> Celery:
    """Return a Celery app for a few questions, which does not wait long for an answer."""
    app: Any = client_app(settings.broker, settings.results)
    app.conf.update(
        broker_connection_timeout=CONNECT_SECONDS,
        broker_transport_options={
            **app.conf.broker_transport_options,
            "socket_timeout": CONNECT_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
        },
        redis_socket_timeout=CONNECT_SECONDS,
        redis_socket_connect_timeout=CONNECT_SECONDS,
    )
    return app


def broker(settings: Settings) -> Server:
    """Return what the broker says of itself; raise BrokerUnavailable, or BadConfig."""
    is_redis = settings.broker.startswith(REDIS)
    with _broker(settings) as connection:
        client = connection.default_channel.client if is_redis else None
        return Server(connection.as_uri(), is_redis, *told_by(client))


def held(settings: Settings, queues: Iterable[str]) -> Mapping[str, int]:
    """Return how many messages each queue holds at the broker that no worker has taken.

    A queue that the broker does not know holds none. Raises BrokerUnavailable, or BadConfig.
    """
    with _broker(settings) as connection:
        return {name: _held(connection, name) for name in queues}


def results(settings: Settings) -> Server:
    """Return what the result backend says of itself; raise BrokerUnavailable.

    Only that of Redis can be asked; any other is believed.
    """
    app: Any = short_app(settings)
    address = app.backend.as_uri()
    client: Any = getattr(app.backend, "client", None)
    if not hasattr(client, "info"):
        return Server(address, is_redis=False, is_asked=False)
    try:
        client.ping()
    except Exception as error:
        raise BrokerUnavailable(
            f"the result backend at {address} cannot be reached: {error}", original=error
        ) from error
    return Server(address, True, *told_by(client))


@contextmanager
def _broker(settings: Settings) -> Iterator[Any]:
    app: Any = short_app(settings)
    connection = app.connection_for_write()
    try:
        own = (*connection.connection_errors, *connection.channel_errors)
    except (KeyError, ValueError, ImportError) as error:
        # Without what it says, as that may quote a part of the password.
        raise BadConfig(
            "FLOWSTONE_BROKER_URL is no address of a broker; write redis://host:port/0 or "
            "amqp://user:password@host//"
        ) from error
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_SECONDS)
            yield connection
    except (OperationalError, OSError, *own) as error:
        raise BrokerUnavailable(
            f"the broker at {connection.as_uri()} cannot be reached: {error}", original=error
        ) from error


def _held(connection: Any, queue: str) -> int:  # noqa: ANN401 - kombu has no types
    # RabbitMQ closes the channel where there is no such queue.
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors as error:
            # An empty queue of Redis is none.
            if int(error.reply_code) != NO_QUEUE:
                raise
            return 0


def celery_settings(settings: Settings) -> CelerySettings:
    """Return how Celery is set up in this process, as its workers will be with the same files."""
    conf: Any = client_app(settings.broker, settings.results).conf
    expires = conf.result_expires
    read = tuple(conf.accept_content)
    return CelerySettings(
        visibility=float(conf.broker_transport_options.get("visibility_timeout", KOMBU_VISIBILITY)),
        expires=expires.total_seconds() if isinstance(expires, timedelta) else expires or None,
        content={
            "accept_content": read,
            "result_accept_content": tuple(conf.result_accept_content or read),
            "task_serializer": (conf.task_serializer,),
            "result_serializer": (conf.result_serializer,),
        },
        flags={
            "task_acks_late": bool(conf.task_acks_late),
            "task_reject_on_worker_lost": bool(conf.task_reject_on_worker_lost),
        },
    )


def told_by(client: Any) -> tuple[str | None, bool | None]:  # noqa: ANN401 - redis-py, if it is one
    """Return what a Redis says of its memory and its file.

    It tells in INFO, which is allowed where CONFIG is not, as it is with some that are managed.
    """
    if client is None:
        return None, None
    try:
        memory, file = client.info("memory"), client.info("persistence")
    except Exception:  # noqa: BLE001 - it answers, but not to this
        return None, None
    appends = file.get("aof_enabled")
    return memory.get("maxmemory_policy"), None if appends is None else bool(appends)
