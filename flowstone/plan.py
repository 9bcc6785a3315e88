"""Planning: a request and the asset graph become steps and edges. Pure, and linear in both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from flowstone.errors import BadPartition, FlowStoneError, MissingInput
from flowstone.graph import AssetGraph
from flowstone.partition import UNPARTITIONED, first_keys, parse_key
from flowstone.partition_key import decode_key, encode_key, step_name
from flowstone.states import DONE_STEP_STATES, StepState

Node = tuple[str, str]
"""An asset's name and an encoded partition key."""


class OnConflict(StrEnum):
    """What a run does where another one is computing the same asset x partition."""

    JOIN = "join"
    """Wait for it, and take its output if it was made of the same."""
    QUEUE = "queue"
    """Wait for it, and then compute."""
    REFUSE = "refuse"
    """Fail."""


@dataclass(frozen=True)
class PlannedStep:
    """One asset x partition that the run will compute, and why it is in."""

    asset: str
    partition: str
    queue: str
    reason: str
    upstream: tuple[Node, ...]
    """What it reads, in the order of the asset's dependencies; in the run or pinned."""


@dataclass(frozen=True)
class Plan:
    """The frozen steps of a run, each after all that it reads."""

    steps: tuple[PlannedStep, ...]
    pinned: dict[Node, int]
    """Inputs from outside the run: the step whose output is the latest at planning time."""


@dataclass(frozen=True)
class Request:
    """What a caller asked for: names and encoded keys, nothing that needs the assets' code."""

    assets: tuple[str, ...]
    partition: str
    upstream: bool
    force: bool = False
    """Compute every step, be it fresh or not."""
    on_conflict: OnConflict = OnConflict.JOIN


@dataclass(frozen=True)
class EndedStep:
    """A step of a run that has ended; `reads` holds each input and the step that made it."""

    id: int
    asset: str
    partition: str
    queue: str
    state: StepState
    reads: tuple[tuple[Node, int], ...]


def remaining(steps: Sequence[EndedStep], run: str) -> Plan:
    """Return the plan that does what a run has left undone, and nothing else of it.

    `steps` are all those of `run`, each after what it reads. What is done is not done
    again: the others read exactly the outputs that the first plan gave them, be they of
    this run or of an earlier one, and not the latest.
    """
    undone = [step for step in steps if step.state not in DONE_STEP_STATES]
    again = {step.id for step in undone}
    return Plan(
        steps=tuple(
            PlannedStep(
                asset=step.asset,
                partition=step.partition,
                queue=step.queue,
                reason=f"{step.state} in run {run}",
                upstream=tuple(node for node, _ in step.reads),
            )
            for step in undone
        ),
        pinned={node: id for step in undone for node, id in step.reads if id not in again},
    )


Latest = Callable[[Sequence[Node]], dict[Node, int]]
"""Look up the steps that hold the latest outputs of nodes; absent where there is none."""


def build_plan(request: Request, graph: AssetGraph, latest: Latest, now: datetime) -> Plan:
    """Return the plan of a request.

    Raises UnknownAsset, BadPartition, or MissingInput where an input is neither in
    the run nor has ever been materialized.
    """
    targets = [(name, _target_key(graph, name, request.partition, now)) for name in request.assets]
    reads = _collect(graph, targets, now, follow=request.upstream)
    outside = sorted({up for ups in reads.values() for up in ups} - reads.keys())
    pinned = latest(outside) if outside else {}
    _refuse_missing(outside, pinned, reads)
    rank = {name: i for i, name in enumerate(graph.order)}
    wanted = set(targets)
    steps = tuple(
        PlannedStep(
            asset=node[0],
            partition=node[1],
            queue=graph[node[0]].queue,
            reason="requested" if node in wanted else "upstream",
            upstream=reads[node],
        )
        # An asset cannot read itself, so the order of the assets is one of the steps; within
        # an asset, steps stay in the natural order in which they were found.
        for node in sorted(reads, key=lambda n: rank[n[0]])
    )
    return Plan(steps, pinned)


def _target_key(graph: AssetGraph, name: str, partition: str, now: datetime) -> str:
    asset = graph[name]
    try:
        return encode_key(parse_key(asset.partitions, partition, now))
    except BadPartition as error:
        if decode_key(partition) == UNPARTITIONED:
            shown = ", ".join(str(k) for k in first_keys(asset.partitions, 2, now))
            raise BadPartition(
                f"asset {name!r} is partitioned ({asset.partitions}); "
                f"give a partition such as {shown}"
            ) from error
        raise BadPartition(f"asset {name!r}: {error.message}") from error


def _collect(
    graph: AssetGraph, targets: Iterable[Node], now: datetime, *, follow: bool
) -> dict[Node, tuple[Node, ...]]:
    """Return what each node of the run reads; with `follow`, everything upstream is in it."""
    reads: dict[Node, tuple[Node, ...]] = {}
    todo = deque(targets)
    while todo:
        node = todo.popleft()
        if node not in reads:
            reads[node] = tuple(_inputs(graph, node, now))
            if follow:
                todo += reads[node]
    return reads


def _inputs(graph: AssetGraph, node: Node, now: datetime) -> Iterator[Node]:
    asset = graph[node[0]]
    for dependency in asset.dependencies:
        upstream = graph[dependency.asset]
        mapping = graph.mappings[asset.name, upstream.name]
        key = parse_key(asset.partitions, node[1], now)
        try:
            keys = mapping.upstream_keys(key, asset.partitions, upstream.partitions, now)
        except FlowStoneError as error:
            raise BadPartition(
                f"{step_name(*node)} reads {upstream.name!r} by {mapping}: {error.message}"
            ) from error
        for up in keys:
            yield upstream.name, encode_key(up)


def _refuse_missing(
    outside: Sequence[Node], pinned: dict[Node, int], reads: dict[Node, tuple[Node, ...]]
) -> None:
    missing = next((node for node in outside if node not in pinned), None)
    if missing is not None:
        reader = next(node for node, ups in reads.items() if missing in ups)
        raise MissingInput(
            f"{step_name(*missing)}, read by {step_name(*reader)}, has never been materialized; "
            "materialize it first, or ask for everything upstream "
            "(materialize_all, or --upstream on the command line)"
        )
