"""Planning: a request and the asset graph become steps and edges. Pure, and linear in both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from flowstone.asset import Dependency
from flowstone.errors import BadMapping, BadPartition, MissingInput
from flowstone.freshness import Fingerprint, Input, digest, inputs_hash
from flowstone.graph import AssetGraph
from flowstone.limits import Policy
from flowstone.partition import UNPARTITIONED, Moment, first_keys, parse_key
from flowstone.partition_key import decode_key, encode_key, step_name
from flowstone.request import Request

Node = tuple[str, str]
"""An asset's name and an encoded partition key."""


NO_LIMITS: Final = Policy()
"""That of an asset which says nothing."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One asset x partition of the run, and why it runs or is skipped."""

    asset: str
    partition: str
    queue: str
    reason: str
    upstream: tuple[Node, ...]
    """What it reads, in the order of the asset's dependencies; in the run or pinned."""
    optional: frozenset[Node] = frozenset()
    """Those that it can do without."""
    skipped: bool = False
    """Whether it is planned not to run: it is fresh, or missing and optional."""
    reuses: int | None = None
    """The step whose output stands for that of a fresh one."""
    policy: Policy = NO_LIMITS

    @property
    def node(self) -> Node:
        """The asset x partition."""
        return self.asset, self.partition


@dataclass(frozen=True, slots=True)
class Made:
    """The latest output of a node: which step made it, its hash, and what it was made of."""

    step_id: int
    sha256: str
    fingerprint: Fingerprint | None
    stale: str | None = None
    """Why it is not fresh, whatever it was made of."""


@dataclass(frozen=True)
class Plan:
    """The frozen steps of a run, each after all that it reads."""

    steps: tuple[PlannedStep, ...]
    pinned: dict[Node, int]
    """Inputs from outside the run: the step whose output is the latest at planning time."""
    configs: Mapping[str, Any] = field(default_factory=dict)
    """The config that each asset has which takes one, defaults included and without secrets."""


Latest = Callable[[Sequence[Node]], Mapping[Node, Made]]
"""Look up the latest outputs of nodes; absent where there is none."""

ConfigOf = Callable[[str], Any]
"""What the run chooses for an asset, as JSON: the values of its config, or None if it has none."""


def build_plan(
    request: Request,
    graph: AssetGraph,
    latest: Latest,
    at: Moment,
    config_of: ConfigOf = lambda _: None,
) -> Plan:
    """Return the plan of a request.

    Raises UnknownAsset, BadPartition, MissingInput where an input is neither in the
    run nor has ever been materialized, or what `config_of` raises.
    """
    targets = [(name, _target_key(graph, name, request.partition, at)) for name in request.assets]
    reads = _collect(graph, targets, at, follow=request.upstream)
    outside = sorted({up for read in reads.values() for up in read.nodes} - reads.keys())
    asked = outside if request.force else [*reads, *outside]
    made = latest(asked) if asked else {}
    missing = [node for node in outside if node not in made]
    _refuse_missing(missing, reads)
    why = _Why(graph, request, reads, made, config_of)
    rank = {name: i for i, name in enumerate(graph.order)}
    steps = tuple(
        _absent(graph, node) if node not in reads else why.step(node)
        # An asset cannot read itself, so the order of the assets is one of the steps; within
        # an asset, steps stay in the natural order in which they were found.
        for node in sorted([*reads, *missing], key=lambda n: rank[n[0]])
    )
    return Plan(steps, {node: made[node].step_id for node in outside if node in made})


@dataclass(frozen=True, slots=True)
class _Reads:
    """What one node reads, in order, and which of that it can do without."""

    nodes: tuple[Node, ...]
    optional: frozenset[Node]


