"""Plans: a request becomes exactly the steps and edges that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone.asset import Asset, Dep, asset
from flowstone.errors import BadPartition, FlowStoneError, MissingInput, UnknownAsset
from flowstone.graph import AssetGraph
from flowstone.mapping import SameKey
from flowstone.partition import (
    UNPARTITIONED,
    DailyPartitions,
    Key,
    Moment,
    MonthlyPartitions,
    PartitionSet,
    StaticPartitions,
)
from flowstone.partition_key import encode_key
from flowstone.plan import Made, Node, Plan, build_plan
from flowstone.request import Request
from tests.strategies import NOW, Dag, dags

DAILY = DailyPartitions("2024-01-01", "2024-03-31")
MONTHLY = MonthlyPartitions("2024-01", "2024-03")
REGIONS = StaticPartitions(["us", "eu", "asia"])
KINDS: list[PartitionSet | None] = [None, DAILY, MONTHLY]


def make(
    name: str,
    reads: Sequence[str | Dep] = (),
    partitions: PartitionSet | None = None,
    **options: Any,
) -> Asset:
    def function() -> None: ...

    return asset(name=name, deps=reads, partitions=partitions, **options)(function)


def nothing(nodes: Sequence[Node]) -> dict[Node, Made]:
    assert nodes, "nothing is to be looked up"
    return {}


def made_by(step_id: int) -> Made:
    return Made(step_id, f"sha{step_id}", None)


def plan(
    graph: AssetGraph,
    *names: str,
    key: Key = UNPARTITIONED,
    upstream: bool = True,
    latest: Any = nothing,
    force: bool = False,
) -> Plan:
    return build_plan(Request(names, encode_key(key), upstream, force), graph, latest, NOW)


@settings(deadline=None, max_examples=150)
@given(dags(max_steps=6), st.data())
def test_a_plan_holds_all_that_is_upstream_each_once_and_in_order(
    dag: Dag, data: st.DataObject
) -> None:
    kinds = {step: data.draw(st.sampled_from(KINDS)) for step in dag}
    assets = [make(f"a{s}", [f"a{up}" for up in ups], kinds[s]) for s, ups in dag.items()]
    graph = AssetGraph.build(assets)
    target = f"a{max(dag)}"
    key = next(graph[target].partitions.keys(NOW))
    made = plan(graph, target, key=key)
    nodes = [(s.asset, s.partition) for s in made.steps]
    place = {node: i for i, node in enumerate(nodes)}
    assert len(place) == len(nodes)
    assert made.pinned == {}
    for step in made.steps:
        assert len(set(step.upstream)) == len(step.upstream)
        assert all(place[up] < place[step.asset, step.partition] for up in step.upstream)
        assert step.upstream == tuple(_reads(graph, step.asset, step.partition))
        assert step.queue == "assets"
    needed = {up for step in made.steps for up in step.upstream} | {(target, encode_key(key))}
    assert needed == set(nodes)
    assert {s.reason for s in made.steps} == {"missing"}
    assert not any(s.skipped for s in made.steps)


def _reads(graph: AssetGraph, name: str, partition: str) -> list[Node]:
    found = []
    for dependency in graph[name].dependencies:
        up = graph[dependency.asset].partitions
        for candidate in up.keys(NOW):
            node = dependency.asset, encode_key(candidate)
            if _touches(graph[name].partitions, partition, up, node[1]):
                found.append(node)
    return found


def _touches(down: PartitionSet, one: str, up: PartitionSet, other: str) -> bool:
    """Whether two of the three kinds of keys belong together, by their text alone."""
    if one == "-" or other == "-":
        return True
    shorter, longer = sorted([one[2:], other[2:]], key=len)
    return longer.startswith(shorter)


@settings(deadline=None, max_examples=60)
@given(dags(max_steps=8), st.data())
def test_what_is_outside_the_run_is_pinned_and_nothing_else(dag: Dag, data: st.DataObject) -> None:
    graph = AssetGraph.build([make(f"a{s}", [f"a{up}" for up in ups]) for s, ups in dag.items()])
    wanted = data.draw(st.lists(st.sampled_from([f"a{s}" for s in dag]), min_size=1, unique=True))
    outside = {f"a{up}" for s, ups in dag.items() if f"a{s}" in wanted for up in ups} - set(wanted)
    made = plan(
        graph,
        *wanted,
        upstream=False,
        latest=lambda nodes: {n: made_by(int(n[0][1:])) for n in nodes},
        force=True,
    )
    assert {s.asset for s in made.steps} == set(wanted)
    assert made.pinned == {(name, "-"): int(name[1:]) for name in outside}
    assert {s.reason for s in made.steps} == {"forced"}


def test_a_fan_in_reads_its_inputs_in_their_natural_order() -> None:
    graph = AssetGraph.build(
        [
            make("region", partitions=REGIONS),
            make("day", partitions=DAILY),
            make("world", ["region"]),
            make("month", ["day"], MONTHLY),
        ]
    )
    world = plan(graph, "world").steps[-1]
    assert world.upstream == (("region", "s:us"), ("region", "s:eu"), ("region", "s:asia"))
    made = plan(graph, "month", key="2024-02")
    assert [s.partition for s in made.steps[:-1]] == [f"d:2024-02-{d:02d}" for d in range(1, 30)]
    assert made.steps[-1].upstream == tuple((s.asset, s.partition) for s in made.steps[:-1])


def test_inputs_come_in_the_order_of_the_parameters() -> None:
    graph = AssetGraph.build([make("b"), make("a"), make("c", ["b", "a"])])
    assert plan(graph, "c").steps[-1].upstream == (("b", "-"), ("a", "-"))


def test_each_step_goes_to_the_queue_of_its_asset() -> None:
    graph = AssetGraph.build([make("a", queue="backfill"), make("b", ["a"], queue="priority")])
    assert [s.queue for s in plan(graph, "b").steps] == ["backfill", "priority"]


def test_several_targets_share_what_they_read() -> None:
    graph = AssetGraph.build([make("a"), make("b", ["a"]), make("c", ["a"])])
    assert [s.asset for s in plan(graph, "c", "b", "c").steps] == ["a", "b", "c"]


def test_an_input_that_was_never_made_is_named_with_its_reader_and_the_remedy() -> None:
    graph = AssetGraph.build([make("raw", partitions=DAILY), make("clean", ["raw"], DAILY)])
    with pytest.raises(MissingInput) as caught:
        plan(graph, "clean", key="2024-01-15", upstream=False)
    assert caught.value.message.startswith(
        "raw[2024-01-15], read by clean[2024-01-15], has never been materialized; "
    )
    assert "materialize_all" in caught.value.message


def test_an_order_only_dependency_is_an_edge_like_others() -> None:
    graph = AssetGraph.build([make("setup"), make("made", ["setup"])])
    assert graph["made"].dependencies[0].parameter is None
    assert plan(graph, "made").steps[-1].upstream == (("setup", "-"),)
    with pytest.raises(MissingInput, match="setup, read by made"):
        plan(graph, "made", upstream=False)


@pytest.mark.parametrize(
    ("name", "key", "kind", "said"),
    [
        ("dya", UNPARTITIONED, UnknownAsset, ["'dya' is not defined", "did you mean 'day'"]),
        ("day", "2025-01-01", BadPartition, ["'day'", "2025-01-01 lies outside 2024-01-01 to"]),
        ("day", "2024-01", BadPartition, ["'day'", "is not a day"]),
        ("day", UNPARTITIONED, BadPartition, ["partitioned (daily", "2024-01-01, 2024-01-02"]),
        ("region", UNPARTITIONED, BadPartition, ["(3 static keys)", "such as us, eu"]),
        ("region", "uss", BadPartition, ["'uss' is not one of us, eu, asia", "mean 'us'"]),
        ("plain", "2024-01-01", BadPartition, ["asset 'plain': it has no partitions"]),
    ],
)
def test_a_request_that_makes_no_sense_is_answered_with_what_would(
    name: str, key: Key, kind: type[FlowStoneError], said: list[str]
) -> None:
    graph = AssetGraph.build(
        [make("day", partitions=DAILY), make("region", partitions=REGIONS), make("plain")]
    )
    with pytest.raises(kind) as caught:
        plan(graph, name, key=key)
    assert all(part in caught.value.message for part in said), caught.value.message


def test_an_upstream_set_that_lacks_a_key_is_named_with_the_step_that_reads_it() -> None:
    short = DailyPartitions("2024-01-10", "2024-01-20")
    # Whether a set that grows will ever have the key, is not known when the graph is built.
    growing = DailyPartitions("2024-01-10")
    graph = AssetGraph.build([make("raw", partitions=short), make("clean", ["raw"], growing)])
    with pytest.raises(BadPartition) as caught:
        plan(graph, "clean", key="2024-01-21")
    assert caught.value.message == (
        "clean[2024-01-21] reads 'raw' by same key: "
        "partition 2024-01-21 lies outside 2024-01-10 to 2024-01-20"
    )


def test_planning_asks_each_mapping_once_a_step_and_each_lookup_once_a_run() -> None:
    asked: list[Key] = []

    class Counting(SameKey):
        def upstream_keys(
            self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
        ) -> Sequence[Key]:
            asked.append(key)
            return super().upstream_keys(key, downstream, upstream, at)

    chain = [make("a0", partitions=DAILY)]
    chain += [make(f"a{i}", [Dep(f"a{i - 1}", Counting())], DAILY) for i in range(1, 20)]
    graph = AssetGraph.build([*chain, make("all", ["a19"])])
    asked.clear()
    made = plan(graph, "all")
    assert len(made.steps) == 20 * 91 + 1
    assert len(asked) == 19 * 91

    lookups: list[int] = []

    def latest(nodes: Sequence[Node]) -> dict[Node, Made]:
        lookups.append(len(nodes))
        return dict.fromkeys(nodes, made_by(1))

    plan(graph, "all", upstream=False, latest=latest)
    plan(graph, "all", upstream=False, latest=latest, force=True)
    assert lookups == [92, 91]
