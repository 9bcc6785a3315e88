"""The graph of assets: every fault of the definitions is found and named before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings

from flowstone.asset import Asset, Dep, asset
from flowstone.errors import (
    BadMapping,
    CyclicGraph,
    DefinitionError,
    DuplicateAsset,
    UnknownAsset,
    UnknownResource,
)
from flowstone.graph import AssetGraph, check_queues
from flowstone.limits import Rate
from flowstone.mapping import AllKeys, SameKey
from flowstone.partition import DailyPartitions, PartitionSet, StaticPartitions
from tests.strategies import Dag, dags


def make(
    name: str,
    reads: Sequence[str | Dep] = (),
    partitions: PartitionSet | None = None,
    **options: str,
) -> Asset:
    def function() -> None: ...

    return asset(name=name, deps=reads, partitions=partitions, **options)(function)  # type: ignore[call-overload, no-any-return]


@settings(deadline=None)
@given(dags())
def test_each_asset_comes_after_all_that_it_reads(dag: Dag) -> None:
    assets = [make(f"a{step}", [f"a{up}" for up in ups]) for step, ups in dag.items()]
    graph = AssetGraph.build(reversed(assets))
    place = {name: i for i, name in enumerate(graph.order)}
    assert sorted(place) == sorted(f"a{step}" for step in dag)
    assert all(place[f"a{up}"] < place[f"a{step}"] for step, ups in dag.items() for up in ups)
    assert graph.order == AssetGraph.build(assets).order
    for step in dag:
        readers = {f"a{reader}" for reader, ups in dag.items() if step in ups}
        assert set(graph.readers(f"a{step}")) == readers


def test_an_asset_that_is_not_defined_is_named_with_reader_place_and_nearest_name() -> None:
    reader = make("clean", ["raw_flight"])
    with pytest.raises(UnknownAsset) as caught:
        AssetGraph.build([make("raw_flights"), reader])
    assert caught.value.message == (
        "asset 'raw_flight' is not defined; did you mean 'raw_flights'? "
        f"(read by 'clean', {reader.location})"
    )


def test_a_name_that_is_looked_up_in_vain_is_answered_with_the_nearest() -> None:
    graph = AssetGraph.build([make("raw_flights")])
    with pytest.raises(UnknownAsset, match="did you mean 'raw_flights'"):
        graph["raw_flight"]
    with pytest.raises(UnknownAsset, match=r"asset 'zzz' is not defined$"):
        graph["zzz"]
    assert graph["raw_flights"].name == "raw_flights"


def test_two_assets_of_one_name_are_refused_with_both_places() -> None:
    first = make("same")

    @asset(name="same")
    def second() -> None: ...

    with pytest.raises(DuplicateAsset) as caught:
        AssetGraph.build([first, second])
    assert first.location in caught.value.message
    assert second.location in caught.value.message
    assert list(AssetGraph.build([first, first]).assets) == ["same"]


@pytest.mark.parametrize(
    "reads",
    [
        {"a": ["b"], "b": ["a"]},
        {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"], "e": []},
        {"x": ["b"], "b": ["c", "e"], "c": ["d"], "d": ["b"], "e": []},
    ],
)
def test_a_circle_is_drawn_along_what_is_read(reads: dict[str, list[str]]) -> None:
    with pytest.raises(CyclicGraph, match="read each other in a circle") as caught:
        AssetGraph.build([make(name, ups) for name, ups in reads.items()])
    path = caught.value.message.split(": ")[1].split(" (")[0].split(" -> ")
    assert path[0] == path[-1]
    assert len(set(path)) == len(path) - 1
    for reader, read in pairwise(path):
        assert read in reads[reader]


def test_an_asset_that_reads_itself_has_to_say_which_partition() -> None:
    with pytest.raises(CyclicGraph, match=r"'a' .* reads itself, and does not say which"):
        AssetGraph.build([make("a", ["a"])])


def test_a_queue_that_celery_does_not_serve_is_refused() -> None:
    graph = AssetGraph.build([make("a", queue="gqu")])
    check_queues(graph, ["gqu"])
    with pytest.raises(DefinitionError) as refused:
        check_queues(graph, ["gpu"])
    assert refused.value.message == (
        f"asset 'a' ({graph['a'].location}) names the queue 'gqu', which there is not; use one "
        "of priority, assets, backfill, gpu, or add it to FLOWSTONE_QUEUES; did you mean 'gpu'?"
    )
    with pytest.raises(DefinitionError, match="names the queue 'control', which is not for assets"):
        check_queues(AssetGraph.build([make("a", queue="control")]), ["gpu"])


def test_a_resource_that_is_not_defined_is_named_with_the_nearest() -> None:
    @asset(requires=["clint"])
    def needs() -> None: ...

    with pytest.raises(UnknownResource, match="'clint' is not defined; did you mean 'client'"):
        AssetGraph.build([needs], ["client"])
    AssetGraph.build([needs], ["clint"])


def test_partitions_that_do_not_fit_are_refused_with_both_assets_and_the_remedy() -> None:
    regions, daily = StaticPartitions(["eu"]), DailyPartitions("2024-01-01")
    assets = [make("up", partitions=regions), make("down", ["up"], daily)]
    with pytest.raises(BadMapping) as caught:
        AssetGraph.build(assets)
    for said in ("'down'", "'up'", assets[1].location, "Dep(..., mapping=...)", str(daily)):
        assert said in caught.value.message


def test_a_mapping_that_is_given_wins_over_the_default() -> None:
    daily = DailyPartitions("2024-01-01")
    up = make("up", partitions=daily)
    plain = make("plain", ["up"], daily)
    all_days = make("all_days", [Dep("up", AllKeys())], daily)
    graph = AssetGraph.build([up, plain, all_days])
    assert graph.mappings["plain", "up"] == SameKey()
    assert graph.mappings["all_days", "up"] == AllKeys()


def test_two_rates_for_one_key_are_refused_with_both_assets() -> None:
    one = asset(name="one", rate=Rate(10, key="api"))(lambda: 1)
    same = asset(name="same", rate=Rate(600, per="minute", key="api"))(lambda: 1)
    other = asset(name="two", rate=Rate(10, key="api", burst=2))(lambda: 1)
    # Without a key of their own, they have nothing to do with each other, or with that key.
    alone = asset(name="api", rate=Rate(3))(lambda: 1)
    beside = asset(name="beside", rate=Rate(4))(lambda: 1)
    AssetGraph.build([one, same, alone, beside])
    with pytest.raises(DefinitionError) as caught:
        AssetGraph.build([one, other])
    for said in ("'api'", "'one'", "10 per second and", "'two'", "10 per second, burst 2;"):
        assert said in caught.value.message
    assert caught.value.message.count("test_graph.py:") == 2
