"""The nodes of a run, before it is known why each is in it; some hundred bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from typing import Final

Node = tuple[str, str]
"""An asset's name and an encoded partition key."""

_NONE: Final = -1
_SEVERAL: Final = -2


class Outline:
    """Which nodes a run has, in which order they come, and which of them just one other reads.

    A plan of 250,000 steps is written while it is made; this is what is kept of it meanwhile.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {}
        self._reader = array("q")
        self._place = array("q")
        self._absent: set[int] = set()
        self._until: dict[int, datetime] = {}

    def __len__(self) -> int:
        return len(self._reader)

    def __contains__(self, node: Node) -> bool:
        return node[1] in self._numbers.get(node[0], ())

    def add(self, node: Node, *, absent: bool = False) -> bool:
        """Add a node and return True, or return False where it is known.

        One that is `absent` is read, but is not to be computed, and has no output.
        """
        keys = self._numbers.setdefault(node[0], {})
        if node[1] in keys:
            return False
        number = keys[node[1]] = len(self._reader)
        self._reader.append(_NONE)
        if absent:
            self._absent.add(number)
        return True

    def note(self, node: Node, reader: Node) -> None:
        """Note that `reader` reads a node; both are known."""
        number = self._number(node)
        only = self._reader[number] == _NONE
        self._reader[number] = self._number(reader) if only else _SEVERAL

    def keys(self, asset: str) -> Collection[str]:
        """Return the keys of an asset, as they were found."""
        return self._numbers.get(asset, {}).keys()

    @property
    def assets(self) -> Iterable[str]:
        """The assets of which there are nodes."""
        return self._numbers.keys()

    def is_absent(self, node: Node) -> bool:
        """Return whether a node is only read."""
        # Of most runs, none is.
        return bool(self._absent) and self._number(node) in self._absent

    def wait(self, node: Node, until: datetime) -> None:
        """Note that a node which is absent is waited for, as it may be made by another run."""
        number = self._number(node)
        self._until[number] = max(until, self._until.get(number, until))

    def awaited(self, node: Node) -> datetime | None:
        """Return until when a node is waited for, or None if it is not."""
        return self._until.get(self._number(node)) if self._until else None

    def arrange(self, order: Iterable[str], within: Callable[[str], Iterable[str]]) -> None:
        """Give each node its place: by the order of the assets, and `within` each of its keys."""
        self._numbers = {name: self._numbers[name] for name in order if name in self._numbers}
        self._place = array("q", bytes(8 * len(self)))
        place = 0
        for name, numbers in self._numbers.items():
            if (keys := list(within(name))) != list(numbers):
                self._numbers[name] = {key: numbers[key] for key in keys}
            for number in self._numbers[name].values():
                self._place[number] = place
                place += 1

    def __iter__(self) -> Iterator[Node]:
        """Yield the nodes by their places."""
        for name, numbers in self._numbers.items():
            for key in numbers:
                yield name, key

    def place(self, node: Node) -> int | None:
        """Return the place of a node, from 0, or None if it is not in the run."""
        number = self._numbers.get(node[0], {}).get(node[1])
        return None if number is None else self._place[number]

    def feeds(self, node: Node) -> int | None:
        """Return the place of the one node that reads this one, or None if not just one does."""
        reader = self._reader[self._number(node)]
        return None if reader < 0 else self._place[reader]

    def _number(self, node: Node) -> int:
        return self._numbers[node[0]][node[1]]
