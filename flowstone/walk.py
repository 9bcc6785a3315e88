"""Walks over a graph, level by level."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def depths(starts: Iterable[T], following: Callable[[T], Iterable[T]]) -> dict[T, int]:
    """Return all that can be reached, the nearest first, and in how many steps at least.

    The starts are in it, with 0. Each is passed once, so a circle does no harm.
    """
    found = dict.fromkeys(starts, 0)
    level = list(found)
    while level:
        depth = found[level[0]] + 1
        ahead = dict.fromkeys(after for one in level for after in following(one))
        level = [after for after in ahead if after not in found]
        found |= dict.fromkeys(level, depth)
    return found
