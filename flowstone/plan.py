"""Planning: a request and the asset graph become steps and edges. Pure, and linear in both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from flowstone.asset import Asset
from flowstone.errors import MissingInput
from flowstone.freshness import Fingerprint, Input, digest, inputs_hash
from flowstone.graph import AssetGraph
from flowstone.limits import Policy
from flowstone.outline import Node, Outline
from flowstone.partition import Moment, PartitionSet
from flowstone.partition_key import decode_key, step_name
from flowstone.queues import DEFAULT_QUEUE
from flowstone.ranks import Ranks
from flowstone.reach import Reader, Reads, reach
from flowstone.request import Order, Request
from flowstone.rollup import too_few
from flowstone.targets import Standing, batches, not_known, selected_by, targets

__all__ = ["Draft", "Latest", "Made", "Node", "Plan", "PlannedStep", "build_plan", "draft_plan"]

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
    pinned: Mapping[Node, int] = field(default_factory=dict)
    """Inputs from outside the run: the step whose output is the latest at planning time."""
    place: int = 0
    """What is ready starts in this order."""
    awaits_until: datetime | None = None
    """Until when another run's output is waited for: then it is not computed by this one."""

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
    cut: str | None = None
    """How the partitions were cut of which it is one, where that is known."""


@dataclass(frozen=True)
class Draft:
    """A plan that is made while it is written: only its outline is kept in memory."""

    outline: Outline
    steps: Iterator[PlannedStep]
    """Each after all that it reads. Raises MissingInput for an input that is nowhere."""
    assets: tuple[str, ...] = ()
    """Those that the run computes, in the order of the graph."""
    configs: Mapping[str, Any] = field(default_factory=dict)
    """The config that each asset has which takes one, defaults included and without secrets."""


@dataclass(frozen=True)
class Plan:
    """The frozen steps of a run, each after all that it reads."""

    steps: tuple[PlannedStep, ...]
    configs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pinned(self) -> dict[Node, int]:
        """All inputs from outside the run."""
        return {node: id for step in self.steps for node, id in step.pinned.items()}

    def draft(self) -> Draft:
        """Return the plan as it is written."""
        outline = Outline()
        for step in self.steps:
            outline.add(step.node)
        for step in self.steps:
            for up in step.upstream:
                if up in outline:
                    outline.note(up, step.node)
        outline.arrange(outline.assets, outline.keys)
        assets = tuple(outline.assets)
        return Draft(outline, iter(self.steps), assets, self.configs)


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
    """Return the whole plan of a request; raises what `draft_plan` and its steps raise."""
    made = draft_plan(request, graph, latest, at, config_of)
    return Plan(tuple(made.steps), made.configs)


def draft_plan(
    request: Request,
    graph: AssetGraph,
    latest: Latest,
    at: Moment,
    config_of: ConfigOf = lambda _: None,
    *,
    standing: Standing = not_known,
) -> Draft:
    """Return the plan of a request, whose steps are still to be made, in bounded memory.

    Raises UnknownAsset, BadSelection, BadPartition, BadMapping, CyclicGraph, or what `config_of`
    raises; the steps raise MissingInput where an input is neither in the run nor has ever been
    materialized.
    """
    selected = selected_by(request, graph)

    def known(nodes: Sequence[Node]) -> Collection[Node]:
        return latest(nodes).keys()

    wanted = targets(request, graph, selected, at, known=known, standing=standing)
    reads = Reader(graph, at)
    outline = reach(wanted, selected, graph, at, known=known, reads=reads)
    computed = {*selected.anchors, *selected.above, *selected.below}
    assets = tuple(name for name in outline.assets if name in computed)
    configs = {name: config_of(name) for name in assets}
    why = _Why(graph, request, outline, reads, configs, ranks=Ranks(at))
    return Draft(outline, why.steps(latest), assets, configs)


