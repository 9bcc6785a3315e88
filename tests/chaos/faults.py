"""How each kind of fault is brought about, and how it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import psutil
import psycopg
from redis.exceptions import RedisError

from tests.chaos import injected
from tests.chaos.cluster import LEASE_SECONDS, Cluster
from tests.chaos.world import KINDS, Fault


def _nothing() -> None:
    """End what has ended by itself."""


@dataclass(frozen=True)
class Effect:
    """What a fault does."""

    lasts: float = 0
    """Seconds until it ends."""
    end: Callable[[], None] = _nothing


def begin(cluster: Cluster, fault: Fault) -> Effect | None:
    """Bring a fault about; return None where it met nothing that it could hit."""
    return _KINDS[fault.kind](cluster, fault)


def _kill_process(cluster: Cluster, fault: Fault) -> Effect | None:
    victim = _victim(cluster, fault)
    if victim is None:
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    return Effect()


def _pause_process(cluster: Cluster, fault: Fault) -> Effect | None:
    victim = _victim(cluster, fault)
    return None if victim is None else _pause(victim, LEASE_SECONDS + fault.lasts)


def _victim(cluster: Cluster, fault: Fault) -> psutil.Process | None:
    """Return a process of a pool, one that runs a step if there is any."""
    pool = cluster.pool()
    busy = [process for process in pool if injected.is_busy(cluster.orders, process.pid)]
    among = busy or pool
    return among[fault.draw % len(among)] if among else None


def _pause(process: psutil.Process, seconds: float) -> Effect:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()

    def go_on() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()

    return Effect(seconds, go_on)


def _kill_worker(cluster: Cluster, fault: Fault) -> Effect | None:
    worker = cluster.workers[fault.draw % len(cluster.workers)]
    if worker.status != "running":
        return None
    worker.kill()
    return Effect(fault.lasts, worker.launch)


def _stop_worker(cluster: Cluster, fault: Fault) -> Effect | None:
    worker = cluster.workers[fault.draw % len(cluster.workers)]
    if worker.status != "running":
        return None
    process = psutil.Process(worker.pid)
    process.terminate()

    def start() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(30)
        if worker.status != "running":
            worker.launch()

    # Its steps have a second to end.
    return Effect(2 + fault.lasts, start)


def _kill_beat(cluster: Cluster, fault: Fault) -> Effect | None:
    beat = cluster.beats[fault.draw % len(cluster.beats)]
    if not beat.is_running:
        return None
    beat.kill()
    return Effect(fault.lasts, beat.start)


def _lose_messages(cluster: Cluster, fault: Fault) -> Effect | None:
    try:
        with cluster.broker() as client:
            client.flushall()
    except RedisError:
        return None
    return Effect()


def _restart_valkey(cluster: Cluster, fault: Fault) -> Effect | None:
    if not cluster.valkey.is_running():
        return None
    cluster.valkey.kill()
    return Effect(fault.lasts, cluster.valkey.start)


def _pause_valkey(cluster: Cluster, fault: Fault) -> Effect | None:
    pid = cluster.valkey.pid
    return None if pid is None else _pause(psutil.Process(pid), fault.lasts)


def _restart_postgres(cluster: Cluster, fault: Fault) -> Effect | None:
    if not cluster.postgres.is_running():
        return None
    cluster.postgres.stop()
    return Effect(fault.lasts, cluster.postgres.start)


def _crash_postgres(cluster: Cluster, fault: Fault) -> Effect | None:
    if not cluster.postgres.is_running():
        return None
    cluster.postgres.kill()
    return Effect(fault.lasts, cluster.postgres.start)


def _cut_connections(cluster: Cluster, fault: Fault) -> Effect | None:
    url = cluster.postgres.url.replace("+psycopg", "")
    try:
        with psycopg.connect(url) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
    except psycopg.OperationalError:
        return None
    return Effect()


def _deliver_twice(cluster: Cluster, fault: Fault) -> Effect:
    injected.order(cluster.orders, injected.TWICE)
    twice = cluster.orders / injected.TWICE
    return Effect(2 + fault.lasts, lambda: twice.unlink(missing_ok=True))


def _redeliver(cluster: Cluster, fault: Fault) -> Effect | None:
    """Put again what is unacknowledged, as Redis does after the visibility timeout."""
    try:
        with cluster.broker() as client:
            taken = client.hvals("unacked")
            for raw in taken:
                message, _, queue = json.loads(raw)
                message["redelivered"] = True
                client.lpush(queue, json.dumps(message))
    except RedisError:
        return None
    return Effect() if taken else None


def _order(cluster: Cluster, fault: Fault) -> Effect:
    for order in _orders(fault):
        injected.order(cluster.orders, order)
    return Effect()


def _orders(fault: Fault) -> tuple[str, ...]:
    orders = ORDERS.get(fault.kind, ())
    return orders[: 1 + fault.draw % len(orders)] if orders else ()


ORDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "kill a step at its claim": (f"kill-{injected.CLAIM}",),
    "kill a step before its commit": (f"kill-{injected.BEFORE_COMMIT}",),
    "kill a step after its commit": (f"kill-{injected.AFTER_COMMIT}",),
    "kill a coordinator that plans": (f"kill-{injected.PLANNING}",),
    "kill a coordinator that dispatches": (f"kill-{injected.DISPATCHING}",),
    "kill a coordinator that publishes": (f"kill-{injected.PUBLISHING}",),
    "drop messages": tuple(f"drop-{number}" for number in range(5)),
}
"""The faults that come only when a process gets to the point of which they order it."""

_KINDS: Final[Mapping[str, Callable[[Cluster, Fault], Effect | None]]] = {
    **dict.fromkeys(ORDERS, _order),
    "kill a process": _kill_process,
    "kill a worker": _kill_worker,
    "lose all messages": _lose_messages,
    "kill and restart Valkey": _restart_valkey,
    "pause Valkey": _pause_valkey,
    "restart PostgreSQL": _restart_postgres,
    "crash PostgreSQL": _crash_postgres,
    "cut all connections to PostgreSQL": _cut_connections,
    "deliver messages twice": _deliver_twice,
    "redeliver what is unacknowledged": _redeliver,
    "pause a process beyond its lease": _pause_process,
    "stop a worker gracefully": _stop_worker,
    "kill a beat": _kill_beat,
}
assert _KINDS.keys() == set(KINDS)


def came(cluster: Cluster, fault: Fault) -> bool:
    """Return whether one that was brought about has hit somebody; asked when all is over."""
    orders = _orders(fault)
    return not orders or not all((cluster.orders / order).exists() for order in orders)
