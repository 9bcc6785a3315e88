"""Partitions of several dimensions: each combination of their keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from flowstone.errors import BadPartition, DefinitionError, did_you_mean
from flowstone.names import NAME
from flowstone.partition_key import Key
from flowstone.partition_set import Moment, PartitionSet, UnpartitionedSet, Window, say

T = TypeVar("T")

BAR: Final = "|"
"""Stands between the keys of the dimensions in what people write."""


@dataclass(frozen=True, init=False)
class ProductPartitions(PartitionSet):
    """One partition for each combination of the keys of two or more dimensions.

    `ProductPartitions(day=days, region=regions)`, or a mapping of names to sets. A key is a tuple
    with a key of each, in their order; it may be given as such, as a mapping of names, or as a text
    with bars: "2013-01-15|eu". The keys of the last dimension come one after the other.
    """

    names: tuple[str, ...]
    sets: tuple[PartitionSet, ...]

    def __init__(
        self, dimensions: Mapping[str, PartitionSet] | None = None, /, **named: PartitionSet
    ) -> None:
        if dimensions is not None and not isinstance(dimensions, Mapping):
            raise DefinitionError(
                f"the dimensions of ProductPartitions are a {type(dimensions).__name__}; give each "
                "by its name, as in ProductPartitions(day=days, region=regions)"
            )
        all_of_them: dict[str, Any] = {**(dimensions or {}), **named}
        if len(all_of_them) < 2:  # noqa: PLR2004
            raise DefinitionError(
                "ProductPartitions takes at least two dimensions, as in "
                "ProductPartitions(day=days, region=regions)"
            )
        for name, partitions in all_of_them.items():
            _check(name, partitions)
        object.__setattr__(self, "names", tuple(all_of_them))
        object.__setattr__(self, "sets", tuple(all_of_them.values()))

    @property
    def dimensions(self) -> dict[str, PartitionSet]:
        """The sets by their names, in the order of the keys."""
        return dict(zip(self.names, self.sets, strict=True))

    def keys(self, at: Moment) -> Iterator[Key]:
        """Yield all combinations, the first dimension slowest."""
        others = [list(partitions.keys(at)) for partitions in self.sets[1:]]
        return (
            (first, *rest) for first in self.sets[0].keys(at) for rest in itertools.product(*others)
        )

    def coerce(self, value: Key, at: Moment) -> Key:
        """Accept a tuple, a mapping of names to keys, or a text with bars."""
        return self.each(value, lambda partitions, part: partitions.coerce(part, at))

    def has(self, value: Key, at: Moment) -> bool:
        """Return whether each dimension has its part."""
        try:
            parts = self._split(value)
        except BadPartition:
            return False
        return all(one.has(part, at) for one, part in zip(self.sets, parts, strict=True))

    def each(self, value: Key, read: Callable[[PartitionSet, Key], T]) -> tuple[T, ...]:
        """Return what `read` makes of each dimension's set, and of what a value says of it.

        Raises BadPartition unless the value says something of each, and names the dimension of
        which `read` does.
        """
        found: list[T] = []
        for name, partitions, part in zip(self.names, self.sets, self._split(value), strict=True):
            try:
                found.append(read(partitions, part))
            except BadPartition as error:
                raise BadPartition(f"{name}: {error.message}") from error
        return tuple(found)

    def named(self, key: Key) -> dict[str, Key]:
        """Return the keys of the dimensions by their names."""
        assert isinstance(key, tuple)
        return dict(zip(self.names, key, strict=True))

    def window_of(self, key: Key) -> Window | None:
        """Return the window of the one dimension of time; None if there is none, or several."""
        assert isinstance(key, tuple)
        found = [s.window_of(k) for s, k in zip(self.sets, key, strict=True) if s.cut is not None]
        return found[0] if len(found) == 1 else None

    @property
    def cut(self) -> str | None:
        """How the dimensions of time are cut, such as "day: daily, UTC"; None if there is none."""
        cuts = [f"{name}: {s.cut}" for name, s in self.dimensions.items() if s.cut is not None]
        return "; ".join(cuts) or None

    def _split(self, value: Key) -> tuple[Key, ...]:
        given: tuple[Key, ...] = ()
        if isinstance(value, Mapping):
            given = self._of_names(value)
        elif isinstance(value, tuple):
            given = value
        elif isinstance(value, str):
            given = tuple(part.strip() for part in value.split(BAR))
        if len(given) != len(self.sets):
            raise BadPartition(
                f"partition {say(value)} does not say one key of each of {', '.join(self.names)}; "
                f"write it as {BAR.join(name.upper() for name in self.names)}, or give a tuple"
            )
        return given

    def _of_names(self, value: Mapping[str, Key]) -> tuple[Key, ...]:
        for name in value:
            if name not in self.names:
                raise BadPartition(
                    f"{name!r} is none of the dimensions {', '.join(self.names)}"
                    + did_you_mean(name, self.names)
                )
        return tuple(value[name] for name in self.names if name in value)

    def __str__(self) -> str:
        return " x ".join(f"{name} ({partitions})" for name, partitions in self.dimensions.items())


def _check(name: object, partitions: object) -> None:
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise DefinitionError(
            f"{name!r} is no name of a dimension; use letters, digits, '_', '.' and '-'"
        )
    if isinstance(partitions, ProductPartitions | UnpartitionedSet):
        raise DefinitionError(
            f"the dimension {name!r} is ({partitions}); give a set of one dimension"
        )
    if not isinstance(partitions, PartitionSet):
        raise DefinitionError(
            f"the dimension {name!r} is a {type(partitions).__name__}; give a partition set, such "
            "as StaticPartitions([...])"
        )