class _Why:
    """Tells for one node after the other, each after what it reads, why it runs or does not."""

    def __init__(
        self,
        graph: AssetGraph,
        request: Request,
        outline: Outline,
        reads: Reader,
        configs: Mapping[str, Any],
        *,
        ranks: Ranks,
    ) -> None:
        self._graph = graph
        self._request = request
        self._outline = outline
        self._reader = reads
        self._configs = configs
        self._config_hash = cache(lambda asset: _config_hash(configs[asset]))
        self._policy = cache(lambda asset: graph[asset].policy(request.pool))
        self._ranks = ranks
        self._runs = bytearray(len(outline))
        self._made: Mapping[Node, Made] = {}

    def steps(self, latest: Latest) -> Iterator[PlannedStep]:
        """Yield the steps; what they need to know is looked up for some thousands at once."""
        found = ((node, self._reads(node)) for node in self._outline)
        for batch in batches(found, lambda pair: 1 + len(pair[1].nodes)):
            asked = self._asked(batch)
            self._made = latest(asked) if asked else {}
            for node, read in batch:
                yield self._step(node, read)

    def _reads(self, node: Node) -> Reads:
        if self._outline.is_absent(node):
            return Reads((), frozenset())
        return self._reader(node)

    def _asked(self, batch: Sequence[tuple[Node, Reads]]) -> list[Node]:
        """Return the nodes whose latest outputs count for these: their own, and what they read."""
        nodes = (one for node, read in batch for one in (node, *read.nodes))
        return [node for node in dict.fromkeys(nodes) if self._counts(node)]

    def _counts(self, node: Node) -> bool:
        place = self._outline.place(node)
        if place is None:
            return True
        # What runs anyway has no output yet that counts.
        return not (self._request.force or self._runs[place] or self._outline.is_absent(node))

    def _is_running(self, node: Node) -> bool:
        place = self._outline.place(node)
        return place is not None and bool(self._runs[place])

    def _step(self, node: Node, read: Reads) -> PlannedStep:
        asset = self._graph[node[0]]
        if self._outline.is_absent(node):
            return self._absent(node, self._queue(asset.queue))
        self._refuse_too_few(node, read)
        pinned = self._pinned(node, read)
        reason = self._reason(node, read)
        fresh = reason == FRESH
        place = self._outline.place(node)
        assert place is not None
        self._runs[place] = not fresh
        return PlannedStep(
            asset=node[0],
            partition=node[1],
            queue=self._queue(asset.queue),
            reason=reason,
            upstream=read.nodes,
            optional=read.optional,
            skipped=fresh,
            reuses=self._made[node].step_id if fresh else None,
            policy=self._policy(node[0]),
            pinned=pinned,
            place=self._place(asset.partitions, node),
        )

    def _absent(self, node: Node, queue: str) -> PlannedStep:
        until = self._outline.awaited(node)
        if until is None:
            why = "never materialized, and optional"
            return PlannedStep(*node, queue, why, (), skipped=True)
        why = f"never materialized, and waited for until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        return PlannedStep(*node, queue, why, (), awaits_until=until)

    def _refuse_too_few(self, node: Node, read: Reads) -> None:
        """Raise MissingInput where it is certain that a roll-up will have too few inputs."""
        for dependency in self._graph[node[0]].dependencies:
            if dependency.needs is None:
                continue
            group = [up for up in read.nodes if up[0] == dependency.asset]
            missing = [up for up in group if self._will_not_come(up)]
            said = too_few(node, dependency.asset, dependency.needs, len(group), missing)
            if said is not None:
                raise MissingInput(f"{said}; {_REMEDY}")

    def _will_not_come(self, up: Node) -> bool:
        if up not in self._outline:
            return up not in self._made
        return self._outline.is_absent(up) and self._outline.awaited(up) is None

    def _queue(self, own: str) -> str:
        given = self._request.queue
        return given if given is not None and own == DEFAULT_QUEUE else own

    def _place(self, partitions: PartitionSet, node: Node) -> int:
        """Return where a step stands in the order in which the partitions are to start."""
        if self._request.order is None:
            return 0
        key = decode_key(node[1])
        window = partitions.window_of(key)
        rank = self._ranks.of(partitions, key) if window is None else int(window.end.timestamp())
        return -rank if self._request.order == Order.NEWEST else rank

    def _pinned(self, node: Node, read: Reads) -> Mapping[Node, int]:
        """Return the steps of the inputs from outside; raise MissingInput where there is none."""
        pinned = {}
        for up in read.nodes:
            if up in self._outline:
                missing = self._outline.is_absent(up) and self._outline.awaited(up) is None
            elif up in self._made:
                pinned[up] = self._made[up].step_id
                continue
            else:
                missing = True
            if missing and up not in read.optional:
                raise MissingInput(
                    f"{step_name(*up)}, read by {step_name(*node)}, has never been "
                    f"materialized; {_REMEDY}"
                )
        return pinned

    def _reason(self, node: Node, read: Reads) -> str:
        asset = self._graph[node[0]]
        made = self._made.get(node)
        if self._request.force:
            return "forced"
        if made is None:
            return "missing"
        if made.stale or asset.volatile:
            return made.stale or "volatile"
        return self._changed(asset, made) or self._because_of_inputs(read.nodes, made)

    def _changed(self, asset: Asset, made: Made) -> str | None:
        if made.cut is not None and made.cut != asset.partitions.cut:
            return "the partition is cut otherwise now"
        if made.fingerprint is None:
            return "not known what it was made of"
        if made.fingerprint.code != asset.code_hash:
            return "code changed"
        return (
            None if made.fingerprint.config == self._config_hash(asset.name) else "config changed"
        )

    def _because_of_inputs(self, nodes: Sequence[Node], made: Made) -> str:
        for up in nodes:
            if up in self._outline and self._outline.awaited(up) is not None:
                return f"waits for {step_name(*up)}"
        running = [up for up in nodes if self._is_running(up)]
        if not running:
            same = made.fingerprint and made.fingerprint.inputs == inputs_hash(self._values(nodes))
            return FRESH if same else "input changed"
        more = f" and {len(running) - 1} more" if len(running) > 1 else ""
        return f"upstream runs: {step_name(*running[0])}{more}"

    def _values(self, nodes: Iterable[Node]) -> Iterator[Input]:
        for node in nodes:
            made = self._made.get(node)
            yield (*node, made.sha256 if made else None)


_REMEDY: Final = (
    "materialize it first, or ask for everything upstream (materialize_all, or --upstream on the "
    "command line)"
)

_NO_CONFIG: Final = digest(None)


def _config_hash(config: object) -> str:
    # Most assets take none.
    return _NO_CONFIG if config is None else digest(config)


FRESH: Final = "fresh"
"""The reason of a step whose code, config and inputs are those of its latest output."""
