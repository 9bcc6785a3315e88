"""`flowstone plan` and `flowstone start`: what a run would do, and doing exactly that."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import client, runtime
from flowstone.asset import Dependency
from flowstone.cli.options import (
    AssetConfig,
    Detach,
    Force,
    Managers,
    Override,
    Partition,
    Pool,
    RunId,
    RunPriority,
    Timeout,
    Upstream,
    Window,
    config_of,
    key_of,
    managers_of,
    overrides_of,
)
from flowstone.cli.run import watch
from flowstone.graph import AssetGraph
from flowstone.handle import RunHandle
from flowstone.partition_key import label, step_name
from flowstone.plan import Node, Plan, PlannedStep
from flowstone.priority import Priority
from flowstone.remaining import StoredStep
from flowstone.states import StepState

Asks = Literal["always", "perhaps"]


@dataclass(frozen=True)
class Read:
    """One asset that a step reads: by which mapping, and which partitions."""

    asset: str
    mapping: str | None
    partitions: Sequence[str]
    optional: bool
    needs: str | None = None
    """How much of it is enough, such as "at least 3"; None for all, and where nobody can tell."""


@dataclass(frozen=True)
class Line:
    """A step of a plan, as people see it."""

    asset: str
    partition: str
    action: str
    reason: str
    reads: Sequence[Read]
    takes: Mapping[str, int]
    """Slots by the key of the limit."""
    asks: Asks | None
    """Whether people will have to approve what it makes."""


@dataclass(frozen=True)
class Shown:
    """A plan, as people see it; `run` is the id of the run that it is stored with, if it is."""

    run: str | None
    lines: Sequence[Line]
    configs: Mapping[str, Any]


def plan(
    asset: Annotated[
        str | None, typer.Argument(help="The asset, or a selection such as +monthly_report.")
    ] = None,
    *,
    partition: Partition = None,
    upstream: Upstream = False,
    force: Force = None,
    config: AssetConfig = None,
    resource: Override = None,
    io: Managers = None,
    pool: Pool = None,
    priority: RunPriority = Priority.NORMAL,
    max_in_flight: Window = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the plan as a run that `flowstone start` starts.")
    ] = False,
    run: Annotated[
        str | None, typer.Option("--run", help="Show the stored plan of this run instead.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--steps", help="A line for each step, rather than for those alike.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which steps a run would have, and why each runs or is skipped; run nothing.

    Example: flowstone plan monthly_report --partition 2013-01 --upstream
    """
    if (asset is None) == (run is None):
        raise typer.BadParameter("give an asset, or --run with the id of a run; one of the two")
    if run is not None:
        # The definitions may have changed since, so the mappings are not known any more.
        _print(_of_run(client.run(run)), every=every, as_json=as_json)
        return
    assert asset is not None
    wanted: dict[str, Any] = {
        "partition": key_of(partition),
        "upstream": upstream,
        "force": force,
        "config": config_of(config),
        "resources": overrides_of(resource),
        "io": managers_of(io),
        "pool": pool,
    }
    graph = runtime.current().registry.graph
    if save:
        handle = client.save_plan(
            asset, **wanted, priority=priority.value, max_in_flight=max_in_flight
        )
        # What was stored, and not a second look that might see something newer.
        _print(_of_run(handle, graph), every=every, as_json=as_json)
        if not as_json:
            typer.echo(f"saved; start it with: flowstone start {str(handle.id)[:8]}")
        return
    planned = client.preview(asset, **wanted)
    _print(Shown(None, _planned(planned, graph), planned.configs), every=every, as_json=as_json)


def show_preview(plan: Plan, *, as_json: bool) -> None:
    """Print a plan that is not stored."""
    lines = _planned(plan, runtime.current().registry.graph)
    _print(Shown(None, lines, plan.configs), every=False, as_json=as_json)


def start(run: RunId, detach: Detach = False, timeout: Timeout = None) -> None:
    """Start a run that `flowstone plan --save` has planned, or that is paused; show the progress.

    Example: flowstone start 3f1c
    """
    handle = client.run(run).start()
    if detach:
        typer.echo(str(handle.id))
        return
    watch(handle, Console(), timeout)


def _of_run(handle: RunHandle, graph: AssetGraph | None = None) -> Shown:
    return Shown(str(handle.id), _stored(handle.plan(), graph), handle.configs())


def _planned(plan: Plan, graph: AssetGraph) -> list[Line]:
    return [
        Line(
            step.asset,
            step.partition,
            _action(step),
            step.reason,
            _reads(step.asset, step.upstream, step.optional, graph),
            step.policy.takes,
            None if _action(step) != "run" else _asks(step.asset, graph),
        )
        for step in plan.steps
    ]


def _stored(steps: Iterable[StoredStep], graph: AssetGraph | None = None) -> list[Line]:
    return [
        Line(
            step.asset,
            step.partition,
            step.state.value,
            step.reason,
            _reads(step.asset, [node for node, _ in step.reads], step.optional, graph),
            step.policy.takes,
            _asks(step.asset, graph) if graph and step.state == StepState.PENDING else None,
        )
        for step in steps
    ]


