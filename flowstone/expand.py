"""Expansion: ready steps become chains and chords, as values. Pure; see `canvas` for Celery.

A canvas holds only true dependencies, so whatever stops it strands nothing:

- a chain is a linear stretch: each member is the only one that reads the member
  before it and waits for nothing else;
- a chord joins stretches whose ends are all that its body still waits for;
- all else goes out as a chain of its own, and its end wakes the coordinator.

A step that takes slots of a pool begins a canvas, or waits in the ledger for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

MAX_CHAIN: Final = 16
"""Each message of a chain carries the rest of it, so its length bounds the message."""

MAX_HEADER: Final = 200
"""The most stretches in one chord; beyond it the join waits in the ledger."""


@dataclass(frozen=True)
class Node:
    """A step that is not dispatched, as expansion sees it.

    `feeds` is the one step that reads it, or None if there are none or several;
    `open_deps` is how many of its own dependencies have not committed yet.
    """

    id: int
    feeds: int | None
    open_deps: int
    limited: bool = False
    """Whether it takes slots: it must not wait in a canvas, where it would hold them."""


@dataclass(frozen=True)
class Chain:
    """Steps that run one after the other."""

    steps: tuple[int, ...]


@dataclass(frozen=True)
class Chord:
    """Stretches that run side by side, then the body, one step after the other."""

    header: tuple[tuple[int, ...], ...]
    body: tuple[int, ...]


Canvas = Chain | Chord


def members(canvas: Canvas) -> tuple[int, ...]:
    """Return the steps of a canvas, each after those it depends on."""
    if isinstance(canvas, Chain):
        return canvas.steps
    return (*(step for stretch in canvas.header for step in stretch), *canvas.body)


def expand(
    ready: Sequence[int],
    nodes: Mapping[int, Node],
    budget: int,
    *,
    chords: bool = True,
    longest: int = MAX_CHAIN,
) -> list[Canvas]:
    """Return canvases that start the ready steps, with at most `budget` steps in all.

    `ready` holds the ids of steps that wait for nothing, most urgent first; `nodes`
    describes them and what can be reached from them through `feeds`, as far as it is
    not dispatched. Each ready step has the same share of the budget: members of a chain
    that wait for their turn must not take the room of steps that could run meanwhile.
    Without `chords`, every join waits in the ledger; a chain has no more than the `longest`.
    """
    share = min(longest, max(1, budget // max(1, len(ready))))
    stretches = [_stretch(step, nodes) for step in ready]
    joins = _complete_joins(stretches, nodes, share) if chords else {}
    canvases: list[Canvas] = []
    carried: set[int] = set()
    for stretch in stretches:
        if budget <= 0:
            break
        if stretch[0] in carried:
            continue
        join = joins.get(_target(stretch, nodes))
        # A header that is only half sent could hold back the join for ever.
        fits = join is not None and len(members(join)) <= budget
        canvas = join if join is not None and fits else Chain(stretch[: min(share, budget)])
        canvases.append(canvas)
        carried.update(members(canvas))
        budget -= len(members(canvas))
    return canvases


def places(canvases: Sequence[Canvas], ahead: int) -> dict[int, int]:
    """Return how many startable steps of the run are in flight before each member.

    `ahead` of them are already. Of a stretch one step at a time can start, so all of it has one
    place; what follows a header takes the place that this has left.
    """
    place_of: dict[int, int] = {}
    for canvas in canvases:
        first, stretches = ahead, [canvas.steps] if isinstance(canvas, Chain) else canvas.header
        for stretch in stretches:
            place_of.update(dict.fromkeys(stretch, ahead))
            ahead += 1
        if isinstance(canvas, Chord):
            place_of.update(dict.fromkeys(canvas.body, first))
    return place_of


def _stretch(start: int, nodes: Mapping[int, Node]) -> tuple[int, ...]:
    """Return `start` and what can follow it in one chain."""
    steps = [start]
    while len(steps) < MAX_CHAIN:
        target = _target(steps, nodes)
        if target is None or nodes[target].open_deps != 1 or nodes[target].limited:
            break
        steps.append(target)
    return tuple(steps)


def _target(stretch: Sequence[int], nodes: Mapping[int, Node]) -> int | None:
    """Return the step that the end of a stretch feeds, if that is not dispatched yet."""
    feeds = nodes[stretch[-1]].feeds
    return feeds if feeds in nodes else None


def _complete_joins(
    stretches: Sequence[tuple[int, ...]], nodes: Mapping[int, Node], share: int
) -> dict[int | None, Chord]:
    """Return a chord for each join that waits for nothing but the ends of these stretches.

    Its header takes no more than the `share` of each of its stretches, and its body one more.
    """
    headers: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for stretch in stretches:
        target = _target(stretch, nodes)
        if target is not None:
            headers[target].append(stretch)
    return {
        join: Chord(tuple(header), _stretch(join, nodes)[:share])
        for join, header in headers.items()
        if 1 < len(header) <= MAX_HEADER
        and not nodes[join].limited
        and len(header) == nodes[join].open_deps
        and sum(map(len, header)) <= share * len(header)
    }
