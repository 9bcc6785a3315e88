"""The values of a fan-in, loaded when they are needed: what does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LazyInputs(Mapping[K, V]):
    """The values of several partitions by their keys, in the order of the keys.

    A parameter with this annotation gets it in the place of a dict. Each value is loaded when it is
    first looked up, and kept then; `items()` and `values()` load one after the other, and keep
    none. Its length, its keys and `in` load nothing.
    """

    def __init__(self, keys: Iterable[K], load: Callable[[K], V]) -> None:
        self._keys = dict.fromkeys(keys)
        self._load = load
        self._kept: dict[K, V] = {}

    def __getitem__(self, key: K) -> V:
        """Return a value; raise KeyError for a key that is not read, or what loading raises."""
        if key not in self._keys:
            raise KeyError(key)
        if key not in self._kept:
            self._kept[key] = self._load(key)
        return self._kept[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def items(self) -> ItemsView[K, V]:
        """Return the pairs of keys and values, which are not kept."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Return the values, which are not kept."""
        return _Values(self)

    def pairs(self) -> Iterator[tuple[K, V]]:
        """Yield keys and values; what has been looked up before is not loaded again."""
        for key in self._keys:
            yield key, self._kept[key] if key in self._kept else self._load(key)

    def __repr__(self) -> str:
        return f"LazyInputs({len(self)} keys, {len(self._kept)} loaded)"


class _Items(ItemsView[K, V]):
    _mapping: LazyInputs[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping.pairs()


class _Values(ValuesView[V]):
    _mapping: LazyInputs[object, V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping.pairs())