def _asks(asset: str, graph: AssetGraph) -> Asks | None:
    """Return whether people will have to approve what the asset makes, as far as it says so."""
    approval = graph[asset].approval
    if approval is None:
        return None
    return "always" if approval.when is None else "perhaps"


def _reads(
    asset: str, nodes: Iterable[Node], optional: frozenset[Node], graph: AssetGraph | None
) -> list[Read]:
    by_asset: dict[str, list[str]] = {}
    for name, partition in nodes:
        by_asset.setdefault(name, []).append(partition)
    if graph is None:
        return [
            Read(name, None, keys, (name, keys[0]) in optional) for name, keys in by_asset.items()
        ]
    dependencies = {one.asset: one for one in graph[asset].dependencies}
    return [
        Read(
            name,
            str(graph.mappings[asset, name]),
            keys,
            dependencies[name].optional,
            _needs(dependencies[name]),
        )
        for name, keys in by_asset.items()
    ]


def _needs(dependency: Dependency) -> str | None:
    return None if dependency.needs is None else str(dependency.needs)


def _print(shown: Shown, *, every: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_as_json(shown), ensure_ascii=False))
        return
    lines = shown.lines
    console = Console()
    console.print(_table(_each(lines) if every else _together(lines)))
    for asset, values in sorted(shown.configs.items()):
        # In an order that those of stored plans have, too: PostgreSQL keeps none.
        pairs = sorted(values.items())
        said = ", ".join(f"{name}={json.dumps(v, ensure_ascii=False)}" for name, v in pairs)
        typer.echo(f"config of {asset}: {said}")
    for asset, takes in {line.asset: line.takes for line in lines if line.takes}.items():
        slots = ", ".join(f"{count} of {key}" for key, count in sorted(takes.items()))
        typer.echo(f"each step of {asset} takes {slots}")
    for asset, asks in {line.asset: line.asks for line in lines if line.asks}.items():
        perhaps = " perhaps, as its value says" if asks == "perhaps" else ""
        typer.echo(f"each step of {asset} waits for an approval{perhaps}")
    actions = Counter(line.action for line in lines)
    console.print(
        f"{len(lines)} step{'' if len(lines) == 1 else 's'}: "
        + ", ".join(f"{n} {action}" for action, n in actions.items()),
        highlight=False,
    )


def _each(lines: Iterable[Line]) -> Iterator[tuple[str, Line]]:
    return ((step_name(line.asset, line.partition), line) for line in lines)


def _together(lines: Iterable[Line]) -> Iterator[tuple[str, Line]]:
    """Yield one line for partitions that follow each other for the same reason."""

    def same(line: Line) -> tuple[str, str, str]:
        return line.asset, line.action, _without_keys(line.reason)

    for _, members in itertools.groupby(lines, same):
        first, *rest = members
        if not rest:
            yield step_name(first.asset, first.partition), first
            continue
        keys = f"{label(first.partition)} .. {label(rest[-1].partition)}"
        yield (
            f"{first.asset}[{keys}] ({len(rest) + 1})",
            replace(first, reason=_without_keys(first.reason)),
        )


def _action(step: PlannedStep) -> str:
    if step.awaits_until is not None:
        return "wait"
    return "skip" if step.skipped else "run"


def _without_keys(reason: str) -> str:
    """Return a reason that names a step as one that names its asset only."""
    return re.sub(r"\[.*\]", "", reason)


def _table(rows: Iterable[tuple[str, Line]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", overflow="fold")
    table.add_column("")
    table.add_column("why", overflow="fold")
    table.add_column("reads", overflow="fold")
    for name, line in rows:
        reads = "\n".join(_told(read) for read in line.reads)
        table.add_row(escape(name), _styled(line.action), escape(line.reason), escape(reads))
    return table


def _styled(action: str) -> str:
    style = {
        "run": "yellow",
        "wait": "cyan",
        "skip": "green",
        "skipped": "green",
        "succeeded": "green",
    }
    return f"[{style.get(action, 'default')}]{action}[/]"


def _told(read: Read) -> str:
    keys = f", {len(read.partitions)}" if len(read.partitions) > 1 else ""
    mapping = f"{read.mapping}{keys}" if read.mapping else keys.removeprefix(", ")
    optional = " optional" if read.optional else ""
    needs = f", needs {read.needs}" if read.needs else ""
    return f"{read.asset}{optional}" + (f" ({mapping}{needs})" if mapping else "")


def _as_json(shown: Shown) -> dict[str, Any]:
    return {
        "run": shown.run,
        "config": dict(shown.configs),
        "steps": [
            {
                "asset": line.asset,
                "partition": label(line.partition) or None,
                "action": line.action,
                "reason": line.reason,
                "takes": dict(line.takes),
                "asks": line.asks,
                "reads": [
                    {
                        "asset": read.asset,
                        "mapping": read.mapping,
                        "optional": read.optional,
                        "needs": read.needs,
                        "partitions": [label(key) or None for key in read.partitions],
                    }
                    for read in line.reads
                ],
            }
            for line in shown.lines
        ],
        "counts": dict(Counter(line.action for line in shown.lines)),
    }
