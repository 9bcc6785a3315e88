"""What the collector may delete: decided here, without looking at anything.

A value that a kept one was made of, directly or through others, is needed to trace that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_FILE: Final = re.compile(r"(?:.*/)?(\d{1,18})-(\d{1,9})-([0-9a-f]{8})(?:\.[A-Za-z0-9_.]*)?")


@dataclass(frozen=True)
class Origin:
    """The attempt that has staged a value, as the name of its location tells."""

    step_id: int
    attempt: int
    token: str
    """The first eight digits of the attempt's token: another ledger has other tokens."""

    @classmethod
    def of(cls, location: str) -> Origin | None:
        """Return the attempt that a location names, or None if it is not one of FlowStone's."""
        found = _FILE.fullmatch(location)
        return found and cls(int(found[1]), int(found[2]), found[3])


def without_readers(candidates: Iterable[int], readers: Mapping[int, Iterable[int]]) -> set[int]:
    """Return those of the old versions that no version which is kept was made of.

    `readers` has the versions, not deleted yet, that were made of each candidate. A candidate
    may go only if all of these go, too.
    """
    going = set(candidates)
    made_of = defaultdict(set)
    for candidate in going:
        for reader in readers.get(candidate, ()):
            made_of[reader].add(candidate)
    todo = [reader for reader in made_of if reader not in going]
    while todo:
        for needed in made_of[todo.pop()] & going:
            going.remove(needed)
            todo.append(needed)
    return going
