"""The graph of assets: built once from the definitions, checked, then only read."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flowstone.asset import Asset, Dependency
from flowstone.errors import (
    BadMapping,
    CyclicGraph,
    DefinitionError,
    DuplicateAsset,
    UnknownAsset,
    UnknownResource,
    did_you_mean,
)
from flowstone.forms import check_fan_in
from flowstone.limits import rate_key, told_rate
from flowstone.mapping import PartitionMapping, fit, may_read_itself
from flowstone.mapping_check import MappingChecks
from flowstone.queues import ASSET_QUEUES, QUEUES


@dataclass(frozen=True)
class AssetGraph:
    """Assets by name, every dependency known, without a cycle."""

    assets: Mapping[str, Asset]
    order: tuple[str, ...]
    """The names so that each comes after all that it reads; ties in the order of the names."""
    mappings: Mapping[tuple[str, str], PartitionMapping]
    """The partition mapping of each (downstream, upstream) pair."""

    @classmethod
    def build(cls, assets: Iterable[Asset], resources: Iterable[str] = ()) -> AssetGraph:
        """Check the assets and return their graph.

        Raises DuplicateAsset, UnknownAsset, UnknownResource, CyclicGraph,
        BadMapping or DefinitionError, each naming the asset and where it is defined.
        """
        by_name = _by_name(assets)
        known = set(resources)
        for asset in by_name.values():
            _check(asset, by_name, known)
        _check_rates(by_name.values())
        check = MappingChecks()
        mappings = {
            (asset.name, dependency.asset): _mapping(
                asset, by_name[dependency.asset], dependency, check
            )
            for asset in by_name.values()
            for dependency in asset.dependencies
        }
        return cls(MappingProxyType(by_name), _order(by_name), MappingProxyType(mappings))

    def __getitem__(self, name: str) -> Asset:
        """Return an asset; raise UnknownAsset with the nearest name."""
        try:
            return self.assets[name]
        except KeyError:
            if not self.assets:
                raise UnknownAsset(
                    f"asset {name!r} is not defined, and no other; set FLOWSTONE_ASSETS to the "
                    "modules that define assets"
                ) from None
            raise UnknownAsset(
                f"asset {name!r} is not defined{did_you_mean(name, self.assets)}"
            ) from None

    def readers(self, name: str) -> list[str]:
        """Return the assets that read `name`, in the order of the graph."""
        return [
            other
            for other in self.order
            if any(d.asset == name for d in self.assets[other].dependencies)
        ]


def _by_name(assets: Iterable[Asset]) -> dict[str, Asset]:
    by_name: dict[str, Asset] = {}
    for asset in assets:
        other = by_name.setdefault(asset.name, asset)
        if other is not asset:
            raise DuplicateAsset(
                f"asset {asset.name!r} is defined twice: {other.location} and {asset.location}"
            )
    return dict(sorted(by_name.items()))


def _check(asset: Asset, by_name: Mapping[str, Asset], resources: set[str]) -> None:
    for dependency in asset.dependencies:
        if dependency.asset not in by_name:
            raise UnknownAsset(
                f"asset {dependency.asset!r} is not defined"
                f"{did_you_mean(dependency.asset, by_name)} "
                f"(read by {asset.name!r}, {asset.location})"
            )
    for name in asset.requires:
        if name not in resources:
            raise UnknownResource(
                f"resource {name!r} is not defined{did_you_mean(name, resources)} "
                f"(needed by {asset.name!r}, {asset.location})"
            )
        if name in asset.injected and name in by_name:
            raise DefinitionError(
                f"the parameter {name!r} of {asset.name!r} ({asset.location}) means both an asset "
                "and a resource that it requires; rename one of the two"
            )
    _check_columns(asset)


def check_queues(graph: AssetGraph, own: Iterable[str]) -> None:
    """Raise DefinitionError for an asset whose queue there is not; `own` are the settings'."""
    known = [*ASSET_QUEUES, *own]
    choice = ", ".join(known)
    for asset in graph.assets.values():
        if asset.queue in known:
            continue
        said = f"asset {asset.name!r} ({asset.location}) names the queue {asset.queue!r}"
        if asset.queue in QUEUES:
            raise DefinitionError(f"{said}, which is not for assets; use one of {choice}")
        raise DefinitionError(
            f"{said}, which there is not; use one of {choice}, or add it to FLOWSTONE_QUEUES"
            f"{did_you_mean(asset.queue, known)}"
        )


