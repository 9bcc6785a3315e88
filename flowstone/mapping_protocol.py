"""What a partition mapping is: which partitions of an upstream asset one partition reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from flowstone.partition import Key, Moment, PartitionSet


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
