"""The chain of hashes over the audit log, as values: how it goes on, and where it is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

GENESIS: Final = bytes(32)
"""What the first row is chained to."""


def extend(head: bytes, line: str) -> bytes:
    """Return the hash of a row, as the line that it is exported as, after the one before it."""
    return sha256(head + line.encode()).digest()


@dataclass(frozen=True)
class Link:
    """A seal, and the row that it is for: as a line, or None where that is gone."""

    position: int
    row: int
    hash: bytes
    line: str | None


@dataclass(frozen=True)
class Finding:
    """Something that the log or its chain would not hold if nobody had tampered with it."""

    message: str
    row: int | None = None
    """The id of the row in the audit log, where it is about one."""

    def __str__(self) -> str:
        return self.message


class Check:
    """Follows a chain from its first link, and finds what does not fit; it keeps no link."""

    def __init__(self) -> None:
        self.rows = 0
        """How many links were followed."""
        self._head: bytes | None = GENESIS
        self._position = 0
        self._suspect: _Suspect | None = None

    @property
    def head(self) -> bytes:
        """The hash of the last link."""
        return GENESIS if self._head is None else self._head

    def follow(self, link: Link) -> Iterator[Finding]:
        """Take the next link, in the order of positions."""
        self.rows += 1
        if link.position <= self._position:
            yield Finding(f"seal {link.position} of row {link.row} is out of place", link.row)
            return
        if link.position > self._position + 1:
            yield from self._give_up()
            yield Finding(f"{_seals(self._position + 1, link.position - 1)} missing")
            self._head = None
        self._position = link.position
        if link.line is None:
            yield from self._give_up()
            yield Finding(
                f"row {link.row} was deleted; seal {link.position} is left of it", link.row
            )
        elif self._head is not None:
            yield from self._compare(link, link.line, self._head)
        self._head = link.hash

    def _compare(self, link: Link, line: str, head: bytes) -> Iterator[Finding]:
        due = extend(head, line)
        suspect, self._suspect = self._suspect, None
        if link.hash == due:
            if suspect is not None:
                said = f"row {suspect.link.row} was changed after it was sealed"
                yield Finding(said, suspect.link.row) if suspect.is_alone else suspect.broken()
        elif suspect is not None and suspect.is_alone and link.hash == extend(suspect.due, line):
            said = f"seal {suspect.link.position} of row {suspect.link.row} was changed"
            yield Finding(said, suspect.link.row)
        else:
            if suspect is not None:
                yield suspect.broken()
            self._suspect = _Suspect(link, due, is_alone=suspect is None)

    def end(self) -> Iterator[Finding]:
        """Say what is still open after the last link."""
        yield from self._give_up()

    def _give_up(self) -> Iterator[Finding]:
        if self._suspect is not None:
            yield self._suspect.broken()
            self._suspect = None


@dataclass(frozen=True)
class _Suspect:
    """A link whose hash does not fit: the next one tells whether its row or its seal was changed.

    It does so only for one that is alone, behind a link that fits.
    """

    link: Link
    due: bytes
    is_alone: bool

    def broken(self) -> Finding:
        """Say that it cannot be told."""
        return Finding(
            f"the chain breaks at seal {self.link.position}: row {self.link.row}, its seal or the "
            "order of the seals was changed",
            self.link.row,
        )


def _seals(first: int, last: int) -> str:
    return f"seal {first} is" if first == last else f"seals {first} to {last} are"
