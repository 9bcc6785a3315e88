"""What a scenario asks for, drawn from its seed, and how it must end. Nothing here does I/O."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Final

POOL: Final = "chaos"
POOL_SLOTS: Final = 3
GATES: Final = ("", "approval", "rejection", "signal")
REACH: Final = 6
"""How far back in a graph an asset may read."""


@dataclass(frozen=True)
class Node:
    """One asset of a random graph."""

    name: str
    parents: tuple[str, ...]
    optional: frozenset[str]
    """The parents without which it does."""
    seconds: float
    failures: int
    """How many attempts fail with an error that may pass."""
    breaks: bool
    """Whether it fails for good."""
    weight: int
    """Slots of the pool; 0 takes none."""
    base: float
    """Seconds before another attempt."""
    gate: str = ""
    """What it waits for, when it has computed: "approval", "rejection", "signal", or nothing."""


@dataclass(frozen=True)
class Request:
    """One run over all of a scenario's graph."""

    at: float
    """Seconds after the begin of the scenario when it is submitted."""
    window: int
    on_conflict: str
    cancel_at: float | None
    """Seconds after its submission when it is cancelled, and then resumed."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    kind: str
    at: float
    """Seconds after the begin of the scenario."""
    lasts: float
    """Seconds, where it is a state and no event."""
    draw: int
    """Which of several it hits."""


@dataclass(frozen=True)
class Scenario:
    """A graph, the runs over it, and what happens meanwhile."""

    seed: int
    nodes: tuple[Node, ...]
    requests: tuple[Request, ...]
    faults: tuple[Fault, ...]

    @property
    def targets(self) -> list[str]:
        """The assets that nobody reads."""
        read = {parent for node in self.nodes for parent in node.parents}
        return [node.name for node in self.nodes if node.name not in read]


KINDS: Final = (
    "kill a process",
    "kill a worker",
    "kill a step at its claim",
    "kill a step before its commit",
    "kill a step after its commit",
    "kill a coordinator that plans",
    "kill a coordinator that dispatches",
    "kill a coordinator that publishes",
    "lose all messages",
    "kill and restart Valkey",
    "pause Valkey",
    "restart PostgreSQL",
    "crash PostgreSQL",
    "cut all connections to PostgreSQL",
    "deliver messages twice",
    "redeliver what is unacknowledged",
    "drop messages",
    "pause a process beyond its lease",
    "stop a worker gracefully",
    "kill a beat",
)
"""The faults. Two beats run in each scenario."""


SHORT: Final = (259, 895, 974, 2768)
"""Seeds that see each kind, runs at once, and one that is cancelled; a test holds it."""


@cache
def scenario(seed: int) -> Scenario:
    """Return the scenario of a seed: always the same one."""
    random = Random(seed)
    nodes = _nodes(random, seed)
    requests = tuple(
        Request(
            at=random.choice([0.0, 0.0, random.uniform(0.1, 1.5)]),
            window=random.choice([1, 3, 8, 200]),
            on_conflict=random.choice(["join", "queue"]),
            cancel_at=random.uniform(0.1, 1.0) if random.random() < 0.12 else None,
        )
        for _ in range(random.choice([1, 1, 2, 3]))
    )
    # Each kind comes first in its turn, so that a few scenarios see many of them.
    kinds = [KINDS[seed % len(KINDS)], *random.choices(KINDS, k=random.choice([0, 1, 1, 2, 3, 5]))]
    faults = (
        Fault(kind, _moment(random, kind), random.uniform(0.2, 1.5), random.randrange(1 << 16))
        for kind in kinds
    )
    return Scenario(seed, nodes, requests, tuple(sorted(faults, key=lambda fault: fault.at)))


def _moment(random: Random, kind: str) -> float:
    # What is ordered of a coordinator has to be so before there is one.
    return 0.0 if "coordinator" in kind else random.uniform(0, 1.5)


def _nodes(random: Random, seed: int) -> tuple[Node, ...]:
    names = [f"c{seed}_{i}" for i in range(random.randint(5, 24))]
    nodes = [_node(random, names, i) for i in range(len(names))]
    # Drawn apart, so that the graphs are those that they were before anything waited.
    gates = Random(f"{seed} gates").choices(GATES, weights=[80, 10, 2, 8], k=len(nodes))
    return tuple(replace(node, gate=gate) for node, gate in zip(nodes, gates, strict=True))


def _node(random: Random, names: Sequence[str], i: int) -> Node:
    near = names[max(0, i - REACH) : i]
    parents = tuple(random.sample(near, min(len(near), random.choice([0, 1, 1, 1, 2, 2, 3]))))
    return Node(
        name=names[i],
        parents=parents,
        optional=frozenset(parent for parent in parents if random.random() < 0.1),
        seconds=random.choice([0, 0.02, 0.05, 0.1, 0.3, 0.6]),
        failures=random.choice([0, 0, 0, 0, 1, 2]),
        breaks=random.random() < 0.04,
        weight=random.choice([0, 0, 0, 0, 1, 2]),
        base=random.choice([0.01, 0.1, 0.6]),
    )


def value_of(name: str, inputs: Sequence[int | None]) -> int:
    """Return what an asset computes from what it reads; each other input gives another value."""
    return zlib.crc32(f"{name}{list(inputs)}".encode())


def token_of(run_id: object, name: str) -> str:
    """Return the token of the signal that a step waits for."""
    return f"chaos.{run_id}.{name}"


@dataclass(frozen=True)
class End:
    """How a step must end."""

    state: str
    value: int | None = None


def ends(nodes: Sequence[Node]) -> Mapping[str, End]:
    """Return how each step of a graph must end, whatever happens on the way."""
    made: dict[str, End] = {}
    for node in nodes:
        missing = {p for p in node.parents if made[p].state != "succeeded"}
        if missing - node.optional:
            made[node.name] = End("upstream_failed")
        elif node.breaks or node.gate == "rejection":
            made[node.name] = End("failed")
        else:
            inputs = [made[parent].value for parent in node.parents]
            made[node.name] = End("succeeded", value_of(node.name, inputs))
    return made
