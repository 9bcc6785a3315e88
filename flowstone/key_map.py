"""Mappings as partition keys: they never change, and so can be the keys of a dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flowstone.errors import BadPartition


class KeyMap(Mapping[str, Any]):
    """A partition key with named parts, in the order of their names: {"env": "prod"}.

    A plain dict that is given as a key becomes one, and is equal to it.
    """

    __slots__ = ("_parts",)

    def __init__(self, parts: Mapping[Any, Any]) -> None:
        for name in parts:
            if not isinstance(name, str) or not name:
                raise BadPartition(
                    f"the name {name!r} in a partition key is not a text; a mapping as a key has "
                    "names as texts, such as {'env': 'prod'}"
                )
        self._parts = {name: frozen(parts[name]) for name in sorted(parts)}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - any key
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __hash__(self) -> int:
        return hash(tuple(self._parts.items()))

    def __repr__(self) -> str:
        return f"KeyMap({self._parts})"

    def __str__(self) -> str:
        return f"{self._parts}"


def frozen(key: Any) -> Any:  # noqa: ANN401 - any key, and what is none
    """Return a key in which each mapping is a KeyMap; what is no key is left as it is."""
    if isinstance(key, Mapping) and not isinstance(key, KeyMap):
        return KeyMap(key)
    return tuple(map(frozen, key)) if type(key) is tuple else key
