"""Scenarios are what their seed says, and the ends that they must have are those of the graph."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.world import KINDS, ends, scenario

SEEDS = st.integers(0, 10_000)


@given(SEEDS)
def test_a_seed_gives_one_scenario_with_a_graph_that_has_no_cycle(seed: int) -> None:
    made = scenario(seed)
    assert made == scenario.__wrapped__(seed)
    known: set[str] = set()
    for node in made.nodes:
        assert known.issuperset(node.parents)
        assert node.optional.issubset(node.parents)
        known.add(node.name)
    assert made.targets
    assert made.faults[0].at <= made.faults[-1].at


@given(SEEDS)
def test_a_step_ends_as_it_and_what_it_needs_allow(seed: int) -> None:
    made = scenario(seed)
    end_of = ends(made.nodes)
    for node in made.nodes:
        needed = {end_of[parent].state for parent in node.parents if parent not in node.optional}
        stops = needed - {"succeeded"}
        expected = "upstream_failed" if stops else "failed" if node.breaks else "succeeded"
        assert end_of[node.name].state == expected
        assert (end_of[node.name].value is None) == (expected != "succeeded")


def test_as_many_scenarios_as_there_are_kinds_see_each() -> None:
    seen = {fault.kind for seed in range(len(KINDS)) for fault in scenario(seed).faults}
    assert seen == set(KINDS)
