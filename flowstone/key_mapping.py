"""Partition mappings that go by the keys themselves: the same key, all, the unpartitioned one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowstone.errors import BadPartition
from flowstone.partition import UNPARTITIONED, Key, Moment, PartitionSet
from flowstone.partition_key import encode_key


def _itself(key: Key, partitions: PartitionSet, at: Moment) -> Key:
    """Return a key that a set has; raise BadPartition if it has none, or only its text."""
    found = partitions.coerce(key, at)
    if encode_key(found) != encode_key(key):
        raise BadPartition(f"partition {key!r} is written like {found!r}, but is not the same key")
    return found


@dataclass(frozen=True)
class SameKey:
    """Each partition reads the upstream partition of the same key."""

    fan_in = False

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return `key` itself; raise BadPartition where the upstream set lacks it."""
        del downstream
        return (_itself(key, upstream, at),)

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return `key` itself, if the downstream set has it."""
        del upstream
        with contextlib.suppress(BadPartition):
            yield _itself(key, downstream, at)

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

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return all keys of the downstream set."""
        del key, upstream
        return downstream.keys(at)

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

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return all keys of the downstream set."""
        del key, upstream
        return downstream.keys(at)

    def __str__(self) -> str:
        return "all partitions"
