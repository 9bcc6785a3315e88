"""Column lineage: checked when the definitions are loaded, and followed through all assets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstone import columns
from flowstone.asset import Asset, asset
from flowstone.columns import Column, TracedColumn
from flowstone.errors import BadSignature, DefinitionError, UnknownAsset, UnknownColumn
from flowstone.graph import AssetGraph
from tests.strategies import Dag, dags

NAMES = "xyz"


def make(
    name: str, reads: Sequence[str] = (), made_of: Mapping[str, Sequence[str]] | None = None
) -> Asset:
    def function() -> None: ...

    return asset(name=name, deps=reads, columns=made_of)(function)


RAW = make("raw.data")
DELAYS = make("delays", ["raw.data"], {"minutes": ["raw.data.dep"], "flights": []})
REPORT = make("report", ["delays"], {"mean": ["delays.minutes", "delays.flights"]})
GRAPH = AssetGraph.build([RAW, DELAYS, REPORT])


def test_a_column_is_followed_to_where_nothing_is_declared() -> None:
    assert columns.upstream(GRAPH, "report", "mean") == [
        TracedColumn("delays", "flights", 1),
        TracedColumn("delays", "minutes", 1),
        TracedColumn("raw.data", "dep", 2),
    ]
    assert columns.upstream(GRAPH, "delays", "flights") == []
    assert columns.downstream(GRAPH, "raw.data", "dep") == [
        TracedColumn("delays", "minutes", 1),
        TracedColumn("report", "mean", 2),
    ]


@st.composite
def declared(draw: st.DrawFn) -> tuple[Dag, dict[Column, set[Column]]]:
    dag = draw(dags(max_steps=6))
    made_of: dict[Column, set[Column]] = {}
    for step, ups in dag.items():
        for name in draw(st.sets(st.sampled_from(NAMES))):
            sources = [Column(f"a.{up}", source) for up in ups for source in NAMES]
            read = draw(st.sets(st.sampled_from(sources))) if sources else set()
            made_of[Column(f"a.{step}", name)] = read
    return dag, made_of


@settings(deadline=None)
@given(declared())
def test_the_walks_are_those_of_trying_every_way(
    found: tuple[Dag, dict[Column, set[Column]]],
) -> None:
    dag, made_of = found
    graph = AssetGraph.build(
        make(
            f"a.{step}",
            [f"a.{up}" for up in ups],
            {
                c.name: [str(s) for s in read]
                for c, read in made_of.items()
                if c.asset == f"a.{step}"
            },
        )
        for step, ups in dag.items()
    )

    def every_way(one: Column, depth: int) -> dict[Column, int]:
        least: dict[Column, int] = {}
        for read in made_of.get(one, ()):
            for column, steps in ((read, depth), *every_way(read, depth + 1).items()):
                least[column] = min(least.get(column, steps), steps)
        return least

    known = set(made_of) | {one for read in made_of.values() for one in read}
    ways = {start: every_way(start, 1) for start in known}
    for start in known:
        up = columns.upstream(graph, start.asset, start.name)
        assert {Column(c.asset, c.column): c.depth for c in up} == ways[start]
        assert [c.depth for c in up] == sorted(ways[start].values())
        down = columns.downstream(graph, start.asset, start.name)
        assert {Column(c.asset, c.column): c.depth for c in down} == {
            other: ways[other][start] for other in known if start in ways[other]
        }


def test_a_column_of_an_asset_that_is_not_read_is_refused() -> None:
    wrong = make("wrong", ["delays"], {"mean": ["delay.minutes"]})
    with pytest.raises(DefinitionError) as caught:
        AssetGraph.build([RAW, DELAYS, REPORT, wrong])
    assert caught.value.message == (
        f"column 'mean' of asset 'wrong' ({wrong.location}) is made of 'delay.minutes', but "
        "'wrong' does not read 'delay'; did you mean 'delays'?"
    )
    # That it exists is not enough.
    with pytest.raises(DefinitionError, match=r"'far' does not read 'report'$"):
        AssetGraph.build([RAW, DELAYS, REPORT, make("far", ["delays"], {"a": ["report.mean"]})])


@pytest.mark.parametrize("source", ["minutes", "delays.", "", "."])
def test_a_source_without_an_asset_or_a_column_is_refused(source: str) -> None:
    wrong = make("wrong", ["delays"], {"mean": [source]})
    with pytest.raises(DefinitionError, match=r"write it as 'asset\.column'"):
        AssetGraph.build([RAW, DELAYS, wrong])


def test_a_string_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(BadSignature, match=r"write 'mean': \['delays.minutes'\]"):
        make("wrong", ["delays"], {"mean": "delays.minutes"})


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(UnknownAsset, match="did you mean 'report'"):
        columns.upstream(GRAPH, "reports", "mean")
    with pytest.raises(UnknownColumn, match="declares no column 'men'; did you mean 'mean'"):
        columns.upstream(GRAPH, "report", "men")
    with pytest.raises(UnknownColumn, match=r"declares no column 'q'; it has flights, minutes$"):
        columns.downstream(GRAPH, "delays", "q")
    with pytest.raises(UnknownColumn, match="no columns of asset 'alone' are declared"):
        columns.upstream(AssetGraph.build([make("alone")]), "alone", "a")


def test_columns_are_no_part_of_what_a_value_is_made_of() -> None:
    def function() -> None: ...

    one = asset(deps=["delays"])(function)
    other = asset(deps=["delays"], columns={"mean": ["delays.minutes"]})(function)
    assert one.code_hash == other.code_hash
