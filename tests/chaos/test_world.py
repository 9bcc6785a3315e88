"""Scenarios are what their seed says, and the ends that they must have are those of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.world import GATES, KINDS, SHORT, ends, scenario

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
        breaks = node.breaks or node.gate == "rejection"
        expected = "upstream_failed" if stops else "failed" if breaks else "succeeded"
        assert end_of[node.name].state == expected
        assert (end_of[node.name].value is None) == (expected != "succeeded")


@pytest.mark.parametrize("seeds", [SHORT, range(len(KINDS))])
def test_few_scenarios_see_each_kind(seeds: Sequence[int]) -> None:
    made = [scenario(seed) for seed in seeds]
    assert {fault.kind for one in made for fault in one.faults} == set(KINDS)
    assert {node.gate for one in made for node in one.nodes} == set(GATES)
    assert any(len(one.requests) > 1 for one in made)
    assert any(request.cancel_at is not None for one in made for request in one.requests)
