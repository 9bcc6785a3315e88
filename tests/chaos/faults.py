"""How each kind of fault is brought about, and how it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Final

import psutil
import psycopg
from redis.exceptions import RedisError

from tests.chaos import injected
from tests.chaos.cluster import LEASE_SECONDS, Cluster
from tests.chaos.world import KINDS, Fault

End = Callable[[], None]


def begin(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    """Bring a fault about; return how many seconds it lasts, and what ends it."""
    return _KINDS[fault.kind](cluster, fault)


def _kill_process(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    if pool := cluster.pool():
        with contextlib.suppress(psutil.NoSuchProcess):
            pool[fault.draw % len(pool)].kill()
    return 0, _nothing


def _kill_worker(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    worker = cluster.workers[fault.draw % len(cluster.workers)]
    if worker.status == "running":
        worker.kill()
    return fault.lasts, cluster.restore


def _stop_worker(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    worker = cluster.workers[fault.draw % len(cluster.workers)]
    if worker.status != "running":
        return 0, _nothing
    process = psutil.Process(worker.pid)
    process.terminate()

    def start() -> None:
        process.wait(30)
        cluster.restore()

    # Its steps have a second to end.
    return 2 + fault.lasts, start


def _kill_beat(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    cluster.beats[fault.draw % len(cluster.beats)].kill()
    return fault.lasts, cluster.restore


def _order(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    for order in _orders(fault):
        injected.order(cluster.orders, order)
    return 0, _nothing


def _orders(fault: Fault) -> tuple[str, ...]:
    orders = ORDERS.get(fault.kind, ())
    return orders[: 1 + fault.draw % len(orders)] if orders else ()


def _lose_messages(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    with contextlib.suppress(RedisError), cluster.broker() as client:
        client.flushall()
    return 0, _nothing


def _restart_valkey(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    cluster.valkey.kill()
    return fault.lasts, cluster.restore


def _pause_valkey(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    pid = cluster.valkey.pid
    return (fault.lasts, _pause(psutil.Process(pid))) if pid is not None else (0, _nothing)


def _pause_process(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    pool = cluster.pool()
    if not pool:
        return 0, _nothing
    return LEASE_SECONDS + fault.lasts, _pause(pool[fault.draw % len(pool)])


def _pause(process: psutil.Process) -> End:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()

    def go_on() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()

    return go_on


def _restart_postgres(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    cluster.postgres.stop()
    return fault.lasts, cluster.restore


def _crash_postgres(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    cluster.postgres.kill()
    return fault.lasts, cluster.restore


def _cut_connections(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    url = cluster.postgres.url.replace("+psycopg", "")
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    return 0, _nothing


def _deliver_twice(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    injected.order(cluster.orders, injected.TWICE)
    return 2 + fault.lasts, lambda: (cluster.orders / injected.TWICE).unlink(missing_ok=True)


def _redeliver(cluster: Cluster, fault: Fault) -> tuple[float, End]:
    """Put again what is unacknowledged, as Redis does after the visibility timeout."""
    with contextlib.suppress(RedisError), cluster.broker() as client:
        for raw in client.hvals("unacked"):
            message, _, queue = json.loads(raw)
            message["redelivered"] = True
            client.lpush(queue, json.dumps(message))
    return 0, _nothing


def _nothing() -> None:
    """Leave what was a moment ago."""


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

_KINDS: Final[Mapping[str, Callable[[Cluster, Fault], tuple[float, End]]]] = {
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
    """Return whether a fault has come about; to be asked when its scenario is over."""
    orders = _orders(fault)
    return not orders or not all((cluster.orders / order).exists() for order in orders)
