"""Mappings between sets of several dimensions: what is read along each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowstone.mapping_protocol import PartitionMapping
from flowstone.partition import (
    UNPARTITIONED,
    Key,
    Moment,
    PartitionSet,
    ProductPartitions,
    UnpartitionedSet,
)
from flowstone.partition_key import encode_key


@dataclass(frozen=True)
class Axis:
    """What is read along one upstream dimension."""

    name: str
    """The dimension in what people read."""
    down: int | None
    """The place of the downstream dimension that says it; None where none does."""
    mapping: PartitionMapping


@dataclass(frozen=True)
class DimensionWise:
    """The keys of each upstream dimension are told by an axis; all combinations of them are read.

    A set of one dimension counts as a product of that one.
    """

    axes: tuple[Axis, ...]
    """One for each upstream dimension, in their order."""

    @property
    def fan_in(self) -> bool:
        """Whether there is one along any dimension."""
        return any(axis.mapping.fan_in for axis in self.axes)

    @property
    def reads_itself(self) -> bool:
        """Whether a partition would read itself where the two sets are one."""
        return all(getattr(axis.mapping, "reads_itself", False) for axis in self.axes)

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return all combinations of the keys that are read along the dimensions."""
        parts, downs = _parts(key, downstream), sets_of(downstream)
        along = []
        for axis, up in zip(self.axes, sets_of(upstream), strict=True):
            part, down = _NOTHING if axis.down is None else (parts[axis.down], downs[axis.down])
            along.append(axis.mapping.upstream_keys(part, down, up, at))
        return tuple(_whole(found, upstream) for found in itertools.product(*along))

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return all combinations of the keys that read along the dimensions."""
        downs = sets_of(downstream)
        readers: list[list[Key] | None] = [None] * len(downs)
        for axis, part, up in zip(self.axes, _parts(key, upstream), sets_of(upstream), strict=True):
            down = UnpartitionedSet() if axis.down is None else downs[axis.down]
            found = list(axis.mapping.downstream_keys(part, down, up, at))
            if axis.down is not None:
                readers[axis.down] = _common(readers[axis.down], found)
            elif not found:
                return iter(())
        along = (
            found if found is not None else down.keys(at)
            for found, down in zip(readers, downs, strict=True)
        )
        return (_whole(found, downstream) for found in itertools.product(*along))

    def __str__(self) -> str:
        return ", ".join(
            f"{axis.name}: {axis.mapping}" if axis.name else str(axis.mapping) for axis in self.axes
        )


_NOTHING: tuple[Key, PartitionSet] = (UNPARTITIONED, UnpartitionedSet())


def sets_of(partitions: PartitionSet) -> tuple[PartitionSet, ...]:
    """Return the sets of the dimensions."""
    return partitions.sets if isinstance(partitions, ProductPartitions) else (partitions,)


def _parts(key: Key, partitions: PartitionSet) -> tuple[Key, ...]:
    if not isinstance(partitions, ProductPartitions):
        return (key,)
    assert isinstance(key, tuple)
    return key


def _whole(parts: tuple[Key, ...], partitions: PartitionSet) -> Key:
    return parts if isinstance(partitions, ProductPartitions) else parts[0]


def _common(some: list[Key] | None, others: list[Key]) -> list[Key]:
    if some is None:
        return others
    encoded = {encode_key(key) for key in others}
    return [key for key in some if encode_key(key) in encoded]
