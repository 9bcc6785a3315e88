"""`flowstone graph`: the assets that are defined, what they read, and what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from flowstone import runtime
from flowstone.asset import Asset, Dependency
from flowstone.attributes import told_tags
from flowstone.errors import BadQuery
from flowstone.graph import AssetGraph
from flowstone.selection import resolve


def graph(
    selection: Annotated[
        str, typer.Argument(help="Which assets: '+report', 'raw_*', 'tag:daily and not group:old'.")
    ] = "*",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print a diagram that Mermaid draws.")
    ] = False,
) -> None:
    """Show the assets of a selection in the order of the graph: partitions, what they read, tags.

    Example: flowstone graph '+monthly_report and not tag:slow'
    """
    if as_json and as_mermaid:
        raise BadQuery("--json and --mermaid are two forms; ask for one of them")
    graph = runtime.current().registry.graph
    selected = resolve(graph, [selection]).assets
    names = [name for name in graph.order if name in selected]
    if as_json:
        typer.echo(json.dumps([_as_json(graph, name) for name in names], ensure_ascii=False))
    elif as_mermaid:
        typer.echo("\n".join(_mermaid(graph, names)))
    else:
        _print(graph, names)


def _print(graph: AssetGraph, names: Sequence[str]) -> None:
    console = Console()
    for name in names:
        asset = graph[name]
        heading = Text(name, style="bold")
        heading.append(f"  {asset.partitions}", style="not bold dim")
        console.print(heading)
        for line in _facts(graph, asset):
            console.print(Padding(Text(line), (0, 0, 0, 4), expand=False))
    total = f" of {len(graph.order)}" if len(names) < len(graph.order) else ""
    console.print(f"assets: {len(names)}{total}", highlight=False)


def _facts(graph: AssetGraph, asset: Asset) -> Iterator[str]:
    reads = [_read(graph, asset.name, dependency) for dependency in asset.dependencies]
    if reads:
        yield "reads " + ", ".join(reads)
    said = {
        "group": asset.group,
        "kind": asset.kind,
        "tags": ", ".join(told_tags(asset.tags)),
        "owners": ", ".join(asset.owners),
    }
    if any(said.values()):
        yield "; ".join(f"{what} {value}" for what, value in said.items() if value)


def _read(graph: AssetGraph, name: str, dependency: Dependency) -> str:
    optional = ", optional" if dependency.optional else ""
    needs = f", needs {dependency.needs}" if dependency.needs else ""
    return f"{dependency.asset} ({graph.mappings[name, dependency.asset]}{optional}{needs})"


def _as_json(graph: AssetGraph, name: str) -> dict[str, Any]:
    asset = graph[name]
    return {
        "asset": name,
        "description": asset.description,
        "location": asset.location,
        "partitions": str(asset.partitions),
        "reads": [
            {
                "asset": dependency.asset,
                "mapping": str(graph.mappings[name, dependency.asset]),
                "optional": dependency.optional,
            }
            for dependency in asset.dependencies
        ],
        "group": asset.group,
        "kind": asset.kind,
        "tags": dict(asset.tags),
        "owners": list(asset.owners),
    }


def _mermaid(graph: AssetGraph, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a flowchart; a group is a frame around its assets."""
    ids = {name: f"a{number}" for number, name in enumerate(names)}
    yield "flowchart LR"
    groups = dict.fromkeys(graph[name].group for name in names)
    for number, group in enumerate(groups):
        if group is not None:
            yield f'    subgraph g{number}["{_quoted(group)}"]'
        for name in names:
            if graph[name].group == group:
                yield f'    {"    " if group is not None else ""}{ids[name]}["{name}"]'
        if group is not None:
            yield "    end"
    for name in names:
        for dependency in graph[name].dependencies:
            if dependency.asset in ids:
                mapping = _quoted(str(graph.mappings[name, dependency.asset]))
                arrow = "-." if dependency.optional else "--"
                head = ".->" if dependency.optional else "-->"
                yield f'    {ids[dependency.asset]} {arrow} "{mapping}" {head} {ids[name]}'


def _quoted(text: str) -> str:
    """Return a text as it may stand in quotes; Mermaid takes what begins with # for a code."""
    return text.replace("#", "#35;").replace('"', "#quot;")
