"""What a request asks for: the assets that it selects, and which of their partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from flowstone.choice import Choice, chosen
from flowstone.errors import BadPartition
from flowstone.graph import AssetGraph
from flowstone.outline import Node
from flowstone.partition import UNPARTITIONED, Moment, first_keys, parse_key
from flowstone.partition_key import decode_key, encode_key, label
from flowstone.reach import BATCH, Known
from flowstone.request import Only, Request
from flowstone.selection import Selected, resolve
from flowstone.walk import depths


def not_known(asset: str, keys: Sequence[str]) -> Mapping[str, str]:
    """Tell nothing of how partitions stand."""
    del asset, keys
    return {}


Standing = Callable[[str, Sequence[str]], Mapping[str, str]]
"""Tell how partitions of an asset stand: by their keys one word each, see `partition_states`."""

_T = TypeVar("_T")


def batches(found: Iterable[_T], weight: Callable[[_T], int]) -> Iterator[Sequence[_T]]:
    """Yield what was found in lists, of which each weighs about `BATCH`."""
    batch: list[_T] = []
    weighs = 0
    for one in found:
        batch.append(one)
        weighs += weight(one)
        if weighs >= BATCH:
            yield batch
            batch, weighs = [], 0
    if batch:
        yield batch


def selected_by(request: Request, graph: AssetGraph) -> Selected:
    """Return the assets that a request means; raise BadSelection or UnknownAsset."""
    selected = resolve(graph, request.assets)
    if not request.upstream:
        return selected

    def read_by(name: str) -> list[str]:
        return [dependency.asset for dependency in graph[name].dependencies]

    ends = {*selected.anchors, *selected.below}
    above = {up for name in depths(ends, read_by) for up in read_by(name)}
    return replace(selected, above=selected.above | above)


def targets(
    request: Request,
    graph: AssetGraph,
    selected: Selected,
    at: Moment,
    *,
    known: Known,
    standing: Standing,
) -> Iterator[Node]:
    """Yield the partitions that were asked for, of each asset whose partitions were."""
    for name in selected.anchors:
        if request.choice is None:
            yield name, _target_key(graph, name, request.partition, at)
            continue
        keys = _chosen(graph, name, request, at)
        for batch in batches(keys, lambda _: 1):
            for key in _only(request.only, name, batch, known, standing):
                yield name, key


def _chosen(graph: AssetGraph, name: str, request: Request, at: Moment) -> Iterator[str]:
    assert request.choice is not None
    try:
        for key in chosen(graph[name].partitions, Choice.from_json(request.choice), at):
            yield encode_key(key)
    except BadPartition as error:
        raise BadPartition(f"asset {name!r}: {error.message}") from error


def _only(
    only: Only | None, name: str, keys: Sequence[str], known: Known, standing: Standing
) -> Iterable[str]:
    if only is None:
        return keys
    if only == Only.MISSING:
        made = known([(name, key) for key in keys])
        return [key for key in keys if (name, key) not in made]
    stands = standing(name, keys)
    return [key for key in keys if stands.get(key) == only]


def _target_key(graph: AssetGraph, name: str, partition: str, at: Moment) -> str:
    asset = graph[name]
    try:
        return encode_key(parse_key(asset.partitions, partition, at))
    except BadPartition as error:
        if decode_key(partition) == UNPARTITIONED:
            some = [label(encode_key(key)) for key in first_keys(asset.partitions, 2, at)]
            such_as = f" such as {', '.join(some)}" if some else "; there is none as yet"
            raise BadPartition(
                f"asset {name!r} is partitioned ({asset.partitions}); give a partition{such_as}"
            ) from error
        raise BadPartition(f"asset {name!r}: {error.message}") from error
