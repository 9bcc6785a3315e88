"""What a run is to compute: from what is asked for, along the mappings, up and down the graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from flowstone.asset import Asset, Dependency
from flowstone.errors import BadMapping, BadPartition, CyclicGraph
from flowstone.graph import AssetGraph
from flowstone.outline import Node, Outline
from flowstone.partition import Key, Moment, parse_key
from flowstone.partition_key import encode_key, step_name
from flowstone.rollup import waits_until
from flowstone.selection import Selected

Known = Callable[[Sequence[Node]], Collection[Node]]
"""Tells which of the nodes have an output."""

BATCH: Final = 5_000
"""How many nodes are asked about at once."""

REMEMBERED: Final = 20_000
"""Of how many nodes it is kept what they read; of more, it is found out twice."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What one node reads, in order, and which of that it can do without."""

    nodes: tuple[Node, ...]
    optional: frozenset[Node]
    grace: Mapping[Node, datetime] = field(default_factory=dict)
    """Until when those are waited for that are missing, where that time is not over."""


def reach(
    targets: Iterable[Node],
    selected: Selected,
    graph: AssetGraph,
    at: Moment,
    *,
    known: Known,
    reads: Reader,
) -> Outline:
    """Return the nodes of a run that is to compute these targets, and what the selection adds.

    Raises BadPartition or BadMapping for a mapping that leads nowhere, and CyclicGraph for
    partitions of an asset that read each other in a circle.
    """
    outline = Outline()
    for node in targets:
        outline.add(node)
    for name in graph.order:
        if name in selected.below:
            _add_below(outline, name, selected, graph, at)
    absent = _Absent(outline, known)
    for name in reversed(graph.order):
        if outline.keys(name):
            _add_above(outline, name, selected.above, reads, absent)
    absent.settle()
    outline.arrange(graph.order, lambda name: _in_order(outline, name, graph, reads))
    return outline


class Reader:
    """Tells what nodes read, and remembers it of some, as each is asked about twice."""

    def __init__(self, graph: AssetGraph, at: Moment) -> None:
        self._graph = graph
        self._at = at
        self._known: dict[Node, Reads] = {}

    def __call__(self, node: Node) -> Reads:
        """Return what a node reads; raise BadPartition or BadMapping."""
        found = self._known.get(node)
        if found is None:
            found = _reads(self._graph, node, self._at)
            if len(self._known) < REMEMBERED:
                self._known[node] = found
        return found


def _reads(graph: AssetGraph, node: Node, at: Moment) -> Reads:
    asset = graph[node[0]]
    key = parse_key(asset.partitions, node[1], at)
    nodes: list[Node] = []
    optional: list[Node] = []
    grace: dict[Node, datetime] = {}
    for dependency in asset.dependencies:
        found = _upstream(graph, asset, key, dependency, at)
        nodes += found
        if dependency.may_miss_some:
            optional += found
        if dependency.grace is not None:
            window = asset.partitions.window_of(key)
            end = None if window is None else window.end
            until = waits_until(end, at.now, dependency.grace)
            grace.update({} if until is None else dict.fromkeys(found, until))
    return Reads(tuple(nodes), frozenset(optional), grace)


class _Absent:
    """Finds what is read though it is neither in the run nor was ever made, and may be missing."""

    def __init__(self, outline: Outline, known: Known) -> None:
        self._outline = outline
        self._known = known
        self._pairs: list[tuple[Node, Node, datetime | None]] = []

    def look(self, node: Node, reader: Node, until: datetime | None) -> None:
        self._pairs.append((node, reader, until))
        if len(self._pairs) >= BATCH:
            self.settle()

    def settle(self) -> None:
        asked = list(dict.fromkeys(node for node, _, _ in self._pairs))
        there = self._known(asked) if asked else ()
        for node, reader, until in self._pairs:
            if node not in there:
                self._outline.add(node, absent=True)
                self._outline.note(node, reader)
                if until is not None:
                    self._outline.wait(node, until)
        self._pairs.clear()


