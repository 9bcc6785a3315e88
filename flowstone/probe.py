"""What the broker and the result backend say of themselves, and what Celery is set to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from celery import Celery
from celery.utils.nodenames import default_nodename, host_format

from flowstone.broker import connected, connection_to, without_password
from flowstone.broker import held as in_queue
from flowstone.canvas import check_results, client_app
from flowstone.facts import CelerySettings, Server
from flowstone.queues import REDIS
from flowstone.settings import Settings

KOMBU_VISIBILITY: Final = 3600.0
"""Seconds after which kombu gives out again what is not acknowledged, where not said."""


def check_address(settings: Settings) -> None:
    """Raise BadConfig where the broker's address is none; nothing is connected."""
    connection_to(Celery(broker=settings.broker, set_as_current=False))


def broker(settings: Settings) -> Server:
    """Return what the broker says of itself; raise BrokerUnavailable, or BadConfig."""
    is_redis = settings.broker.startswith(REDIS)
    with connected(client_app(settings.broker, settings.results)) as connection:
        client = connection.default_channel.client if is_redis else None
        return Server(without_password(settings.broker), is_redis, *told_by(client))


def held(settings: Settings, queues: Iterable[str]) -> Mapping[str, int]:
    """Return how many messages each queue holds at the broker that no worker has taken.

    A queue that the broker does not know holds none. Raises BrokerUnavailable, or BadConfig.
    """
    with connected(client_app(settings.broker, settings.results)) as connection:
        return {name: in_queue(connection, name) for name in queues}


def results(settings: Settings) -> Server:
    """Return what the result backend says of itself; raise BrokerUnavailable.

    Only that of Redis can be asked; any other is believed.
    """
    app: Any = client_app(settings.broker, settings.results)
    address = without_password(settings.results)
    client: Any = getattr(app.backend, "client", None)
    if not hasattr(client, "info"):
        return Server(address, is_redis=False, is_asked=False)
    check_results(app)
    return Server(address, True, *told_by(client))


def node_name(name: str) -> str:
    """Return the name of the worker that is started with `-n NAME`."""
    return str(host_format(default_nodename(name)))


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
