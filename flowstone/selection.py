"""Selecting assets of a graph by a text: names, tags, what they read, and what reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

from flowstone.asset import Asset
from flowstone.errors import BadSelection, did_you_mean
from flowstone.graph import AssetGraph
from flowstone.selection_grammar import (
    And,
    Expression,
    Not,
    Or,
    Plus,
    Steps,
    Word,
    has_wildcard,
    parse,
)
from flowstone.walk import depths

__all__ = ["Selected", "check", "resolve"]

_EMPTY: Final = frozenset[str]()


@dataclass(frozen=True)
class Selected:
    """The assets that a selection means."""

    anchors: tuple[str, ...]
    """Those that are named, in the order of the graph: whoever selects chooses their partitions."""
    above: frozenset[str]
    """Those that a + in front brings in, as they are read; an anchor may be among them."""
    below: frozenset[str]
    """Those that a + behind brings in, as they read; an anchor may be among them."""
    starts: frozenset[str] = _EMPTY
    """The anchors that have such a + behind: what reads others of them is not brought in."""

    @cached_property
    def assets(self) -> frozenset[str]:
        """All of them."""
        return self.above.union(self.anchors, self.below)


def check(text: str) -> None:
    """Raise BadSelection for a text that no graph could make sense of."""
    parse(text)


def resolve(graph: AssetGraph, texts: Sequence[str]) -> Selected:
    """Return the assets that these selections mean together; each has to mean one at least.

    Raises BadSelection for a text that makes no sense or selects nothing, and UnknownAsset for
    the name of an asset that there is not.
    """
    if not texts:
        raise BadSelection("nothing is selected; name an asset, or write '*' for all")
    look = _Look(graph)
    found = look.union([_some(look, text) for text in texts])
    anchors = tuple(name for name in graph.order if name in found.anchors)
    return Selected(anchors, found.above, found.below, found.starts)


@dataclass(frozen=True)
class _Found:
    """What a part of a selection means; without an order, and perhaps nothing."""

    anchors: frozenset[str]
    above: frozenset[str] = _EMPTY
    below: frozenset[str] = _EMPTY
    starts: frozenset[str] = _EMPTY

    @cached_property
    def all(self) -> frozenset[str]:
        return self.anchors | self.above | self.below


def _some(look: _Look, text: str) -> _Found:
    expression = parse(text)
    found = look.find(expression)
    if not found.all:
        raise BadSelection(f"{text!r} selects no asset{look.why_nothing(expression)}")
    return found


class _Look:
    """Looks into one graph for what expressions mean."""

    def __init__(self, graph: AssetGraph) -> None:
        self._graph = graph
        self._every = frozenset(graph.order)

    def find(self, expression: Expression) -> _Found:
        match expression:
            case Word():
                return _Found(frozenset(self._named(expression)))
            case Plus():
                return self._plus(self.find(expression.of), expression.above, expression.below)
            case Not():
                return _Found(self._every - self.find(expression.of).all)
            case And():
                return self._common([self.find(part) for part in expression.parts])
            case Or():
                return self.union([self.find(part) for part in expression.parts])

    def union(self, found: Iterable[_Found]) -> _Found:
        parts = list(found)
        return _Found(
            _EMPTY.union(*(part.anchors for part in parts)),
            _EMPTY.union(*(part.above for part in parts)),
            _EMPTY.union(*(part.below for part in parts)),
            _EMPTY.union(*(part.starts for part in parts)),
        )

    def _common(self, parts: Sequence[_Found]) -> _Found:
        both = self._every.intersection(*(part.all for part in parts))
        anchors = both.intersection(*(part.anchors for part in parts))
        if not anchors:
            # Nothing is left whose partitions the others' could follow from.
            return _Found(both)
        around = self.union(parts)
        return _Found(anchors, around.above & both, around.below & both, around.starts & anchors)

    def _plus(self, found: _Found, above: Steps, below: Steps) -> _Found:
        return _Found(
            found.anchors,
            found.above | _around(found.all, self._reads.__getitem__, above),
            found.below | _around(found.all, self._readers.__getitem__, below),
            found.starts if below == 0 else found.anchors,
        )

    def _named(self, word: Word) -> Iterable[str]:
        if word.field == "name" and not has_wildcard(word.pattern):
            # Raises UnknownAsset; a typing error is told even where others are selected.
            return (self._graph[word.pattern].name,)
        return (name for name, asset in self._graph.assets.items() if _is_like(asset, word))

    @cached_property
    def _reads(self) -> Mapping[str, Sequence[str]]:
        return {
            name: [dependency.asset for dependency in asset.dependencies]
            for name, asset in self._graph.assets.items()
        }

    @cached_property
    def _readers(self) -> Mapping[str, Sequence[str]]:
        readers: dict[str, list[str]] = {name: [] for name in self._graph.order}
        for name, reads in self._reads.items():
            for upstream in reads:
                readers[upstream].append(name)
        return readers

    def why_nothing(self, expression: Expression) -> str:
        """Return which words mean no asset, and what may have been meant."""
        for word in _words(expression):
            if not self.find(word).all:
                return f": there is no {_told(word)}{self._meant(word)}"
        return ""

    def _meant(self, word: Word) -> str:
        if has_wildcard(word.value or word.pattern):
            return ""
        values = [pair for asset in self._graph.assets.values() for pair in _values(asset, word)]
        if word.value is not None:
            known = {value for name, value in values if fnmatchcase(name, word.pattern)}
            if known:
                return did_you_mean(word.value, sorted(known))
        return did_you_mean(word.pattern, sorted({name for name, _ in values}))


def _around(
    start: Iterable[str], onward: Callable[[str], Iterable[str]], steps: Steps
) -> frozenset[str]:
    """Return what is one step away at least; an asset that reads itself is so from itself."""
    if steps == 0:
        return _EMPTY
    near = dict.fromkeys(one for name in start for one in onward(name))
    found = depths(near, onward)
    return frozenset(one for one, beyond in found.items() if steps is None or beyond < steps)


def _is_like(asset: Asset, word: Word) -> bool:
    return any(
        fnmatchcase(name, word.pattern) and (word.value is None or fnmatchcase(value, word.value))
        for name, value in _values(asset, word)
    )


def _values(asset: Asset, word: Word) -> Iterable[tuple[str, str]]:
    """Return what an asset has for the field of a word; only tags have values of their own."""
    match word.field:
        case "tag":
            return asset.tags.items()
        case "owner":
            return ((owner, "") for owner in asset.owners)
        case "name":
            return ((asset.name, ""),)
    one = asset.group if word.field == "group" else asset.kind
    return () if one is None else ((one, ""),)


def _words(expression: Expression) -> Iterable[Word]:
    match expression:
        case Word():
            yield expression
        case Plus() | Not():
            yield from _words(expression.of)
        case And() | Or():
            for part in expression.parts:
                yield from _words(part)


def _told(word: Word) -> str:
    if word.field == "name":
        return f"asset like {word.pattern!r}"
    value = "" if word.value is None else f"={word.value}"
    return f"asset with the {word.field} {word.pattern + value!r}"
