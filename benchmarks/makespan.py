"""How long random graphs take on a real worker, against greedy list scheduling of the same."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from sqlalchemy import text

from benchmarks import shapes
from benchmarks.cases import Pair
from benchmarks.list_schedule import list_schedule
from benchmarks.stage import ALL_QUEUES, Stage, wait_until
from flowstone import RunState, materialize_all, runtime

SLOTS: Final = 4
STEPS: Final = 100
SEEDS: Final = (1, 2, 3)

_STEPS = text(
    """
    SELECT s.id, extract(epoch FROM s.started_at) AS began,
        extract(epoch FROM s.finished_at) AS ended,
        ARRAY(SELECT upstream FROM flowstone.edges WHERE downstream = s.id) AS upstream
    FROM flowstone.steps s WHERE s.run_id = :run_id ORDER BY s.id
    """
)


def makespan(stage: Stage) -> Pair:
    """Return the seconds that three random graphs take on four processes, and would at best.

    Each asset sleeps for 50 ms to 1 s, so that the processors are no limit. The run
    counts from the start of its first step to the commit of its last; the list
    schedule has the very durations of its steps, from claim to commit.
    """
    ours = other = 0.0
    for seed in SEEDS:
        took, best = _run(stage, seed)
        ours, other = ours + took, other + best
    return Pair([ours], [other])


def _run(stage: Stage, seed: int) -> tuple[float, float]:
    shape = f"uneven {STEPS} {seed}"
    targets = shapes.targets(shape)
    with stage.worker("tasks", ALL_QUEUES, shape, SLOTS):
        # One step for each process, which imports.
        materialize_all([f"s{seed}_{i}" for i in range(SLOTS)], force=True).wait()
        handle = materialize_all(targets, force=True)
        wait_until(lambda: handle.status() == RunState.SUCCEEDED, "the run")
    return _measure(handle.id)


def _measure(run_id: UUID) -> tuple[float, float]:
    with runtime.current().ledger.begin() as conn:
        rows = conn.execute(_STEPS, {"run_id": run_id}).all()
    durations = {row.id: float(row.ended - row.began) for row in rows}
    took = float(max(row.ended for row in rows) - min(row.began for row in rows))
    return took, list_schedule({row.id: row.upstream for row in rows}, durations, SLOTS)
