"""`flowstone show`: what an asset is, and what of it there is."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import runtime
from flowstone.asset import Asset
from flowstone.errors import LedgerUnavailable, WrongMigration
from flowstone.graph import AssetGraph
from flowstone.partition_key import label
from flowstone.runtime import Runtime
from flowstone.store import outputs

_SHOWN = 10


def show(
    asset: Annotated[str | None, typer.Argument(help="An asset; all of them without.")] = None,
) -> None:
    """Show an asset: what it reads, who reads it, and its latest outputs.

    Example: flowstone show monthly_report
    """
    here = runtime.current()
    console = Console()
    if asset is None:
        console.print(_all(here.registry.graph))
        return
    found = here.registry.graph[asset]
    console.print(_facts(found, here.registry.graph))
    _print_outputs(console, here, found)


def _all(graph: AssetGraph) -> Table:
    table = Table("asset", "partitions", "reads")
    for name in graph.order:
        asset = graph[name]
        reads = ", ".join(d.asset for d in asset.dependencies)
        table.add_row(name, str(asset.partitions), reads)
    return table


def _facts(asset: Asset, graph: AssetGraph) -> Table:
    reads = [f"{d.asset} ({graph.mappings[asset.name, d.asset]})" for d in asset.dependencies]
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in {
        "asset": asset.name,
        "description": asset.description,
        "partitions": str(asset.partitions),
        "reads": "\n".join(reads),
        "read by": ", ".join(graph.readers(asset.name)),
        "queue": asset.queue,
        "resources": ", ".join(asset.requires),
        "defined": asset.location,
    }.items():
        if value:
            table.add_row(f"[bold]{name}", escape(value))
    return table


def _print_outputs(console: Console, here: Runtime, asset: Asset) -> None:
    try:
        with here.ledger.begin() as conn:
            found = outputs.latest_of(conn, asset.name)
    except (LedgerUnavailable, WrongMigration) as error:
        # What is defined can be shown without a database.
        console.print(f"outputs are not shown: {error.message}", style="yellow", markup=False)
        return
    shown = f"the last {_SHOWN} of " if len(found) > _SHOWN else ""
    table = Table("partition", "rows", "bytes", title=f"outputs: {shown}{len(found)}")
    table.add_column("location", overflow="fold")
    for named in found[-_SHOWN:]:
        rows = "" if named.output.rows is None else f"{named.output.rows:,}"
        table.add_row(
            escape(label(named.partition)),
            rows,
            f"{named.output.size:,}",
            escape(here.outputs.path(named.output)),
        )
    console.print(table)
