"""Column lineage as it is declared: which columns a column is made of, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flowstone.errors import UnknownColumn, did_you_mean
from flowstone.graph import AssetGraph
from flowstone.walk import depths


@dataclass(frozen=True, order=True)
class Column:
    """A column of an asset."""

    asset: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Column:
        """Read "asset.column"; what comes after the last dot is the column."""
        asset, _, name = text.rpartition(".")
        return cls(asset, name)

    def __str__(self) -> str:
        return f"{self.asset}.{self.name}"


@dataclass(frozen=True)
class TracedColumn:
    """A column that a walk has found."""

    asset: str
    column: str
    depth: int
    """The least number of assets from the start."""


def upstream(graph: AssetGraph, asset: str, column: str) -> list[TracedColumn]:
    """Return the columns that a column is made of, directly or through others.

    They are those that are declared; where an asset declares nothing, the walk ends. The
    nearest come first. Raises UnknownAsset or UnknownColumn.
    """
    return _walk(graph, asset, column, made_of(graph))


def downstream(graph: AssetGraph, asset: str, column: str) -> list[TracedColumn]:
    """Return the columns that are made of a column, directly or through others.

    The nearest come first. Raises UnknownAsset or UnknownColumn.
    """
    readers: dict[Column, list[Column]] = {}
    for reader, read in made_of(graph).items():
        for one in read:
            readers.setdefault(one, []).append(reader)
    return _walk(graph, asset, column, readers)


def made_of(graph: AssetGraph) -> Mapping[Column, list[Column]]:
    """Return the declared columns of all assets, with those that each is made of."""
    return {
        Column(name, column): [Column.parse(text) for text in read]
        for name in graph.order
        for column, read in graph[name].columns.items()
    }


def _walk(
    graph: AssetGraph, asset: str, name: str, following: Mapping[Column, Iterable[Column]]
) -> list[TracedColumn]:
    start = Column(graph[asset].name, name)
    _check(graph, start)
    found = depths([start], lambda one: sorted(following.get(one, ())))
    return [TracedColumn(one.asset, one.name, depth) for one, depth in found.items() if depth]


def _check(graph: AssetGraph, column: Column) -> None:
    declared = made_of(graph)
    read = {one for columns in declared.values() for one in columns}
    known = {one.name for one in declared.keys() | read if one.asset == column.asset}
    if column.name in known:
        return
    if not known:
        raise UnknownColumn(
            f"no columns of asset {column.asset!r} are declared; "
            "use @asset(columns={'its column': ['asset.column that it is made of']})"
        )
    raise UnknownColumn(
        f"asset {column.asset!r} declares no column {column.name!r}"
        f"{did_you_mean(column.name, known) or '; it has ' + ', '.join(sorted(known))}"
    )