def _check_columns(asset: Asset) -> None:
    reads = [dependency.asset for dependency in asset.dependencies]
    for column, made_of in asset.columns.items():
        for source in made_of:
            # Names of assets may have dots.
            name, dot, its_column = source.rpartition(".")
            if name in reads and its_column:
                continue
            where = f"column {column!r} of asset {asset.name!r} ({asset.location})"
            if not dot or not its_column:
                raise DefinitionError(f"{where} is made of {source!r}; write it as 'asset.column'")
            raise DefinitionError(
                f"{where} is made of {source!r}, but {asset.name!r} does not read {name!r}"
                f"{did_you_mean(name, reads)}"
            )


def _check_rates(assets: Iterable[Asset]) -> None:
    """Raise DefinitionError where assets give one key different rates."""
    first: dict[str, Asset] = {}
    for asset in assets:
        if asset.rate is None:
            continue
        other = first.setdefault(rate_key(asset.rate, asset.name), asset)
        if other.rate is not None and not asset.rate.limits_as(other.rate):
            both = " and ".join(
                f"{one.name!r} ({one.location}) {told_rate(one.rate.interval, one.rate.burst)}"
                for one in (other, asset)
                if one.rate is not None
            )
            raise DefinitionError(
                f"the rate with the key {asset.rate.key!r} is not one: {both}; give both the same, "
                "or another key"
            )


def _mapping(
    asset: Asset, upstream: Asset, dependency: Dependency, check: MappingChecks
) -> PartitionMapping:
    if asset is upstream and dependency.mapping is None:
        raise CyclicGraph(
            f"asset {asset.name!r} ({asset.location}) reads itself, and does not say which of its "
            "partitions; write deps={'before': Dep('"
            f"{asset.name}', mapping=TimeWindow(offset=-1))}}, say"
        )
    try:
        mapping = fit(dependency.mapping, asset.partitions, upstream.partitions)
        check(mapping, asset.partitions, upstream.partitions, optional=dependency.optional)
    except BadMapping as error:
        raise BadMapping(
            f"{asset.name!r} ({asset.location}) cannot read {upstream.name!r}: {error.message}; "
            "say which partitions it reads with deps={...: Dep(..., mapping=...)}"
        ) from error
    if asset is upstream and not may_read_itself(mapping):
        raise CyclicGraph(
            f"asset {asset.name!r} ({asset.location}) reads itself by {mapping}, which leads each "
            "partition to itself; a mapping such as TimeWindow(offset=-1) leads to earlier ones"
        )
    _check_arrival(asset, dependency, mapping)
    return mapping


def _check_arrival(asset: Asset, dependency: Dependency, mapping: PartitionMapping) -> None:
    """Raise DefinitionError where several values are asked for as what they cannot be."""
    if dependency.parameter is None or not mapping.fan_in:
        return
    handlers = (asset.on_approved, asset.on_rejected, asset.on_signal)
    for function in (asset.function, *filter(None, handlers)):
        reader = f"{asset.name!r} ({asset.location})"
        check_fan_in(function, dependency.parameter, reader, dependency.asset)


def _order(by_name: Mapping[str, Asset]) -> tuple[str, ...]:
    sorter = graphlib.TopologicalSorter(
        {
            # One that reads itself reads other partitions; the planner orders these.
            name: sorted(d.asset for d in asset.dependencies if d.asset != name)
            for name, asset in by_name.items()
        }
    )
    try:
        return tuple(sorter.static_order())
    except graphlib.CycleError as error:
        # graphlib names the cycle from a node back to itself, each a reader of the one before.
        path = " -> ".join(reversed(error.args[1]))
        raise CyclicGraph(
            f"assets read each other in a circle: {path} (an arrow points to what is read)"
        ) from None
