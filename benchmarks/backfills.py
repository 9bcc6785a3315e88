"""How backfills grow: the call, the planning, its memory, and one look at how far they are."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from functools import cache

from benchmarks import backfilled
from benchmarks.cases import ROUNDS, Pair
from benchmarks.stage import Stage
from flowstone import planning, runtime
from flowstone.backfills import BackfillHandle, record, request_of
from flowstone.partition_status import partition_states
from flowstone.registry import load_registry
from flowstone.runtime import Runtime

ALL = "all"


@cache
def _here() -> Runtime:
    return Runtime(runtime.current().settings, load_registry([backfilled.__name__]))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _begin(name: str, partitions: str = ALL) -> BackfillHandle:
    return record(_here(), request_of(name, partitions, force=True, order="newest"))


def call(stage: Stage) -> Pair:
    """Return the ms until a backfill of 50,000 partitions is recorded, which is all of the call."""
    del stage
    return Pair([1000 * _timed(lambda: _begin("+report")) for _ in range(ROUNDS)], [])


def growth(stage: Stage) -> Pair:
    """Return the ms to plan a step of a backfill of 50,000 partitions, and of one of 5,000."""
    del stage
    found: dict[str, list[float]] = {ALL: [], backfilled.SMALL: []}
    for _ in range(ROUNDS):
        for partitions, took in found.items():
            handle = _begin("+joined", partitions)
            seconds = _timed(lambda handle=handle: planning.plan_run(_here(), handle.run.id))  # type: ignore[misc]
            took.append(1000 * seconds / handle.progress().total)
    return Pair(*found.values())


def memory(stage: Stage) -> Pair:
    """Return the peak of memory, in MB, of planning 150,000 steps, and a tenth of them."""
    del stage
    peaks = []
    for partitions in (ALL, backfilled.SMALL):
        handle = _begin("+joined", partitions)
        tracemalloc.start()
        planning.plan_run(_here(), handle.run.id)
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    return Pair(peaks[:1], peaks[1:])


def counts(stage: Stage) -> Pair:
    """Return the ms of one look at how far a backfill of 150,000 steps is."""
    del stage
    handle = _begin("+joined")
    planning.plan_run(_here(), handle.run.id)
    handle.progress()
    return Pair([1000 * _timed(handle.progress) for _ in range(ROUNDS)], [])


def states(stage: Stage) -> Pair:
    """Return the ms in which all 50,000 partitions of an asset are told apart."""
    del stage
    before = runtime.current()
    runtime.use(_here())
    try:
        return Pair([1000 * _timed(lambda: partition_states("joined")) for _ in range(ROUNDS)], [])
    finally:
        runtime.use(before)
