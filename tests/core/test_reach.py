"""What a run reaches: compared with a search of all keys, on random graphs, sets and selections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone import Mapped, TimeWindow
from flowstone.asset import Asset, Dep, asset
from flowstone.errors import CyclicGraph
from flowstone.graph import AssetGraph
from flowstone.outline import Node, Outline
from flowstone.partition import (
    DailyPartitions,
    Key,
    MonthlyPartitions,
    PartitionSet,
    StaticPartitions,
)
from flowstone.partition_key import encode_key
from flowstone.reach import Reader, reach
from flowstone.selection import Selected, resolve
from tests.strategies import NOW, Dag, dags

DAILY = DailyPartitions("2024-01-25", "2024-03-05")
MONTHLY = MonthlyPartitions("2024-01", "2024-03")
KINDS: list[PartitionSet | None] = [None, DAILY, MONTHLY]


def make(name: str, deps: Sequence[str | Dep], partitions: PartitionSet | None) -> Asset:
    def function() -> None: ...

    return asset(name=name, deps=deps, partitions=partitions)(function)


@st.composite
def graphs(draw: st.DrawFn) -> AssetGraph:
    """Draw a graph of assets of days, months and none, some of which read their own past."""
    dag: Dag = draw(dags(max_steps=5))
    assets = []
    for step, ups in dag.items():
        kind = draw(st.sampled_from(KINDS))
        name = f"a{step}"
        deps: list[str | Dep] = [f"a{up}" for up in ups]
        if kind is not None and draw(st.booleans()):
            deps.append(Dep(name, mapping=TimeWindow(offset=-1)))
        assets.append(make(name, deps, kind))
    return AssetGraph.build(assets)


def all_keys(graph: AssetGraph, name: str) -> list[str]:
    return [encode_key(key) for key in graph[name].partitions.keys(NOW)]


def searched(
    graph: AssetGraph, targets: set[Node], selected: Selected, starts: set[str]
) -> set[Node]:
    """Return what `reach` should, by looking at all keys of all assets until nothing is new.

    What reads an asset follows from it if that is one of the `starts`, or itself below another.
    """
    onward = starts | selected.below
    reads = {
        (name, key): Reader(graph, NOW)((name, key)).nodes
        for name in graph.order
        for key in all_keys(graph, name)
    }
    found = set(targets)
    while more := {
        node
        for node, ups in reads.items()
        if node[0] in selected.below
        and node not in found
        and any(up in found and up[0] in onward for up in ups)
    }:
        found |= more
    while more := {
        up for node in found for up in reads[node] if up[0] in selected.above and up not in found
    }:
        found |= more
    return found


def reached(graph: AssetGraph, targets: set[Node], selected: Selected) -> Outline:
    return reach(
        sorted(targets), selected, graph, NOW, known=lambda nodes: nodes, reads=Reader(graph, NOW)
    )


@settings(deadline=None, max_examples=120)
@given(graphs(), st.data())
def test_a_run_reaches_what_a_search_of_all_keys_finds(
    graph: AssetGraph, data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(graph.order), min_size=1, max_size=3, unique=True))
    texts, targets, starts = list[str](), set[Node](), set[str]()
    for name in names:
        before = data.draw(st.sampled_from(["", "+", "1+"]))
        behind = data.draw(st.sampled_from(["", "+", "+1"]))
        texts.append(f"{before}{name}{behind}")
        if behind:
            starts.add(name)
        keys = st.sets(st.sampled_from(all_keys(graph, name)), min_size=1, max_size=4)
        targets |= {(name, key) for key in data.draw(keys)}
    selected = resolve(graph, texts)
    outline = reached(graph, targets, selected)
    nodes = list(outline)
    assert set(nodes) == searched(graph, targets, selected, starts)
    assert len(nodes) == len(set(nodes)) == len(outline)

    place = {node: i for i, node in enumerate(nodes)}
    assert {node: outline.place(node) for node in nodes} == place
    readers = Counter[Node]()
    only: dict[Node, Node] = {}
    for node in nodes:
        for up in Reader(graph, NOW)(node).nodes:
            if up in place:
                assert place[up] < place[node], f"{node} comes before {up}"
                readers[up] += 1
                only[up] = node
    for node in nodes:
        expected = place[only[node]] if readers[node] == 1 else None
        assert outline.feeds(node) == expected


def test_what_reads_an_asset_without_a_plus_behind_is_not_brought_in() -> None:
    days, months = DAILY, MONTHLY
    own = make("own", ["a"], months)
    graph = AssetGraph.build(
        [make("a", [], months), make("b", [], days), own, make("both", ["a", "b"], months)]
    )
    targets = {("a", "m:2024-01"), ("b", "d:2024-02-07")}
    assert set(reached(graph, targets, resolve(graph, ["a+", "b"]))) == {
        *targets,
        ("own", "m:2024-01"),
        ("both", "m:2024-01"),
    }


def test_partitions_that_read_each_other_are_named() -> None:
    def other(key: Key) -> Key:
        return {"a": "b", "b": "a"}[str(key)]

    made = make("x", [Dep("x", mapping=Mapped(other, other))], StaticPartitions(["a", "b"]))
    graph = AssetGraph.build([made])
    with pytest.raises(CyclicGraph, match=r"x\[b\] and x\[a\] read each other in a circle") as said:
        reached(graph, {("x", "s:a")}, resolve(graph, ["+x"]))
    assert "earlier partitions" in said.value.message


def test_a_chain_of_partitions_as_long_as_the_set_is_put_in_order() -> None:
    days = DailyPartitions("1990-01-01", "2020-12-31")
    made = make("x", [Dep("x", mapping=TimeWindow(offset=-1))], days)
    graph = AssetGraph.build([made])
    keys = all_keys(graph, "x")
    outline = reached(graph, {("x", keys[-1])}, resolve(graph, ["+x"]))
    assert [key for _, key in outline] == keys
