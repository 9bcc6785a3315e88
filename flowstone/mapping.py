"""Partition mappings: the default between two sets, and how one that is given fits them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flowstone.errors import BadMapping, DefinitionError, did_you_mean
from flowstone.key_mapping import AllKeys, Keys, SameKey, WholeAsset
from flowstone.last_keys import LastKeys
from flowstone.mapping_protocol import PartitionMapping
from flowstone.own_mapping import Mapped
from flowstone.partition import (
    DynamicPartitions,
    Key,
    Moment,
    PartitionSet,
    ProductPartitions,
    StaticPartitions,
    TimePartitions,
    UnpartitionedSet,
)
from flowstone.product_mapping import Axis, DimensionWise
from flowstone.time_mapping import TimeWindow, are_cut_alike, seem_to_lie_in_one

__all__ = [
    "AllKeys",
    "Keys",
    "LastKeys",
    "Mapped",
    "PartitionMapping",
    "PerDimension",
    "SameKey",
    "TimeWindow",
    "WholeAsset",
    "default_mapping",
    "fit",
    "may_read_itself",
    "may_read_nothing",
    "written",
]


@runtime_checkable
class Fitting(Protocol):
    """A mapping that depends on the two sets between which it is."""

    def fitted(self, downstream: PartitionSet, upstream: PartitionSet) -> PartitionMapping:
        """Return it as it is between these; raise BadMapping where it does not fit them."""


@dataclass(frozen=True, init=False)
class PerDimension:
    """A mapping for dimensions of sets that have several: all combinations are read.

    `PerDimension({"day": TimeWindow(-1)})`, or `PerDimension(day=TimeWindow(-1))`. What is not said
    goes by the name: a dimension that both sides have is read by the default mapping between the
    two, and of one that the reader lacks, all keys are. Between a set of several dimensions and one
    of a single dimension, it is the dimension that is named, or the only one which suggests itself.
    """

    by: tuple[tuple[str, PartitionMapping], ...]

    def __init__(
        self, by: Mapping[str, PartitionMapping] | None = None, /, **named: PartitionMapping
    ) -> None:
        """Raise DefinitionError for what is no mapping."""
        if by is not None and not isinstance(by, Mapping):
            raise DefinitionError(f"PerDimension takes mappings by dimension, and {by!r} is none")
        given = {**(by or {}), **named}
        for name, mapping in given.items():
            if not hasattr(mapping, "upstream_keys"):
                raise DefinitionError(
                    f"PerDimension: {mapping!r} for {name!r} is no mapping, such as TimeWindow(-1)"
                )
        object.__setattr__(self, "by", tuple(given.items()))

    @property
    def fan_in(self) -> bool | None:
        """None, as the two sets tell."""
        return None

    def fitted(self, downstream: PartitionSet, upstream: PartitionSet) -> PartitionMapping:
        """Return the mapping along each dimension; raise BadMapping where one does not fit."""
        given = dict(self.by)
        products = [s for s in (upstream, downstream) if isinstance(s, ProductPartitions)]
        if not products:
            raise BadMapping(
                f"PerDimension needs several dimensions, and ({upstream}) and ({downstream}) have "
                "one each"
            )
        for name in given:
            if name not in products[0].names:
                raise BadMapping(
                    f"PerDimension names {name!r}, which is none of the dimensions "
                    f"{', '.join(products[0].names)}{did_you_mean(name, products[0].names)}"
                )
        if not isinstance(upstream, ProductPartitions):
            return _to_one(given, products[0], upstream)
        if not isinstance(downstream, ProductPartitions):
            return _from_one(given, downstream, upstream)
        return DimensionWise(
            tuple(
                _axis(given.get(name), name, downstream, up)
                for name, up in upstream.dimensions.items()
            )
        )

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return all combinations of the keys that are read along the dimensions."""
        return self.fitted(downstream, upstream).upstream_keys(key, downstream, upstream, at)

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return all combinations of the keys that read along the dimensions."""
        fitted = self.fitted(downstream, upstream)
        return iter(fitted.downstream_keys(key, downstream, upstream, at))

    def __str__(self) -> str:
        return ", ".join(f"{name}: {mapping}" for name, mapping in self.by) or "by dimension"


def _axis(
    given: PartitionMapping | None, name: str, downstream: ProductPartitions, up: PartitionSet
) -> Axis:
    if name not in downstream.names:
        return Axis(name, None, fit(given, UnpartitionedSet(), up))
    place = downstream.names.index(name)
    return Axis(name, place, fit(given, downstream.sets[place], up))


def _to_one(
    given: Mapping[str, PartitionMapping], downstream: ProductPartitions, upstream: PartitionSet
) -> DimensionWise:
    """Return how partitions of several dimensions read those of one."""
    if len(given) > 1:
        raise BadMapping(
            f"PerDimension names {' and '.join(given)}, but ({upstream}) is read by one dimension"
        )
    name = next(iter(given), None)
    if name is None:
        name = _only(
            [n for n, s in downstream.dimensions.items() if _suggests(s, upstream)],
            downstream,
            upstream,
        )
    place = downstream.names.index(name)
    return DimensionWise(
        (Axis(name, place, fit(given.get(name), downstream.sets[place], upstream)),)
    )


def _from_one(
    given: Mapping[str, PartitionMapping], downstream: PartitionSet, upstream: ProductPartitions
) -> DimensionWise:
    """Return how partitions of one dimension read those of several."""
    fixed = {n for n, m in given.items() if _is_fixed(m, downstream, upstream.dimensions[n])}
    by = set(given) - fixed
    if not by and not isinstance(downstream, UnpartitionedSet):
        open_ones = {n: s for n, s in upstream.dimensions.items() if n not in fixed}
        suggested = [n for n, s in open_ones.items() if _suggests(downstream, s)]
        by = {_only(suggested, downstream, upstream)}
    return DimensionWise(
        tuple(
            Axis(name, 0, fit(given.get(name), downstream, up))
            if name in by
            else Axis(name, None, fit(given.get(name), UnpartitionedSet(), up))
            for name, up in upstream.dimensions.items()
        )
    )


def _is_fixed(mapping: PartitionMapping, downstream: PartitionSet, upstream: PartitionSet) -> bool:
    """Return whether all partitions read the same keys."""
    if isinstance(mapping, LastKeys):
        return not (isinstance(downstream, TimePartitions) and isinstance(upstream, TimePartitions))
    return isinstance(mapping, Keys | AllKeys)


def _suggests(downstream: PartitionSet, upstream: PartitionSet) -> bool:
    try:
        default_mapping(downstream, upstream)
    except BadMapping:
        return False
    return True


def _only(suggested: Sequence[str], downstream: PartitionSet, upstream: PartitionSet) -> str:
    if len(suggested) == 1:
        return suggested[0]
    which = "no dimension suggests" if not suggested else f"{' and '.join(suggested)} suggest"
    themselves = "itself" if not suggested else "themselves"
    raise BadMapping(
        f"between ({upstream}) and ({downstream}), {which} {themselves}; name the one that counts "
        "with mapping=PerDimension({...: TimeWindow()}), say"
    )


def fit(
    mapping: PartitionMapping | None, downstream: PartitionSet, upstream: PartitionSet
) -> PartitionMapping:
    """Return a mapping, or without one the default, as it is between two sets.

    Raises BadMapping where it does not fit them.
    """
    if mapping is None:
        return default_mapping(downstream, upstream)
    for needed in ("fan_in", "upstream_keys", "downstream_keys"):
        if not hasattr(mapping, needed):
            raise BadMapping(
                f"the mapping {type(mapping).__name__} has no {needed}; write it as the protocol "
                "PartitionMapping says, or use Mapped(forward, reverse)"
            )
    return mapping.fitted(downstream, upstream) if isinstance(mapping, Fitting) else mapping


def default_mapping(downstream: PartitionSet, upstream: PartitionSet) -> PartitionMapping:
    """Return the mapping that two partition sets suggest; raise BadMapping if none does."""
    match downstream, upstream:
        case _, UnpartitionedSet():
            return WholeAsset()
        case UnpartitionedSet(), _:
            return AllKeys()
        case (ProductPartitions(), _) | (_, ProductPartitions()):
            return PerDimension().fitted(downstream, upstream)
        case TimePartitions(), TimePartitions() if downstream.tz == upstream.tz:
            if _one_lies_in_the_other(downstream, upstream):
                alike = are_cut_alike(downstream, upstream)
                return SameKey() if alike else TimeWindow().fitted(downstream, upstream)
        case _ if _have_the_same(downstream, upstream):
            return SameKey()
    raise BadMapping(f"no partition mapping from ({upstream}) to ({downstream}) suggests itself")


def _one_lies_in_the_other(one: TimePartitions, other: TimePartitions) -> bool:
    return seem_to_lie_in_one(one, other) or seem_to_lie_in_one(other, one)


def _have_the_same(downstream: PartitionSet, upstream: PartitionSet) -> bool:
    """Return whether all keys of one set are keys of the other."""
    match downstream, upstream:
        case StaticPartitions(), StaticPartitions():
            return downstream.is_within(upstream)
        case DynamicPartitions(), DynamicPartitions():
            return downstream.name == upstream.name
    return False


def may_read_itself(mapping: PartitionMapping) -> bool:
    """Return whether an asset may read itself by this mapping.

    Those that are known to have a partition read itself say so by `reads_itself`; of others, it
    shows when a run is planned.
    """
    return not getattr(mapping, "reads_itself", False)


def may_read_nothing(mapping: PartitionMapping) -> bool:
    """Return whether a mapping to one value may lead to none, as from the first of days."""
    if isinstance(mapping, DimensionWise):
        return any(may_read_nothing(axis.mapping) for axis in mapping.axes)
    if isinstance(mapping, TimeWindow):
        return mapping.offset != 0
    return type(mapping) not in {SameKey, Keys, WholeAsset}


def written(mapping: PartitionMapping, code_of: Callable[[Callable[..., Any]], str]) -> str:
    """Return what the hash of an asset's code holds of a mapping that it was given.

    That is the name of the type alone for those that had no parameters when they were hashed
    first, and for a user's own, whose text may differ from process to process. Of
    functions it holds what `code_of` says.
    """
    if isinstance(mapping, PerDimension):
        along = (f"{name}={written(m, code_of)}" for name, m in mapping.by)
        return f"PerDimension({', '.join(along)})"
    if isinstance(mapping, Mapped):
        return f"{mapping!r} {code_of(mapping.forward)} {code_of(mapping.reverse)}"
    if isinstance(mapping, TimeWindow | LastKeys | Keys):
        return repr(mapping)
    return type(mapping).__name__
