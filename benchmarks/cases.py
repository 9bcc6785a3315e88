"""The measurements. Each returns what ours and the other took, in the unit of its case."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from celery import Signature
from psycopg.types.json import Jsonb
from redis import Redis

from benchmarks import plain, shapes
from benchmarks.stage import ALL_QUEUES, Stage, wait_until
from flowstone import RunState, materialize_all, runtime
from flowstone.graph import AssetGraph
from flowstone.plan import Request, build_plan
from flowstone.queues import QUEUES
from flowstone.registry import load_registry
from flowstone.store import plans, runs

ROUNDS = 3


@dataclass(frozen=True)
class Pair:
    """What was measured, in rounds that alternate; the smaller or larger is up to the case."""

    ours: list[float]
    other: list[float]


def independent(stage: Stage) -> Pair:
    """Return the steps a second of 1,000 that wait for nothing, and of as many plain tasks."""
    return _race(stage, "independent 1000", lambda: plain.independent(1000), 1000)


def layered(stage: Stage) -> Pair:
    """Return those of 20 layers of 20, and of the chain of groups that a person would write."""
    return _race(stage, "layered 20 20", lambda: plain.layered(20, 20), 400)


def chained(stage: Stage) -> Pair:
    """Return those of a chain of 300, and of Celery's."""
    return _race(stage, "chain 300", lambda: plain.chained(300), 300)


def _race(stage: Stage, shape: str, by_hand: Callable[[], list[Signature]], steps: int) -> Pair:
    """Return the steps a second of ours and of plain Celery, in turns."""
    targets = shapes.targets(shape)
    pair = Pair([], [])
    for _ in range(ROUNDS):
        with stage.worker("tasks", ALL_QUEUES, shape):
            _run(targets)  # the first run of a process imports
            pair.ours.append(steps / _run(targets))
        with stage.worker("benchmarks.plain", "celery"):
            _send(stage.redis(), plain.independent(20))
            pair.other.append(steps / _send(stage.redis(), by_hand()))
    return pair


def _run(targets: list[str]) -> float:
    began = time.perf_counter()
    handle = materialize_all(targets, force=True)
    wait_until(lambda: handle.status() == RunState.SUCCEEDED, "the run")
    return time.perf_counter() - began


def _send(redis: Redis, signatures: list[Signature]) -> float:
    began = time.perf_counter()
    for signature in signatures:
        signature.apply_async()
    # Late acknowledgement: what is under way counts as unacknowledged until it has ended, and
    # what follows it is sent before.
    wait_until(lambda: not redis.llen("celery") and not redis.hlen("unacked"), "plain tasks")
    return time.perf_counter() - began


def grow_4000(stage: Stage) -> Pair:
    """Return the milliseconds of a step in 4,000, and in 400."""
    return Pair([_layers(stage, 200).step_ms], [_layers(stage, 20).step_ms])


def grow_40000(stage: Stage) -> Pair:
    """Return the milliseconds of a step in 40,000, and in 400."""
    return Pair([_largest(stage).step_ms], [_layers(stage, 20).step_ms])


def largest_message(stage: Stage) -> Pair:
    """Return the largest message, in KB, of a run of 40,000 steps."""
    return Pair([_largest(stage).message / 1024], [])


def broker_memory(stage: Stage) -> Pair:
    """Return the most memory, in MB, that the broker takes for a run of 40,000 steps."""
    return Pair([_largest(stage).memory / 1e6], [])


@dataclass(frozen=True)
class Watched:
    """A run, and the most that was seen in the broker meanwhile, in bytes."""

    step_ms: float
    message: int
    memory: int


_seen: list[Watched] = []


def _largest(stage: Stage) -> Watched:
    # One such run takes minutes, and tells three things.
    if not _seen:
        _seen.append(_layers(stage, 2000))
    return _seen[0]


def _layers(stage: Stage, depth: int) -> Watched:
    """Run layers of 20, and look at the broker every fifth of a second."""
    shape = f"layered 20 {depth}"
    targets = shapes.targets(shape)
    redis = stage.redis()
    message = memory = 0
    with stage.worker("tasks", ALL_QUEUES, shape):
        wait_until(
            lambda: materialize_all("l0_0", force=True).wait(), "the first run, which imports"
        )
        began = time.perf_counter()
        handle = materialize_all(targets, force=True)
        while handle.status() != RunState.SUCCEEDED:
            waiting = [len(m) for q in QUEUES for m in redis.lrange(q, 0, -1)]
            message = max([message, *waiting])
            memory = max(memory, int(redis.info("memory")["used_memory"]))
            time.sleep(0.2 if depth > 20 else 0.01)  # noqa: PLR2004 - a short run wants precision
        took = time.perf_counter() - began
    return Watched(1000 * took / (20 * depth), message, memory)


def plan_100000(stage: Stage) -> Pair:
    """Return the seconds to plan and store 100,000 steps, and to COPY the same rows again."""
    del stage
    graph, request = _large()
    pair = Pair([], [])
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run_id = _plan_and_store(graph, request)
        pair.ours.append(time.perf_counter() - began)
        pair.other.append(_copy_again(run_id))
    return pair


def plan_memory(stage: Stage) -> Pair:
    """Return the peak of memory, in MB, that planning and storing 100,000 steps takes."""
    del stage
    graph, request = _large()
    tracemalloc.start()
    _plan_and_store(graph, request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Pair([peak / 1e6], [])


def _large() -> tuple[AssetGraph, Request]:
    targets = shapes.targets("layered 20 5000")
    graph = load_registry(["benchmarks.shapes"]).graph
    return graph, Request(tuple(targets), "-", upstream=True)


def _plan_and_store(graph: AssetGraph, request: Request) -> UUID:
    run_id = uuid4()
    with runtime.current().ledger.begin() as conn:
        runs.create(
            conn, run_id, request,
            config={}, driver="inline", max_in_flight=1, actor="bench",
        )  # fmt: skip
        plan = build_plan(request, graph, lambda _: {}, datetime.now(UTC))
        plans.write(conn, run_id, plan, actor="bench")
    return run_id


def _copy_again(run_id: UUID) -> float:
    """Return the seconds of a plain COPY of a run's rows into tables without any index."""
    with runtime.current().ledger.begin() as conn:
        driver = conn.connection.driver_connection
        assert driver is not None
        rows: dict[str, list[tuple[object, ...]]] = {}
        for table, where in (
            ("steps", "run_id = %s"),
            ("edges", "downstream IN (SELECT id FROM flowstone.steps WHERE run_id = %s)"),
        ):
            query = f"SELECT * FROM flowstone.{table} WHERE {where}"  # noqa: S608
            rows[table] = driver.execute(query, [run_id]).fetchall()
            driver.execute(f"CREATE TEMP TABLE again_{table} (LIKE flowstone.{table})")
        began = time.perf_counter()
        for table, found in rows.items():
            with driver.cursor() as cursor, cursor.copy(f"COPY again_{table} FROM STDIN") as copy:
                for row in found:
                    copy.write_row([Jsonb(v) if isinstance(v, dict) else v for v in row])
        took = time.perf_counter() - began
        conn.rollback()
    return took
