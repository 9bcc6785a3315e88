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
from flowstone.partition import Moment
from flowstone.plan import draft_plan
from flowstone.priority import LEVELS
from flowstone.queues import QUEUES
from flowstone.registry import load_registry
from flowstone.request import Request
from flowstone.store import plans, runs

ROUNDS = 3


@dataclass(frozen=True)
class Pair:
    """What was measured, in rounds that alternate; the smaller or larger is up to the case."""

    ours: list[float]
    other: list[float]


def independent(stage: Stage) -> Pair:
    """Return the steps a second of 1,000 that wait for nothing, and of as many plain tasks."""
    by_hand = {"app": lambda: plain.independent(1000)}
    return _race(stage, "independent 1000", by_hand, 1000)["app"]


def layered(stage: Stage) -> Pair:
    """Return those of 20 layers of 20, and of the chain of groups that a person would write."""
    return _layered(stage)["with_results"]


def layered_without(stage: Stage) -> Pair:
    """Return the same against a chain of groups that keeps no results."""
    return _layered(stage)["app"]


def _layered(stage: Stage) -> dict[str, Pair]:
    by_hand = {
        "with_results": lambda: plain.layered(20, 20, plain.with_results),
        "app": lambda: plain.layered(20, 20, plain.app),
    }
    return _race(stage, "layered 20 20", by_hand, 400)


def chained(stage: Stage) -> Pair:
    """Return those of a chain of 300, and of Celery's."""
    return _chained(stage)["with_results"]


def chained_without(stage: Stage) -> Pair:
    """Return the same against a chain that keeps no results."""
    return _chained(stage)["app"]


def _chained(stage: Stage) -> dict[str, Pair]:
    by_hand = {
        "with_results": lambda: plain.chained(300, plain.with_results),
        "app": lambda: plain.chained(300, plain.app),
    }
    return _race(stage, "chain 300", by_hand, 300)


_races: dict[str, dict[str, Pair]] = {}


def _race(
    stage: Stage, shape: str, by_hand: dict[str, Callable[[], list[Signature]]], steps: int
) -> dict[str, Pair]:
    """Return the steps a second of ours and of each way by hand, in turns."""
    # What two lines of the table tell is measured once.
    if shape not in _races:
        targets = shapes.targets(shape)
        ours: list[float] = []
        others: dict[str, list[float]] = {app: [] for app in by_hand}
        for _ in range(ROUNDS):
            with stage.worker("tasks", ALL_QUEUES, shape):
                _run(targets)  # the first run of a process imports
                ours.append(steps / _run(targets))
            for app, make in by_hand.items():
                with stage.worker(f"benchmarks.plain:{app}", "celery"):
                    _send(stage.redis(), plain.independent(20))
                    others[app].append(steps / _send(stage.redis(), make()))
        _races[shape] = {app: Pair(ours, other) for app, other in others.items()}
    return _races[shape]


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
    # Each queue has a list for each priority; that of the first has no number.
    lists = [*QUEUES, *(f"{q}\x06\x16{level}" for q in QUEUES for level in range(1, LEVELS))]
    message = memory = 0
    with stage.worker("tasks", ALL_QUEUES, shape):
        wait_until(
            lambda: materialize_all("l0_0", force=True).wait(), "the first run, which imports"
        )
        began = time.perf_counter()
        handle = materialize_all(targets, force=True)
        while handle.status() != RunState.SUCCEEDED:
            waiting = [len(m) for key in lists for m in redis.lrange(key, 0, -1)]
            message = max([message, *waiting])
            memory = max(memory, int(redis.info("memory")["used_memory"]))
            time.sleep(0.2 if depth > 20 else 0.01)  # noqa: PLR2004 - a short run wants precision
        took = time.perf_counter() - began
    return Watched(1000 * took / (20 * depth), message, memory)


def plan_100000(stage: Stage) -> Pair:
    """Return the seconds to plan and store 100,000 steps, and to COPY the same rows again."""
    return _planned(stage)["INCLUDING ALL"]


def plan_bare(stage: Stage) -> Pair:
    """Return the same against a COPY into tables without any index or check."""
    return _planned(stage)["EXCLUDING ALL"]


_plans: dict[str, Pair] = {}


def _planned(stage: Stage) -> dict[str, Pair]:
    del stage
    if not _plans:
        graph, request = _large()
        _plan_and_store(graph, request)  # the first one grows the files of the tables
        ours: list[float] = []
        others: dict[str, list[float]] = {"INCLUDING ALL": [], "EXCLUDING ALL": []}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            run_id = _plan_and_store(graph, request)
            ours.append(time.perf_counter() - began)
            for like, other in others.items():
                other.append(_copy_again(run_id, like))
        _plans.update({like: Pair(ours, other) for like, other in others.items()})
    return _plans


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
    return graph, Request(tuple(targets), "-", upstream=True, force=True)


def _plan_and_store(graph: AssetGraph, request: Request) -> UUID:
    run_id = uuid4()
    with runtime.current().ledger.begin() as conn:
        runs.create(
            conn, run_id, request,
            config={}, driver="inline", max_in_flight=1, actor="bench",
        )  # fmt: skip
        plan = draft_plan(request, graph, lambda _: {}, Moment(datetime.now(UTC)))
        plans.write(conn, run_id, plan, actor="bench")
    return run_id


def _copy_again(run_id: UUID, like: str) -> float:
    """Return the seconds of a plain COPY of a run's rows into new tables, made `LIKE` ours."""
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
            driver.execute(f"CREATE TABLE again_{table} (LIKE flowstone.{table} {like})")
        began = time.perf_counter()
        for table, found in rows.items():
            with driver.cursor() as cursor, cursor.copy(f"COPY again_{table} FROM STDIN") as copy:
                for row in found:
                    copy.write_row([Jsonb(v) if isinstance(v, dict) else v for v in row])
        took = time.perf_counter() - began
        conn.rollback()
    return took
