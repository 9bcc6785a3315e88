"""Partition mappings: which partitions of an upstream asset one partition reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flowstone.errors import BadMapping
from flowstone.partition import (
    UNPARTITIONED,
    Key,
    Moment,
    PartitionSet,
    StaticPartitions,
    TimePartitions,
    UnpartitionedSet,
)


class PartitionMapping(Protocol):
    """How a dependency turns a downstream key into upstream keys."""

    fan_in: bool
    """Whether the function gets a dict of key -> value, rather than one value."""

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the upstream keys that `key` of `downstream` reads, in their natural order."""


@dataclass(frozen=True)
class SameKey:
    """Each partition reads the upstream partition of the same key."""

    fan_in = False

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return `key` itself; raise BadPartition where the upstream set lacks it."""
        del downstream
        return (upstream.coerce(key, at),)

    def __str__(self) -> str:
        return "same key"


@dataclass(frozen=True)
class WholeAsset:
    """Every partition reads the one value of an unpartitioned upstream asset."""

    fan_in = False

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the unpartitioned key."""
        del key, downstream, upstream, at
        return (UNPARTITIONED,)

    def __str__(self) -> str:
        return "unpartitioned"


@dataclass(frozen=True)
class AllKeys:
    """Reads every partition of the upstream asset that exists when the run is planned."""

    fan_in = True

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return all keys of the upstream set."""
        del key, downstream
        return tuple(upstream.keys(at))

    def __str__(self) -> str:
        return "all partitions"


@dataclass(frozen=True)
class WindowsInside:
    """A longer window reads all the shorter upstream windows in it: a month its days."""

    fan_in = True

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the upstream keys whose windows overlap that of `key`."""
        down, up = _both_time(downstream, upstream)
        return tuple(up.keys_in(down.window(key), at))

    def __str__(self) -> str:
        return "the windows inside"


@dataclass(frozen=True)
class WindowAround:
    """A shorter window reads the longer upstream window in which it begins: a day its month."""

    fan_in = False

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the upstream key at the start of the window of `key`."""
        down, up = _both_time(downstream, upstream)
        return (up.coerce(up.key_at(down.window(key).start), at),)

    def __str__(self) -> str:
        return "the window around"


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
            if type(downstream) is type(upstream):
                return SameKey()
            if _length(downstream) > _length(upstream):
                return WindowsInside()
            return WindowAround()
    raise BadMapping(f"no partition mapping from ({upstream}) to ({downstream}) suggests itself")


def _length(partitions: TimePartitions) -> float:
    window = partitions.window(partitions.first)
    return (window.end - window.start).total_seconds()


def _both_time(one: PartitionSet, other: PartitionSet) -> tuple[TimePartitions, TimePartitions]:
    if isinstance(one, TimePartitions) and isinstance(other, TimePartitions):
        return one, other
    raise BadMapping(f"a time window mapping needs time partitions on both sides, not ({one})")
