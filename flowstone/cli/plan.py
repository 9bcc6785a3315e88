"""`flowstone plan` and `flowstone start`: what a run would do, and doing exactly that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import client, runtime
from flowstone.cli.options import Detach, Force, Partition, RunId, Timeout, Upstream, key_of
from flowstone.cli.run import watch
from flowstone.graph import AssetGraph
from flowstone.partition_key import label, step_name
from flowstone.plan import Node, Plan, StoredStep


@dataclass(frozen=True)
class Read:
    """One asset that a step reads: by which mapping, and which partitions."""

    asset: str
    mapping: str | None
    partitions: Sequence[str]
    optional: bool


@dataclass(frozen=True)
class Line:
    """A step of a plan, as people see it."""

    asset: str
    partition: str
    action: str
    reason: str
    reads: Sequence[Read]


def plan(
    asset: Annotated[str | None, typer.Argument(help="The asset to materialize.")] = None,
    *,
    partition: Partition = None,
    upstream: Upstream = False,
    force: Force = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the plan as a run that `flowstone start` starts.")
    ] = False,
    run: Annotated[
        str | None, typer.Option("--run", help="Show the stored plan of this run instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which steps a run would have, and why each runs or is skipped; run nothing.

    Example: flowstone plan monthly_report --partition 2013-01 --upstream
    """
    if (asset is None) == (run is None):
        raise typer.BadParameter("give an asset, or --run with the id of a run; one of the two")
    if run is not None:
        handle = client.run(run)
        _print(_stored(handle.plan()), str(handle.id), as_json=as_json)
        return
    assert asset is not None
    wanted: dict[str, Any] = {
        "partition": key_of(partition),
        "upstream": upstream,
        "force": force,
    }
    if save:
        handle = client.save_plan(asset, **wanted)
        # What was stored, and not a second look that might see something newer.
        _print(_stored(handle.plan()), str(handle.id), as_json=as_json)
        if not as_json:
            typer.echo(f"saved; start it with: flowstone start {str(handle.id)[:8]}")
        return
    graph = runtime.current().registry.graph
    _print(_planned(client.preview(asset, **wanted), graph), None, as_json=as_json)


def start(run: RunId, detach: Detach = False, timeout: Timeout = None) -> None:
    """Start a run that `flowstone plan --save` has planned, and show the progress.

    Example: flowstone start 3f1c
    """
    handle = client.run(run).start()
    if detach:
        typer.echo(str(handle.id))
        return
    watch(handle, Console(), timeout)


def _planned(plan: Plan, graph: AssetGraph) -> list[Line]:
    return [
        Line(
            step.asset,
            step.partition,
            "skip" if step.skipped else "run",
            step.reason,
            _reads(
                step.upstream,
                step.optional,
                {up: str(graph.mappings[step.asset, up]) for up, _ in step.upstream},
            ),
        )
        for step in plan.steps
    ]


def _stored(steps: Iterable[StoredStep]) -> list[Line]:
    return [
        Line(
            step.asset,
            step.partition,
            step.state.value,
            step.reason,
            _reads([node for node, _ in step.reads], step.optional, {}),
        )
        for step in steps
    ]


def _reads(
    nodes: Iterable[Node], optional: frozenset[Node], mappings: Mapping[str, str]
) -> list[Read]:
    by_asset: dict[str, list[str]] = {}
    for name, partition in nodes:
        by_asset.setdefault(name, []).append(partition)
    return [
        Read(name, mappings.get(name), keys, (name, keys[0]) in optional)
        for name, keys in by_asset.items()
    ]


def _print(lines: Sequence[Line], run: str | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_as_json(lines, run), ensure_ascii=False))
        return
    console = Console()
    table = Table("step", "", "why", "reads")
    for line in lines:
        table.add_row(
            escape(step_name(line.asset, line.partition)),
            _styled(line.action),
            escape(line.reason),
            escape("\n".join(_told(read) for read in line.reads)),
        )
    console.print(table)
    actions = Counter(line.action for line in lines)
    console.print(
        f"{len(lines)} steps: " + ", ".join(f"{n} {action}" for action, n in actions.items()),
        highlight=False,
    )
    for (action, reason), count in Counter(
        (line.action, line.reason.partition(":")[0]) for line in lines
    ).most_common():
        console.print(f"  {count:>6} {action}: {reason}", highlight=False, markup=False)


def _styled(action: str) -> str:
    style = {"run": "yellow", "skip": "green", "skipped": "green", "succeeded": "green"}
    return f"[{style.get(action, 'default')}]{action}[/]"


def _told(read: Read) -> str:
    keys = f", {len(read.partitions)}" if len(read.partitions) > 1 else ""
    mapping = f"{read.mapping}{keys}" if read.mapping else keys.removeprefix(", ")
    optional = " optional" if read.optional else ""
    return f"{read.asset}{optional}" + (f" ({mapping})" if mapping else "")


def _as_json(lines: Sequence[Line], run: str | None) -> dict[str, Any]:
    return {
        "run": run,
        "steps": [
            {
                "asset": line.asset,
                "partition": label(line.partition) or None,
                "action": line.action,
                "reason": line.reason,
                "reads": [
                    {
                        "asset": read.asset,
                        "mapping": read.mapping,
                        "optional": read.optional,
                        "partitions": [label(key) or None for key in read.partitions],
                    }
                    for read in line.reads
                ],
            }
            for line in lines
        ],
        "counts": dict(Counter(line.action for line in lines)),
    }
