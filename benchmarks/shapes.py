"""Assets that do nothing, in the shapes that are measured; BENCH_SHAPE says which."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

from flowstone import asset


def node(name: str, parents: list[str], seconds: float = 0) -> None:
    """Define one asset that reads its parents' values, and sleeps if it is to take `seconds`."""
    parameters = ", ".join(f"p{i}" for i in range(len(parents)))
    # A function of its own for each number of parents, as a person would have written it.
    made: dict[str, Any] = {"__name__": __name__, "sleep": time.sleep}
    body = f"sleep({seconds!r})" if seconds else "None"
    exec(f"def function({parameters}): return {body}", made)  # noqa: S102 - our own text
    asset(name=name, deps={f"p{i}": parent for i, parent in enumerate(parents)})(made["function"])


def independent(count: int) -> list[str]:
    """Return the names of `count` assets that read nothing."""
    names = [f"a{i}" for i in range(count)]
    for name in names:
        node(name, [])
    return names


def chain(count: int) -> list[str]:
    """Return the last of `count` assets, each of which reads the one before."""
    for i in range(count):
        node(f"a{i}", [f"a{i - 1}"] if i else [])
    return [f"a{count - 1}"]


def layered(width: int, depth: int) -> list[str]:
    """Return the last layer of `depth`, each asset of which reads two of the layer before."""
    for layer in range(depth):
        for i in range(width):
            parents = [f"l{layer - 1}_{i}", f"l{layer - 1}_{(i + 1) % width}"] if layer else []
            node(f"l{layer}_{i}", parents)
    return [f"l{depth - 1}_{i}" for i in range(width)]


def uneven(count: int, seed: int) -> list[str]:
    """Return the ends of a random graph of `count` assets that take 50 ms to 1 s, few of them long.

    Each reads up to three of the twenty before it.
    """
    random = Random(seed)  # noqa: S311 - a graph, not a secret
    names = [f"s{seed}_{i}" for i in range(count)]
    unread = dict.fromkeys(names)
    for i, name in enumerate(names):
        near = names[max(0, i - 20) : i]
        parents = random.sample(near, min(len(near), random.choice([0, 1, 1, 1, 2, 2, 3])))
        node(name, parents, min(1.0, 0.05 + random.expovariate(1 / 0.25)))
        for parent in parents:
            unread.pop(parent, None)
    return list(unread)


@cache
def targets(shape: str) -> list[str]:
    """Define a shape, such as "layered 20 20", and return the assets to ask for."""
    name, *numbers = shape.split()
    shapes: dict[str, Callable[..., list[str]]] = {
        "independent": independent,
        "chain": chain,
        "layered": layered,
        "uneven": uneven,
    }
    return shapes[name](*map(int, numbers))


if "BENCH_SHAPE" in os.environ:
    TARGETS = targets(os.environ["BENCH_SHAPE"])
