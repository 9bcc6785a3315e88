"""Partitions whose keys are added and removed while everything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flowstone.errors import BadPartition, DefinitionError
from flowstone.names import NAME
from flowstone.partition_key import Key, encode_key, label
from flowstone.partition_set import Moment, PartitionSet, in_list, is_in_list, say


@dataclass(frozen=True)
class DynamicPartitions(PartitionSet):
    """The keys that have been added under a name: `flowstone.add_partitions("customers", [...])`.

    Sets of the same name have the same keys, in the order in which they were added. What is
    planned has those that there are at that moment.
    """

    name: str

    def __post_init__(self) -> None:
        """Raise DefinitionError for what is no name."""
        check_name(self.name)

    def keys(self, at: Moment) -> Iterator[Key]:
        """Yield the keys that there are then, in the order in which they were added."""
        return iter(at.keys_of(self.name).values())

    def coerce(self, value: Key, at: Moment) -> Key:
        """Accept a key that there is then, or its text where only one key is written so."""
        keys = at.keys_of(self.name)
        remedy = f"; `flowstone keys add {self.name} {label(encode_key(value)) or 'KEY'}` adds it"
        if not keys:
            raise BadPartition(
                f"partition {say(value)}: the dynamic partitions {self.name!r} have no keys{remedy}"
            )
        return in_list(value, keys, lambda: at.labels_of(self.name), remedy)

    def has(self, value: Key, at: Moment) -> bool:
        """Return whether it is a key that there is then, or its text."""
        return is_in_list(value, at.keys_of(self.name), lambda: at.labels_of(self.name))

    def __str__(self) -> str:
        return f"the dynamic keys of {self.name!r}"


def check_name(name: object) -> None:
    """Raise DefinitionError unless this is a name for dynamic partitions."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise DefinitionError(
            f"{name!r} is no name for dynamic partitions; use letters, digits, '_', '.' and '-'"
        )