class _Why:
    """Tells for one node after the other, each after what it reads, why it runs or does not."""

    def __init__(
        self,
        graph: AssetGraph,
        request: Request,
        reads: Mapping[Node, _Reads],
        made: Mapping[Node, Made],
        config_of: ConfigOf,
    ) -> None:
        self._graph = graph
        self._force = request.force
        self._reads = reads
        self._made = made
        self._config_hash = cache(lambda asset: _config_hash(config_of(asset)))
        self._policy = cache(lambda asset: graph[asset].policy(request.pool))
        self._running: set[Node] = set()

    def step(self, node: Node) -> PlannedStep:
        reason = self._reason(node)
        fresh = reason == FRESH
        if not fresh:
            self._running.add(node)
        return PlannedStep(
            asset=node[0],
            partition=node[1],
            queue=self._graph[node[0]].queue,
            reason=reason,
            upstream=self._reads[node].nodes,
            optional=self._reads[node].optional,
            skipped=fresh,
            reuses=self._made[node].step_id if fresh else None,
            policy=self._policy(node[0]),
        )

    def _reason(self, node: Node) -> str:
        asset = self._graph[node[0]]
        # Asked in any case, so that a config that does not fit is told.
        config = self._config_hash(asset.name)
        made = self._made.get(node)
        if self._force:
            return "forced"
        if made is None:
            return "missing"
        if made.stale or asset.volatile:
            return made.stale or "volatile"
        of = made.fingerprint or _NOT_KEPT
        if of.code != asset.code_hash:
            return "code changed" if made.fingerprint else "not known what it was made of"
        if of.config != config:
            return "config changed"
        return self._because_of_inputs(self._reads[node].nodes, of)

    def _because_of_inputs(self, nodes: Sequence[Node], of: Fingerprint) -> str:
        running = [up for up in nodes if up in self._running]
        if not running:
            return FRESH if of.inputs == inputs_hash(self._values(nodes)) else "input changed"
        more = f" and {len(running) - 1} more" if len(running) > 1 else ""
        return f"upstream runs: {step_name(*running[0])}{more}"

    def _values(self, nodes: Iterable[Node]) -> Iterator[Input]:
        for node in nodes:
            made = self._made.get(node)
            yield (*node, made.sha256 if made else None)


_NO_CONFIG: Final = digest(None)


def _config_hash(config: object) -> str:
    # Most assets take none.
    return _NO_CONFIG if config is None else digest(config)


_NOT_KEPT: Final = Fingerprint("", "", "")
"""That of an output from before fingerprints were kept."""

FRESH: Final = "fresh"
"""The reason of a step whose code, config and inputs are those of its latest output."""


def _absent(graph: AssetGraph, node: Node) -> PlannedStep:
    return PlannedStep(
        *node, graph[node[0]].queue, "never materialized, and optional", (), skipped=True
    )


def _target_key(graph: AssetGraph, name: str, partition: str, at: Moment) -> str:
    asset = graph[name]
    try:
        return encode_key(parse_key(asset.partitions, partition, at))
    except BadPartition as error:
        if decode_key(partition) == UNPARTITIONED:
            shown = ", ".join(str(k) for k in first_keys(asset.partitions, 2, at))
            raise BadPartition(
                f"asset {name!r} is partitioned ({asset.partitions}); "
                f"give a partition such as {shown}"
            ) from error
        raise BadPartition(f"asset {name!r}: {error.message}") from error


def _collect(
    graph: AssetGraph, targets: Iterable[Node], at: Moment, *, follow: bool
) -> dict[Node, _Reads]:
    """Return what each node of the run reads; with `follow`, everything upstream is in it."""
    reads: dict[Node, _Reads] = {}
    todo = deque(targets)
    while todo:
        node = todo.popleft()
        if node not in reads:
            reads[node] = _inputs(graph, node, at)
            if follow:
                todo += reads[node].nodes
    return reads


def _inputs(graph: AssetGraph, node: Node, at: Moment) -> _Reads:
    nodes: list[Node] = []
    optional: set[Node] = set()
    for dependency in graph[node[0]].dependencies:
        found = list(_keys(graph, node, dependency, at))
        nodes += found
        if dependency.optional:
            optional.update(found)
    return _Reads(tuple(nodes), frozenset(optional))


def _keys(graph: AssetGraph, node: Node, dependency: Dependency, at: Moment) -> Iterator[Node]:
    asset, upstream = graph[node[0]], graph[dependency.asset]
    mapping = graph.mappings[asset.name, upstream.name]
    key = parse_key(asset.partitions, node[1], at)
    try:
        keys = list(mapping.upstream_keys(key, asset.partitions, upstream.partitions, at))
    except BadPartition as error:
        if dependency.optional:
            # There is no such partition, so it is as missing as one can be.
            return
        raise BadPartition(
            f"{step_name(*node)} reads {upstream.name!r} by {mapping}: {error.message}"
        ) from error
    except Exception as error:
        # The mapping may be the user's own, and a run that cannot be planned has to end.
        raise BadMapping(
            f"{step_name(*node)} reads {upstream.name!r} by {mapping}, which failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    for up in keys:
        yield upstream.name, encode_key(up)


def _refuse_missing(missing: Iterable[Node], reads: Mapping[Node, _Reads]) -> None:
    absent = set(missing)
    for reader, read in reads.items() if absent else ():
        for up in read.nodes:
            if up in absent and up not in read.optional:
                raise MissingInput(
                    f"{step_name(*up)}, read by {step_name(*reader)}, has never been "
                    "materialized; materialize it first, or ask for everything upstream "
                    "(materialize_all, or --upstream on the command line)"
                )
