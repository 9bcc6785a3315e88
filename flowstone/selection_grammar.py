"""What people write to select assets, as a value: words, pluses, `and`, `or`, `not`.

    selection := all ("or" all | "," all)*
    all       := one ("and" one)*
    one       := "not" one | [[N] "+"] named ["+" [N]]
    named     := WORD | "(" selection ")"

A WORD is the name of an asset, or `tag:`, `group:`, `kind:`, `owner:` or `name:` with what it
is to be; either may hold the wildcards of a shell, `*`, `?` and `[...]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from flowstone.attributes import WORD
from flowstone.errors import BadSelection, did_you_mean
from flowstone.names import NAME

FIELDS: Final = ("name", "tag", "group", "kind", "owner")
"""What a word may be about; one without a colon is about the name."""

MAX_LENGTH: Final = 10_000
"""Characters of a selection."""

MAX_DEPTH: Final = 50
"""Parentheses within each other, or `not` after `not`."""

_SHOWN: Final = 80
_KEYWORDS: Final = frozenset({"and", "or", "not"})
_TOKEN: Final = re.compile(r"\s+|[(),+]|[^\s(),+]+")
_STEPS: Final = re.compile(r"[0-9]{1,9}")
_WILDCARDS: Final = frozenset("*?[")
# A class of characters may exclude some, and that is all a pattern has beside the words.
_PATTERN: Final = re.compile(r"[\w.\-/@#&*?\[\]!]{1,400}")

Steps = int | None
"""How many steps from an asset; None for all there are."""


@dataclass(frozen=True)
class Word:
    """The assets of which a field is like the pattern; for a tag perhaps with a value, too."""

    field: str
    pattern: str
    value: str | None = None

    def __str__(self) -> str:
        if self.field == "name" and self.pattern not in _KEYWORDS:
            return self.pattern
        return f"{self.field}:{self.pattern}" + ("" if self.value is None else f"={self.value}")


@dataclass(frozen=True)
class Plus:
    """What is selected, and so many steps of what it reads (`above`) and what reads it."""

    of: Expression
    above: Steps = 0
    below: Steps = 0

    def __str__(self) -> str:
        inner = str(self.of) if isinstance(self.of, Word) else f"({self.of})"
        return f"{_before(self.above)}{inner}{_behind(self.below)}"


@dataclass(frozen=True)
class Not:
    """All assets but these."""

    of: Expression

    def __str__(self) -> str:
        return f"not ({self.of})" if isinstance(self.of, And | Or) else f"not {self.of}"


@dataclass(frozen=True)
class And:
    """The assets that are in each."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        parts = (f"({p})" if isinstance(p, And | Or) else str(p) for p in self.parts)
        return " and ".join(parts)


@dataclass(frozen=True)
class Or:
    """The assets that are in any."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " or ".join(f"({p})" if isinstance(p, Or) else str(p) for p in self.parts)


Expression = Word | Plus | Not | And | Or


def has_wildcard(pattern: str) -> bool:
    """Return whether a pattern may be several words."""
    return not _WILDCARDS.isdisjoint(pattern)


def parse(text: str) -> Expression:
    """Return what a selection says; raise BadSelection with the place where it says nothing."""
    if NAME.fullmatch(text):
        # Even an asset that somebody has called "or".
        return Word("name", text)
    if len(text) > MAX_LENGTH:
        raise BadSelection(
            f"a selection has at most {MAX_LENGTH} characters, and this one {len(text)}; "
            "give the assets a tag or a group, and select that"
        )
    return _Parser(text).parse()


@dataclass(frozen=True)
class _Token:
    text: str
    place: int
    """That of its first character, from 1."""


class _Parser:
    """Reads the tokens from left to right, a method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0
        self._depth = 0

    def parse(self) -> Expression:
        found = self._any()
        if self._next is not None:
            self._expected("'and', 'or', a comma, or nothing more")
        return found

    @property
    def _next(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _sees(self, *texts: str) -> bool:
        return self._next is not None and self._next.text in texts

    def _takes(self, *texts: str) -> bool:
        if not self._sees(*texts):
            return False
        self._at += 1
        return True

    def _any(self) -> Expression:
        parts = [self._all()]
        while self._takes("or", ","):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all(self) -> Expression:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self) -> Expression:
        if self._takes("not"):
            self._enter()
            found = Not(self._one())
            self._depth -= 1
            return found
        above = self._above()
        named = self._named()
        below = self._below()
        return named if above == below == 0 else Plus(named, above, below)

    def _above(self) -> Steps:
        number = self._number()
        if self._takes("+"):
            return number
        if number is not None:
            self._expected(f"'+' after {number}")
        return 0

    def _below(self) -> Steps:
        return self._number() if self._takes("+") else 0

    def _number(self) -> Steps:
        if self._next is None or not _STEPS.fullmatch(self._next.text):
            return None
        self._at += 1
        return int(self._tokens[self._at - 1].text)

    def _named(self) -> Expression:
        if self._takes("("):
            self._enter()
            found = self._any()
            if not self._takes(")"):
                self._expected("'and', 'or', a comma, or ')'")
            self._depth -= 1
            return found
        token = self._next
        if token is None or token.text in _KEYWORDS or token.text in "(),+":
            self._expected("an asset, or tag:, group:, kind: or owner:")
        self._at += 1
        return self._word(token)

    def _word(self, token: _Token) -> Word:
        field, colon, said = token.text.partition(":")
        if not colon:
            return Word("name", self._name(token, token.text))
        if field not in FIELDS:
            known = ", ".join(f"{one}:" for one in FIELDS)
            self._fail(f"{field!r} is none of {known}{did_you_mean(field, FIELDS)}", token)
        if field == "name":
            return Word(field, self._name(token, said))
        if field != "tag":
            return Word(field, self._pattern(token, said, f"a {field}"))
        tag, equals, value = said.partition("=")
        pattern = self._pattern(token, tag, "the name of a tag")
        return Word(
            field, pattern, self._pattern(token, value, "the value of a tag") if equals else None
        )

    def _name(self, token: _Token, said: str) -> str:
        if has_wildcard(said):
            return self._pattern(token, said, "an asset")
        if not NAME.fullmatch(said):
            self._fail(f"{_short(said)!r} cannot be the name of an asset", token)
        return said

    def _pattern(self, token: _Token, said: str, what: str) -> str:
        if not said:
            self._fail(f"expected {what} after {_short(token.text)!r}", token)
        if not (_PATTERN if has_wildcard(said) else WORD).fullmatch(said):
            self._fail(f"{_short(said)!r} cannot be {what}", token)
        return said

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BadSelection(
                f"in {_short(self._text)!r}: more than {MAX_DEPTH} parentheses within each other"
            )

    def _expected(self, what: str) -> NoReturn:
        token = self._next
        if token is None:
            raise BadSelection(f"in {_short(self._text)!r}: expected {what}, and there it ends")
        self._fail(f"expected {what}, and not {_short(token.text)!r}", token)

    def _fail(self, says: str, token: _Token) -> NoReturn:
        raise BadSelection(f"in {_short(self._text)!r}, character {token.place}: {says}")


def _tokens(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        if not found[0].isspace():
            yield _Token(found[0], found.start() + 1)


def _before(steps: Steps) -> str:
    return "" if steps == 0 else f"{'' if steps is None else steps}+"


def _behind(steps: Steps) -> str:
    return "" if steps == 0 else f"+{'' if steps is None else steps}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
