"""Partition mappings: which partitions of an upstream asset one partition reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from flowstone.errors import BadMapping
from flowstone.key_mapping import AllKeys, SameKey, WholeAsset
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
    "PartitionMapping",
    "SameKey",
    "TimeWindow",
    "WholeAsset",
    "default_mapping",
    "fit",
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
