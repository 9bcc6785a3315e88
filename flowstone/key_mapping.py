"""Partition mappings that go by the keys themselves: the same key, all, the unpartitioned one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowstone.errors import BadPartition, DefinitionError
from flowstone.partition import UNPARTITIONED, Key, Moment, PartitionSet
from flowstone.partition_key import encode_key, label


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
    reads_itself = True

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
        # Asked first: of a long list, an error takes as long as all of its keys.
        if downstream.has(key, at):
            with contextlib.suppress(BadPartition):
                yield _itself(key, downstream, at)

    def __str__(self) -> str:
        return "same key"


@dataclass(frozen=True)
class WholeAsset:
    """Every partition reads the one value of an unpartitioned upstream asset."""

    fan_in = False
    reads_itself = True

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
    reads_itself = True

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


@dataclass(frozen=True, init=False)
class Keys:
    """Every partition reads the partitions that are named: one value, or a dict of several.

    A dict has them in the given order. Keys may be given as people write them.
    """

    keys: tuple[Key, ...]
    reads_itself = True

    def __init__(self, *keys: Key) -> None:
        """Raise DefinitionError without a key."""
        if not keys:
            raise DefinitionError("Keys() reads nothing; name the keys, such as Keys('eu')")
        object.__setattr__(self, "keys", keys)

    @property
    def fan_in(self) -> bool:
        """Whether there are several."""
        return len(self.keys) > 1

    def upstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Sequence[Key]:
        """Return the given keys; raise BadPartition where the upstream set lacks one."""
        del key, downstream
        found = [upstream.coerce(given, at) for given in self.keys]
        return tuple({encode_key(one): one for one in found}.values())

    def downstream_keys(
        self, key: Key, downstream: PartitionSet, upstream: PartitionSet, at: Moment
    ) -> Iterator[Key]:
        """Return all keys of the downstream set, if `key` is one of those given."""
        try:
            read = map(encode_key, self.upstream_keys(key, downstream, upstream, at))
        except BadPartition:
            return iter(())
        return downstream.keys(at) if encode_key(key) in read else iter(())

    def __str__(self) -> str:
        shown = ", ".join(label(encode_key(key)) for key in self.keys[:4])
        return f"the keys {shown}" + (", ..." if len(self.keys) > 4 else "")  # noqa: PLR2004
