"""What a run leaves undone: exactly that is planned again, on exactly the same inputs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flowstone.plan import Node, Plan
from flowstone.remaining import StoredStep, remaining
from flowstone.states import DONE_STEP_STATES, StepState
from tests.strategies import Dag, dags

UNDONE = [StepState.FAILED, StepState.UPSTREAM_FAILED, StepState.CANCELLED]
PINNED: tuple[Node, int] = (("old", "-"), 7)


def ended(id: int, state: StepState, *reads: tuple[Node, int]) -> StoredStep:
    return StoredStep(id, f"a{id}", "-", "assets", state, reads)


def node(number: int) -> Node:
    return f"a{number}", "-"


def test_what_failed_and_what_depends_on_it_is_planned_again_and_says_why() -> None:
    plan = remaining(
        [
            ended(1, StepState.SUCCEEDED),
            ended(2, StepState.FAILED, (node(1), 1), PINNED),
            ended(3, StepState.UPSTREAM_FAILED, (node(2), 2)),
            ended(4, StepState.SKIPPED),
            ended(5, StepState.CANCELLED, (node(4), 4)),
        ],
        "3f1c",
    )
    assert [(s.asset, s.reason) for s in plan.steps] == [
        ("a2", "failed in run 3f1c"),
        ("a3", "upstream_failed in run 3f1c"),
        ("a5", "cancelled in run 3f1c"),
    ]
    assert plan.steps[0].upstream == (node(1), PINNED[0])
    assert plan.pinned == {node(1): 1, PINNED[0]: 7, node(4): 4}


def test_a_run_that_has_no_steps_leaves_none() -> None:
    assert remaining([], "3f1c") == Plan((), {})


@given(dags(), st.data())
def test_a_chain_of_resumed_runs_computes_each_step_once_from_the_inputs_of_the_first(
    dag: Dag, data: st.DataObject
) -> None:
    made_by: dict[Node, int] = {}
    computed: Counter[Node] = Counter()
    plan = remaining(
        [ended(s, StepState.CANCELLED, *((node(u), u) for u in ups)) for s, ups in dag.items()], "0"
    )
    next_id = len(dag) + 1
    for _ in range(6):
        steps: list[StoredStep] = []
        id_of: dict[Node, int] = {}
        for planned in plan.steps:
            me = (planned.asset, planned.partition)
            id_of[me], next_id = next_id, next_id + 1
            reads = tuple((up, id_of.get(up) or plan.pinned[up]) for up in planned.upstream)
            # What is read was computed before, and by the one step that has ever succeeded at it.
            states = {s.id: s.state for s in steps}
            ready = all(states.get(id, StepState.SUCCEEDED) in DONE_STEP_STATES for _, id in reads)
            choices = [StepState.SUCCEEDED, *UNDONE] if ready else UNDONE
            state = data.draw(st.sampled_from(choices))
            if state == StepState.SUCCEEDED:
                assert all(made_by[up] == id for up, id in reads)
                made_by[me] = id_of[me]
                computed[me] += 1
            steps.append(StoredStep(id_of[me], *me, planned.queue, state, reads))
        undone = {(s.asset, s.partition) for s in steps if s.state not in DONE_STEP_STATES}
        plan = remaining(steps, "0")
        assert {(s.asset, s.partition) for s in plan.steps} == undone
        assert not plan.pinned.keys() & undone
        for again in plan.steps:
            assert again.upstream == tuple(node(u) for u in dag[int(again.asset[1:])])
    assert all(count == 1 for count in computed.values())
    assert set(computed) | {(s.asset, s.partition) for s in plan.steps} == {node(s) for s in dag}
