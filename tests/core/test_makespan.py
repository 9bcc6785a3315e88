"""A step starts as soon as it can: runs take hardly longer than greedy list scheduling."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.list_schedule import list_schedule
from tests.core.makespan import COORDINATION, STEP_OVERHEAD, Clock
from tests.core.run_simulator import Run
from tests.strategies import Dag, dags

WINDOW = 200
START = 2 * COORDINATION
"""The first coordination comes before all steps, the last one after them."""

Durations = dict[int, float]


def uneven(random: Random, dag: Dag) -> Durations:
    """Durations from 50 ms to 1 s, few of them long."""
    return {step: min(1.0, 0.05 + random.expovariate(4)) for step in dag}


def random_dag(random: Random, steps: int) -> Dag:
    """A graph of layers, of stretches, or of whatever reads the steps not far before it."""
    width = max(2, steps // 8)
    shape = random.choice(["layers", "stretches", "near", "far"])
    dag: Dag = {}
    for step in range(1, steps + 1):
        layer = (step - 1) // width * width
        first, last, fan_in = {
            "layers": (layer - width + 1, layer, 2),
            "stretches": (step - 1, step - 1, random.choice([1] * 19 + [0])),
            "near": (step - 20, step - 1, random.choice([0, 1, 1, 1, 2, 2, 3])),
            "far": (step - random.choice([1, 3, 8, 40]), step - 1, random.choice([0, 1, 2, 6])),
        }[shape]
        above = range(max(1, first), last + 1)
        dag[step] = tuple(sorted(random.sample(above, min(fan_in, len(above)))))
    return dag


def critical_path(dag: Dag, durations: Durations) -> float:
    ends: Durations = {}
    for step, upstream in dag.items():
        ends[step] = durations[step] + max((ends[up] for up in upstream), default=0)
    return max(ends.values())


# Not of fewer steps: in a graph with few of them, which of two ready steps comes first may matter
# more than that, to list scheduling just as to us (Graham's anomalies).
@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.integers(0, 2**32), st.integers(30, 150), st.integers(2, 8), st.integers(4, 30))
def test_a_run_takes_at_most_a_tenth_longer_than_a_list_schedule(
    seed: int, steps: int, slots: int, places: int
) -> None:
    random = Random(seed)
    dag = random_dag(random, steps)
    durations = uneven(random, dag)
    run = Run(dag, min(WINDOW, slots * places))
    took = Clock(run, durations, slots).play()
    assert run.closed
    assert took <= START + 1.1 * list_schedule(dag, durations, slots, STEP_OVERHEAD)


@settings(deadline=None, max_examples=300)
@given(dags(max_steps=30), st.integers(0, 2**32), st.integers(1, 6))
def test_no_slot_is_free_while_a_step_is_ready_if_dispatch_costs_nothing(
    dag: Dag, seed: int, slots: int
) -> None:
    clock = Clock(Run(dag, WINDOW), uneven(Random(seed), dag), slots, 0, 0)
    clock.play()
    assert clock.idle == 0


@pytest.mark.parametrize("slots", [4, 8, 16])
def test_stretches_do_not_hold_each_other_back_where_the_window_is_narrow(slots: int) -> None:
    dag: Dag = {}
    for start in range(1, 32 * 16, 16):
        dag |= {start + i: (start + i - 1,) if i else () for i in range(16)}
    durations = uneven(Random(1), dag)
    took = Clock(Run(dag, 4 * slots), durations, slots).play()
    assert took <= START + 1.1 * list_schedule(dag, durations, slots, STEP_OVERHEAD)


@given(dags(max_steps=30), st.integers(0, 2**32), st.integers(1, 6))
def test_a_list_schedule_is_as_good_as_graham_says(dag: Dag, seed: int, slots: int) -> None:
    durations = uneven(Random(seed), dag)
    path, work = critical_path(dag, durations), sum(durations.values())
    took = list_schedule(dag, durations, slots)
    assert max(path, work / slots) <= took + 1e-9
    assert took <= work / slots + path * (1 - 1 / slots) + 1e-9


def test_a_list_schedule_takes_the_steps_in_the_order_in_which_they_become_ready() -> None:
    # On two slots: 1 and 2, then 3 beside 2, then 4, which became ready after 3.
    dag: Dag = {1: (), 2: (), 3: (1,), 4: (2,)}
    durations: Durations = {1: 1, 2: 2, 3: 4, 4: 2}
    assert list_schedule(dag, durations, 2) == 5
    assert list_schedule(dag, durations, 1) == 9
    assert list_schedule(dag, durations, 2, overhead=1) == 7