def _add_below(
    outline: Outline, name: str, selected: Selected, graph: AssetGraph, at: Moment
) -> None:
    onward = selected.starts | selected.below
    for dependency in graph[name].dependencies:
        if dependency.asset != name and dependency.asset in onward:
            for key in outline.keys(dependency.asset):
                for found in _downstream(graph, name, (dependency.asset, key), at):
                    outline.add((name, found))
    todo = deque(outline.keys(name) if graph[name].reads_itself else ())
    while todo:
        for found in _downstream(graph, name, (name, todo.popleft()), at):
            if outline.add((name, found)):
                todo.append(found)


def _add_above(
    outline: Outline, name: str, above: frozenset[str], reads: Reader, absent: _Absent
) -> None:
    todo = deque(key for key in outline.keys(name) if not outline.is_absent((name, key)))
    while todo:
        node = name, todo.popleft()
        read = reads(node)
        for up in read.nodes:
            if up[0] in above and outline.add(up) and up[0] == name:
                todo.append(up[1])
            until = read.grace.get(up)
            if up in outline:
                outline.note(up, node)
                if until is not None and outline.is_absent(up):
                    outline.wait(up, until)
            elif up in read.optional or until is not None:
                absent.look(up, node, until)


def _in_order(outline: Outline, name: str, graph: AssetGraph, reads: Reader) -> Iterable[str]:
    """Return the keys of an asset so that each comes after those that it reads."""
    keys = outline.keys(name)
    if not graph[name].reads_itself:
        # Of another asset, all comes before or after it.
        return keys
    return _sorted(name, keys, lambda key: _own(outline, name, key, reads))


def _own(outline: Outline, name: str, key: str, reads: Reader) -> list[str]:
    if outline.is_absent((name, key)):
        return []
    return [up for other, up in reads((name, key)).nodes if other == name]


def _sorted(
    name: str, keys: Collection[str], before: Callable[[str], Sequence[str]]
) -> Iterator[str]:
    """Yield the keys, each after what comes `before` it, else as they are.

    Without recursion: a chain of partitions may be as long as the set.
    """
    done: dict[str, bool] = {}
    for first in keys:
        stack = [first]
        while stack:
            key = stack[-1]
            if key in done:
                stack.pop()
                if not done[key]:
                    done[key] = True
                    yield key
                continue
            done[key] = False
            for up in reversed(before(key)):
                if up in keys and not done.get(up, False):
                    if up in done:
                        raise _circle(name, key, up)
                    stack.append(up)


def _circle(name: str, key: str, up: str) -> CyclicGraph:
    return CyclicGraph(
        f"{step_name(name, key)} and {step_name(name, up)} read each other in a circle; "
        "a mapping of an asset to itself has to lead to earlier partitions"
    )


def _downstream(graph: AssetGraph, name: str, up: Node, at: Moment) -> Iterator[str]:
    asset, upstream = graph[name], graph[up[0]]
    mapping = graph.mappings[name, up[0]]
    key = parse_key(upstream.partitions, up[1], at)
    try:
        for found in mapping.downstream_keys(key, asset.partitions, upstream.partitions, at):
            yield encode_key(found)
    except Exception as error:
        raise _failed(f"{name!r} reads {step_name(*up)}", str(mapping), error) from error


def _upstream(
    graph: AssetGraph, asset: Asset, key: Key, dependency: Dependency, at: Moment
) -> list[Node]:
    name = dependency.asset
    mapping = graph.mappings[asset.name, name]
    try:
        keys = mapping.upstream_keys(key, asset.partitions, graph[name].partitions, at)
        return [(name, encode_key(up)) for up in keys]
    except Exception as error:
        if isinstance(error, BadPartition) and dependency.optional:
            # There is no such partition, so it is as missing as one can be.
            return []
        said = f"{step_name(asset.name, encode_key(key))} reads {name!r}"
        raise _failed(said, str(mapping), error) from error


def _failed(said: str, mapping: str, error: Exception) -> BadPartition | BadMapping:
    if isinstance(error, BadPartition):
        return BadPartition(f"{said} by {mapping}: {error.message}")
    # The mapping may be the user's own, and a run that cannot be planned has to end.
    return BadMapping(f"{said} by {mapping}, which failed: {type(error).__name__}: {error}")
