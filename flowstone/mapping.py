"""Partition mappings: which partitions of an upstream asset one partition reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from flowstone.errors import BadMapping
from flowstone.key_mapping import AllKeys, Keys, SameKey, WholeAsset
from flowstone.last_keys import LastKeys
from flowstone.own_mapping import Mapped
from flowstone.partition import (
    Key,
    Moment,
    PartitionSet,
    StaticPartitions,
    TimePartitions,
    UnpartitionedSet,
)
from flowstone.time_mapping import TimeWindow, are_cut_alike, lie_in_one

__all__ = [
    "AllKeys",
    "Keys",
    "LastKeys",
    "Mapped",
    "PartitionMapping",
    "SameKey",
    "TimeWindow",
    "WholeAsset",
    "default_mapping",
    "fit",
    "may_read_itself",
    "written",
]


class PartitionMapping(Protocol):
    """How a dependency turns a downstream key into upstream keys, and back."""

    @property
    def fan_in(self) -> bool | None:
        """Whether the function gets a dict of key -> value, rather than one value."""

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the upstream keys that `key` of `downstream` reads, in their natural order."""

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterable[Key]:
        """Return the keys of `downstream` that read `key` of `upstream`, in their natural order."""


@runtime_checkable
class Fitting(Protocol):
    """A mapping that depends on the two sets between which it is."""

    def fitted(self, downstream: PartitionSet, upstream: PartitionSet) -> PartitionMapping:
        """Return it as it is between these; raise BadMapping where it does not fit them."""


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
        case StaticPartitions(), StaticPartitions() if downstream.is_within(upstream):
            return SameKey()
        case TimePartitions(), TimePartitions() if downstream.tz == upstream.tz:
            if are_cut_alike(downstream, upstream):
                return SameKey()
            if lie_in_one(downstream, upstream) or lie_in_one(upstream, downstream):
                return TimeWindow().fitted(downstream, upstream)
    raise BadMapping(f"no partition mapping from ({upstream}) to ({downstream}) suggests itself")


def may_read_itself(mapping: PartitionMapping) -> bool:
    """Return whether an asset may read itself by this mapping.

    Those that are known to have a partition read itself say so by `reads_itself`; of others, it
    shows when a run is planned.
    """
    return not getattr(mapping, "reads_itself", False)


def written(mapping: PartitionMapping) -> str:
    """Return what the hash of an asset's code holds of a mapping that it was given.

    That is the name of the type alone for those that had no parameters when they were hashed
    first, and for a user's own, whose text may differ from process to process.
    """
    if isinstance(mapping, TimeWindow | LastKeys | Keys | Mapped):
        return repr(mapping)
    return type(mapping).__name__
