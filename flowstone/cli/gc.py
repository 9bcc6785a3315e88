"""`flowstone gc`: delete the values that nobody needs any more."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import collector, runtime
from flowstone.cli.options import DryRun

_SHOWN = 50


def gc(
    *,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many versions to keep of assets that do not say so; all without."
        ),
    ] = None,
    quarantine_days: Annotated[
        float, typer.Option(min=0, help="How long to keep what checks have refused.")
    ] = collector.QUARANTINE_DAYS,
    dry_run: DryRun = False,
) -> None:
    """Delete what attempts have left behind, old versions, and what is long in quarantine.

    FLOWSTONE_ASSETS says where the assets are defined, whose `keep=` counts.

    Example: flowstone gc --dry-run
    """
    if keep is None and not runtime.current().registry.graph.assets:
        typer.echo("no definitions are loaded (FLOWSTONE_ASSETS), so no version is too many")
    found = collector.collect(keep=keep, quarantine_days=quarantine_days, dry_run=dry_run)
    table = Table("", "asset", "kept by", "bytes")
    table.add_column("location", overflow="fold")
    for one in found[:_SHOWN]:
        size = "" if one.size is None else f"{one.size:,}"
        table.add_row(one.kind, escape(one.name), one.io, size, escape(one.location))
    if found:
        Console().print(table)
    more = f" ({len(found) - _SHOWN} of them not shown)" if len(found) > _SHOWN else ""
    typer.echo(f"{len(found)} values {'would be' if dry_run else 'were'} deleted{more}")
